//! What the log's handles and its writer share, under one lock: the queue of operations, every
//! group's index, and the segments. Never touches the disk while it holds the lock.
//!
//! INVARIANT: an operation enters the queue under the same lock that changes the index. So when
//! the writer takes the whole queue, the index shows exactly what the log will say once that
//! batch is durable; heads of segments, rewriting and freeing rely on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::disk::DiskFile;
use super::index::{Found, GroupIndex, Removed, Slot, Whereabouts};
use super::reader::EntryReader;
use super::record::{HEADER_BYTES, PAYLOAD_BYTES_MAX, Place};
use super::{EntryId, EntryRecord, GroupId, LogConfig, LogError, LogStats, Purged};

/// Told on the writer thread how an operation ended.
pub(super) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// What is to be written for a group.
pub(super) enum Submitted {
    Append {
        entries: Vec<EntryRecord>,
        ticket: u64,
    },
    Vote(Bytes),
    Truncate {
        from: u64,
    },
    Purge(Purged),
    /// Drops all but the vote.
    Forget {
        floor: Option<EntryId>,
    },
    /// Nothing: tells when everything before is durable.
    Sync,
}

pub(super) struct Operation {
    pub(super) group: GroupId,
    pub(super) submitted: Submitted,
    pub(super) done: Done,
    /// What it takes up in a batch.
    pub(super) bytes: usize,
}

/// A segment and what of it still counts.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Bytes in use, from the begin.
    pub(super) end: u32,
    pub(super) live_entries: u64,
    pub(super) live_bytes: u64,
}

/// An entry of the oldest segment that has to move so that the segment can be freed.
pub(super) struct Rewrite {
    pub(super) group: GroupId,
    pub(super) index: u64,
    pub(super) slot: Slot,
    pub(super) from: Place,
    /// Its bytes, if they are in memory.
    pub(super) bytes: Option<Bytes>,
}

/// What a segment's head says of a group: all but its entries.
pub(super) struct GroupHead {
    pub(super) group: GroupId,
    pub(super) vote: Option<Bytes>,
    pub(super) purged: Option<Purged>,
    pub(super) committed: Option<Bytes>,
    /// Nothing has come since the group was forgotten.
    pub(super) is_forgotten: bool,
    /// How far its entries reached before that, until they reach as far again.
    pub(super) floor: Option<EntryId>,
}

impl GroupHead {
    /// Of a group of which nothing is known.
    pub(super) fn of(group: GroupId) -> Self {
        let (vote, purged, committed, floor) = (None, None, None, None);
        Self { group, vote, purged, committed, is_forgotten: false, floor }
    }
}

pub(super) struct State {
    pub(super) groups: BTreeMap<GroupId, GroupIndex>,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) queue: Vec<Operation>,
    pub(super) queue_bytes: usize,
    /// Groups whose committed id has changed since it was last written.
    pub(super) committed_changed: BTreeSet<GroupId>,
    pub(super) waiting_since: Option<Instant>,
    pub(super) in_flight_since: Option<Instant>,
    pub(super) in_flight_bytes: usize,
    /// The writer sleeps until the queue is this long.
    pub(super) wake_at: Option<usize>,
    /// The writer sleeps without a time limit: it has nothing to do when idle.
    pub(super) has_no_chores: bool,
    pub(super) closing: bool,
    /// The writer waits for room on the disk.
    pub(super) is_full: bool,
    pub(super) failure: Option<String>,
    next_ticket: u64,
    /// Bytes of entries in memory, over all groups.
    recent_bytes: usize,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) wake: Wake,
    pub(super) stats: LogStats,
    pub(super) failed: watch::Sender<Option<String>>,
    pub(super) config: LogConfig,
    pub(super) dir: PathBuf,
    /// Room for what waits for the disk, in units of [`ROOM_BYTES`].
    pub(super) room: Arc<Semaphore>,
    /// Told when the writer met an entry that cannot be read.
    pub(super) damage_met: Arc<Notify>,
}

