//! What the log does on a disk that fails or decays: it refuses, says where, and never
//! acknowledges what may be lost. And that it gives space back.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use piton_raft::log::{
    EntryRecord, Faults, FaultyDisk, GroupId, GroupLogState, Log, LogConfig, LogError,
    ManualWriter, RealDisk,
};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

const GROUP: GroupId = GroupId(1);
const OTHER: GroupId = GroupId(2);

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 2 << 10,
        preallocate_bytes: 256,
        cache_bytes_max: 0,
        ..LogConfig::default()
    }
}

/// One segment for all, and no batch of an idle writer while a test looks.
fn large() -> LogConfig {
    LogConfig { idle_after: Duration::from_secs(3600), ..LogConfig::default() }
}

fn open(disk: &FaultyDisk, config: LogConfig) -> Result<(Log, ManualWriter), LogError> {
    let (log, _, writer) = Log::open_manual(Arc::new(disk.clone()), dir(), config)?;
    Ok((log, writer))
}

fn open_threaded(disk: &FaultyDisk, config: LogConfig) -> Log {
    Log::open(Arc::new(disk.clone()), dir(), config).expect("open the log").0
}

fn entry(index: u64) -> EntryRecord {
    EntryRecord { index, term: 1, bytes: Bytes::from(format!("<entry {index:05}>")) }
}

fn entries(range: std::ops::Range<u64>) -> Vec<EntryRecord> {
    range.map(entry).collect()
}

fn wait(submit: impl FnOnce(Box<dyn FnOnce(Result<(), LogError>) + Send>)) -> Result<(), LogError> {
    let (tx, rx) = mpsc::channel();
    submit(Box::new(move |outcome| tx.send(outcome).expect("the test waits")));
    let answered = rx.recv_timeout(Duration::from_secs(20));
    answered.expect("the log answers every operation")
}

