//! A segment's file: its name, its batches, its head and its footer. Owns what lies where in one
//! file; never decides when to begin or free one.
//!
//! ```text
//! segment = opening batch, batch*, [footer batch], old or zero bytes
//! batch   = Batch record, record*          (one write, one sync; then the next batch)
//! opening = Batch, Head, every group's Vote, Forgotten, Floor, Purge, Committed, then records as in any batch
//! ```
//!
//! A segment is filled under a name that recovery ignores and renamed once its opening batch is
//! synced. So a segment that has its name has a whole opening batch, or is damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};

use super::GroupId;
use super::record::{self, Content, HEADER_BYTES, Header, Newer, Place, RecordKind, Unread};

const SEGMENT_SUFFIX: &str = ".log";
const SPARE_SUFFIX: &str = ".spare";
/// Segments and batches are counted one by one and never get here. What claims to have is not ours,
/// and there are always numbers left to go on with.
const NUMBER_MAX: u64 = u64::MAX >> 1;

/// The file of a segment.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}{SEGMENT_SUFFIX}"))
}

/// A file that is not a segment, or not yet: free to be overwritten, removed at opening.
pub(super) fn spare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}{SPARE_SUFFIX}"))
}

/// The segment number in a file name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    name.strip_suffix(SEGMENT_SUFFIX)?.parse().ok().filter(|number| *number <= NUMBER_MAX)
}

/// Whether a file name is that of a spare.
pub(super) fn is_spare(name: &str) -> bool {
    name.ends_with(SPARE_SUFFIX)
}

/// Collects the records of one batch, to be written at one place.
pub(super) struct BatchBuilder {
    bytes: Vec<u8>,
    start: Place,
    batch: u64,
    records: u64,
}

impl BatchBuilder {
    pub(super) fn new(start: Place, batch: u64) -> BatchBuilder {
        // The batch's own header is written by `finish`, when its length is known.
        BatchBuilder { bytes: vec![0; HEADER_BYTES], start, batch, records: 0 }
    }

    /// Adds a record; returns the offset it will have in the segment.
    pub(super) fn push(&mut self, content: Content<'_>) -> u32 {
        let within = u32::try_from(self.bytes.len()).expect("a batch is limited by what may wait");
        let place = Place { offset: self.start.offset + within, ..self.start };
        record::encode(&mut self.bytes, place, self.batch, content);
        self.records += 1;
        place.offset
    }

    /// Number of records so far, without the batch's own header.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The bytes to be written at the start.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let content = Content {
            kind: RecordKind::Batch,
            group: GroupId(0),
            index: self.records,
            term: self.bytes.len() as u64,
            payload: &[],
        };
        let header = record::encode_header(self.start, self.batch, content);
        self.bytes[..HEADER_BYTES].copy_from_slice(&header);
        self.bytes
    }
}

/// A record of a batch, as it lies in the segment's bytes.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) offset: u32,
    pub(super) payload: &'a [u8],
}

/// A whole and valid batch.
pub(super) struct Batch<'a> {
    pub(super) number: u64,
    pub(super) records: Vec<Record<'a>>,
    /// Where the next batch begins.
    pub(super) end: u32,
}

/// The first place where a segment does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// There it is not what was written.
    Damage { offset: u32, what: &'static str },
    /// What stands there, a newer release wrote.
    Newer { offset: u32, newer: Newer },
}

/// Reads the batch at `offset` of a segment's bytes.
pub(super) fn read_batch(segment: u64, bytes: &[u8], offset: u32) -> Result<Batch<'_>, Stop> {
    let no_header = "no valid batch header";
    let (first, _) = read_record(segment, bytes, offset, no_header)?;
    if first.kind != RecordKind::Batch {
        return Err(Stop::Damage { offset, what: no_header });
    }
    if first.batch > NUMBER_MAX {
        return Err(Stop::Damage { offset, what: "no batch has such a number" });
    }
    let end = u64::from(offset)
        .checked_add(first.term)
        .filter(|end| *end <= bytes.len() as u64)
        .and_then(|end| u32::try_from(end).ok())
        .ok_or(Stop::Damage { offset, what: "batch is longer than its segment" })?;
    let mut records = Vec::new();
    let mut at = offset + HEADER_BYTES as u32;
    for _ in 0..first.index {
        let what = "no valid record";
        let damage = Stop::Damage { offset: at, what };
        let (header, payload) = read_record(segment, &bytes[..end as usize], at, what)?;
        if header.batch != first.batch {
            return Err(damage);
        }
        let next = at as usize + header.record_bytes();
        records.push(Record { header, offset: at, payload });
        at = u32::try_from(next).map_err(|_| damage)?;
    }
    if at != end {
        let what = "batch is shorter than its header says";
        return Err(Stop::Damage { offset: at, what });
    }
    Ok(Batch { number: first.batch, records, end })
}

