//! The writer: one thread that takes what all groups have waiting, writes it as one batch, syncs
//! once, and then tells everyone. Owns the newest segment; begins and frees segments.
//!
//! It never acknowledges before the sync, and after a failed one it never acknowledges again: the
//! kernel may have dropped the pages and would call the next sync a success.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::disk::{Disk, DiskFile};
use super::reader::EntryReader;
use super::record::{Content, HEADER_BYTES, Place, RecordKind};
use super::segment::{
    BatchBuilder, Head, IndexedEntry, Previous, SegmentIndex, segment_path, spare_path,
};
use super::shared::{Change, GroupHead, Operation, Rewrite, Segment, Shared, State};
use super::{GroupId, LogError, recovery};

/// Bytes of entries rewritten forward with one batch.
const REWRITE_BYTES_MAX: usize = 1 << 20;

/// The segment being written.
pub(super) struct Current {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Where the next batch goes.
    pub(super) end: u32,
    /// The file's length.
    pub(super) allocated: u64,
    pub(super) index: SegmentIndex,
    /// Whether a batch follows the opening one.
    pub(super) grown: bool,
}

impl Current {
    /// Writes a batch at the end and syncs it.
    pub(super) fn append(
        &mut self,
        bytes: &[u8],
        preallocate_bytes: u32,
    ) -> Result<Duration, LogError> {
        let failed = |error| LogError::disk("write batch to", &self.path, error);
        self.file.write_at(bytes, u64::from(self.end)).map_err(failed)?;
        let end = self.end as usize + bytes.len();
        if preallocate_bytes > 0 && end as u64 > self.allocated {
            let allocated = (end as u64).next_multiple_of(u64::from(preallocate_bytes));
            let zeros = vec![0; allocated as usize - end];
            self.file.write_at(&zeros, end as u64).map_err(failed)?;
            self.allocated = allocated;
        }
        let begin = Instant::now();
        self.file.sync().map_err(|error| LogError::disk("sync", &self.path, error))?;
        self.end = u32::try_from(end).expect("what may wait for the disk is less than 4 GiB");
        Ok(begin.elapsed())
    }
}

/// What one batch is to say, and the view of the index that belongs to it.
struct Taken {
    operations: Vec<Operation>,
    committed: Vec<(GroupId, Bytes)>,
    rewrites: Vec<Rewrite>,
    first_live: u64,
    /// Segments before the first live one can go.
    frees: bool,
    /// The batch opens a new segment with these heads.
    heads: Option<Vec<GroupHead>>,
    /// What is durable of a group once the batch is.
    reaches: Vec<Reach>,
}

struct Reach {
    group: GroupId,
    generation: u64,
    last: u64,
}

/// Where a batch put its entries.
#[derive(Default)]
struct Written {
    stored: Vec<(GroupId, u64, u64, Place)>,
    moved: Vec<(GroupId, u64, Place, Place)>,
    records: u64,
    bytes: u64,
    synced_in: Duration,
}