fn read_all(log: &Log, group: GroupId) -> Result<Vec<EntryRecord>, LogError> {
    log.read(group, 0..u64::MAX, usize::MAX)
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_again() {
    let disk = FaultyDisk::new(1);
    let log = open_threaded(&disk, large());
    wait(|done| log.append(GROUP, entries(1..3), done)).expect("append");
    disk.set_faults(Faults { fail_at_sync: Some(1), ..Faults::default() });
    let first = wait(|done| log.append(GROUP, entries(3..4), done));
    assert!(matches!(first, Err(LogError::Disk { action: "sync", .. })), "{first:?}");
    assert!(log.failed().borrow().as_ref().is_some_and(|reason| reason.contains("sync")));
    for index in 4..10 {
        let later = wait(|done| log.append(GROUP, vec![entry(index)], done));
        assert!(matches!(later, Err(LogError::Failed { .. })), "{later:?}");
    }
    let later = wait(|done| log.sync(done));
    assert!(matches!(later, Err(LogError::Failed { .. })), "{later:?}");
    assert_eq!(log.synced_index(GROUP), 2);

    let (reopened, _) = open(&disk.cut_power(), large()).expect("open");
    assert_eq!(read_all(&reopened, GROUP).expect("read"), entries(1..3));
}

#[test]
fn all_who_wait_are_told_when_a_sync_fails() {
    let disk = FaultyDisk::new(1);
    let log = open_threaded(&disk, large());
    disk.hold_syncs(true);
    disk.set_faults(Faults { fail_at_sync: Some(1), ..Faults::default() });
    let (tx, rx) = mpsc::channel();
    for index in 1..20 {
        let tx = tx.clone();
        log.append(GROUP, vec![entry(index)], move |outcome| {
            tx.send(outcome.is_err()).expect("the test waits");
        });
    }
    drop(tx);
    disk.hold_syncs(false);
    assert_eq!(rx.iter().collect::<Vec<_>>(), vec![true; 19]);
}

#[test]
fn a_full_disk_loses_nothing_and_the_log_goes_on_once_there_is_room() {
    let disk = FaultyDisk::new(1);
    let (log, mut writer) = open(&disk, small()).expect("open");
    disk.set_faults(Faults { capacity: Some(6 << 10), ..Faults::default() });
    let acknowledged = Arc::new(AtomicU64::new(0));
    for index in 1..1000 {
        let acknowledged = acknowledged.clone();
        log.append(GROUP, vec![entry(index)], move |outcome| {
            if outcome.is_ok() {
                acknowledged.store(index, Ordering::Relaxed);
            }
        });
        if !writer.write_batch() {
            break;
        }
    }
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    assert!((20..999).contains(&acknowledged), "the disk filled up at {acknowledged}");
    let disk = disk.kill();
    disk.set_faults(Faults { capacity: Some(6 << 10), ..Faults::default() });
    assert!(matches!(open(&disk, small()), Err(LogError::Disk { .. })));
    let disk = disk.kill();
    let (log, mut writer) = open(&disk, small()).expect("open");
    let read = read_all(&log, GROUP).expect("read");
    assert!(read.len() as u64 >= acknowledged);
    assert_eq!(read, entries(1..read.len() as u64 + 1));
    log.append(GROUP, vec![entry(read.len() as u64 + 1)], |outcome| outcome.expect("append"));
    assert!(writer.write_batch());
}

#[test]
fn those_who_wait_while_a_sync_runs_share_the_next_one() {
    let disk = FaultyDisk::new(1);
    let log = open_threaded(&disk, large());
    assert_eq!(log.stalled_for(), Duration::ZERO);
    disk.hold_syncs(true);
    let (tx, rx) = mpsc::channel();
    for group in 0..64 {
        let tx = tx.clone();
        log.append(GroupId(group), entries(1..2), move |outcome| {
            outcome.expect("append");
            tx.send(()).expect("the test waits");
        });
    }
    drop(tx);
    assert!(log.stalled_for() > Duration::ZERO);
    assert!(log.waiting_bytes() >= 64 * entry(1).bytes.len());
    assert_eq!(log.synced_index(GroupId(7)), 0);
    disk.hold_syncs(false);
    assert_eq!(rx.iter().count(), 64);
    let batches = log.stats().batches.load(Ordering::Relaxed);
    assert!(batches <= 2, "64 appends took {batches} batches");
    assert_eq!((log.stalled_for(), log.waiting_bytes()), (Duration::ZERO, 0));
    assert_eq!(log.synced_index(GroupId(7)), 1);
}

/// Goal: entries that replace others while those are being synced do not count as durable with them.
#[test]
fn the_synced_index_does_not_cover_entries_that_replaced_others_meanwhile() {
    let disk = FaultyDisk::new(1);
    let log = open_threaded(&disk, LogConfig { preallocate_bytes: 0, ..large() });
    disk.set_faults(Faults::default());
    disk.hold_syncs(true);
    let (tx, rx) = mpsc::channel();
    let synced = |tx: mpsc::Sender<u64>| {
        let log = log.clone();
        move |outcome: Result<(), LogError>| {
            outcome.expect("append");
            tx.send(log.synced_index(GROUP)).expect("the test waits");
        }
    };
    log.append(GROUP, entries(1..6), synced(tx.clone()));
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while disk.changes() == 0 {
        assert!(std::time::Instant::now() < deadline, "the batch is never written");
        std::thread::yield_now();
    }
    log.truncate(GROUP, 3, |outcome| outcome.expect("truncate"));
    log.append(GROUP, entries(3..9), synced(tx));
    disk.hold_syncs(false);
    assert!(rx.recv().expect("an answer") < 3);
    assert_eq!(rx.recv().expect("an answer"), 8);
}

/// Goal: a disk that is slower than those who write holds them up, and nobody is refused.
#[tokio::test]
async fn an_append_beyond_what_may_wait_waits_and_then_goes_on() {
    let disk = FaultyDisk::new(1);
    let (log, mut writer) =
        open(&disk, LogConfig { waiting_bytes_max: 4 << 10, ..large() }).expect("open");
    let room = log.room(3 << 10).await;
    log.append(GROUP, entries(1..3), move |outcome| {
        outcome.expect("append");
        drop(room);
    });
    let mut second = std::pin::pin!(log.room(2 << 10));
    assert!(futures::poll!(second.as_mut()).is_pending(), "it was let in");
    // Raft cannot do without these.
    log.save_vote(GROUP, Bytes::from("vote"), |outcome| outcome.expect("save the vote"));
    log.purge(GROUP, 1, Bytes::from("purged"), |outcome| outcome.expect("purge"));
    assert!(writer.write_batch());
    assert!(futures::poll!(second.as_mut()).is_ready(), "there is room again");
    // What is larger than all the room there is goes alone.
    drop(log.room(1 << 20).await);
}

/// Goal: a burst that would keep the disk busy for a second is written in parts, each told when it is
/// durable, and a vote that comes amid it does not wait for all of it.
#[test]
fn a_burst_goes_in_parts_and_votes_go_first() {
    burst(64 << 20);
}

/// Goal: the same where the burst's last part opens a segment, whose head was made before that vote.
#[test]
fn a_vote_that_comes_amid_a_burst_is_not_forgotten_for_the_next_segments_head() {
    burst(16 << 20);
}

fn burst(segment_bytes: u32) {
    let disk = FaultyDisk::new(1);
    let config = LogConfig { segment_bytes, cache_bytes_max: 1 << 30, ..large() };
    let (log, mut writer) = open(&disk, config.clone()).expect("open");
    // A segment that has nothing in it yet is not left for another one.
    log.append(OTHER, entries(1..2), |outcome| outcome.expect("append"));
    assert!(writer.write_batch());
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = |what: &'static str| {
        let told = told.clone();
        move |outcome: Result<(), LogError>| {
            outcome.expect("durable");
            told.lock().expect("no panic").push(what);
        }
    };
    let entry = |index| EntryRecord { index, term: 1, bytes: vec![index as u8; 5 << 20].into() };
    for index in 1..=6 {
        if index == 2 {
            // Comes while the first part is being written.
            let (log, tell) = (log.clone(), tell("second vote"));
            log.clone().append(GROUP, vec![entry(1)], move |outcome| {
                outcome.expect("durable");
                log.save_vote(GROUP, Bytes::from("second"), tell);
            });
        }
        if index > 1 {
            log.append(GROUP, vec![entry(index)], tell("entry"));
        }
    }
    log.save_vote(GROUP, Bytes::from("first"), tell("first vote"));
    let before = log.stats().batches.load(Ordering::Relaxed);
    assert!(writer.write_batch());
    let told = told.lock().expect("no panic").clone();
    assert_eq!(told[0], "first vote");
    let second = told.iter().position(|what| *what == "second vote").expect("told");
    assert!(second <= 3, "{told:?}");
    assert_eq!(told.iter().filter(|what| **what == "entry").count(), 5);
    assert!(log.stats().batches.load(Ordering::Relaxed) - before >= 4);
    drop(log);
    let (log, _writer) = open(&disk.cut_power(), config).expect("open");
    assert_eq!(log.state(GROUP).vote, Some(Bytes::from("second")));
    assert_eq!(
        log.read(GROUP, 1..7, usize::MAX).expect("read"),
        (1..=6).map(entry).collect::<Vec<_>>()
    );
}

