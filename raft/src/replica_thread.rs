//! Where a replica lives: behind a lock, with a thread for what may wait.
//!
//! A replica may wait for the store; Raft's runtime must not (D11). So a call is sent
//! to the thread as an order, and the answer comes back through a channel. What needs no store is
//! done at once on the caller's thread: an order costs two changes of threads. In a simulation there
//! is no thread, and orders run at once, too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
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

/// Carries out orders on one replica, one after the other.
pub(crate) struct ReplicaThread {
    guarded: Arc<Guarded>,
    /// `None` in a simulation.
    thread: Option<Thread>,
}

struct Guarded {
    group: GroupId,
    /// `None` once stopped, and after a panic: what it left half done must not be read.
    replica: Mutex<Option<Box<dyn Replica>>>,
}

struct Thread {
    /// `None` once stopped.
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    handle: Mutex<Option<thread::JoinHandle<()>>>,
}

impl ReplicaThread {
    pub(crate) fn start(
        execution: Execution,
        on_idle: fn(),
        group: GroupId,
        replica: Box<dyn Replica>,
    ) -> std::io::Result<Self> {
        let guarded = Arc::new(Guarded { group, replica: Mutex::new(Some(replica)) });
        if matches!(execution, Execution::Inline { .. }) {
            return Ok(ReplicaThread { guarded, thread: None });
        }
        let (tx, rx) = mpsc::channel();
        let there = Arc::clone(&guarded);
        let handle = thread::Builder::new()
            .name(format!("replica-{group}"))
            .spawn(move || run(on_idle, &there, &rx))?;
        let thread = Thread { orders: Mutex::new(Some(tx)), handle: Mutex::new(Some(handle)) };
        Ok(ReplicaThread { guarded, thread: Some(thread) })
    }

    /// Runs `order` where it may wait, and waits for its answer.
    ///
    /// # Errors
    /// When the replica has panicked, in this order or an earlier one, or was stopped.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut dyn Replica) -> T + Send + 'static,
    ) -> Result<T, ReplicaError> {
        let Some(thread) = &self.thread else {
            return self.guarded.carry_out(order).ok_or_else(gone);
        };
        let (tx, rx) = oneshot::channel();
        let order = move |replica: &mut dyn Replica| {
            // Nobody waits any more: the caller was dropped, which changes nothing here.
            let _ = tx.send(order(replica));
        };
        if let Some(orders) = &*thread.orders.lock() {
            // An order that does not arrive is dropped, and its answer's channel with it.
            let _ = orders.send(Box::new(order));
        }
        rx.await.map_err(|_| gone())
    }

    /// Runs `order` at once on this thread, so it must not wait. `None`: it did not run, since
    /// another order is being carried out.
    ///
    /// # Errors
    /// As [`ReplicaThread::call`].
    pub(crate) fn call_here<T>(
        &self,
        order: impl FnOnce(&mut dyn Replica) -> T,
    ) -> Option<Result<T, ReplicaError>> {
        let replica = self.guarded.replica.try_lock()?;
        Some(self.guarded.carry_out_on(replica, order).ok_or_else(gone))
    }

    /// Lets the orders that were sent run out, then drops the replica. Blocks.
    pub(crate) fn stop(&self) {
        if let Some(thread) = &self.thread {
            drop(thread.orders.lock().take());
            let handle = thread.handle.lock().take();
            if let Some(handle) = handle {
                // The replica's panics are caught where they happen.
                let _ = handle.join();
            }
        }
        drop(self.guarded.replica.lock().take());
    }
}

fn gone() -> ReplicaError {
    ReplicaError::new("take an order", "it panicked or was stopped")
}

impl Guarded {
    /// `None`: the replica has panicked, now or before, or was stopped.
    fn carry_out<T>(&self, order: impl FnOnce(&mut dyn Replica) -> T) -> Option<T> {
        self.carry_out_on(self.replica.lock(), order)
    }

    fn carry_out_on<T>(
        &self,
        mut replica: parking_lot::MutexGuard<'_, Option<Box<dyn Replica>>>,
        order: impl FnOnce(&mut dyn Replica) -> T,
    ) -> Option<T> {
        let there = replica.as_deref_mut()?;
        let done = catch_unwind(AssertUnwindSafe(|| order(there))).ok();
        if done.is_none() {
            tracing::error!(group = %self.group, "replica panicked, its group stops on this node");
            *replica = None;
        }
        done
    }
}

fn run(on_idle: fn(), guarded: &Guarded, orders: &mpsc::Receiver<Order>) {
    let mut idle_said = false;
    loop {
        let order = if idle_said {
            orders.recv().map_err(RecvTimeoutError::from)
        } else {
            orders.recv_timeout(IDLE_AFTER)
        };
        match order {
            Ok(order) => {
                if guarded.carry_out(order).is_none() {
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

#[cfg(test)]
mod tests;