/// Reads the record at `offset`; `what` is said of it where there is none.
fn read_record<'a>(
    segment: u64,
    bytes: &'a [u8],
    offset: u32,
    what: &'static str,
) -> Result<(Header, &'a [u8]), Stop> {
    let bytes = bytes.get(offset as usize..).unwrap_or_default();
    record::decode(bytes, Place { segment, offset }).map_err(|unread| match unread {
        Unread::Invalid => Stop::Damage { offset, what },
        Unread::Newer(newer) => Stop::Newer { offset, newer },
    })
}

/// Whether any record of a batch after `batch` begins behind `offset`. Batches are written one
/// after the other, so it proves that everything up to `batch` had been synced.
pub(super) fn has_later_batch(segment: u64, bytes: &[u8], offset: u32, batch: u64) -> bool {
    (offset as usize..bytes.len().saturating_sub(HEADER_BYTES - 1)).any(|at| {
        let Ok(offset) = u32::try_from(at) else { return false };
        match record::decode_header(&bytes[at..], Place { segment, offset }) {
            Ok(header) => header.batch > batch,
            // Whatever it is, it is not to be cut.
            Err(Unread::Newer(_)) => true,
            Err(Unread::Invalid) => false,
        }
    })
}

/// How far the segment before this one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Previous {
    pub(super) segment: u64,
    /// Bytes from here on are a torn tail, copied, or never used.
    pub(super) end: u32,
    /// Where its footer batch begins, if it has one.
    pub(super) footer: Option<u32>,
}

/// First record of a segment: ties it to the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) previous: Option<Previous>,
    /// The oldest segment that still held something when this one was begun.
    pub(super) first_live: u64,
}

impl Head {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.first_live);
        match self.previous {
            None => out.put_u64_le(0),
            Some(previous) => {
                out.put_u64_le(previous.segment);
                out.put_u32_le(previous.end);
                out.put_u32_le(previous.footer.unwrap_or(0));
            }
        }
        out
    }

    pub(super) fn decode(mut payload: &[u8]) -> Option<Head> {
        let first_live = payload.try_get_u64_le().ok()?;
        let segment = payload.try_get_u64_le().ok()?;
        if segment == 0 {
            return Some(Head { previous: None, first_live });
        }
        let end = payload.try_get_u32_le().ok()?;
        let footer = Some(payload.try_get_u32_le().ok()?).filter(|footer| *footer > 0);
        Some(Head { previous: Some(Previous { segment, end, footer }), first_live })
    }
}

/// An entry of one group in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexedEntry {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// What one segment does to one group's entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GroupEntries {
    /// Entries of earlier segments from here on are gone.
    pub(super) truncated_from: Option<u64>,
    /// Entries in this segment that no record in it truncates, in the order written.
    pub(super) entries: Vec<IndexedEntry>,
}

/// What one segment does to all groups' entries: its footer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SegmentIndex {
    pub(super) groups: BTreeMap<GroupId, GroupEntries>,
}

impl SegmentIndex {
    pub(super) fn push(&mut self, group: GroupId, entry: IndexedEntry) {
        self.groups.entry(group).or_default().entries.push(entry);
    }

    pub(super) fn truncate(&mut self, group: GroupId, from: u64) {
        let group = self.groups.entry(group).or_default();
        group.truncated_from = Some(group.truncated_from.map_or(from, |earlier| earlier.min(from)));
        group.entries.retain(|entry| entry.index < from);
    }