/// Why the writer looks at the queue.
enum Call {
    /// Operations wait.
    Work,
    /// Nothing has waited for a while.
    Idle,
    /// The log closes and nothing waits.
    Close,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) current: Current,
    pub(super) previous: Option<Previous>,
    pub(super) next_batch: u64,
    /// Freed files to be written over.
    spares: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    /// The last batch says something that no later batch proves yet.
    unproven: bool,
    /// Entries of the oldest segment still to be rewritten.
    to_rewrite: (u64, Vec<(GroupId, u64)>),
    last_operations: usize,
    sync_average: Duration,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>, opened: recovery::Newest) -> Self {
        Writer {
            shared,
            disk,
            current: opened.current,
            previous: opened.previous,
            next_batch: opened.next_batch,
            spares: Vec::new(),
            unproven: true,
            to_rewrite: (0, Vec::new()),
            last_operations: 0,
            sync_average: Duration::ZERO,
        }
    }

    /// Works until the log closes or fails.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let ended = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
        if ended.is_err() {
            fail(&shared, Vec::new(), "its writer panicked".to_owned(), None);
        }
    }

    /// Waits for work and writes one batch; false where there will be no other.
    fn turn(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let call = self.await_call(&mut state);
        self.step(call, state)
    }

    /// Writes what waits, or else does what an idle writer does, without waiting; false where
    /// there will be no other batch.
    pub(super) fn step_now(&mut self) -> bool {
        let shared = self.shared.clone();
        let state = shared.state.lock();
        if state.failure.is_some() {
            return false;
        }
        let call = if state.queue.is_empty() { Call::Idle } else { Call::Work };
        self.step(call, state)
    }

    fn step(&mut self, call: Call, mut state: MutexGuard<'_, State>) -> bool {
        let shared = self.shared.clone();
        let taken = self.take(&mut state);
        if matches!(call, Call::Idle) {
            // It would keep the memory around it from being given back.
            state.shrink();
        }
        drop(state);
        let last = matches!(call, Call::Close);
        let wanted = taken.says_something() || self.unproven && !matches!(call, Call::Work);
        let written = if wanted { self.write(&taken) } else { Ok(Written::default()) };
        match written {
            Ok(written) => {
                self.complete(taken, &written);
                !last
            }
            Err(error) => {
                let reason = describe(&error);
                fail(&shared, taken.operations, reason, Some(error));
                false
            }
        }
    }

    /// Waits until there is something to do.
    fn await_call(&mut self, state: &mut MutexGuard<'_, State>) -> Call {
        while state.queue.is_empty() {
            if state.closing {
                return Call::Close;
            }
            state.wake_at = Some(1);
            let chores = self.unproven
                || !state.committed_changed.is_empty()
                || self.first_segment(state) < state.first_live()
                || self.rewriting(state);
            let wake = &self.shared.wake.thread;
            if !chores {
                wake.wait(state);
            } else if wake.wait_for(state, self.shared.config.idle_after).timed_out()
                && state.queue.is_empty()
            {
                state.wake_at = None;
                return Call::Idle;
            }
        }
        self.gather(state);
        state.wake_at = None;
        Call::Work
    }

    /// Under load, waits a little for those who were answered by the last batch to come back: one
    /// sync for all of them is worth more than an early one for a few.
    fn gather(&self, state: &mut MutexGuard<'_, State>) {
        let expected = self.last_operations;
        if expected < 2 || state.queue.len() >= expected || state.closing {
            return;
        }
        let patience = self.shared.config.gather_max.min(self.sync_average / 2);
        let deadline = Instant::now() + patience;
        while state.queue.len() < expected && !state.closing {
            state.wake_at = Some(expected);
            if self.shared.wake.thread.wait_until(state, deadline).timed_out() {
                return;
            }
        }
    }

    fn first_segment(&self, state: &State) -> u64 {
        state.segments.keys().next().copied().unwrap_or(self.current.number)
    }

    fn rewriting(&self, state: &State) -> bool {
        self.first_segment(state) < self.current.number
            && state.should_rewrite(self.shared.config.segment_bytes)
    }

    /// Takes the whole queue, and with it the view of the index that it leads to.
    fn take(&mut self, state: &mut State) -> Taken {
        let operations = std::mem::take(&mut state.queue);
        state.in_flight_since = state.waiting_since.take();
        state.in_flight_bytes = std::mem::take(&mut state.queue_bytes);
        let rewrites = self.take_rewrites(state);
        let rewritten: usize = rewrites.iter().map(|entry| entry.slot.length as usize).sum();
        let changed = std::mem::take(&mut state.committed_changed);
        let committed = changed
            .into_iter()
            .filter_map(|group| Some((group, state.groups.get(&group)?.committed.clone()?)))
            .collect();
        let size = self.current.end as usize + state.in_flight_bytes + rewritten + HEADER_BYTES;
        let rolls = self.current.grown && size > self.shared.config.segment_bytes as usize;
        let mut reaches: Vec<Reach> = Vec::new();
        for operation in &operations {
            let group = operation.group;
            if matches!(operation.change, Change::Vote(_) | Change::Sync)
                || reaches.last().is_some_and(|reach| reach.group == group)
            {
                continue;
            }
            if let Some(index) = state.groups.get(&group) {
                let (generation, last) = (index.generation(), index.last_index());
                reaches.push(Reach { group, generation, last });
            }
        }
        Taken {
            operations,
            committed,
            rewrites,
            first_live: state.first_live(),
            frees: self.first_segment(state) < state.first_live(),
            heads: rolls.then(|| state.heads()),
            reaches,
        }
    }

    /// Takes some entries of the oldest segment, where it is worth to free it.
    fn take_rewrites(&mut self, state: &State) -> Vec<Rewrite> {
        if !self.rewriting(state) {
            return Vec::new();
        }
        let oldest = self.first_segment(state);
        if self.to_rewrite.0 != oldest {
            let mut entries = state.entries_in(oldest);
            entries.reverse();
            self.to_rewrite = (oldest, entries);
        }
        let mut rewrites = Vec::new();
        let mut bytes = 0;
        while bytes < REWRITE_BYTES_MAX
            && let Some((group, index)) = self.to_rewrite.1.pop()
        {
            if let Some(rewrite) = state.rewrite(group, index, oldest) {
                bytes += rewrite.slot.length as usize + HEADER_BYTES;
                rewrites.push(rewrite);
            }
        }
        rewrites
    }

    /// Writes the batch and returns once it is durable.
    fn write(&mut self, taken: &Taken) -> Result<Written, LogError> {
        if taken.heads.is_some() {
            self.seal()?;
            self.begin_segment()?;
        }
        let start = Place { segment: self.current.number, offset: self.current.end };
        let mut builder = BatchBuilder::new(start, self.next_batch);
        self.next_batch += 1;
        if let Some(heads) = &taken.heads {
            let head = Head { previous: self.previous, first_live: taken.first_live };
            push_heads(&mut builder, &head, heads);
        } else if taken.frees {
            builder.push(bare(RecordKind::Freed, GroupId(0), taken.first_live));
        }
        let mut written = Written::default();
        for operation in &taken.operations {
            self.push_operation(&mut builder, operation, &mut written);
        }
        for rewrite in &taken.rewrites {
            self.push_rewrite(&mut builder, rewrite, &mut written)?;
        }
        for (group, committed) in &taken.committed {
            builder.push(Content { payload: committed, ..bare(RecordKind::Committed, *group, 0) });
        }
        written.records = builder.records();
        self.unproven = written.records > taken.committed.len() as u64;
        let bytes = builder.finish();
        written.bytes = bytes.len() as u64;
        written.synced_in = self.current.append(&bytes, self.shared.config.preallocate_bytes)?;
        if taken.heads.is_some() {
            self.publish_segment()?;
        } else {
            self.current.grown = true;
        }
        Ok(written)
    }

    fn push_operation(
        &mut self,
        builder: &mut BatchBuilder,
        operation: &Operation,
        written: &mut Written,
    ) {
        let group = operation.group;
        match &operation.change {
            Change::Append { entries, ticket } => {
                for (entry, ticket) in entries.iter().zip(*ticket..) {
                    let (index, term) = (entry.index, entry.term);
                    let kind = RecordKind::Entry;
                    let payload = &entry.bytes;
                    let offset = builder.push(Content { kind, group, index, term, payload });
                    let length = payload.len() as u32;
                    self.current.index.push(group, IndexedEntry { index, term, offset, length });
                    let place = Place { segment: self.current.number, offset };
                    written.stored.push((group, index, ticket, place));
                }
            }
            Change::Vote(vote) => {
                builder.push(Content { payload: vote, ..bare(RecordKind::Vote, group, 0) });
            }
            Change::Truncate { from } => {
                builder.push(bare(RecordKind::Truncate, group, *from));
                self.current.index.truncate(group, *from);
            }
            Change::Purge(purged) => {
                let purge = bare(RecordKind::Purge, group, purged.index);
                builder.push(Content { payload: &purged.bytes, ..purge });
            }
            Change::Sync => {}
        }
    }

    fn push_rewrite(
        &mut self,
        builder: &mut BatchBuilder,
        rewrite: &Rewrite,
        written: &mut Written,
    ) -> Result<(), LogError> {
        let bytes = match &rewrite.bytes {
            Some(bytes) => bytes.clone(),
            None => self.read_back(rewrite)?,
        };
        let (group, index, term) = (rewrite.group, rewrite.index, rewrite.slot.term);
        let kind = RecordKind::RewrittenEntry;
        let offset = builder.push(Content { kind, group, index, term, payload: &bytes });
        let length = rewrite.slot.length;
        self.current.index.push(group, IndexedEntry { index, term, offset, length });
        let place = Place { segment: self.current.number, offset };
        written.moved.push((group, index, rewrite.from, place));
        Ok(())
    }

    fn read_back(&self, rewrite: &Rewrite) -> Result<Bytes, LogError> {
        let state = self.shared.state.lock();
        let segment = state.segments.get(&rewrite.from.segment);
        let (file, path) = segment
            .map(|segment| (segment.file.clone(), segment.path.clone()))
            .expect("a segment that holds a live entry is not freed");
        drop(state);
        let mut reader = EntryReader::new(rewrite.from.segment, file, path);
        reader.read(rewrite.group, rewrite.index, &rewrite.slot, rewrite.from.offset)
    }

    /// Ends the current segment with its footer.
    fn seal(&mut self) -> Result<(), LogError> {
        let footer = self.current.end;
        let start = Place { segment: self.current.number, offset: footer };
        let mut builder = BatchBuilder::new(start, self.next_batch);
        self.next_batch += 1;
        let payload = self.current.index.encode();
        builder.push(Content { payload: &payload, ..bare(RecordKind::Footer, GroupId(0), 0) });
        self.current.append(&builder.finish(), 0)?;
        let (segment, end) = (self.current.number, self.current.end);
        self.previous = Some(Previous { segment, end, footer: Some(footer) });
        if let Some(segment) = self.shared.state.lock().segments.get_mut(&segment) {
            segment.end = end;
        }
        Ok(())
    }

    /// Makes the next segment the current one, under a name that recovery ignores.
    fn begin_segment(&mut self) -> Result<(), LogError> {
        let number = self.current.number + 1;
        let (path, file) = match self.spares.pop() {
            Some(spare) => spare,
            None => {
                let path = spare_path(&self.shared.dir, number);
                let failed = |error| LogError::disk("create segment", &path, error);
                let file = self.disk.create(&path).map_err(failed)?;
                (path, file)
            }
        };
        let failed = |error| LogError::disk("read length of", &path, error);
        let allocated = file.length().map_err(failed)?;
        let index = SegmentIndex::default();
        self.current = Current { number, path, file, end: 0, allocated, index, grown: false };
        Ok(())
    }

    /// Gives the segment its name, now that its opening batch is durable.
    fn publish_segment(&mut self) -> Result<(), LogError> {
        let path = segment_path(&self.shared.dir, self.current.number);
        publish(self.disk.as_ref(), &mut self.current, path)?;
        let segment = Segment {
            path: self.current.path.clone(),
            file: self.current.file.clone(),
            end: self.current.end,
            live_entries: 0,
            live_bytes: 0,
        };
        self.shared.state.lock().segments.insert(self.current.number, segment);
        self.shared.stats.add(&self.shared.stats.segments, 1);
        Ok(())
    }

    /// Shows the durable batch in the index and tells those who wait for it.
    fn complete(&mut self, taken: Taken, written: &Written) {
        self.last_operations = taken.operations.len();
        if written.bytes > 0 {
            self.count(written);
        }
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        state.in_flight_since = None;
        state.in_flight_bytes = 0;
        if let Some(segment) = state.segments.get_mut(&self.current.number) {
            segment.end = self.current.end;
        }
        for (group, index, ticket, place) in &written.stored {
            state.stored(*group, *index, *ticket, *place);
        }
        for (group, index, from, to) in &written.moved {
            state.moved(*group, *index, *from, *to);
        }
        for reach in &taken.reaches {
            if let Some(index) = state.groups.get_mut(&reach.group) {
                index.synced_through(reach.generation, reach.last);
            }
        }
        state.shrink_recent(shared.config.cache_bytes_max);
        let live = state.segments.split_off(&taken.first_live);
        let freed = std::mem::replace(&mut state.segments, live);
        drop(state);
        for operation in taken.operations {
            (operation.done)(Ok(()));
        }
        for (number, segment) in freed {
            self.free(number, segment);
        }
    }

    fn count(&mut self, written: &Written) {
        let stats = &self.shared.stats;
        stats.add(&stats.batches, 1);
        stats.add(&stats.records, written.records);
        stats.add(&stats.bytes, written.bytes);
        stats.add(&stats.rewritten, written.moved.len() as u64);
        stats.observe_sync(written.synced_in);
        self.sync_average = (self.sync_average * 7 + written.synced_in) / 8;
    }

    /// Keeps a freed segment's file for reuse, or removes it. Its contents no longer count, so a
    /// failure only costs space until the log is opened again.
    fn free(&mut self, number: u64, segment: Segment) {
        let stats = &self.shared.stats;
        stats.add(&stats.segments_freed, 1);
        let Segment { path, file, .. } = segment;
        // A reader that still holds the file must not see it overwritten.
        let unread = Arc::strong_count(&file) == 1;
        let freed = if unread && self.spares.len() < self.shared.config.spare_segments_max {
            let spare = spare_path(&self.shared.dir, number);
            let renamed = self.disk.rename(&path, &spare);
            renamed.map(|()| self.spares.push((spare, file)))
        } else {
            self.disk.remove(&path)
        };
        if let Err(error) = freed {
            tracing::warn!(path = %path.display(), %error, "cannot free a segment of the log");
        }
    }
}

