//! Records are written as ever, and what a newer release wrote is neither cut nor called damage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use piton_store::golden::Golden;

use super::record::{self, Content, HEADER_BYTES, Newer, Place, RecordKind, Unread};
use super::segment::{Head, IndexedEntry, Previous, SegmentIndex, segment_path};
use super::{
    Disk, EntryRecord, FaultyDisk, GroupId, Log, LogConfig, LogContents, LogError, RealDisk,
};
use crate::{LOG_DIRECTORY, Losses, NodeId, RaftError};

const GOLDEN: &str = include_str!("../../testdata/records.txt");
const PLACE: Place = Place { segment: 7, offset: 4096 };
const GROUP: GroupId = GroupId(3);

fn payload(kind: RecordKind) -> Vec<u8> {
    match kind {
        RecordKind::Batch
        | RecordKind::Truncate
        | RecordKind::Freed
        | RecordKind::Forgotten
        | RecordKind::Floor => Vec::new(),
        RecordKind::Head => {
            let previous = Previous { segment: 6, end: 900, footer: Some(800) };
            Head { previous: Some(previous), first_live: 5 }.encode()
        }
        RecordKind::Footer => {
            let mut index = SegmentIndex::default();
            let entry = |index, offset| IndexedEntry { index, term: 2, offset, length: 300 };
            index.push(GROUP, entry(300, 88));
            index.push(GROUP, entry(301, 432));
            index.truncate(GroupId(4), 9);
            index.encode()
        }
        RecordKind::Entry
        | RecordKind::RewrittenEntry
        | RecordKind::Vote
        | RecordKind::Committed
        | RecordKind::Purge => b"payload".to_vec(),
    }
}

#[test]
fn records_of_the_log_are_encoded_as_ever_and_read() {
    let mut golden = Golden::of(GOLDEN);
    for kind in RecordKind::ALL {
        let payload = payload(kind);
        let content = Content { kind, group: GROUP, index: 11, term: 2, payload: &payload };
        let mut bytes = Vec::new();
        record::encode(&mut bytes, PLACE, 5, content);
        let name = format!("a log record, {kind:?} (version {})", kind.version());
        golden.bytes(&name, &bytes);
        let written = golden.get(&name).unwrap_or(bytes);
        let (header, read) = record::decode(&written, PLACE).expect(&name);
        assert_eq!((header.kind, header.group, header.batch), (kind, GROUP, 5));
        assert_eq!((header.index, header.term, read), (11, 2, &payload[..]));
        match kind {
            RecordKind::Head => assert!(Head::decode(read).is_some()),
            RecordKind::Footer => assert!(SegmentIndex::decode(read).is_some()),
            _ => {}
        }
    }
    golden.finish();
}

/// Makes a record one of another kind and version, as a release that has them writes it.
fn rewrite(bytes: &mut [u8], place: Place, kind: u8, version: u8) {
    (bytes[16], bytes[17]) = (kind, version);
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().expect("a record has a header");
    let checksum = record::header_checksum(header, place);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn a_record_of_a_newer_release_is_known_as_such() {
    for (kind, version) in [(3, 2), (3, 0), (13, 1), (255, 255)] {
        let content =
            Content { kind: RecordKind::Entry, group: GROUP, index: 11, term: 2, payload: b"p" };
        let mut bytes = Vec::new();
        record::encode(&mut bytes, PLACE, 5, content);
        rewrite(&mut bytes, PLACE, kind, version);
        let newer = Unread::Newer(Newer { kind, version });
        assert_eq!(record::decode(&bytes, PLACE), Err(newer));
        bytes[30] ^= 1;
        assert_eq!(record::decode(&bytes, PLACE), Err(Unread::Invalid), "a torn header");
    }
}

/// A log of three batches with an entry each, and where the last one's entry lies.
fn log_of_three() -> (FaultyDisk, PathBuf, Vec<u8>, u32) {
    let (disk, dir) = (FaultyDisk::new(1), PathBuf::from("/log"));
    let config = LogConfig { preallocate_bytes: 0, ..LogConfig::default() };
    let opened = Log::open_manual(Arc::new(disk.clone()), dir.clone(), config);
    let (log, _, mut writer) = opened.expect("open the log");
    for index in 1..4 {
        let entry = EntryRecord { index, term: 1, bytes: format!("<entry {index}>").into() };
        log.append(GROUP, vec![entry], |_| ());
        writer.write_batch();
    }
    let path = segment_path(&dir, 1);
    let written = disk.contents().into_iter().find(|(found, _)| *found == path);
    let (_, bytes) = written.expect("the first segment");
    let payload = bytes.windows(9).position(|part| part == b"<entry 3>").expect("it is there");
    (disk, path, bytes, (payload - HEADER_BYTES) as u32)
}

fn put(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path).expect("open the segment");
    file.write_at(bytes, 0).expect("memory takes all");
}

