//! The thread that a replica lives on.
//!
//! A replica may wait for the store; Raft's runtime must not (architecture D11). So every call is
//! sent here as an order and the answer comes back through a channel. Orders run one after the
//! other, in the order they were sent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::ReplicaError;
use crate::log::GroupId;
use crate::replica::Replica;

type Order = Box<dyn FnOnce(&mut dyn Replica) + Send>;

/// Sends orders to one replica.
pub(crate) struct ReplicaThread {
    /// `None` once stopped.
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl ReplicaThread {
    pub(crate) fn start(group: GroupId, replica: Box<dyn Replica>) -> std::io::Result<Self> {
        let (tx, rx) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("replica-{group}"))
            .spawn(move || run(group, replica, rx))?;
        Ok(ReplicaThread { orders: Mutex::new(Some(tx)), thread: Mutex::new(Some(thread)) })
    }

    /// Runs `order` on the replica's thread and waits for its answer.
    ///
    /// # Errors
    /// When the replica has panicked, in this order or an earlier one, or was stopped.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut dyn Replica) -> T + Send + 'static,
    ) -> Result<T, ReplicaError> {
        let (tx, rx) = oneshot::channel();
        self.send(Box::new(move |replica| {
            // Nobody waits any more: the caller was dropped, which changes nothing here.
            let _ = tx.send(order(replica));
        }));
        rx.await.map_err(|_| ReplicaError::new("take an order", "it panicked or was stopped"))
    }

    /// An order that does not arrive is dropped, and its answer's channel with it.
    fn send(&self, order: Order) {
        if let Some(orders) = &*self.orders.lock() {
            let _ = orders.send(order);
        }
    }

    /// Lets the orders that were sent run out, then drops the replica. Blocks.
    pub(crate) fn stop(&self) {
        drop(self.orders.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // The thread catches the replica's panics itself.
            let _ = thread.join();
        }
    }
}

fn run(group: GroupId, mut replica: Box<dyn Replica>, orders: mpsc::Receiver<Order>) {
    while let Ok(order) = orders.recv() {
        // After a panic the replica is not touched again: what it left half done must not be read.
        if catch_unwind(AssertUnwindSafe(|| order(replica.as_mut()))).is_err() {
            tracing::error!(%group, "replica panicked, its group stops on this node");
            return;
        }
    }
}
