//! The log's decoders, to be given hostile bytes; see `crate::fuzzing`.
//!
//! Checksums keep random damage out, so there are two ways in: a file as it is, and one whose
//! records have right checksums and say what the input wants.

use std::path::PathBuf;
use std::sync::Arc;

use super::record::{self, Content, HEADER_BYTES, Place, RecordKind};
use super::segment::{Head, SegmentIndex, segment_path};
use super::{Disk, FaultyDisk, GroupId, Log, LogConfig, LogError};
use crate::fuzzing::put_file;

/// The number of the first segment in a test.
const SEGMENT: u64 = 1;
/// Numbers that are worth a try where the log has one.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    44,
    88,
    0xff,
    0xffff,
    1 << 20,
    u32::MAX as u64 - 44,
    u32::MAX as u64,
    1 << 60,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
    7,
];

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

/// The begin of a file, and payloads of the kinds that this crate decodes itself.
pub fn record(bytes: &[u8]) {
    let place = Place { segment: SEGMENT, offset: 0 };
    if let Ok((header, payload)) = record::decode(bytes, place) {
        assert_eq!(header.record_bytes(), HEADER_BYTES + payload.len());
    }
    if let Some(head) = Head::decode(bytes) {
        // What follows it is not looked at.
        assert!(bytes.starts_with(&head.encode()));
    }
    if let Some(index) = SegmentIndex::decode(bytes) {
        assert_eq!(SegmentIndex::decode(&index.encode()), Some(index));
    }
}

/// The newest segment's file.
pub fn segment_file(bytes: &[u8]) {
    open(&[(SEGMENT, bytes.to_vec())], false);
}

/// Segments of valid records. The input is a program, see [`Program`]; its first byte says whether
/// footers are trusted.
pub fn segment_of_valid_records(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    open(&Program::new(rest).run(), first % 2 == 1);
}

/// Opens a log of these files, reads all that it holds, goes on with it and opens it again.
fn open(files: &[(u64, Vec<u8>)], verify_sealed: bool) {
    let disk = FaultyDisk::new(0);
    disk.create_dir(&dir()).expect("memory takes all");
    for (number, bytes) in files {
        put_file(&disk, &segment_path(&dir(), *number), bytes);
    }
    let opened = || -> Result<(), LogError> {
        let config = LogConfig {
            segment_bytes: 4 << 10,
            preallocate_bytes: 0,
            cache_bytes_max: 0,
            verify_sealed,
            ..LogConfig::default()
        };
        let disk = Arc::new(disk.clone());
        let (log, recovered, mut writer) = Log::open_manual(disk, dir(), config)?;
        for &group in &recovered.groups {
            let state = log.state(group);
            let entries = log.read(group, 0..u64::MAX, 1 << 20);
            if let (Ok(entries), Some(first)) = (entries, state.first) {
                assert_eq!(entries.first().map(|entry| entry.index), Some(first.index));
            }
            log.save_vote(group, "vote".into(), |_| ());
            log.purge(group, log.synced_index(group), "purged".into(), |_| ());
        }
        writer.write_batch();
        writer.write_batch();
        Ok(())
    };
    if opened().is_ok() {
        // What it made of the files, it can open.
        opened().expect("a log that was opened opens again");
    }
}

/// Builds segments from bytes: each step begins with a byte that says what it is.
///
/// ```text
/// 0..=9   a record of that kind: group(1) index(1) term(1) length(1) and so many bytes
/// 10      ends the batch
/// 11      ends the batch, with a number(1) of its own
/// 12      ends the batch; its header lies: records(1) bytes(1)
/// 13      ends the batch and the segment
/// 14      a record that says that the group was forgotten, or how far it had come: which(1), then as 0
/// 15      bytes as they are: length(1) and so many
/// ```
/// An index, a term or a number is one of [`NUMBERS`] if its byte is 0xf0 or more.
struct Program<'a> {
    rest: &'a [u8],
    files: Vec<(u64, Vec<u8>)>,
    bytes: Vec<u8>,
    batch: u64,
    start: usize,
    records: u64,
}

impl<'a> Program<'a> {
    fn new(rest: &'a [u8]) -> Program<'a> {
        Program { rest, files: Vec::new(), bytes: Vec::new(), batch: 1, start: 0, records: 0 }
    }

    fn run(mut self) -> Vec<(u64, Vec<u8>)> {
        self.begin_batch();
        while let Some(step) = self.take(1).first().copied() {
            match step % 16 {
                kind @ 0..=9 => self.record(RecordKind::ALL[usize::from(kind)]),
                10 => self.end_batch(None, None),
                11 => {
                    self.batch = self.number();
                    self.end_batch(None, None);
                }
                12 => {
                    let (records, bytes) = (self.number(), self.number());
                    self.end_batch(Some(records), Some(bytes));
                }
                14 => {
                    let kind =
                        [RecordKind::Forgotten, RecordKind::Floor][usize::from(self.byte() % 2)];
                    self.record(kind);
                }
                13 => {
                    self.end_batch(None, None);
                    let number = SEGMENT + self.files.len() as u64;
                    self.bytes.truncate(self.start);
                    self.files.push((number, std::mem::take(&mut self.bytes)));
                    self.begin_batch();
                }
                _ => {
                    let length = self.byte();
                    let bytes = self.take(usize::from(length));
                    self.bytes.extend_from_slice(bytes);
                }
            }
        }
        self.end_batch(None, None);
        let number = SEGMENT + self.files.len() as u64;
        self.bytes.truncate(self.start);
        self.files.push((number, self.bytes));
        self.files
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        match self.byte() {
            byte @ 0xf0.. => NUMBERS[usize::from(byte - 0xf0)],
            byte => u64::from(byte),
        }
    }

    fn place(&self, offset: usize) -> Place {
        let segment = SEGMENT + self.files.len() as u64;
        Place { segment, offset: offset as u32 }
    }

    fn begin_batch(&mut self) {
        self.start = self.bytes.len();
        self.records = 0;
        self.bytes.extend_from_slice(&[0; HEADER_BYTES]);
    }

    fn record(&mut self, kind: RecordKind) {
        let group = GroupId(u32::from(self.byte()));
        let (index, term) = (self.number(), self.number());
        let length = self.byte();
        let payload = self.take(usize::from(length));
        let place = self.place(self.bytes.len());
        let content = Content { kind, group, index, term, payload };
        record::encode(&mut self.bytes, place, self.batch, content);
        self.records += 1;
    }

    fn end_batch(&mut self, records: Option<u64>, bytes: Option<u64>) {
        let content = Content {
            kind: RecordKind::Batch,
            group: GroupId(0),
            index: records.unwrap_or(self.records),
            term: bytes.unwrap_or((self.bytes.len() - self.start) as u64),
            payload: &[],
        };
        let header = record::encode_header(self.place(self.start), self.batch, content);
        self.bytes[self.start..self.start + HEADER_BYTES].copy_from_slice(&header);
        self.batch = self.batch.wrapping_add(1);
        self.begin_batch();
    }
}

#[cfg(test)]
pub(crate) mod tests;