/// Goal: the last batch may be a torn tail, and is cut as one. Not where a newer release wrote it: what
/// was acknowledged is there, and an older release that is started by mistake leaves it alone.
#[test]
fn a_log_that_a_newer_release_wrote_is_refused_and_left_as_it_is() {
    let (disk, path, mut bytes, offset) = log_of_three();
    let place = Place { segment: 1, offset };
    rewrite(&mut bytes[offset as usize..], place, RecordKind::ALL.len() as u8 + 1, 1);
    put(&disk, &path, &bytes);
    let dir = path.parent().expect("it lies in the log's directory");
    let read = LogContents::read(&disk, dir, &LogConfig::default());
    let opened = Log::open_manual(Arc::new(disk.clone()), dir.into(), LogConfig::default());
    for refused in [read.err(), opened.err()] {
        let refused = refused.expect("it is newer");
        let LogError::Newer { file, offset: found, kind, version } = &refused else {
            panic!("{refused:?}")
        };
        assert_eq!((file, *found, *kind, *version), (&path, u64::from(offset), 13, 1));
        assert!(refused.to_string().contains("only a newer release knows"), "{refused}");
    }
    let left = disk.contents();
    assert_eq!(left, [(path, bytes)], "nothing is written");
}

/// The records behind one that is damaged prove that it was written whole, whoever wrote them.
#[test]
fn damage_before_a_record_of_a_newer_release_is_no_torn_tail() {
    let (disk, path, mut bytes, offset) = log_of_three();
    let place = Place { segment: 1, offset };
    rewrite(&mut bytes[offset as usize..], place, RecordKind::Entry.to_byte(), 2);
    bytes[offset as usize - HEADER_BYTES + 5] ^= 1;
    put(&disk, &path, &bytes);
    let dir = path.parent().expect("it lies in the log's directory");
    let opened = Log::open_manual(Arc::new(disk.clone()), dir.into(), LogConfig::default());
    let refused = opened.expect_err("it is damaged");
    assert!(matches!(refused, LogError::Corrupt { .. }), "{refused}");
}

/// A log that is whole is never given up, and so never set aside.
#[test]
fn nobody_accepts_the_loss_of_a_log_that_a_newer_release_wrote() {
    let (_, path, mut bytes, offset) = log_of_three();
    rewrite(&mut bytes[offset as usize..], Place { segment: 1, offset }, 13, 1);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = directory.path().join(LOG_DIRECTORY);
    std::fs::create_dir(&log).expect("it is new");
    let file = log.join(path.file_name().expect("it has a name"));
    RealDisk.create(&file).expect("create it").write_at(&bytes, 0).expect("write it");
    let refused = Losses::look(NodeId(1), directory.path(), &[]);
    let refused = refused.map(|losses| losses.unreadable).expect_err("it is newer");
    assert!(
        matches!(refused, RaftError::OpenLog { source: LogError::Newer { .. }, .. }),
        "{refused:?}"
    );
}