/// Room is given out by this many bytes.
pub(super) const ROOM_BYTES: usize = 1024;

/// Wakes the writer.
#[derive(Default)]
pub(super) struct Wake {
    /// What the writer's thread waits for.
    pub(super) thread: Condvar,
    /// What the writer waits for when it is a task.
    pub(super) task: OnceLock<Notify>,
}

impl Wake {
    pub(super) fn notify_one(&self) {
        match self.task.get() {
            Some(task) => task.notify_one(),
            None => {
                self.thread.notify_one();
            }
        }
    }
}

impl Shared {
    pub(super) fn new(
        dir: PathBuf,
        config: LogConfig,
        groups: BTreeMap<GroupId, GroupIndex>,
        segments: BTreeMap<u64, Segment>,
    ) -> Shared {
        let state = State {
            groups,
            segments,
            queue: Vec::new(),
            queue_bytes: 0,
            committed_changed: BTreeSet::new(),
            waiting_since: None,
            in_flight_since: None,
            in_flight_bytes: 0,
            wake_at: None,
            has_no_chores: false,
            closing: false,
            is_full: false,
            failure: None,
            next_ticket: 0,
            recent_bytes: 0,
        };
        Shared {
            state: Mutex::new(state),
            wake: Wake::default(),
            stats: LogStats::default(),
            failed: watch::Sender::new(None),
            room: Arc::new(Semaphore::new(config.waiting_bytes_max.div_ceil(ROOM_BYTES).max(1))),
            damage_met: Arc::default(),
            config,
            dir,
        }
    }

    /// Takes an operation in: checks it, shows it in the index, and queues it for the writer. What
    /// is refused is told to `done` on this thread.
    pub(super) fn submit(&self, group: GroupId, submitted: Submitted, done: Done) {
        let mut state = self.state.lock();
        match state.admit(group, submitted) {
            Ok((submitted, bytes)) => {
                state.queue_bytes += bytes;
                state.queue.push(Operation { group, submitted, done, bytes });
                if state.waiting_since.is_none() {
                    state.waiting_since = Some(Instant::now());
                }
                if state.wake_at.is_some_and(|wake_at| state.queue.len() >= wake_at) {
                    state.wake_at = None;
                    drop(state);
                    self.wake.notify_one();
                }
            }
            Err(error) => {
                drop(state);
                done(Err(error));
            }
        }
    }
}

impl Shared {
    pub(super) fn save_committed(&self, group: GroupId, committed: Bytes) {
        let mut state = self.state.lock();
        if state.check_open().is_err() {
            return;
        }
        state.groups.entry(group).or_default().committed = Some(committed);
        state.committed_changed.insert(group);
        if std::mem::take(&mut state.has_no_chores) {
            drop(state);
            self.wake.notify_one();
        }
    }

