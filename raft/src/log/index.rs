//! Where each group's entries lie, and the recent ones in memory. Owns what readers see; never
//! touches the disk.
//!
//! A change is seen here at once, before the writer has it on disk. The writer takes its work and
//! looks at this index under one lock, so that what it writes and what it sees agree.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::record::Place;
use super::{EntryId, EntryRecord, GroupId, GroupLogState, LogError, Purged};

/// Where an entry's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In memory alone; the ticket tells it from another entry that had the same index.
    Waiting {
        ticket: u64,
    },
    Stored(Place),
}

/// An entry without its bytes. There is one for each entry of the log, hence packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) term: u64,
    /// Its segment, or its ticket while it waits.
    number: u64,
    pub(super) length: u32,
    /// Within its segment, or [`WAITING`].
    offset: u32,
}

/// An offset that no record has: segments end long before it.
const WAITING: u32 = u32::MAX;

impl Slot {
    pub(super) fn new(term: u64, length: u32, whereabouts: Whereabouts) -> Slot {
        let (number, offset) = match whereabouts {
            Whereabouts::Waiting { ticket } => (ticket, WAITING),
            Whereabouts::Stored(place) => (place.segment, place.offset),
        };
        Slot { term, number, length, offset }
    }

    pub(super) fn whereabouts(&self) -> Whereabouts {
        match self.offset {
            WAITING => Whereabouts::Waiting { ticket: self.number },
            offset => Whereabouts::Stored(Place { segment: self.number, offset }),
        }
    }

    fn stored_in(&self) -> Option<u64> {
        match self.whereabouts() {
            Whereabouts::Waiting { .. } => None,
            Whereabouts::Stored(place) => Some(place.segment),
        }
    }
}

/// Bytes are summed by this many indices, so that a long log is not looked at entry by entry.
const BLOCK: u64 = 256;

/// Room in a group's index that is not worth giving back.
const SPARE_SLOTS: usize = 1024;

/// An entry as a reader finds it.
#[derive(Debug, Clone)]
pub(super) enum Found {
    InMemory(EntryRecord),
    OnDisk { index: u64, slot: Slot, place: Place },
}

/// A floor that an entry has not reached.
pub(super) fn still_above(floor: Option<EntryId>, index: u64, term: u64) -> Option<EntryId> {
    floor.filter(|floor| (term, index) < (floor.term, floor.index))
}

/// Entries that a change removed, by the segment that held them: count and bytes.
pub(super) type Removed = BTreeMap<u64, (u64, u64)>;

/// One group's log.
#[derive(Debug, Default)]
pub(super) struct GroupIndex {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<Purged>,
    /// Nothing has come since the group was forgotten.
    pub(super) is_forgotten: bool,
    /// How far the group's entries reached before it was forgotten, until they reach as far again.
    pub(super) floor: Option<EntryId>,
    /// Index of the first slot.
    first: u64,
    // INVARIANT: slots are contiguous; the stored ones come before the waiting ones.
    slots: VecDeque<Slot>,
    // INVARIANT: bytes of the last slots, at least of all waiting ones.
    recent: VecDeque<Bytes>,
    recent_bytes: usize,
    live_bytes: u64,
    /// Bytes of entries by block of indices; blocks without any are left out.
    block_bytes: BTreeMap<u64, u64>,
    synced: u64,
    /// Counts truncations: what was written before one is not known to be durable after it.
    generation: u64,
}

impl GroupIndex {
    /// Builds the index of a group from what recovery found; all of it is durable.
    pub(super) fn recovered(first: u64, slots: VecDeque<Slot>) -> GroupIndex {
        let mut index = GroupIndex { first, slots, ..GroupIndex::default() };
        for (slot, at) in index.slots.iter().zip(first..) {
            index.live_bytes += u64::from(slot.length);
            *index.block_bytes.entry(at / BLOCK).or_default() += u64::from(slot.length);
        }
        index
    }

