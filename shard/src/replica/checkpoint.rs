//! Table to store: one background thread writes what changed, for all groups of this node
//! (D13). Never decides what is in a table, never passes the locally synced log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use piton_raft::{Execution, GroupId};
use piton_store::{CheckpointReport, StoreError, Table, with_causes};
use tokio::sync::watch;

use crate::room::Room;

/// After the disk refused what the store wrote, nothing is written for so many intervals: the store
/// reads all of its file when it has to open it again.
const REFUSED_INTERVALS: u32 = 5;
/// How often the thread looks at how much waits.
const LOOK: Duration = Duration::from_millis(20);
/// After a round, so many times as long as it took pass before the next one, and so many intervals at most,
/// unless the tables are full: what comes fast is written less often, and what changes again meanwhile once.
const ROUNDS_APART: u32 = 5;

/// When checkpoints are due.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointConfig {
    /// Time between two checkpoints of a group with changes; several times that where they take long.
    pub(crate) interval: Duration,
    /// Bytes of rows not yet checkpointed, over all groups: past it, checkpoints come at once;
    /// past twice as many, admission slows.
    pub(crate) table_bytes: usize,
    /// What is free on the disk.
    pub(crate) room: Room,
}

/// Tells the last index of a group's log that is durable here.
pub(crate) type SyncedIndex = Arc<dyn Fn(GroupId) -> u64 + Send + Sync>;

/// Hears of each checkpoint that wrote: how long it took, rows and bytes written.
pub(crate) type CheckpointObserver = Arc<dyn Fn(Duration, usize, usize) + Send + Sync>;

/// Runs the checkpoints of this node. Clones share it; the thread ends with [`Checkpoints::stop`].
#[derive(Clone)]
pub(crate) struct Checkpoints {
    shared: Arc<Shared>,
}

struct Shared {
    execution: Execution,
    config: CheckpointConfig,
    synced: SyncedIndex,
    observer: CheckpointObserver,
    tables: Mutex<Vec<Table>>,
    is_admission_slowed: AtomicBool,
    /// When the disk refused what was written.
    refused_at: Mutex<Option<Instant>>,
    /// So much waits that not even what is committed is applied.
    is_full: Mutex<bool>,
    emptied: Condvar,
    failed: watch::Sender<Option<String>>,
    stop: Mutex<bool>,
    stopped: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpoints {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        execution: Execution,
        config: CheckpointConfig,
        synced: SyncedIndex,
        observer: CheckpointObserver,
    ) -> std::io::Result<Checkpoints> {
        let shared = Arc::new(Shared {
            execution,
            config,
            synced,
            observer,
            tables: Mutex::new(Vec::new()),
            is_admission_slowed: AtomicBool::new(false),
            refused_at: Mutex::new(None),
            is_full: Mutex::new(false),
            emptied: Condvar::new(),
            failed: watch::Sender::new(None),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
            thread: Mutex::new(None),
        });
        if matches!(execution, Execution::Inline { .. }) {
            tokio::spawn(run_inline(Arc::clone(&shared)));
            return Ok(Checkpoints { shared });
        }
        let running = Arc::clone(&shared);
        let thread = thread::Builder::new().name("checkpoint".to_owned()).spawn(move || {
            running.run_guarded(|| running.run());
        })?;
        *shared.thread.lock() = Some(thread);
        Ok(Checkpoints { shared })
    }

    /// From now on also checkpoints this group.
    pub(crate) fn add(&self, table: Table) {
        self.shared.tables.lock().push(table);
    }

    /// A group is gone from this node.
    pub(crate) fn remove(&self, group: GroupId) {
        self.shared.tables.lock().retain(|table| table.group() != group.0);
    }

    /// Whether so much waits for the store that new requests must be refused.
    pub(crate) fn is_admission_slowed(&self) -> bool {
        self.shared.is_admission_slowed.load(Ordering::Relaxed)
    }

    /// Whether [`Self::await_room`] would return at once.
    pub(crate) fn has_room(&self) -> bool {
        matches!(self.shared.execution, Execution::Inline { .. }) || !*self.shared.is_full.lock()
    }

    /// Waits until the tables have room for what is committed: a follower's are filled by its
    /// leader, and a leader's by what was proposed before it was slowed. Blocks, except where there
    /// is but one thread.
    pub(crate) fn await_room(&self) {
        if matches!(self.shared.execution, Execution::Inline { .. }) {
            return;
        }
        let mut is_full = self.shared.is_full.lock();
        while *is_full {
            self.shared.emptied.wait(&mut is_full);
        }
    }