/// Goal: a full disk holds those who write up, and no more; once there is room, all goes on.
#[test]
fn a_writer_waits_for_room_on_a_full_disk() {
    let disk = FaultyDisk::new(1);
    let log = open_threaded(&disk, small());
    wait(|done| log.append(GROUP, entries(1..2), done)).expect("append");
    disk.set_faults(Faults { capacity: Some(0), ..Faults::default() });
    let (tx, rx) = std::sync::mpsc::channel();
    for index in 2..50 {
        let tx = tx.clone();
        log.append(GROUP, vec![entry(index)], move |outcome| tx.send(outcome).expect("heard"));
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while disk.refused_for_space() == 0 {
        assert!(std::time::Instant::now() < deadline, "nothing was written");
        std::thread::yield_now();
    }
    assert!(log.failed().borrow().is_none(), "a full disk is no failure");
    assert_eq!(log.read(GROUP, 1..2, 1).expect("read"), entries(1..2));
    disk.set_faults(Faults::default());
    assert!(rx.iter().take(48).all(|outcome| outcome.is_ok()));
    assert_eq!(read_all(&log, GROUP).expect("read"), entries(1..50));
}

/// A log with two groups, a truncation, votes and several segments, closed by an idle writer.
fn written() -> FaultyDisk {
    let disk = FaultyDisk::new(1);
    let (log, mut writer) = open(&disk, small()).expect("open");
    for index in 1..40 {
        log.append(GROUP, vec![entry(index)], |_| {});
        log.append(OTHER, vec![entry(index)], |_| {});
        if index % 9 == 0 {
            log.truncate(OTHER, index - 2, |_| {});
            log.append(OTHER, entries(index - 2..index + 1), |_| {});
            log.save_vote(GROUP, Bytes::from(format!("vote {index}")), |_| {});
        }
        assert!(writer.write_batch());
    }
    log.purge(OTHER, 4, Bytes::from("purged 4"), |_| {});
    log.save_committed(OTHER, Bytes::from("committed"));
    assert!(writer.write_batch() && writer.write_batch());
    disk.kill()
}

fn contents(log: &Log, group: GroupId) -> (Result<Vec<EntryRecord>, LogError>, GroupLogState) {
    (read_all(log, group), log.state(group))
}

/// Goal: no flipped bit anywhere makes the log panic or answer with something else than was
/// written; and in the newest segment, or when told to look at everything, opening refuses.
#[test]
fn a_flip_in_any_byte_is_harmless_or_refused_never_a_wrong_answer() {
    let disk = written();
    let (log, _) = open(&disk.fork(), small()).expect("open");
    let expected = [GROUP, OTHER].map(|group| contents(&log, group));
    let files = disk.contents();
    assert!(files.len() >= 3, "several segments: {}", files.len());
    let (mut refused, mut harmless, mut late) = (0, 0, 0);
    for (path, bytes) in &files {
        for offset in 0..bytes.len() {
            for verify_sealed in [false, true] {
                let copy = disk.fork();
                copy.flip(path, offset, (offset % 8) as u8);
                let (log, _) = match open(&copy, LogConfig { verify_sealed, ..small() }) {
                    Ok(opened) => opened,
                    Err(LogError::Corrupt { file, offset: at, .. }) => {
                        assert_eq!(&file, path, "flip at {offset}");
                        assert!(at <= offset as u64, "flip at {offset} reported at {at}");
                        refused += 1;
                        continue;
                    }
                    Err(error) => panic!("flip in {} at {offset}: {error}", path.display()),
                };
                let found = [GROUP, OTHER].map(|group| contents(&log, group));
                for ((read, state), (whole, expected)) in found.into_iter().zip(&expected) {
                    assert_eq!(&state, expected, "flip in {} at {offset}", path.display());
                    match read {
                        Ok(read) => assert_eq!(&read, whole.as_ref().expect("not damaged")),
                        Err(LogError::Corrupt { file, .. }) if !verify_sealed => {
                            assert_eq!(&file, path, "flip at {offset}");
                            late += 1;
                        }
                        Err(error) => panic!("flip in {} at {offset}: {error}", path.display()),
                    }
                }
                harmless += 1;
            }
        }
    }
    assert!(refused > 1000 && harmless > 1000 && late > 1000, "{refused} {harmless} {late}");
}

/// Goal: whatever was done to the files, opening neither panics nor makes entries up.
#[test]
fn files_damaged_at_random_are_refused_or_read_as_written() {
    use piton_raft::log::Disk;
    let files = written().contents();
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..2000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = FaultyDisk::new(seed);
        let damaged = random.random_range(0..files.len());
        for (number, (path, bytes)) in files.iter().enumerate() {
            let mut bytes = bytes.clone();
            if number == damaged {
                damage(&mut bytes, &mut random);
            }
            disk.create(path).expect("create").write_at(&bytes, 0).expect("write");
        }
        let Ok((log, _)) = open(&disk, small()) else {
            refused += 1;
            continue;
        };
        opened += 1;
        for group in [GROUP, OTHER] {
            for read in read_all(&log, group).into_iter().flatten() {
                assert_eq!(read, entry(read.index), "seed {seed}");
            }
        }
    }
    assert!(opened > 100 && refused > 100, "opened {opened}, refused {refused}");
}