    pub(super) fn mark_all_synced(&mut self) {
        self.synced = self.last_index();
    }

    pub(super) fn state(&self) -> GroupLogState {
        let id = |index: u64, slot: &Slot| EntryId { index, term: slot.term };
        GroupLogState {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged.clone(),
            is_forgotten: self.is_forgotten,
            floor: self.floor,
            first: self.slots.front().map(|slot| id(self.first, slot)),
            last: self.slots.back().map(|slot| id(self.end() - 1, slot)),
        }
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn entries(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Last entry, or the purge point where there is none.
    pub(super) fn last_index(&self) -> u64 {
        if self.slots.is_empty() {
            self.purged.as_ref().map_or(0, |purged| purged.index)
        } else {
            self.end() - 1
        }
    }

    /// The index that the next entry must have; `None`: any.
    fn next_index(&self) -> Option<u64> {
        if self.slots.is_empty() {
            self.purged.as_ref().map(|purged| purged.index.saturating_add(1))
        } else {
            Some(self.end())
        }
    }

    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn position(&self, index: u64) -> Option<usize> {
        let position = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (position < self.slots.len()).then_some(position)
    }

    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(self.position(index)?)
    }

    /// The last entry of each term, among those in `range`.
    pub(super) fn last_of_terms(&self, range: Range<u64>) -> Vec<EntryId> {
        let (mut found, mut index) = (Vec::new(), range.start);
        while index < range.end
            && let Some(slot) = self.slot(index)
        {
            // Terms never go back.
            let later = self.slots.partition_point(|other| other.term <= slot.term);
            let next = (self.first + later as u64).clamp(index + 1, range.end);
            found.push(EntryId { index: next - 1, term: slot.term });
            index = next;
        }
        found
    }

    /// Bytes of an entry, if they are in memory.
    pub(super) fn recent(&self, index: u64) -> Option<&Bytes> {
        let not_recent = self.slots.len() - self.recent.len();
        self.recent.get(self.position(index)?.checked_sub(not_recent)?)
    }

    /// Checks that entries continue the log, without taking them.
    pub(super) fn check_next(
        &self,
        group: GroupId,
        entries: &[EntryRecord],
    ) -> Result<(), LogError> {
        let mut next = self.next_index();
        for entry in entries {
            if let Some(expected) = next
                && expected != entry.index
            {
                return Err(LogError::NotNext { group, expected, found: entry.index });
            }
            next = Some(entry.index.saturating_add(1));
        }
        Ok(())
    }

    /// Takes entries that [`GroupIndex::check_next`] passed; they get tickets from `ticket` on.
    /// Returns their bytes in memory.
    pub(super) fn append(&mut self, entries: &[EntryRecord], ticket: u64) -> usize {
        if let Some(entry) = entries.first() {
            self.is_forgotten = false;
            if self.slots.is_empty() {
                self.first = entry.index;
            }
        }
        if let Some(EntryRecord { index, term, .. }) = entries.last() {
            self.floor = still_above(self.floor, *index, *term);
        }
        let mut added = 0;
        for (entry, ticket) in entries.iter().zip(ticket..) {
            let length = u32::try_from(entry.bytes.len()).expect("limited when submitted");
            let whereabouts = Whereabouts::Waiting { ticket };
            self.slots.push_back(Slot::new(entry.term, length, whereabouts));
            *self.block_bytes.entry(entry.index / BLOCK).or_default() += u64::from(length);
            self.recent.push_back(entry.bytes.clone());
            added += entry.bytes.len();
        }
        self.recent_bytes += added;
        self.live_bytes += added as u64;
        added
    }

    /// Drops entries from `from` on. Returns their bytes in memory.
    pub(super) fn truncate(&mut self, from: u64, removed: &mut Removed) -> usize {
        self.generation += 1;
        self.synced = self.synced.min(from.saturating_sub(1));
        let mut freed = 0;
        while self.end() > from.max(self.first) {
            let Some(slot) = self.slots.pop_back() else { break };
            freed += self.recent.pop_back().map_or(0, |bytes| bytes.len());
            self.count_removed(self.end(), &slot, removed);
        }
        self.recent_bytes -= freed;
        freed
    }

    /// Drops entries up to and with that place. Returns their bytes in memory.
    pub(super) fn purge(&mut self, purged: Purged, removed: &mut Removed) -> usize {
        if self.purged.as_ref().is_some_and(|earlier| earlier.index > purged.index) {
            return 0;
        }
        let mut freed = 0;
        while !self.slots.is_empty() && self.first <= purged.index {
            if self.recent.len() == self.slots.len() {
                freed += self.recent.pop_front().map_or(0, |bytes| bytes.len());
            }
            if let Some(slot) = self.slots.pop_front() {
                self.count_removed(self.first, &slot, removed);
            }
            self.first += 1;
        }
        self.recent_bytes -= freed;
        (self.purged, self.is_forgotten) = (Some(purged), false);
        freed
    }

    /// Drops everything but the vote. Returns the entries' bytes in memory.
    pub(super) fn forget(&mut self, floor: Option<EntryId>, removed: &mut Removed) -> usize {
        let freed = self.truncate(0, removed);
        (self.purged, self.committed, self.first) = (None, None, 0);
        (self.is_forgotten, self.floor) = (true, floor);
        freed
    }

    fn count_removed(&mut self, index: u64, slot: &Slot, removed: &mut Removed) {
        self.live_bytes -= u64::from(slot.length);
        let block = index / BLOCK;
        let left = self.block_bytes.get_mut(&block).map(|bytes| {
            *bytes -= u64::from(slot.length);
            *bytes
        });
        if left == Some(0) {
            self.block_bytes.remove(&block);
        }
        if let Some(segment) = slot.stored_in() {
            let (count, bytes) = removed.entry(segment).or_default();
            *count += 1;
            *bytes += u64::from(slot.length);
        }
    }

    /// Notes where the writer put an entry; false where the entry is gone meanwhile.
    pub(super) fn stored(&mut self, index: u64, ticket: u64, place: Place) -> bool {
        self.move_slot(index, Whereabouts::Waiting { ticket }, place)
    }

    /// Notes that a stored entry now lies elsewhere; false where the entry is gone meanwhile.
    pub(super) fn moved(&mut self, index: u64, from: Place, to: Place) -> bool {
        self.move_slot(index, Whereabouts::Stored(from), to)
    }

    fn move_slot(&mut self, index: u64, expected: Whereabouts, place: Place) -> bool {
        let slot = self.position(index).and_then(|position| self.slots.get_mut(position));
        match slot.filter(|slot| slot.whereabouts() == expected) {
            Some(slot) => {
                *slot = Slot::new(slot.term, slot.length, Whereabouts::Stored(place));
                true
            }
            None => false,
        }
    }

    /// Notes that everything up to `last` is durable, unless entries were truncated since.
    pub(super) fn synced_through(&mut self, generation: u64, last: u64) {
        if self.generation == generation {
            self.synced = last;
        }
    }

    /// Bytes of entries in memory.
    pub(super) fn recent_bytes(&self) -> usize {
        self.recent_bytes
    }

    /// Gives back room that nothing is in, up to some for what comes next.
    pub(super) fn shrink(&mut self) {
        let used = self.slots.len();
        if self.slots.capacity() > used + used / 4 + SPARE_SLOTS {
            self.slots.shrink_to(used + used / 8);
        }
        if self.recent.is_empty() {
            self.recent.shrink_to_fit();
        }
    }

    /// Forgets the oldest entries in memory until at least `bytes` are freed; returns how many
    /// were. Entries that are not on disk yet stay.
    pub(super) fn forget_oldest(&mut self, bytes: usize) -> usize {
        let mut freed = 0;
        while freed < bytes {
            let oldest = self.slots.len() - self.recent.len();
            if self.slots.get(oldest).is_none_or(|slot| slot.stored_in().is_none()) {
                break;
            }
            freed += self.recent.pop_front().map_or(0, |bytes| bytes.len());
        }
        self.recent_bytes -= freed;
        freed
    }

    /// Entries in `range`, in order, until the next one would exceed `bytes_max`; at least one.
    pub(super) fn find(&self, range: Range<u64>, bytes_max: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in range.start.max(self.first)..range.end.min(self.end()) {
            let Some(slot) = self.slot(index).copied() else { break };
            bytes += slot.length as usize;
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(match (self.recent(index), slot.whereabouts()) {
                (Some(bytes), _) => {
                    Found::InMemory(EntryRecord { index, term: slot.term, bytes: bytes.clone() })
                }
                (None, Whereabouts::Stored(place)) => Found::OnDisk { index, slot, place },
                // INVARIANT: waiting entries are in memory.
                (None, Whereabouts::Waiting { .. }) => break,
            });
        }
        found
    }

    /// Bytes of the entries in `range`. Looks at the entries of two blocks, and at the sums between.
    pub(super) fn bytes_in(&self, range: Range<u64>) -> u64 {
        let start = range.start.clamp(self.first, self.end());
        let end = range.end.clamp(start, self.end());
        let (first_block, last_block) = (start.div_ceil(BLOCK), end / BLOCK);
        if first_block >= last_block {
            return self.scan(start..end);
        }
        let between = self.block_bytes.range(first_block..last_block).map(|(_, bytes)| bytes);
        self.scan(start..first_block * BLOCK)
            + between.sum::<u64>()
            + self.scan(last_block * BLOCK..end)
    }

    /// The same, entry by entry; the range lies within the log.
    fn scan(&self, range: Range<u64>) -> u64 {
        range.filter_map(|index| self.slot(index)).map(|slot| u64::from(slot.length)).sum()
    }

    /// Indices of entries that lie in a segment.
    pub(super) fn stored_in(&self, segment: u64) -> impl Iterator<Item = u64> {
        let first = self.first;
        let here = move |slot: &Slot| slot.stored_in() == Some(segment);
        // The slots are asked first: behind a purge point at the end of all numbers there is no next.
        let numbered = self.slots.iter().zip(first..);
        numbered.filter(move |(slot, _)| here(slot)).map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn bytes_of_a_range_are_those_of_its_entries() {
        let mut random = SmallRng::seed_from_u64(1);
        let (mut index, mut removed) = (GroupIndex::default(), Removed::new());
        let mut next = 700;
        for round in 0..400 {
            let entries: Vec<_> = (next..next + random.random_range(0..900))
                .map(|index| {
                    let bytes = Bytes::from(vec![0; random.random_range(0..20)]);
                    EntryRecord { index, term: round, bytes }
                })
                .collect();
            index.append(&entries, 0);
            let end = index.end();
            match random.random_range(0..3) {
                0 => {
                    index.truncate(random.random_range(index.first..=end), &mut removed);
                }
                1 => {
                    let purged = random.random_range(index.first..=end + 3);
                    let purged = Purged { index: purged, bytes: Bytes::new() };
                    index.purge(purged, &mut removed);
                }
                _ => {}
            }
            next = index.next_index().unwrap_or(next);
            for _ in 0..20 {
                let range = random.random_range(0..end + 9)..random.random_range(0..end + 9);
                let entries = index.find(range.clone(), usize::MAX);
                let bytes = entries.iter().map(|found| match found {
                    Found::InMemory(entry) => entry.bytes.len() as u64,
                    Found::OnDisk { slot, .. } => u64::from(slot.length),
                });
                assert_eq!(index.bytes_in(range.clone()), bytes.sum::<u64>(), "{range:?}");
            }
        }
    }
}