impl Taken {
    fn says_something(&self) -> bool {
        let changes = |operation: &Operation| !matches!(operation.change, Change::Sync);
        self.operations.iter().any(changes)
            || self.frees
            || !self.committed.is_empty()
            || !self.rewrites.is_empty()
    }
}

/// A record without term and payload.
pub(super) fn bare(kind: RecordKind, group: GroupId, index: u64) -> Content<'static> {
    Content { kind, group, index, term: 0, payload: &[] }
}

/// Begins a segment's opening batch: all that is known of a group but its entries, so that older
/// segments can go.
pub(super) fn push_heads<'a>(
    builder: &mut BatchBuilder,
    head: &Head,
    heads: impl IntoIterator<Item = &'a GroupHead>,
) {
    let payload = head.encode();
    builder.push(Content { payload: &payload, ..bare(RecordKind::Head, GroupId(0), 0) });
    for GroupHead { group, vote, purged, committed } in heads {
        if let Some(vote) = vote {
            builder.push(Content { payload: vote, ..bare(RecordKind::Vote, *group, 0) });
        }
        if let Some(purged) = purged {
            let purge = bare(RecordKind::Purge, *group, purged.index);
            builder.push(Content { payload: &purged.bytes, ..purge });
        }
        if let Some(committed) = committed {
            builder.push(Content { payload: committed, ..bare(RecordKind::Committed, *group, 0) });
        }
    }
}