fn damage(bytes: &mut Vec<u8>, random: &mut SmallRng) {
    let start = random.random_range(0..bytes.len());
    let end = random.random_range(start..bytes.len()).min(start + 512);
    match random.random_range(0..4) {
        0 => bytes.truncate(start),
        1 => bytes[start..end].fill(0),
        2 => random.fill_bytes(&mut bytes[start..end]),
        _ => {
            let from = random.random_range(0..bytes.len() - (end - start));
            bytes.copy_within(from..from + (end - start), start);
        }
    }
}

#[test]
fn damage_before_a_later_batch_is_refused_with_file_and_offset() {
    let disk = FaultyDisk::new(1);
    let (log, mut writer) = open(&disk, large()).expect("open");
    for index in 1..4 {
        log.append(GROUP, vec![entry(index)], |_| {});
        assert!(writer.write_batch());
    }
    let (path, bytes) = disk.contents().pop().expect("there is a segment");
    let payload = entry(2).bytes;
    let position = bytes.windows(payload.len()).position(|window| window == payload);
    let position = position.expect("the entry is on disk");
    let disk = disk.kill();
    disk.flip(&path, position + 3, 2);
    let Err(LogError::Corrupt { file, offset, .. }) = open(&disk, large()) else {
        panic!("a damaged log was opened");
    };
    assert_eq!((file, offset), (path, position as u64 - 44));
}

