//! Opens the log: reads what earlier lives of this node left, tells a torn tail from damage, and
//! begins a fresh segment. Owns the decision what is whole; never repairs a file in place.
//!
//! A batch was synced if a record of a later batch exists, because batches are written one after
//! the other. So damage before such a record is corruption, and the log is refused; so is one in
//! which a newer release has written, wherever it did. Anything else
//! is the torn tail of a batch that was never acknowledged, and is cut. The last whole batch may
//! have been written but not synced by a process that was killed: its records are copied to the
//! fresh segment, which is synced before anyone relies on them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::index::{GroupIndex, Slot, Whereabouts, still_above};
use super::record::{self, HEADER_BYTES, Place, RecordKind};
use super::segment::{
    self, Batch, BatchBuilder, Head, Previous, Record, SegmentIndex, Stop, is_spare,
    segment_number, segment_path, spare_path,
};
use super::shared::{GroupHead, Segment};
use super::writer::current::{Current, publish, push_heads};
use super::{EntryId, GroupId, LogConfig, LogContents, LogError, Purged, Recovered};

/// The fresh segment, for the writer to go on.
pub(super) struct Newest {
    pub(super) current: Current,
    pub(super) previous: Option<Previous>,
    pub(super) next_batch: u64,
}

/// An opened log.
pub(super) struct Opened {
    pub(super) newest: Newest,
    pub(super) groups: BTreeMap<GroupId, GroupIndex>,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) recovered: Recovered,
}

/// Opens the log in `dir`; when it returns, everything it found is durable.
pub(super) fn open(disk: &dyn Disk, dir: &Path, config: &LogConfig) -> Result<Opened, LogError> {
    let io = |action| move |error| LogError::disk(action, dir, error);
    disk.create_dir(dir).map_err(io("create directory"))?;
    let names = disk.list(dir).map_err(io("list directory"))?;
    for name in names.iter().filter(|name| is_spare(name)) {
        let path = dir.join(name);
        disk.remove(&path).map_err(|error| LogError::disk("remove", &path, error))?;
    }
    let numbers: BTreeSet<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    let found = match numbers.last() {
        None => Found::default(),
        Some(newest) => Found::read(disk, dir, *newest, config.verify_sealed)?,
    };
    let number = numbers.last().map_or(1, |newest| newest + 1);
    let mut recovered = Recovered {
        segments: found.older.len(),
        torn_bytes: found.torn_bytes,
        copied_records: found.tail.len() as u64,
        ..Recovered::default()
    };
    let opened = found.begin(disk, dir, config, number)?;
    recovered.groups = opened.groups.keys().copied().collect();
    recovered.entries = opened.groups.values().map(GroupIndex::entries).sum();
    for gone in numbers.range(..opened.segments.keys().next().copied().unwrap_or(number)) {
        let path = segment_path(dir, *gone);
        disk.remove(&path).map_err(|error| LogError::disk("remove", &path, error))?;
    }
    Ok(Opened { recovered, ..opened })
}

/// What the log in `dir` holds, read without writing anything; `None` where there is no log.
pub(super) fn read(
    disk: &dyn Disk,
    dir: &Path,
    config: &LogConfig,
) -> Result<Option<LogContents>, LogError> {
    let newest = newest_segment(disk, dir);
    let newest = newest.map_err(|error| LogError::disk("list directory", dir, error))?;
    let Some(newest) = newest else { return Ok(None) };
    let mut found = Found::read(disk, dir, newest, config.verify_sealed)?;
    let mut entries = Entries::default();
    for older in &found.older {
        entries.merge(older.number, &older.index);
    }
    let next = Place { segment: newest + 1, offset: 0 };
    let mut tail = SegmentIndex::default();
    found.copy_tail(&mut BatchBuilder::new(next, 0), &mut tail);
    entries.merge(next.segment, &tail);
    entries.purge(&found.heads);
    let groups = entries.into_groups(dir, std::mem::take(&mut found.heads).into_values())?;
    Ok(Some(LogContents { file: segment_path(dir, newest), end: found.ends_at, groups }))
}

