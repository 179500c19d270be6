use piton_store::fuzzing::attack;

use super::*;
use crate::frame_tests;
use crate::log::fuzzing::tests::{log_files, programs};

fn held(run: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(run).bytes_max
}

#[test]
fn a_frame_survives_hostile_bytes() {
    let frames = frame_tests::frames();
    attack("a frame", frames.iter().map(|frame| frame.encode().to_vec()).collect(), held, frame);
}

#[test]
fn votes_ids_entries_and_marks_survive_hostile_bytes() {
    attack("votes, ids, entries and marks", frame_tests::wire_samples(), held, wire);
}

#[test]
fn a_log_record_survives_hostile_bytes() {
    let records = log_files().iter().map(|bytes| bytes[..bytes.len().min(200)].to_vec()).collect();
    attack("a log record", records, held, record);
}

#[test]
fn a_segment_file_survives_hostile_bytes() {
    attack("a segment's file", log_files(), held, segment_file);
}

#[test]
fn segments_of_valid_records_survive_whatever_those_say() {
    attack("segments of valid records", programs(), held, segment_of_valid_records);
}

fn rows_block() -> Vec<u8> {
    let mut block = BytesMut::new();
    block.put_u8(0);
    for (key, value) in [(&b"a"[..], &b"value"[..]), (b"key", b"")] {
        wire::put_bytes(&mut block, key);
        wire::put_bytes(&mut block, value);
    }
    block.to_vec()
}

fn end_block(rows: u64) -> Vec<u8> {
    [&[1][..], &rows.to_be_bytes()].concat()
}

#[test]
fn a_snapshot_file_survives_hostile_bytes() {
    let file = |mark: &[u8], blocks: &[Vec<u8>]| {
        let mut file = snapshot::head_bytes(GROUP, 4, mark).to_vec();
        for (number, payload) in (0..).zip(blocks) {
            file.extend_from_slice(&snapshot::block_bytes(number, payload));
        }
        file
    };
    let whole = file(b"mark", &[rows_block(), rows_block(), end_block(4)]);
    let disk = FaultyDisk::new(0);
    put_file(&disk, Path::new("/7-4.snapshot"), &whole);
    let snapshots =
        Snapshots::open(Arc::new(disk), PathBuf::from("/"), GROUP, Arc::default()).expect("open");
    let current = snapshots.current().expect("the sample is a snapshot");
    assert_eq!(snapshots.rows(&current).expect("its head").filter(Result::is_ok).count(), 4);
    attack("a snapshot file", vec![whole, file(b"", &[end_block(0)])], held, snapshot_file);
}

#[test]
fn a_snapshot_of_valid_blocks_survives_whatever_those_say() {
    let program = |mark: &[u8], blocks: &[Vec<u8>]| {
        let mut bytes = vec![mark.len() as u8];
        bytes.extend_from_slice(mark);
        for block in blocks {
            bytes.extend_from_slice(&(block.len() as u16).to_be_bytes());
            bytes.extend_from_slice(block);
        }
        bytes
    };
    let mark = frame_tests::wire_samples().pop().expect("a mark");
    let samples = vec![
        program(&mark, &[rows_block(), rows_block(), end_block(4)]),
        program(b"", &[end_block(0)]),
    ];
    attack("a snapshot of valid blocks", samples, held, snapshot_of_valid_blocks);
}