    /// Becomes `Some(reason)` when the store failed: the node must stop and rebuild it.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Writes a last checkpoint of each group and ends the thread. Blocks.
    pub(crate) fn stop(&self) {
        *self.shared.stop.lock() = true;
        self.shared.stopped.notify_all();
        self.shared.set_full(false);
        let thread = self.shared.thread.lock().take();
        if let Some(thread) = thread {
            // The thread reports its own panics.
            let _ended = thread.join();
        }
        let is_inline = matches!(self.shared.execution, Execution::Inline { .. });
        if is_inline && self.shared.failed.borrow().is_none() {
            self.shared.run_guarded(|| self.shared.round().and_then(|()| self.shared.round()));
        }
    }
}

impl Shared {
    /// False when nothing is written any more.
    fn run_guarded(&self, run: impl FnOnce() -> Result<(), (u32, StoreError)>) -> bool {
        let reason = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return true,
            Ok(Err((group, error))) => {
                tracing::error!(group, error = &error as &dyn std::error::Error, "store failed");
                format!("checkpoint group {group}: {}", with_causes(&error))
            }
            Err(_) => {
                tracing::error!("checkpoint thread panicked");
                "the checkpoint thread panicked".to_owned()
            }
        };
        // Nothing empties the tables any more: memory stays bounded only if nothing fills them.
        self.is_admission_slowed.store(true, Ordering::Relaxed);
        self.failed.send_replace(Some(reason));
        self.set_full(false);
        false
    }

    fn run(&self) -> Result<(), (u32, StoreError)> {
        let mut due = Instant::now() + self.config.interval;
        loop {
            let is_last = self.wait();
            let is_full = self.measure() > self.config.table_bytes;
            if is_last || is_full || Instant::now() >= due {
                let begun = Instant::now();
                self.round()?;
                let interval = self.config.interval;
                let apart = begun.elapsed() * ROUNDS_APART;
                due = begun + apart.clamp(interval, interval * ROUNDS_APART);
            }
            if is_last {
                // The first one may have written what was frozen before and could not be written then.
                return self.round();
            }
        }
    }

    /// Waits for the next look; true when the thread is to end.
    fn wait(&self) -> bool {
        let mut stop = self.stop.lock();
        if !*stop {
            self.stopped.wait_for(&mut stop, LOOK.min(self.config.interval));
        }
        *stop
    }

    /// Adds up what waits and tells admission.
    fn measure(&self) -> usize {
        let dirty = self.tables.lock().iter().map(Table::dirty_bytes).sum();
        let is_slowed = dirty > self.config.table_bytes.saturating_mul(2);
        if self.is_admission_slowed.swap(is_slowed, Ordering::Relaxed) != is_slowed {
            tracing::debug!(dirty, is_slowed, "admission follows the checkpoints");
        }
        self.set_full(dirty > self.config.table_bytes.saturating_mul(3));
        dirty
    }

    fn set_full(&self, is_full: bool) {
        let mut was_full = self.is_full.lock();
        // A thread that ends empties nothing: nobody must wait for it.
        *was_full = is_full && !*self.stop.lock() && self.failed.borrow().is_none();
        if !*was_full {
            self.emptied.notify_all();
        }
    }

    fn round(&self) -> Result<(), (u32, StoreError)> {
        let pause = self.config.interval * REFUSED_INTERVALS;
        if self.refused_at.lock().is_some_and(|at| at.elapsed() < pause) {
            return Ok(());
        }
        let tables = self.tables.lock().clone();
        for table in tables {
            let group = table.group();
            if !self.config.room.takes(table.dirty_bytes()) {
                // It stays in the table, and new work is refused meanwhile.
                continue;
            }
            let began = Instant::now();
            match table.checkpoint((self.synced)(GroupId(group))) {
                Ok(CheckpointReport::Written { rows, bytes, .. }) => {
                    (self.observer)(began.elapsed(), rows, bytes);
                    self.measure();
                    self.config.room.set_refused(false);
                }
                // A later round writes what could not be written now.
                Ok(CheckpointReport::Unchanged | CheckpointReport::Postponed(_)) => {}
                Err(StoreError::Restoring { .. } | StoreError::Unsynced { .. }) => {}
                Err(error @ StoreError::Full { .. }) => {
                    *self.refused_at.lock() = Some(Instant::now());
                    if self.config.room.set_refused(true) {
                        let reason = with_causes(&error);
                        tracing::error!(group, reason, "the disk is full, new work is refused");
                    }
                    return Ok(());
                }
                Err(error) => return Err((group, error)),
            }
        }
        Ok(())
    }
}

/// The same without a thread, for simulation; the last round is written by [`Checkpoints::stop`].
async fn run_inline(shared: Arc<Shared>) {
    let mut last_round = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LOOK.min(shared.config.interval)).await;
        if *shared.stop.lock() {
            return;
        }
        let is_full = shared.measure() > shared.config.table_bytes;
        if is_full || last_round.elapsed() >= shared.config.interval {
            last_round = tokio::time::Instant::now();
            if !shared.run_guarded(|| shared.round()) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
