//! What the log promises on a healthy disk: order, durability at the callback, reopening, purge.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use piton_raft::log::{
    EntryId, EntryRecord, GroupId, Log, LogConfig, LogError, Purged, RealDisk, Recovered,
};

const GROUP: GroupId = GroupId(1);
const OTHER: GroupId = GroupId(2);

fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 16 << 10,
        preallocate_bytes: 4 << 10,
        idle_after: Duration::from_millis(1),
        cache_bytes_max: 4 << 10,
        ..LogConfig::default()
    }
}

fn open(dir: &Path, config: LogConfig) -> (Log, Recovered) {
    Log::open(Arc::new(RealDisk), dir.to_owned(), config).expect("open the log")
}

fn entry(index: u64, term: u64) -> EntryRecord {
    let text = format!("entry {index} of term {term} ").repeat(1 + index as usize % 7);
    EntryRecord { index, term, bytes: Bytes::from(text) }
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<EntryRecord> {
    range.map(|index| entry(index, term)).collect()
}

/// Runs one operation and returns its outcome.
fn wait(submit: impl FnOnce(Box<dyn FnOnce(Result<(), LogError>) + Send>)) -> Result<(), LogError> {
    let (tx, rx) = mpsc::channel();
    submit(Box::new(move |outcome| tx.send(outcome).expect("the test waits")));
    rx.recv().expect("the log answers every operation")
}

fn append(log: &Log, group: GroupId, entries: Vec<EntryRecord>) {
    wait(|done| log.append(group, entries, done)).expect("append");
}

fn purge(log: &Log, group: GroupId, through: u64) {
    let name = Bytes::from(format!("id {through}"));
    wait(|done| log.purge(group, through, name, done)).expect("purge");
}

fn read_all(log: &Log, group: GroupId) -> Vec<EntryRecord> {
    log.read(group, 0..u64::MAX, usize::MAX).expect("read")
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, recovered) = open(dir.path(), small());
    assert_eq!(recovered.groups, []);
    append(&log, GROUP, entries(1..10, 1));
    append(&log, OTHER, entries(5..8, 3));
    wait(|done| log.save_vote(GROUP, Bytes::from("vote"), done)).expect("vote");
    log.save_committed(GROUP, Bytes::from("committed"));
    wait(|done| log.truncate(GROUP, 8, done)).expect("truncate");
    append(&log, GROUP, entries(8..12, 2));
    purge(&log, GROUP, 3);
    let (state, all) = (log.state(GROUP), read_all(&log, GROUP));
    assert_eq!(log.synced_index(GROUP), 11);
    log.shutdown();

    for _ in 0..3 {
        let (log, recovered) = open(dir.path(), small());
        assert_eq!(recovered.groups, [GROUP, OTHER]);
        assert_eq!(log.state(GROUP), state);
        assert_eq!(state.vote, Some(Bytes::from("vote")));
        assert_eq!(state.committed, Some(Bytes::from("committed")));
        assert_eq!(state.purged, Some(Purged { index: 3, bytes: Bytes::from("id 3") }));
        assert_eq!(state.first, Some(EntryId { index: 4, term: 1 }));
        assert_eq!(state.last, Some(EntryId { index: 11, term: 2 }));
        assert_eq!(read_all(&log, GROUP), all);
        assert_eq!(read_all(&log, OTHER), entries(5..8, 3));
        assert_eq!(log.synced_index(GROUP), 11);
    }
}

#[test]
fn entries_can_be_read_before_they_are_durable() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), small());
    log.append(GROUP, entries(1..4, 1), |_| {});
    assert_eq!(read_all(&log, GROUP), entries(1..4, 1));
}

#[test]
fn a_read_stops_at_its_byte_limit_but_returns_at_least_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), small());
    append(&log, GROUP, entries(1..10, 1));
    assert_eq!(log.read(GROUP, 2..9, 1).expect("read"), entries(2..3, 1));
    let two = entry(2, 1).bytes.len() + entry(3, 1).bytes.len();
    assert_eq!(log.read(GROUP, 2..9, two).expect("read"), entries(2..4, 1));
    assert_eq!(log.read(GROUP, 12..15, two).expect("read"), []);
    assert_eq!(log.read(OTHER, 0..15, two).expect("read"), []);
}

#[test]
fn an_entry_that_leaves_a_gap_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), small());
    append(&log, GROUP, entries(1..4, 1));
    let refused = wait(|done| log.append(GROUP, entries(5..6, 1), done));
    assert!(matches!(refused, Err(LogError::NotNext { expected: 4, found: 5, .. })));
    let refused = wait(|done| log.append(GROUP, entries(3..4, 1), done));
    assert!(matches!(refused, Err(LogError::NotNext { expected: 4, found: 3, .. })));
    purge(&log, GROUP, 20);
    let refused = wait(|done| log.append(GROUP, entries(4..5, 1), done));
    assert!(matches!(refused, Err(LogError::NotNext { expected: 21, found: 4, .. })));
    append(&log, GROUP, entries(21..23, 1));
    assert_eq!(log.state(GROUP).last, Some(EntryId { index: 22, term: 1 }));
}

#[test]
fn callbacks_come_in_the_order_of_the_operations() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), small());
    let (tx, rx) = mpsc::channel();
    for index in 1..=200 {
        let tx = tx.clone();
        log.append(GROUP, entries(index..index + 1, 1), move |outcome| {
            outcome.expect("append");
            tx.send(index).expect("the test waits");
        });
    }
    drop(tx);
    assert_eq!(rx.iter().collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
}

#[test]
fn a_closed_log_refuses() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), small());
    append(&log, GROUP, entries(1..4, 1));
    log.shutdown();
    let refused = wait(|done| log.append(GROUP, entries(4..5, 1), done));
    assert!(matches!(refused, Err(LogError::Closed)));
    assert_eq!(read_all(&log, GROUP), entries(1..4, 1));
}

/// Goal: entries evicted from memory, in sealed segments, read back by their footers.
#[test]
fn many_segments_are_read_back_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path(), small());
    for start in (1..2000).step_by(10) {
        append(&log, GROUP, entries(start..start + 10, 1));
        append(&log, OTHER, entries(start..start + 10, 2));
    }
    assert!(log.disk_bytes() > 10 * (16 << 10), "several segments are in use");
    assert_eq!(read_all(&log, GROUP), entries(1..2001, 1));
    log.shutdown();
    for verify_sealed in [false, true] {
        let (log, recovered) = open(dir.path(), LogConfig { verify_sealed, ..small() });
        assert_eq!(recovered.entries, 4000);
        assert_eq!(read_all(&log, GROUP), entries(1..2001, 1));
        assert_eq!(read_all(&log, OTHER), entries(1..2001, 2));
    }
}
