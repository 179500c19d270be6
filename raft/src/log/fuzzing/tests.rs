use bytes::Bytes;

use super::*;
use crate::log::EntryRecord;
use crate::log::segment::{IndexedEntry, Previous};

/// Files of a log that was used: of each, its first few thousand bytes.
pub(crate) fn log_files() -> Vec<Vec<u8>> {
    let disk = FaultyDisk::new(0);
    let config = LogConfig {
        segment_bytes: 1 << 10,
        preallocate_bytes: 64,
        spare_segments_max: 0,
        ..LogConfig::default()
    };
    let (log, _, mut writer) =
        Log::open_manual(Arc::new(disk.clone()), dir(), config).expect("open the log");
    let entry = |index| EntryRecord { index, term: 2, bytes: Bytes::from(vec![7; 40]) };
    for index in 1..20 {
        log.append(GroupId(1), vec![entry(index)], |_| ());
        log.append(GroupId(2), vec![entry(index)], |_| ());
        log.save_vote(GroupId(1), Bytes::from_static(b"vote"), |_| ());
        writer.write_batch();
    }
    log.truncate(GroupId(2), 15, |_| ());
    log.purge(GroupId(1), 3, Bytes::from_static(b"purged"), |_| ());
    log.save_committed(GroupId(1), Bytes::from_static(b"committed"));
    writer.write_batch();
    // The first is read as if it were the only one; its number is that of the tests.
    let mut files: Vec<Vec<u8>> = disk.contents().into_iter().map(|(_, bytes)| bytes).collect();
    files.truncate(2);
    files
}

fn step(kind: RecordKind, group: u8, index: u8, term: u8, payload: &[u8]) -> Vec<u8> {
    let kind = RecordKind::ALL.iter().position(|other| *other == kind).expect("it is one of all");
    [&[kind as u8, group, index, term, payload.len() as u8][..], payload].concat()
}

/// Programs that make logs which open.
pub(crate) fn programs() -> Vec<Vec<u8>> {
    let head = |previous| {
        let head = Head { previous, first_live: SEGMENT };
        step(RecordKind::Head, 0, 0, 0, &head.encode())
    };
    let entry = |group, index| step(RecordKind::Entry, group, index, 2, b"entry");
    let end = || vec![10];
    let first = [
        head(None),
        step(RecordKind::Vote, 1, 0, 0, b"vote"),
        step(RecordKind::Purge, 2, 4, 0, b"purged"),
        step(RecordKind::Committed, 1, 0, 0, b"committed"),
        end(),
        entry(1, 1),
        entry(1, 2),
        entry(2, 5),
        end(),
        step(RecordKind::Truncate, 1, 2, 0, b""),
        entry(1, 2),
        step(RecordKind::RewrittenEntry, 2, 6, 2, b"entry"),
    ]
    .concat();
    let next = || vec![13];
    // A second segment behind the first one, whose footer says this of an entry's length.
    let sealed = |length, trusted: bool| {
        let begin = Program::new(&first).run().remove(0).1.len() as u32;
        let mut index = SegmentIndex::default();
        let place = |index, offset| IndexedEntry { index, term: 2, offset, length };
        index.push(GroupId(1), place(1, 300));
        index.push(GroupId(1), place(2, 349));
        index.push(GroupId(2), place(5, 398));
        let footer = step(RecordKind::Footer, 0, 0, 0, &index.encode());
        let sealed = [first.clone(), end(), footer].concat();
        let end_of_first = Program::new(&sealed).run().remove(0).1.len() as u32;
        let footer = trusted.then_some(begin);
        let previous = Some(Previous { segment: SEGMENT, end: end_of_first, footer });
        let second = [head(previous), end(), entry(1, 3), end(), entry(2, 6)].concat();
        [vec![u8::from(!trusted)], sealed, next(), second].concat()
    };
    vec![
        [vec![0], first.clone()].concat(),
        sealed(5, false),
        sealed(5, true),
        // No such entry is there; what is there must not be read into so much memory.
        sealed(u32::MAX, true),
    ]
}

#[test]
fn the_sample_programs_make_logs_that_open() {
    for (number, program) in programs().into_iter().enumerate() {
        let files = Program::new(&program[1..]).run();
        let disk = FaultyDisk::new(0);
        disk.create_dir(&dir()).expect("memory takes all");
        for (number, bytes) in &files {
            put_file(&disk, &segment_path(&dir(), *number), bytes);
        }
        let config = LogConfig { verify_sealed: program[0] == 1, ..LogConfig::default() };
        let (log, recovered, _writer) =
            Log::open_manual(Arc::new(disk), dir(), config).expect("open the log");
        assert_eq!(recovered.groups, [GroupId(1), GroupId(2)]);
        assert!(recovered.entries >= 4, "{recovered:?}");
        let claimed = log.bytes_since_purge(GroupId(1)) > u64::from(u32::MAX);
        assert_eq!(claimed, number == 3, "the last one's footer is trusted");
    }
}
