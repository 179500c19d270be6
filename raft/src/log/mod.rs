//! The node's one log, shared by all of its Raft groups (D9): one writer thread, one
//! batch, one sync for what all groups have waiting.
//!
//! This module knows groups, indices, terms and bytes. It never decodes an entry, never decides
//! what may be truncated or purged, and never acknowledges what is not durable.
//!
//! Read in this order: `record` (bytes of a record), `segment` (files and batches), `index`
//! (where each group's entries lie), `writer` (group commit), `recovery` (opening).

mod contents;
mod disk;
mod error;
mod fault;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod golden_tests;
mod index;
mod inline;
mod reader;
mod record;
mod recovery;
mod segment;
mod shared;
mod stats;
mod writer;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};

use index::GroupIndex;
use shared::{ROOM_BYTES, Shared, Submitted};
use writer::Writer;

pub use contents::{LogContents, is_there};
pub use disk::{Disk, DiskFile, RealDisk};
pub use error::LogError;
pub use fault::{Faults, FaultyDisk};
pub use stats::{LogStats, SYNC_BUCKETS_MICROS};

// Offsets have 32 bits: a segment and what may wait for one batch stay well below.
const SEGMENT_BYTES_MAX: u32 = 1 << 30;
const SEGMENT_BYTES_MIN: u32 = 1 << 10;

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
    /// Bytes of entries that may wait for the disk; who appends waits for [`Log::room`] first.
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
            cache_bytes_max: 16 << 20,
            waiting_bytes_max: 128 << 20,
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
    /// The group was forgotten here, and nothing but votes has come since.
    pub is_forgotten: bool,
    /// How far the group's entries reached here before it was forgotten, until they reach as far
    /// again: no vote goes to a candidate with less.
    pub floor: Option<EntryId>,
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
/// Operations of one group keep their order. All callbacks run on the writer thread, or at once on
/// the caller's where an operation is refused: they must not block.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    writer: Arc<WriterThread>,
}

