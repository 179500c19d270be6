//! What one batch says: takes it from the queue with the view of the index that it leads to, and
//! puts it into the segment.

use std::time::Duration;

use bytes::Bytes;

use super::current::{bare, push_floor, push_heads};
use super::{Writer, describe};
use crate::log::reader::EntryReader;
use crate::log::record::{Content, HEADER_BYTES, Place, RecordKind};
use crate::log::segment::{BatchBuilder, Head, IndexedEntry};
use crate::log::shared::{GroupHead, Operation, Rewrite, State, Submitted};
use crate::log::{GroupId, LogError};

/// Bytes of entries rewritten forward with one batch.
const REWRITE_BYTES_MAX: usize = 1 << 20;
/// What is taken goes in batches of about this size, so that none keeps the disk for long; one
/// larger operation goes alone.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// What one batch is to say, and the view of the index that belongs to it.
pub(super) struct Taken {
    pub(super) operations: Vec<Operation>,
    pub(super) committed: Vec<(GroupId, Bytes)>,
    pub(super) rewrites: Vec<Rewrite>,
    pub(super) first_live: u64,
    /// Segments before the first live one can go.
    pub(super) frees: bool,
    /// The batch opens a new segment with these heads.
    pub(super) heads: Option<Vec<GroupHead>>,
    /// What is durable of a group once the batch is.
    pub(super) reaches: Vec<Reach>,
}

pub(super) struct Reach {
    pub(super) group: GroupId,
    pub(super) generation: u64,
    pub(super) last: u64,
}

/// Where a batch put its entries.
#[derive(Default)]
pub(super) struct Written {
    pub(super) stored: Vec<(GroupId, u64, u64, Place)>,
    pub(super) moved: Vec<(GroupId, u64, Place, Place)>,
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) synced_in: Duration,
}

