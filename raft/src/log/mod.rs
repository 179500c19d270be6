//! The node's one log, shared by all of its Raft groups (architecture D9): one writer thread, one
//! batch, one sync for what all groups have waiting.
//!
//! This module knows groups, indices, terms and bytes. It never decodes an entry, never decides
//! what may be truncated or purged, and never acknowledges what is not durable.
//!
//! Read in this order: `record` (bytes of a record), `segment` (files and batches), `index`
//! (where each group's entries lie), `writer` (group commit), `recovery` (opening).

mod disk;
mod error;
mod fault;
mod stats;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub use disk::{Disk, DiskFile, RealDisk};
pub use error::LogError;
pub use fault::{FaultyDisk, Faults};
pub use stats::{LogStats, SYNC_BUCKETS_MICROS};

/// Identifies a Raft group on every node of the cluster.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One entry of a group's log: opaque bytes at an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRecord {
    pub index: u64,
    pub term: u64,
    pub bytes: Bytes,
}

/// Limits of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A segment is closed when the next batch would take it past this size.
    pub segment_bytes: u32,
    /// A segment's file is filled with zeros this far ahead of the writer, so that a sync need
    /// not write the file system's own records. 0: the file grows with every batch.
    pub preallocate_bytes: u32,
    /// Freed segment files kept for reuse.
    pub spare_segments_max: usize,
    /// Under load the writer waits up to this long for more to join a batch.
    pub gather_max: Duration,
    /// A writer without work for this long appends one empty batch, which proves the last one.
    pub idle_after: Duration,
    /// Recent entries kept in memory for replication, over all groups.
    pub cache_bytes_max: usize,
    /// Bytes that may wait for the disk; past it an append is refused. Admission upstream has to
    /// hold the load below it.
    pub waiting_bytes_max: usize,
    /// Reads every byte of every segment at opening instead of trusting their footers.
    pub verify_sealed: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            segment_bytes: 64 << 20,
            preallocate_bytes: 1 << 20,
            spare_segments_max: 2,
            gather_max: Duration::from_millis(1),
            idle_after: Duration::from_millis(50),
            cache_bytes_max: 64 << 20,
            waiting_bytes_max: 1 << 30,
            verify_sealed: false,
        }
    }
}

/// The place up to which a group's log was purged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    pub index: u64,
    /// The caller's own name for that place (its log id).
    pub bytes: Bytes,
}

/// Index and term of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryId {
    pub index: u64,
    pub term: u64,
}

/// What the log holds of one group, including what is not durable yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupLogState {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub purged: Option<Purged>,
    /// First entry after the purge point; `None`: there is none.
    pub first: Option<EntryId>,
    pub last: Option<EntryId>,
}

/// What opening the log found.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Groups with a vote, an entry, a purge point or a committed id, in order.
    pub groups: Vec<GroupId>,
    /// Entries over all groups.
    pub entries: u64,
    /// Segments read.
    pub segments: usize,
    /// Bytes of a torn batch that were cut off. They were never acknowledged.
    pub torn_bytes: u64,
    /// Records copied to a fresh segment because nothing proved that they had been synced.
    pub copied_records: u64,
}

/// The node's log. Clones share it; the writer thread ends with [`Log::shutdown`] or the last clone.
///
/// Operations of one group keep their order. All callbacks run on the writer thread (or at once on
/// the caller's where the log has failed): they must not block.
#[derive(Clone)]
pub struct Log {
    inner: Arc<()>,
}

impl Log {
    /// Opens the log in `dir`, creating it if there is none, and starts its writer.
    ///
    /// Blocks on the disk. Everything that the returned log holds is durable.
    ///
    /// # Errors
    ///
    /// [`LogError::Corrupt`] or [`LogError::Missing`] where durable bytes are damaged or gone.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: LogConfig,
    ) -> Result<(Log, Recovered), LogError> {
        let _ = (disk, dir, config);
        unimplemented!("published signatures")
    }

    /// Appends entries that continue the group's log (or begin it at any index, where it has
    /// neither entries nor a purge point). They can be read at once and are durable at `done`.
    pub fn append(
        &self,
        group: GroupId,
        entries: Vec<EntryRecord>,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        let _ = (&self.inner, group, entries, done);
        unimplemented!("published signatures")
    }

    /// Replaces the group's vote; durable at `done`.
    pub fn save_vote(
        &self,
        group: GroupId,
        vote: Bytes,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        let _ = (group, vote, done);
        unimplemented!("published signatures")
    }

    /// Replaces the group's committed id. It goes to disk with the next batch, or when idle.
    pub fn save_committed(&self, group: GroupId, committed: Bytes) {
        let _ = (group, committed);
        unimplemented!("published signatures")
    }

    /// Drops the group's entries from `from_index` on; durable at `done`.
    pub fn truncate(
        &self,
        group: GroupId,
        from_index: u64,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        let _ = (group, from_index, done);
        unimplemented!("published signatures")
    }

    /// Drops the group's entries up to and with `through_index`, which may lie past its last one:
    /// the next entry is the one after. `bytes` is the caller's name for that place.
    pub fn purge(
        &self,
        group: GroupId,
        through_index: u64,
        bytes: Bytes,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        let _ = (group, through_index, bytes, done);
        unimplemented!("published signatures")
    }

    /// Calls `done` once everything submitted before is durable.
    pub fn sync(&self, done: impl FnOnce(Result<(), LogError>) + Send + 'static) {
        let _ = done;
        unimplemented!("published signatures")
    }

    /// Reads the group's entries with an index in `range`, as many as there are, in order, until
    /// the next one would exceed `bytes_max` (but at least one). May read the disk.
    ///
    /// # Errors
    ///
    /// [`LogError::Corrupt`] where an entry's checksum does not match.
    pub fn read(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<EntryRecord>, LogError> {
        let _ = (group, range, bytes_max);
        unimplemented!("published signatures")
    }

    /// What the log holds of a group, including what is not durable yet.
    pub fn state(&self, group: GroupId) -> GroupLogState {
        let _ = group;
        unimplemented!("published signatures")
    }

    /// The last index up to which the group's entries are durable here (its purge point, if none
    /// is left; 0 for an unknown group). Bounds checkpoints.
    pub fn synced_index(&self, group: GroupId) -> u64 {
        let _ = group;
        unimplemented!("published signatures")
    }

    /// Bytes of the group's entries that are not purged. Decides when a snapshot is due.
    pub fn bytes_since_purge(&self, group: GroupId) -> u64 {
        let _ = group;
        unimplemented!("published signatures")
    }

    /// How long the oldest unfinished request has waited for the disk; zero when nothing waits.
    pub fn stalled_for(&self) -> Duration {
        unimplemented!("published signatures")
    }

    /// Bytes that wait for the disk.
    pub fn waiting_bytes(&self) -> usize {
        unimplemented!("published signatures")
    }

    /// Becomes `Some(reason)` when the log can no longer sync: the node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        unimplemented!("published signatures")
    }

    /// Counters since the log was opened.
    pub fn stats(&self) -> &LogStats {
        unimplemented!("published signatures")
    }

    /// Makes everything submitted durable, ends the writer thread, and refuses what comes later.
    pub fn shutdown(&self) {
        unimplemented!("published signatures")
    }
}