impl Log {
    /// Opens the log in `dir`, creating it if there is none, and starts its writer.
    ///
    /// Blocks on the disk. Everything that the returned log holds is durable. Two processes must
    /// not open the same directory.
    ///
    /// # Errors
    ///
    /// [`LogError::Corrupt`] or [`LogError::Missing`] where durable bytes are damaged or gone.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: LogConfig,
    ) -> Result<(Log, Recovered), LogError> {
        let (shared, mut writer, recovered) = Log::recover(disk, dir, config)?;
        writer.may_block = true;
        let thread = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| LogError::disk("start the writer of", &shared.dir, error))?;
        let thread = Mutex::new(Some(thread));
        let writer = WriterThread { shared: shared.clone(), thread, task: None };
        Ok((Log { shared, writer: Arc::new(writer) }, recovered))
    }

    /// As [`Log::open`], but without a thread: nothing is written but by the returned writer. For
    /// tests and simulations, which decide themselves when.
    pub fn open_manual(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: LogConfig,
    ) -> Result<(Log, Recovered, ManualWriter), LogError> {
        let (shared, writer, recovered) = Log::recover(disk, dir, config)?;
        let thread = WriterThread { shared: shared.clone(), thread: Mutex::new(None), task: None };
        Ok((Log { shared, writer: Arc::new(thread) }, recovered, ManualWriter { writer }))
    }

    /// As [`Log::open`], but the writer is a task on the caller's runtime, which waits for as long
    /// as the disk says that a sync takes. For simulation.
    ///
    /// # Errors
    ///
    /// As [`Log::open`].
    pub fn open_inline(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: LogConfig,
    ) -> Result<(Log, Recovered), LogError> {
        let (shared, writer, recovered) = Log::recover(disk.clone(), dir, config)?;
        let task = inline::start(shared.clone(), writer, disk);
        let (thread, task) = (Mutex::new(None), Some(task));
        let writer = WriterThread { shared: shared.clone(), thread, task };
        Ok((Log { shared, writer: Arc::new(writer) }, recovered))
    }

    fn recover(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: LogConfig,
    ) -> Result<(Arc<Shared>, Writer, Recovered), LogError> {
        let config = LogConfig {
            segment_bytes: config.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            waiting_bytes_max: config.waiting_bytes_max.min(SEGMENT_BYTES_MAX as usize),
            ..config
        };
        let opened = recovery::open(disk.as_ref(), &dir, &config)?;
        let shared = Arc::new(Shared::new(dir, config, opened.groups, opened.segments));
        let writer = Writer::new(shared.clone(), disk, opened.newest);
        Ok((shared, writer, opened.recovered))
    }

    /// Waits until so many bytes of entries may wait for the disk; they may as long as the result is
    /// kept. Votes, truncations and purges are small, Raft cannot do without them, and so they need
    /// none.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken by a future that is dropped.
    pub async fn room(&self, bytes: usize) -> Room {
        let all = self.shared.config.waiting_bytes_max.div_ceil(ROOM_BYTES).max(1);
        // What is larger than all there is goes alone.
        let units = bytes.div_ceil(ROOM_BYTES).clamp(1, all);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Room(Arc::clone(&self.shared.room).acquire_many_owned(units).await.ok())
    }

    /// Appends entries that continue the group's log (or begin it at any index, where it has
    /// neither entries nor a purge point). They can be read at once and are durable at `done`.
    pub fn append(
        &self,
        group: GroupId,
        entries: Vec<EntryRecord>,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        self.shared.submit(group, Submitted::Append { entries, ticket: 0 }, Box::new(done));
    }

    /// Replaces the group's vote; durable at `done`.
    pub fn save_vote(
        &self,
        group: GroupId,
        vote: Bytes,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        self.shared.submit(group, Submitted::Vote(vote), Box::new(done));
    }

    /// Replaces the group's committed id. It goes to disk with the next batch, or when the writer
    /// is idle; losing it costs nothing but work after a restart.
    pub fn save_committed(&self, group: GroupId, committed: Bytes) {
        self.shared.save_committed(group, committed);
    }

    /// Drops the group's entries from `from_index` on; durable at `done`.
    pub fn truncate(
        &self,
        group: GroupId,
        from_index: u64,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        self.shared.submit(group, Submitted::Truncate { from: from_index }, Box::new(done));
    }

    /// Drops the group's entries up to and with `through_index`, which may lie past its last one:
    /// the next entry is the one after. `bytes` is the caller's name for that place. A purge below
    /// an earlier one does nothing.
    pub fn purge(
        &self,
        group: GroupId,
        through_index: u64,
        bytes: Bytes,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        let purged = Purged { index: through_index, bytes };
        self.shared.submit(group, Submitted::Purge(purged), Box::new(done));
    }

    /// Drops everything of the group but its vote, and notes how far its entries reached: a replica
    /// that comes back must neither vote twice in a term nor as if it had acknowledged nothing. The
    /// log may then begin anew, at any index. Durable at `done`.
    pub fn forget(
        &self,
        group: GroupId,
        floor: Option<EntryId>,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) {
        self.shared.submit(group, Submitted::Forget { floor }, Box::new(done));
    }

    /// Calls `done` once everything submitted before is durable, the last committed ids too.
    pub fn sync(&self, done: impl FnOnce(Result<(), LogError>) + Send + 'static) {
        self.shared.submit(GroupId(0), Submitted::Sync, Box::new(done));
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
        self.shared.read(group, range, bytes_max)
    }

    /// The same as [`Log::read`] if no entry has to be read from the disk; never blocks on it.
    pub fn read_in_memory(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Option<Vec<EntryRecord>> {
        self.shared.read_in_memory(group, range, bytes_max)
    }

    /// What the log holds of a group, including what is not durable yet.
    pub fn state(&self, group: GroupId) -> GroupLogState {
        let state = self.shared.state.lock();
        state.groups.get(&group).map(GroupIndex::state).unwrap_or_default()
    }

    /// The last index up to which the group's entries are durable here (its purge point, if none
    /// is left; 0 for an unknown group). Bounds checkpoints.
    pub fn synced_index(&self, group: GroupId) -> u64 {
        self.shared.state.lock().groups.get(&group).map_or(0, GroupIndex::synced)
    }

    /// Bytes of the group's entries that are not purged. Decides when a snapshot is due.
    pub fn bytes_since_purge(&self, group: GroupId) -> u64 {
        self.shared.state.lock().groups.get(&group).map_or(0, GroupIndex::live_bytes)
    }

    /// Whether the group's log has that entry, or had it and purged it.
    pub fn holds(&self, group: GroupId, index: u64, term: u64) -> bool {
        let state = self.shared.state.lock();
        let Some(entries) = state.groups.get(&group) else { return false };
        entries.purged.as_ref().is_some_and(|purged| index <= purged.index)
            || entries.slot(index).is_some_and(|slot| slot.term == term)
    }

    /// The last entry of each term among the group's entries with an index in `range`.
    pub fn last_of_terms(&self, group: GroupId, range: Range<u64>) -> Vec<EntryId> {
        let state = self.shared.state.lock();
        let entries = state.groups.get(&group);
        entries.map_or_else(Vec::new, |entries| entries.last_of_terms(range))
    }

    /// Told when the writer met an entry that cannot be read.
    pub(crate) fn damage_met(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.damage_met)
    }

    /// Bytes of the group's entries with an index in `range`.
    pub fn bytes_in(&self, group: GroupId, range: Range<u64>) -> u64 {
        let state = self.shared.state.lock();
        state.groups.get(&group).map_or(0, |index| index.bytes_in(range))
    }

    /// The groups that were forgotten here and have not come back.
    pub fn forgotten(&self) -> Vec<GroupId> {
        let state = self.shared.state.lock();
        let forgotten = state.groups.iter().filter(|(_, index)| index.is_forgotten);
        forgotten.map(|(group, _)| *group).collect()
    }

    /// How long the oldest unfinished request has waited for the disk; zero when nothing waits.
    pub fn stalled_for(&self) -> Duration {
        let state = self.shared.state.lock();
        let since = state.in_flight_since.or(state.waiting_since);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Bytes that wait for the disk.
    pub fn waiting_bytes(&self) -> usize {
        let state = self.shared.state.lock();
        state.queue_bytes + state.in_flight_bytes
    }

    /// Bytes of all segments in use, with what is no longer needed but not yet freed.
    pub fn disk_bytes(&self) -> u64 {
        let state = self.shared.state.lock();
        state.segments.values().map(|segment| u64::from(segment.end)).sum()
    }

    /// Becomes `Some(reason)` when the log can no longer sync: the node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Counters since the log was opened.
    pub fn stats(&self) -> &LogStats {
        &self.shared.stats
    }

    /// Makes everything submitted durable, ends the writer thread, and refuses what comes later.
    /// Reading goes on.
    pub fn shutdown(&self) {
        self.writer.close();
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Log").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// Room for what waits for the disk; given back when dropped.
#[derive(Debug)]
pub struct Room(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

/// The writer of a log that was opened without a thread.
pub struct ManualWriter {
    writer: Writer,
}

impl ManualWriter {
    /// Writes what waits as one batch and runs its callbacks; with nothing waiting, does what an
    /// idle writer does (proves the last batch, frees and rewrites). False: the log has failed.
    pub fn write_batch(&mut self) -> bool {
        self.writer.step_now()
    }
}

impl fmt::Debug for ManualWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ManualWriter").finish_non_exhaustive()
    }
}

/// Ends the writer when the last handle goes.
struct WriterThread {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Where the writer is a task.
    task: Option<inline::Task>,
}

impl WriterThread {
    fn close(&self) {
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(task) = &self.task {
            task.finish();
        }
        let mut thread = self.thread.lock();
        // A callback may hold the last handle: the writer cannot wait for itself.
        let is_writer = |handle: &JoinHandle<()>| handle.thread().id() == thread::current().id();
        if let Some(handle) = thread.take_if(|handle| !is_writer(handle))
            && handle.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.close();
    }
}