#[test]
fn damage_in_the_last_batch_is_refused_once_an_idle_writer_proved_it() {
    for (idle, refused) in [(false, false), (true, true)] {
        let disk = FaultyDisk::new(1);
        let (log, mut writer) = open(&disk, large()).expect("open");
        log.append(GROUP, vec![entry(1)], |_| {});
        assert!(writer.write_batch());
        if idle {
            assert!(writer.write_batch());
        }
        let (path, bytes) = disk.contents().pop().expect("there is a segment");
        let payload = entry(1).bytes;
        let position = bytes.windows(payload.len()).position(|window| window == payload);
        let disk = disk.kill();
        disk.flip(&path, position.expect("the entry is on disk"), 0);
        assert_eq!(open(&disk, large()).is_err(), refused);
    }
}

#[test]
fn a_missing_segment_is_refused() {
    use piton_raft::log::Disk;
    let disk = written();
    let files = disk.contents();
    for (path, _) in &files[..files.len() - 1] {
        let copy = disk.fork();
        copy.remove(path).expect("remove");
        let Err(LogError::Corrupt { file, damage, .. }) = open(&copy, small()) else {
            panic!("a log without {} was opened", path.display());
        };
        assert_eq!((&file, damage), (path, "segment is missing"));
    }
}

#[test]
fn purging_gives_segments_back_and_survives_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = || std::fs::read_dir(dir.path()).expect("list").count();
    let config =
        LogConfig { spare_segments_max: 2, idle_after: Duration::from_millis(1), ..small() };
    let open = || Log::open(Arc::new(RealDisk), dir.path().to_owned(), config.clone());
    let (log, _) = open().expect("open");
    for index in 1..1000 {
        wait(|done| log.append(GROUP, vec![entry(index)], done)).expect("append");
        if index % 10 == 0 {
            let name = Bytes::from(format!("purged {index}"));
            wait(|done| log.purge(GROUP, index - 3, name, done)).expect("purge");
        }
    }
    assert!(log.stats().segments.load(Ordering::Relaxed) > 30);
    log.shutdown();
    assert!(files() <= 5, "{} files are left", files());
    assert!(log.disk_bytes() < 8 << 10);
    drop(log);
    let (log, recovered) = open().expect("open");
    assert_eq!(recovered.entries, 12);
    assert_eq!(read_all(&log, GROUP).expect("read"), entries(988..1000));
    assert_eq!(log.state(GROUP).purged.map(|purged| purged.index), Some(987));
}