/// Gives a segment with a durable opening batch its name.
pub(super) fn publish(
    disk: &dyn Disk,
    current: &mut Current,
    path: PathBuf,
) -> Result<(), LogError> {
    // ORDER: contents are durable before the name is. So a segment with its name and without a
    // whole opening batch was damaged, not torn.
    disk.rename(&current.path, &path).map_err(|error| LogError::disk("name", &path, error))?;
    let dir = path.parent().unwrap_or(&path);
    disk.sync_dir(dir).map_err(|error| LogError::disk("sync directory", dir, error))?;
    current.path = path;
    Ok(())
}

/// Ends the log: those who wait are told, and whoever comes later is refused.
fn fail(shared: &Shared, taken: Vec<Operation>, reason: String, error: Option<LogError>) {
    tracing::error!(dir = %shared.dir.display(), reason, "the log has failed");
    let mut state = shared.state.lock();
    state.failure = Some(reason.clone());
    let waiting = std::mem::take(&mut state.queue);
    drop(state);
    shared.failed.send_replace(Some(reason.clone()));
    let error = error.unwrap_or(LogError::Failed { reason });
    for operation in taken.into_iter().chain(waiting) {
        (operation.done)(Err(error.clone()));
    }
}

/// An error with its cause, for those who only get the text.
fn describe(error: &LogError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