    pub(super) fn read(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<EntryRecord>, LogError> {
        let (found, files) = self.find(group, range, bytes_max);
        let mut entries = Vec::with_capacity(found.len());
        let mut reader: Option<EntryReader> = None;
        for found in found {
            let (index, slot, place) = match found {
                Found::InMemory(entry) => {
                    entries.push(entry);
                    continue;
                }
                Found::OnDisk { index, slot, place } => (index, slot, place),
            };
            let reader = match &mut reader {
                Some(reader) if reader.segment == place.segment => reader,
                other => {
                    let (file, path) = files[&place.segment].clone();
                    other.insert(EntryReader::new(place.segment, file, path))
                }
            };
            let bytes = reader.read(group, index, &slot, place.offset)?;
            entries.push(EntryRecord { index, term: slot.term, bytes });
        }
        Ok(entries)
    }

    /// The same entries, if none of them has to be read from the disk.
    pub(super) fn read_in_memory(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Option<Vec<EntryRecord>> {
        let (found, _) = self.find(group, range, bytes_max);
        let in_memory = found.into_iter().map(|found| match found {
            Found::InMemory(entry) => Some(entry),
            Found::OnDisk { .. } => None,
        });
        in_memory.collect()
    }

    /// Finds entries, and the files of those that are not in memory. Holding a file keeps it from
    /// being overwritten.
    fn find(&self, group: GroupId, range: Range<u64>, bytes_max: usize) -> (Vec<Found>, Files) {
        let state = self.state.lock();
        let found = state.groups.get(&group).map(|index| index.find(range, bytes_max));
        let found = found.unwrap_or_default();
        let mut files = Files::new();
        for found in &found {
            if let Found::OnDisk { place, .. } = found
                && let Some(segment) = state.segments.get(&place.segment)
            {
                let file = || (segment.file.clone(), segment.path.clone());
                files.entry(place.segment).or_insert_with(file);
            }
        }
        (found, files)
    }
}

/// Files of segments by number.
type Files = BTreeMap<u64, (Arc<dyn DiskFile>, PathBuf)>;

impl State {
    fn admit(
        &mut self,
        group: GroupId,
        submitted: Submitted,
    ) -> Result<(Submitted, usize), LogError> {
        self.check_open()?;
        let bytes = check_size(group, &submitted)?;
        if matches!(submitted, Submitted::Sync) {
            return Ok((submitted, 0));
        }
        let index = self.groups.entry(group).or_default();
        let mut removed = Removed::new();
        let mut forgotten = 0;
        let submitted = match submitted {
            Submitted::Append { entries, .. } => {
                index.check_next(group, &entries)?;
                let ticket = self.next_ticket;
                self.next_ticket += entries.len() as u64;
                self.recent_bytes += index.append(&entries, ticket);
                Submitted::Append { entries, ticket }
            }
            Submitted::Vote(vote) => {
                index.vote = Some(vote.clone());
                Submitted::Vote(vote)
            }
            Submitted::Truncate { from } => {
                forgotten = index.truncate(from, &mut removed);
                Submitted::Truncate { from }
            }
            Submitted::Purge(purged) => {
                forgotten = index.purge(purged.clone(), &mut removed);
                Submitted::Purge(purged)
            }
            Submitted::Forget { floor } => {
                forgotten = index.forget(floor, &mut removed);
                self.committed_changed.remove(&group);
                Submitted::Forget { floor }
            }
            Submitted::Sync => Submitted::Sync,
        };
        self.recent_bytes -= forgotten;
        for (segment, (entries, bytes)) in removed {
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.live_entries -= entries;
                segment.live_bytes -= bytes;
            }
        }
        Ok((submitted, bytes))
    }

    pub(super) fn check_open(&self) -> Result<(), LogError> {
        match &self.failure {
            Some(reason) => Err(LogError::Failed { reason: reason.clone() }),
            None if self.closing => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    /// The oldest segment that holds an entry, or else the newest one.
    pub(super) fn first_live(&self) -> u64 {
        let newest = self.segments.keys().next_back().copied().unwrap_or(0);
        let live = self.segments.iter().find(|(_, segment)| segment.live_entries > 0);
        live.map_or(newest, |(number, _)| *number)
    }

    /// Whether so little of the log still counts that rewriting its oldest part is cheaper than
    /// keeping it: then each byte rewritten frees at least one other byte.
    pub(super) fn should_rewrite(&self, segment_bytes: u32) -> bool {
        let (used, live) = self.segments.values().fold((0, 0), |(used, live), segment| {
            let framing = segment.live_entries * HEADER_BYTES as u64;
            (used + u64::from(segment.end), live + segment.live_bytes + framing)
        });
        let room = 2 * u64::from(segment_bytes);
        let segments_max = 8 + 2 * used / u64::from(segment_bytes).max(1);
        used > 2 * live + room || self.segments.len() as u64 > segments_max
    }

    /// Every entry that lies in a segment.
    pub(super) fn entries_in(&self, segment: u64) -> Vec<(GroupId, u64)> {
        let of_group = |(group, index): (&GroupId, &GroupIndex)| {
            let group = *group;
            index.stored_in(segment).map(move |index| (group, index)).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of_group).collect()
    }

    /// What is needed to rewrite an entry, if it still lies in that segment.
    pub(super) fn rewrite(&self, group: GroupId, index: u64, segment: u64) -> Option<Rewrite> {
        let entries = self.groups.get(&group)?;
        let slot = *entries.slot(index)?;
        match slot.whereabouts() {
            Whereabouts::Stored(from) if from.segment == segment => {
                let bytes = entries.recent(index).cloned();
                Some(Rewrite { group, index, slot, from, bytes })
            }
            Whereabouts::Stored(_) | Whereabouts::Waiting { .. } => None,
        }
    }

    pub(super) fn heads(&self) -> Vec<GroupHead> {
        let head = |(group, index): (&GroupId, &GroupIndex)| GroupHead {
            group: *group,
            vote: index.vote.clone(),
            purged: index.purged.clone(),
            committed: index.committed.clone(),
            is_forgotten: index.is_forgotten,
            floor: index.floor,
        };
        self.groups.iter().map(head).collect()
    }

    /// Notes an entry of a durable batch; it may leave memory from now on.
    pub(super) fn stored(&mut self, group: GroupId, index: u64, ticket: u64, place: Place) {
        let Some(entries) = self.groups.get_mut(&group) else { return };
        if entries.stored(index, ticket, place) {
            let length = entries.slot(index).map_or(0, |slot| slot.length);
            self.count_live(place.segment, length);
        }
    }

    /// Notes that a rewritten entry is durable in its new place.
    pub(super) fn moved(&mut self, group: GroupId, index: u64, from: Place, to: Place) {
        let Some(entries) = self.groups.get_mut(&group) else { return };
        if entries.moved(index, from, to) {
            let length = entries.slot(index).map_or(0, |slot| slot.length);
            if let Some(segment) = self.segments.get_mut(&from.segment) {
                segment.live_entries -= 1;
                segment.live_bytes -= u64::from(length);
            }
            self.count_live(to.segment, length);
        }
    }

    fn count_live(&mut self, segment: u64, length: u32) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live_entries += 1;
            segment.live_bytes += u64::from(length);
        }
    }

    /// Drops entries from memory until the rest is within the bound: the oldest ones of the group
    /// that holds most.
    pub(super) fn shrink_recent(&mut self, bytes_max: usize) {
        while self.recent_bytes > bytes_max {
            let largest = self.groups.values_mut().max_by_key(|index| index.recent_bytes());
            let wanted = (self.recent_bytes - bytes_max).max(bytes_max / 16);
            let freed = largest.map_or(0, |index| index.forget_oldest(wanted));
            if freed == 0 {
                break;
            }
            self.recent_bytes -= freed;
        }
    }

    /// Keeps no memory but what the index needs.
    pub(super) fn shrink(&mut self) {
        self.shrink_recent(0);
        self.groups.values_mut().for_each(GroupIndex::shrink);
    }
}

/// Bytes that it will need in a batch.
fn check_size(group: GroupId, submitted: &Submitted) -> Result<usize, LogError> {
    let check = |bytes: &Bytes| match bytes.len() {
        length if length > PAYLOAD_BYTES_MAX => Err(LogError::TooLarge { group, bytes: length }),
        length => Ok(length + HEADER_BYTES),
    };
    match submitted {
        Submitted::Append { entries, .. } => {
            entries.iter().try_fold(0, |sum, entry| Ok(sum + check(&entry.bytes)?))
        }
        Submitted::Vote(bytes) => check(bytes),
        Submitted::Purge(purged) => check(&purged.bytes),
        Submitted::Truncate { .. } => Ok(HEADER_BYTES),
        Submitted::Forget { .. } => Ok(2 * HEADER_BYTES),
        Submitted::Sync => Ok(0),
    }
}