#[test]
fn a_lagging_group_is_rewritten_forward_so_that_others_segments_can_go() {
    let disk = FaultyDisk::new(1);
    let (log, mut writer) = open(&disk, small()).expect("open");
    log.append(GROUP, entries(1..8), |outcome| outcome.expect("append"));
    log.save_vote(GROUP, Bytes::from("vote"), |outcome| outcome.expect("vote"));
    assert!(writer.write_batch());
    for index in 1..2000 {
        log.append(OTHER, vec![entry(index)], |outcome| outcome.expect("append"));
        if index % 10 == 0 {
            log.purge(OTHER, index, Bytes::from("purged"), |outcome| outcome.expect("purge"));
        }
        assert!(writer.write_batch());
    }
    assert!(log.stats().rewritten.load(Ordering::Relaxed) >= 7);
    assert!(log.disk_bytes() < 16 << 10, "{} bytes are in use", log.disk_bytes());
    assert_eq!(read_all(&log, GROUP).expect("read"), entries(1..8));
    // An entry rewritten forward lies behind others of its group, and changes none of them.
    log.append(GROUP, entries(8..10), |outcome| outcome.expect("append"));
    log.truncate(GROUP, 6, |outcome| outcome.expect("truncate"));
    assert!(writer.write_batch());
    let (log, mut writer) = open(&disk.cut_power(), small()).expect("open");
    assert_eq!(read_all(&log, GROUP).expect("read"), entries(1..6));
    assert_eq!(log.state(GROUP).vote, Some(Bytes::from("vote")));
    log.append(GROUP, entries(6..8), |outcome| outcome.expect("append"));
    assert!(writer.write_batch());
}

/// Goal: readers that race with freeing and reuse of segments see entries or their absence, never
/// bytes of a later life of the file.
#[test]
fn readers_are_not_disturbed_by_freeing_and_reuse() {
    let disk = FaultyDisk::new(1);
    let log = open_threaded(&disk, LogConfig { idle_after: Duration::from_millis(1), ..small() });
    let reader = {
        let log = log.clone();
        std::thread::spawn(move || {
            let mut seen = 0;
            while log.state(OTHER).last.is_none() {
                for entry in read_all(&log, GROUP).expect("read") {
                    assert_eq!(entry.bytes, self::entry(entry.index).bytes);
                    seen += 1;
                }
            }
            seen
        })
    };
    for index in 1..3000 {
        wait(|done| log.append(GROUP, vec![entry(index)], done)).expect("append");
        if index % 7 == 0 {
            let through = index.saturating_sub(40);
            wait(|done| log.purge(GROUP, through, Bytes::new(), done)).expect("purge");
        }
    }
    wait(|done| log.append(OTHER, entries(1..2), done)).expect("append");
    assert!(reader.join().expect("the reader does not panic") > 0);
    assert!(log.stats().segments_freed.load(Ordering::Relaxed) > 10);
}
