//! The thread that a replica lives on.
//!
//! A replica may wait for the store; Raft's runtime must not (D11). So every call is
//! sent here as an order and the answer comes back through a channel. Orders run one after the
//! other, in the order they were sent. In a simulation there is no thread, and orders run at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::ReplicaError;
use crate::execution::Execution;
use crate::log::GroupId;
use crate::replica::Replica;

/// By then the rows that a replica put into its table have been written to the store and freed, by
/// another thread.
const IDLE_AFTER: Duration = Duration::from_secs(5);

type Order = Box<dyn FnOnce(&mut dyn Replica) + Send>;

/// Sends orders to one replica.
pub(crate) struct ReplicaThread {
    group: GroupId,
    place: Place,
}

/// Where the replica is; `None` once stopped.
enum Place {
    Thread {
        orders: Mutex<Option<mpsc::Sender<Order>>>,
        thread: Mutex<Option<thread::JoinHandle<()>>>,
    },
    Here(Mutex<Option<Box<dyn Replica>>>),
}

impl ReplicaThread {
    pub(crate) fn start(
        execution: Execution,
        on_idle: fn(),
        group: GroupId,
        replica: Box<dyn Replica>,
    ) -> std::io::Result<Self> {
        if matches!(execution, Execution::Inline { .. }) {
            return Ok(ReplicaThread { group, place: Place::Here(Mutex::new(Some(replica))) });
        }
        let (tx, rx) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("replica-{group}"))
            .spawn(move || run(on_idle, group, replica, rx))?;
        let (orders, thread) = (Mutex::new(Some(tx)), Mutex::new(Some(thread)));
        Ok(ReplicaThread { group, place: Place::Thread { orders, thread } })
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
        match &self.place {
            Place::Thread { orders, .. } => {
                if let Some(orders) = &*orders.lock() {
                    let _ = orders.send(order);
                }
            }
            Place::Here(replica) => {
                let mut replica = replica.lock();
                if let Some(there) = replica.as_deref_mut()
                    && !carry_out(self.group, there, order)
                {
                    *replica = None;
                }
            }
        }
    }

    /// Lets the orders that were sent run out, then drops the replica. Blocks.
    pub(crate) fn stop(&self) {
        match &self.place {
            Place::Thread { orders, thread } => {
                drop(orders.lock().take());
                let thread = thread.lock().take();
                if let Some(thread) = thread {
                    // The thread catches the replica's panics itself.
                    let _ = thread.join();
                }
            }
            Place::Here(replica) => *replica.lock() = None,
        }
    }
}

fn run(
    on_idle: fn(),
    group: GroupId,
    mut replica: Box<dyn Replica>,
    orders: mpsc::Receiver<Order>,
) {
    let mut idle_said = false;
    loop {
        let order = if idle_said {
            orders.recv().map_err(RecvTimeoutError::from)
        } else {
            orders.recv_timeout(IDLE_AFTER)
        };
        match order {
            Ok(order) => {
                if !carry_out(group, replica.as_mut(), order) {
                    return;
                }
                idle_said = false;
            }
            Err(RecvTimeoutError::Timeout) => {
                on_idle();
                idle_said = true;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// False after a panic: then the replica is not touched again, since what it left half done must
/// not be read.
fn carry_out(group: GroupId, replica: &mut dyn Replica, order: Order) -> bool {
    let done = catch_unwind(AssertUnwindSafe(|| order(replica))).is_ok();
    if !done {
        tracing::error!(%group, "replica panicked, its group stops on this node");
    }
    done
}
