//! Table to store: one background thread writes what changed, for all groups of this node
//! (architecture D13). Never decides what is in a table, never passes the locally synced log.

use std::sync::Arc;
use std::time::Duration;

use piton_raft::GroupId;
use piton_store::Table;
use tokio::sync::watch;

/// When checkpoints are due.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointConfig {
    /// Longest time between two checkpoints of a group with changes.
    pub(crate) interval: Duration,
    /// Bytes of rows not yet checkpointed, over all groups: past it, checkpoints come at once;
    /// past twice as many, admission slows.
    pub(crate) table_bytes: usize,
}

/// Tells the last index of a group's log that is durable here.
pub(crate) type SyncedIndex = Arc<dyn Fn(GroupId) -> u64 + Send + Sync>;

/// Hears of each checkpoint that wrote: how long it took, rows and bytes written.
pub(crate) type CheckpointObserver = Arc<dyn Fn(Duration, usize, usize) + Send + Sync>;

/// Runs the checkpoints of this node. Clones share it; the thread ends with [`Checkpoints::stop`].
#[derive(Clone)]
pub(crate) struct Checkpoints {}

impl Checkpoints {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        config: CheckpointConfig,
        synced: SyncedIndex,
        observer: CheckpointObserver,
    ) -> std::io::Result<Checkpoints> {
        let _ = (config, synced, observer);
        unimplemented!()
    }

    /// From now on also checkpoints this group.
    pub(crate) fn add(&self, table: Table) {
        let _ = table;
        unimplemented!()
    }

    /// Whether so much waits for the store that new requests must be refused.
    pub(crate) fn is_admission_slowed(&self) -> bool {
        unimplemented!()
    }

    /// Bytes not yet checkpointed, as of the last look.
    pub(crate) fn dirty_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Becomes `Some(reason)` when the store failed: the node must stop and rebuild it.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        unimplemented!()
    }

    /// Writes a last checkpoint of each group and ends the thread. Blocks.
    pub(crate) fn stop(&self) {
        unimplemented!()
    }
}