/// The number of the newest segment; `None` where there is no log.
pub(super) fn newest_segment(disk: &dyn Disk, dir: &Path) -> std::io::Result<Option<u64>> {
    match disk.list(dir) {
        Ok(names) => Ok(names.iter().filter_map(|name| segment_number(name)).max()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A record of the unproven tail, to be copied.
struct TailRecord {
    kind: RecordKind,
    group: GroupId,
    index: u64,
    term: u64,
    payload: Bytes,
}

/// A segment from before.
struct Older {
    number: u64,
    file: Arc<dyn DiskFile>,
    end: u32,
    index: SegmentIndex,
}

/// All that earlier lives left.
#[derive(Default)]
struct Found {
    /// Oldest first.
    older: Vec<Older>,
    heads: BTreeMap<GroupId, GroupHead>,
    tail: Vec<TailRecord>,
    first_live: u64,
    last_batch: u64,
    torn_bytes: u64,
    /// Where in the newest segment its last whole batch ends.
    ends_at: u32,
}

/// A segment's file and as many of its bytes as are needed.
struct Contents<'a> {
    dir: &'a Path,
    number: u64,
    file: Arc<dyn DiskFile>,
}

impl<'a> Contents<'a> {
    fn open(disk: &dyn Disk, dir: &'a Path, number: u64) -> Result<Contents<'a>, LogError> {
        let path = segment_path(dir, number);
        let file = disk.open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => LogError::corrupt(&path, 0, "segment is missing"),
            _ => LogError::disk("open segment", &path, error),
        })?;
        Ok(Contents { dir, number, file })
    }

    fn length(&self) -> Result<u64, LogError> {
        let path = segment_path(self.dir, self.number);
        self.file.length().map_err(|error| LogError::disk("read length of", &path, error))
    }

    /// The bytes in a range, as far as the file has them.
    fn bytes(&self, start: u32, end: u64) -> Result<Vec<u8>, LogError> {
        let length = end.min(self.length()?).saturating_sub(u64::from(start));
        let mut bytes = vec![0; length as usize];
        let path = segment_path(self.dir, self.number);
        let failed = |error| LogError::disk("read segment", &path, error);
        let read = self.file.read_at(&mut bytes, u64::from(start)).map_err(failed)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn refuse(&self, stop: Stop) -> LogError {
        let path = segment_path(self.dir, self.number);
        match stop {
            Stop::Damage { offset, what } => LogError::corrupt(&path, u64::from(offset), what),
            Stop::Newer { offset, newer } => LogError::newer(&path, u64::from(offset), newer),
        }
    }

    fn head(&self, opening: &Batch<'_>) -> Result<Head, LogError> {
        let first = opening.records.first();
        first
            .filter(|record| record.header.kind == RecordKind::Head)
            .and_then(|record| Head::decode(record.payload))
            .ok_or(self.refuse(Stop::Damage { offset: 0, what: "segment has no head" }))
    }

    /// Reads all of a segment that others follow: every byte of it had been synced.
    fn scan(&self, end: u32) -> Result<(Head, SegmentIndex), LogError> {
        let bytes = self.bytes(0, u64::from(end))?;
        let opening = segment::read_batch(self.number, &bytes, 0);
        let opening = opening.map_err(|stop| self.refuse(stop))?;
        let head = self.head(&opening)?;
        let mut index = SegmentIndex::default();
        let mut batch = opening;
        loop {
            for record in &batch.records {
                index.observe(&record.header, record.offset);
            }
            let (number, at) = (batch.number + 1, batch.end);
            if at == end {
                return Ok((head, index));
            }
            batch = segment::read_batch(self.number, &bytes, at)
                .and_then(|batch| in_order(batch, number, at))
                .map_err(|stop| self.refuse(stop))?;
        }
    }

    /// Reads the head and the footer alone; `None` where they do not say it all.
    fn read_footer(&self, previous: &Previous) -> Result<Option<(Head, SegmentIndex)>, LogError> {
        let Some(footer) = previous.footer else { return Ok(None) };
        let bytes = self.bytes(0, 4 * HEADER_BYTES as u64)?;
        let offset = HEADER_BYTES as u32;
        let place = Place { segment: self.number, offset };
        let head = bytes
            .get(HEADER_BYTES..)
            .and_then(|bytes| record::decode(bytes, place).ok())
            .filter(|(header, _)| header.kind == RecordKind::Head)
            .and_then(|(_, payload)| Head::decode(payload));
        let bytes = self.bytes(footer, u64::from(previous.end))?;
        let Some(offset) = footer.checked_add(offset) else { return Ok(None) };
        let place = Place { offset, ..place };
        let index = bytes
            .get(HEADER_BYTES..)
            .and_then(|bytes| record::decode(bytes, place).ok())
            .filter(|(header, _)| header.kind == RecordKind::Footer)
            .and_then(|(_, payload)| SegmentIndex::decode(payload));
        Ok(head.zip(index))
    }
}

fn in_order(batch: Batch<'_>, number: u64, offset: u32) -> Result<Batch<'_>, Stop> {
    if batch.number == number {
        Ok(batch)
    } else {
        Err(Stop::Damage { offset, what: "batch is out of order" })
    }
}

impl Found {
    fn read(
        disk: &dyn Disk,
        dir: &Path,
        newest: u64,
        verify_sealed: bool,
    ) -> Result<Found, LogError> {
        let mut found = Found::default();
        let mut previous = found.read_newest(Contents::open(disk, dir, newest)?)?;
        while let Some(link) = previous
            && link.segment >= found.first_live
        {
            let contents = Contents::open(disk, dir, link.segment)?;
            let known = if verify_sealed { None } else { contents.read_footer(&link)? };
            let (head, index) = match known {
                Some(known) => known,
                None => contents.scan(link.end)?,
            };
            let Contents { number, file, .. } = contents;
            found.older.push(Older { number, file, end: link.end, index });
            previous = head.previous.filter(|earlier| earlier.segment < number);
        }
        found.older.reverse();
        Ok(found)
    }

    /// Reads the newest segment up to its torn tail; returns the link to the one before.
    fn read_newest(&mut self, contents: Contents<'_>) -> Result<Option<Previous>, LogError> {
        let bytes = contents.bytes(0, u64::from(u32::MAX))?;
        // ORDER: a segment gets its name after its opening batch is durable, so damage in there is
        // never a torn tail.
        let opening = segment::read_batch(contents.number, &bytes, 0);
        let opening = opening.map_err(|stop| contents.refuse(stop))?;
        let head = contents.head(&opening)?;
        self.first_live = head.first_live;
        let mut index = SegmentIndex::default();
        self.observe(&opening.records);
        opening.records.iter().for_each(|record| index.observe(&record.header, record.offset));

        let (mut at, mut number) = (opening.end, opening.number);
        let mut last: Option<(u32, Batch<'_>)> = None;
        loop {
            let next = segment::read_batch(contents.number, &bytes, at)
                .and_then(|batch| in_order(batch, number + 1, at));
            match next {
                Ok(batch) => {
                    self.observe(&batch.records);
                    let start = std::mem::replace(&mut at, batch.end);
                    number = batch.number;
                    if let Some((_, proven)) = last.replace((start, batch)) {
                        let records = proven.records.iter();
                        records.for_each(|record| index.observe(&record.header, record.offset));
                    }
                }
                Err(stop) => {
                    if segment::has_later_batch(contents.number, &bytes, at, number + 1) {
                        return Err(contents.refuse(stop));
                    }
                    break;
                }
            }
        }
        (self.last_batch, self.ends_at) = (number, at);
        self.torn_bytes = torn_bytes(contents.number, &bytes, at, number + 1);
        let end = last.as_ref().map_or(at, |(start, _)| *start);
        let tail = last.map_or(Vec::new(), |(_, batch)| batch.records);
        for record in &tail {
            let group = record.header.group;
            if record.header.kind == RecordKind::Forgotten {
                // The heads say the rest, and must not be contradicted by what came before.
                self.tail.retain(|earlier| earlier.group != group);
                let (kind, payload) = (RecordKind::Truncate, Bytes::new());
                self.tail.push(TailRecord { kind, group, index: 0, term: 0, payload });
            }
            self.tail.extend(to_copy(record));
        }
        let Contents { number, file, .. } = contents;
        self.older.push(Older { number, file, end, index });
        Ok(head.previous.filter(|earlier| earlier.segment < number))
    }

    /// Takes in what records say of anything but entries.
    fn observe(&mut self, records: &[Record<'_>]) {
        for Record { header, payload, .. } in records {
            let group = header.group;
            let none = || GroupHead::of(group);
            let bytes = Bytes::copy_from_slice(if header.kind == RecordKind::Footer {
                &[]
            } else {
                payload
            });
            match header.kind {
                RecordKind::Vote => {
                    self.heads.entry(group).or_insert_with(none).vote = Some(bytes);
                }
                RecordKind::Committed => {
                    self.heads.entry(group).or_insert_with(none).committed = Some(bytes);
                }
                RecordKind::Purge => {
                    let head = self.heads.entry(group).or_insert_with(none);
                    if head.purged.as_ref().is_none_or(|earlier| earlier.index <= header.index) {
                        head.purged = Some(Purged { index: header.index, bytes });
                    }
                    head.is_forgotten = false;
                }
                RecordKind::Forgotten => {
                    let head = self.heads.entry(group).or_insert_with(none);
                    (head.purged, head.committed, head.is_forgotten) = (None, None, true);
                    head.floor = None;
                }
                RecordKind::Floor => {
                    let head = self.heads.entry(group).or_insert_with(none);
                    head.floor = Some(EntryId { index: header.index, term: header.term });
                }
                RecordKind::Entry | RecordKind::RewrittenEntry => {
                    if let Some(head) = self.heads.get_mut(&group) {
                        head.is_forgotten = false;
                        head.floor = still_above(head.floor, header.index, header.term);
                    }
                }
                RecordKind::Freed => self.first_live = self.first_live.max(header.index),
                RecordKind::Batch
                | RecordKind::Head
                | RecordKind::Truncate
                | RecordKind::Footer => {}
            }
        }
    }

    /// Writes a fresh segment that takes over, with a copy of the unproven tail.
    fn begin(
        mut self,
        disk: &dyn Disk,
        dir: &Path,
        config: &LogConfig,
        number: u64,
    ) -> Result<Opened, LogError> {
        let mut entries = Entries::default();
        for older in &self.older {
            entries.merge(older.number, &older.index);
        }
        // The tail's offsets follow from the head, and the head names the oldest segment that
        // still counts, which depends on the tail. So look at the tail twice.
        let mut provisional = SegmentIndex::default();
        self.copy_tail(
            &mut BatchBuilder::new(Place { segment: number, offset: 0 }, 0),
            &mut provisional,
        );
        entries.merge(number, &provisional);
        entries.purge(&self.heads);
        let first_live = entries.first_segment().unwrap_or(number);

        let last = self.older.last();
        let previous =
            last.map(|last| Previous { segment: last.number, end: last.end, footer: None });
        // A torn batch had the number after the last whole one; its number is not used again.
        let batch = self.last_batch + 2;
        let mut builder = BatchBuilder::new(Place { segment: number, offset: 0 }, batch);
        push_heads(&mut builder, &Head { previous, first_live }, self.heads.values());
        let mut index = SegmentIndex::default();
        self.copy_tail(&mut builder, &mut index);
        entries.merge(number, &index);
        entries.purge(&self.heads);
        let heads = std::mem::take(&mut self.heads).into_values();

        let path = spare_path(dir, number);
        let file = disk.create(&path).map_err(|error| LogError::disk("create", &path, error))?;
        let mut current = Current { number, path, file, end: 0, allocated: 0, index, grown: false };
        current.append(&builder.finish(), config.preallocate_bytes)?;
        publish(disk, &mut current, segment_path(dir, number))?;

        let mut segments = self.segments(dir, first_live);
        let (path, file) = (current.path.clone(), current.file.clone());
        let segment = Segment { path, file, end: current.end, live_entries: 0, live_bytes: 0 };
        segments.insert(number, segment);
        entries.count(&mut segments);
        let groups = entries.into_groups(dir, heads)?;
        let newest = Newest { current, previous, next_batch: batch + 1 };
        Ok(Opened { newest, groups, segments, recovered: Recovered::default() })
    }

    fn copy_tail(&self, builder: &mut BatchBuilder, index: &mut SegmentIndex) {
        for record in &self.tail {
            let TailRecord { kind, group, index: entry, term, payload } = record;
            let (kind, group, term) = (*kind, *group, *term);
            let content = record::Content { kind, group, index: *entry, term, payload };
            let offset = builder.push(content);
            if kind == RecordKind::Truncate {
                index.truncate(group, *entry);
            } else {
                let length = payload.len() as u32;
                index.push(group, segment::IndexedEntry { index: *entry, term, offset, length });
            }
        }
    }

    fn segments(self, dir: &Path, first_live: u64) -> BTreeMap<u64, Segment> {
        let counts = |older: &Older| older.number >= first_live;
        let segment = |older: Older| {
            let path = segment_path(dir, older.number);
            let (file, end) = (older.file, older.end);
            (older.number, Segment { path, file, end, live_entries: 0, live_bytes: 0 })
        };
        self.older.into_iter().filter(counts).map(segment).collect()
    }
}

/// Entries and truncations of the tail; all else is in the heads.
fn to_copy(record: &Record<'_>) -> Option<TailRecord> {
    match record.header.kind {
        RecordKind::Entry | RecordKind::RewrittenEntry | RecordKind::Truncate => Some(TailRecord {
            kind: record.header.kind,
            group: record.header.group,
            index: record.header.index,
            term: record.header.term,
            payload: Bytes::copy_from_slice(record.payload),
        }),
        RecordKind::Batch
        | RecordKind::Head
        | RecordKind::Vote
        | RecordKind::Committed
        | RecordKind::Purge
        | RecordKind::Freed
        | RecordKind::Footer
        | RecordKind::Forgotten
        | RecordKind::Floor => None,
    }
}

/// How many bytes a batch lost its end of; 0 where nothing of it is there.
fn torn_bytes(segment: u64, bytes: &[u8], offset: u32, batch: u64) -> u64 {
    let rest = bytes.get(offset as usize..).unwrap_or_default();
    record::decode_header(rest, Place { segment, offset })
        .ok()
        .filter(|header| header.kind == RecordKind::Batch && header.batch == batch)
        .map_or(0, |header| header.term.min(rest.len() as u64))
}

/// Every group's entries while segments are merged, oldest first. There are holes meanwhile:
/// entries rewritten forward come later than those that follow them.
#[derive(Default)]
struct Entries {
    groups: BTreeMap<GroupId, BTreeMap<u64, Slot>>,
}

impl Entries {
    fn merge(&mut self, segment: u64, index: &SegmentIndex) {
        for (group, entries) in &index.groups {
            let slots = self.groups.entry(*group).or_default();
            if let Some(from) = entries.truncated_from {
                slots.split_off(&from);
            }
            for entry in &entries.entries {
                let whereabouts = Whereabouts::Stored(Place { segment, offset: entry.offset });
                let slot = Slot::new(entry.term, entry.length, whereabouts);
                slots.insert(entry.index, slot);
            }
        }
    }

    fn purge(&mut self, heads: &BTreeMap<GroupId, GroupHead>) {
        for (group, slots) in &mut self.groups {
            if let Some(purged) = heads.get(group).and_then(|head| head.purged.as_ref()) {
                *slots = slots.split_off(&(purged.index.saturating_add(1)));
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = (Place, u32)> {
        self.groups.values().flat_map(BTreeMap::values).filter_map(|slot| {
            match slot.whereabouts() {
                Whereabouts::Stored(place) => Some((place, slot.length)),
                Whereabouts::Waiting { .. } => None,
            }
        })
    }

    fn first_segment(&self) -> Option<u64> {
        self.places().map(|(place, _)| place.segment).min()
    }

    fn count(&self, segments: &mut BTreeMap<u64, Segment>) {
        for (place, length) in self.places() {
            if let Some(segment) = segments.get_mut(&place.segment) {
                segment.live_entries += 1;
                segment.live_bytes += u64::from(length);
            }
        }
    }

    fn into_groups(
        mut self,
        dir: &Path,
        heads: impl IntoIterator<Item = GroupHead>,
    ) -> Result<BTreeMap<GroupId, GroupIndex>, LogError> {
        let mut groups = BTreeMap::new();
        for GroupHead { group, vote, purged, committed, is_forgotten, floor } in heads {
            let slots = self.groups.remove(&group).unwrap_or_default();
            let next = purged.as_ref().map(|purged| purged.index.saturating_add(1));
            let mut index = contiguous(dir, group, next, slots)?;
            (index.vote, index.purged, index.committed) = (vote, purged, committed);
            (index.is_forgotten, index.floor) = (is_forgotten, floor);
            index.mark_all_synced();
            groups.insert(group, index);
        }
        for (group, slots) in self.groups.into_iter().filter(|(_, slots)| !slots.is_empty()) {
            let mut index = contiguous(dir, group, None, slots)?;
            index.mark_all_synced();
            groups.insert(group, index);
        }
        Ok(groups)
    }
}

fn contiguous(
    dir: &Path,
    group: GroupId,
    next: Option<u64>,
    slots: BTreeMap<u64, Slot>,
) -> Result<GroupIndex, LogError> {
    let first = next.or(slots.keys().next().copied()).unwrap_or(0);
    // Nothing could follow the greatest index, so an entry there is none of ours.
    if slots.contains_key(&u64::MAX) {
        return Err(LogError::Missing { dir: dir.to_owned(), group, index: first });
    }
    for (&found, expected) in slots.keys().zip(first..) {
        if found != expected {
            return Err(LogError::Missing { dir: dir.to_owned(), group, index: expected });
        }
    }
    Ok(GroupIndex::recovered(first, slots.into_values().collect()))
}