impl Writer {
    /// Takes the whole queue, and with it the view of the index that it leads to.
    pub(super) fn take(&mut self, state: &mut State) -> Taken {
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
            if matches!(operation.submitted, Submitted::Vote(_) | Submitted::Sync)
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

    /// The next part of what was taken that goes in a batch before the last one, where all of it
    /// would keep the disk busy for too long: first the votes, those too that have come meanwhile.
    ///
    /// ORDER: a vote may overtake entries, which then lack at most what nobody was told of. Heads,
    /// committed ids and freed segments rest on all that was taken, so they go with the last batch.
    pub(super) fn next_part(&self, taken: &mut Taken) -> Option<Vec<Operation>> {
        let bytes: usize = taken.operations.iter().map(|operation| operation.bytes).sum();
        if bytes <= BATCH_BYTES_MAX {
            return None;
        }
        let is_vote = |operation: &Operation| matches!(operation.submitted, Submitted::Vote(_));
        let operations = std::mem::take(&mut taken.operations);
        let (mut part, rest): (Vec<_>, Vec<_>) = operations.into_iter().partition(is_vote);
        let mut state = self.shared.state.lock();
        let queue = std::mem::take(&mut state.queue);
        let (votes, queue): (Vec<_>, Vec<_>) = queue.into_iter().partition(is_vote);
        let bytes: usize = votes.iter().map(|operation| operation.bytes).sum();
        state.queue = queue;
        state.queue_bytes -= bytes;
        state.in_flight_bytes += bytes;
        drop(state);
        // ORDER: else the heads of the segment that the last batch opens would bring an older vote back.
        taken.note_votes(&votes);
        part.extend(votes);
        let mut rest = rest.into_iter().peekable();
        let mut bytes = 0;
        while part.is_empty() || bytes > 0 && bytes < BATCH_BYTES_MAX {
            // The last one stays, for the last batch.
            let Some(operation) = rest.next() else { break };
            bytes += operation.bytes;
            part.push(operation);
        }
        taken.operations = rest.collect();
        (!part.is_empty()).then_some(part)
    }

    /// Writes a part and returns once it is durable.
    pub(super) fn write_part(&mut self, part: &[Operation]) -> Result<Written, LogError> {
        let start = Place { segment: self.current.number, offset: self.current.end };
        let mut builder = BatchBuilder::new(start, self.next_batch);
        self.next_batch += 1;
        let mut written = Written::default();
        for operation in part {
            self.push_operation(&mut builder, operation, &mut written);
        }
        written.records = builder.records();
        self.unproven = true;
        let bytes = builder.finish();
        written.bytes = bytes.len() as u64;
        written.synced_in = self.append(&bytes)?;
        self.current.grown = true;
        Ok(written)
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
    pub(super) fn write(&mut self, taken: &Taken) -> Result<Written, LogError> {
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
            self.push_rewrite(&mut builder, rewrite, &mut written);
        }
        for (group, committed) in &taken.committed {
            builder.push(Content { payload: committed, ..bare(RecordKind::Committed, *group, 0) });
        }
        written.records = builder.records();
        self.unproven = written.records > taken.committed.len() as u64;
        let bytes = builder.finish();
        written.bytes = bytes.len() as u64;
        written.synced_in = self.append(&bytes)?;
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
        match &operation.submitted {
            Submitted::Append { entries, ticket } => {
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
            Submitted::Vote(vote) => {
                builder.push(Content { payload: vote, ..bare(RecordKind::Vote, group, 0) });
            }
            Submitted::Truncate { from } => {
                builder.push(bare(RecordKind::Truncate, group, *from));
                self.current.index.truncate(group, *from);
            }
            Submitted::Purge(purged) => {
                let purge = bare(RecordKind::Purge, group, purged.index);
                builder.push(Content { payload: &purged.bytes, ..purge });
            }
            Submitted::Forget { floor } => {
                builder.push(bare(RecordKind::Forgotten, group, 0));
                push_floor(builder, group, *floor);
                self.current.index.truncate(group, 0);
            }
            Submitted::Sync => {}
        }
    }

    fn push_rewrite(
        &mut self,
        builder: &mut BatchBuilder,
        rewrite: &Rewrite,
        written: &mut Written,
    ) {
        let bytes = match &rewrite.bytes {
            Some(bytes) => bytes.clone(),
            None => match self.read_back(rewrite) {
                Ok(bytes) => bytes,
                // Its segment stays until the group has no need of it any more. To end the log would help
                // nobody: the next start would end here, too.
                Err(error) => {
                    let (group, error) = (rewrite.group, describe(&error));
                    tracing::error!(%group, log_index = rewrite.index, error, "an entry of the log cannot be moved");
                    self.shared.damage_met.notify_one();
                    return;
                }
            },
        };
        let (group, index, term) = (rewrite.group, rewrite.index, rewrite.slot.term);
        let kind = RecordKind::RewrittenEntry;
        let offset = builder.push(Content { kind, group, index, term, payload: &bytes });
        let length = rewrite.slot.length;
        self.current.index.push(group, IndexedEntry { index, term, offset, length });
        let place = Place { segment: self.current.number, offset };
        written.moved.push((group, index, rewrite.from, place));
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
}

impl Taken {
    /// Votes that came later than what was taken, and are durable before it.
    fn note_votes(&mut self, votes: &[Operation]) {
        let Some(heads) = &mut self.heads else { return };
        for Operation { group, submitted, .. } in votes {
            let Submitted::Vote(vote) = submitted else { continue };
            let vote = Some(vote.clone());
            match heads.iter_mut().find(|head| head.group == *group) {
                Some(head) => head.vote = vote,
                None => heads.push(GroupHead { vote, ..GroupHead::of(*group) }),
            }
        }
    }

    pub(super) fn says_something(&self) -> bool {
        let changes = |operation: &Operation| !matches!(operation.submitted, Submitted::Sync);
        self.operations.iter().any(changes)
            || self.frees
            || !self.committed.is_empty()
            || !self.rewrites.is_empty()
    }
}