    /// Takes in a record that lies in the segment.
    pub(super) fn observe(&mut self, header: &Header, offset: u32) {
        match header.kind {
            RecordKind::Entry | RecordKind::RewrittenEntry => self.push(
                header.group,
                IndexedEntry {
                    index: header.index,
                    term: header.term,
                    offset,
                    length: header.length,
                },
            ),
            RecordKind::Truncate => self.truncate(header.group, header.index),
            RecordKind::Forgotten => self.truncate(header.group, 0),
            RecordKind::Batch
            | RecordKind::Head
            | RecordKind::Vote
            | RecordKind::Committed
            | RecordKind::Purge
            | RecordKind::Freed
            | RecordKind::Footer
            | RecordKind::Floor => {}
        }
    }

    /// The footer's payload: numbers as variable-length integers, each entry as the difference to
    /// the one before.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.groups.len() as u64);
        for (group, entries) in &self.groups {
            put_varint(&mut out, u64::from(group.0));
            put_varint(&mut out, entries.truncated_from.map_or(0, |from| from.wrapping_add(1)));
            put_varint(&mut out, entries.entries.len() as u64);
            let mut last = IndexedEntry { index: 0, term: 0, offset: 0, length: 0 };
            for entry in &entries.entries {
                put_difference(&mut out, last.index, entry.index);
                put_difference(&mut out, last.term, entry.term);
                put_difference(&mut out, u64::from(last.offset), u64::from(entry.offset));
                put_varint(&mut out, u64::from(entry.length));
                last = *entry;
            }
        }
        out
    }

    pub(super) fn decode(mut payload: &[u8]) -> Option<SegmentIndex> {
        let mut index = SegmentIndex::default();
        for _ in 0..get_varint(&mut payload)? {
            let group = GroupId(u32::try_from(get_varint(&mut payload)?).ok()?);
            let truncated_from = get_varint(&mut payload)?.checked_sub(1);
            let mut entries = Vec::new();
            let mut last = IndexedEntry { index: 0, term: 0, offset: 0, length: 0 };
            for _ in 0..get_varint(&mut payload)? {
                let index = get_difference(&mut payload, last.index)?;
                let term = get_difference(&mut payload, last.term)?;
                let offset = get_difference(&mut payload, u64::from(last.offset))?;
                let length = get_varint(&mut payload)?;
                let (offset, length) = (u32::try_from(offset).ok()?, u32::try_from(length).ok()?);
                last = IndexedEntry { index, term, offset, length };
                entries.push(last);
            }
            index.groups.insert(group, GroupEntries { truncated_from, entries });
        }
        payload.is_empty().then_some(index)
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn get_varint(payload: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = payload.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Writes a signed difference with its sign in the lowest bit.
fn put_difference(out: &mut Vec<u8>, from: u64, to: u64) {
    let difference = to.wrapping_sub(from) as i64;
    put_varint(out, ((difference << 1) ^ (difference >> 63)) as u64);
}

fn get_difference(payload: &mut &[u8], from: u64) -> Option<u64> {
    let folded = get_varint(payload)?;
    let difference = (folded >> 1) as i64 ^ -((folded & 1) as i64);
    Some(from.wrapping_add(difference as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_is_read_back_as_written() {
        let mut index = SegmentIndex::default();
        for (at, group) in [(0, 1), (1, 1), (2, 7), (3, 1)] {
            let (index_of_entry, offset) = (u64::MAX - 5 + at, 1000 - 300 * at as u32);
            let entry =
                IndexedEntry { index: index_of_entry, term: 9 - at, offset, length: 70_000 };
            index.push(GroupId(group), entry);
        }
        index.truncate(GroupId(9), 0);
        assert_eq!(SegmentIndex::decode(&index.encode()), Some(index));
    }

    #[test]
    fn a_footer_that_ends_early_or_late_is_refused() {
        let mut index = SegmentIndex::default();
        index.push(GroupId(1), IndexedEntry { index: 300, term: 2, offset: 1000, length: 9 });
        let bytes = index.encode();
        for length in 0..bytes.len() {
            assert_eq!(SegmentIndex::decode(&bytes[..length]), None, "length {length}");
        }
        assert_eq!(SegmentIndex::decode(&[bytes, vec![0]].concat()), None);
    }

    #[test]
    fn a_head_is_read_back_as_written() {
        let previous = Previous { segment: 7, end: 900, footer: Some(800) };
        for previous in [None, Some(previous), Some(Previous { footer: None, ..previous })] {
            let head = Head { previous, first_live: 3 };
            assert_eq!(Head::decode(&head.encode()), Some(head));
        }
    }
}
