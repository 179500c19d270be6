//! Crash tests: a seeded workload over a disk that loses, tears and reorders what was not synced.
//! After each crash the log must stand, for every group, exactly where some prefix of its
//! operations left it, and that prefix holds everything that was acknowledged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use piton_raft::log::{
    EntryId, EntryRecord, Faults, FaultyDisk, GroupId, Log, LogConfig, LogError, ManualWriter,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const GROUPS: [GroupId; 3] = [GroupId(0), GroupId(5), GroupId(6)];

/// What a group's log says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Bytes>,
    purged: Option<u64>,
    is_forgotten: bool,
    floor: Option<EntryId>,
    entries: BTreeMap<u64, EntryRecord>,
}

impl Model {
    fn last(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged).unwrap_or(0)
    }
}

/// What was asked of one group in one life, and how far it was acknowledged.
#[derive(Debug, Default)]
struct History {
    /// The state after each operation; the first is the one the life began with.
    states: Vec<Model>,
    acknowledged: Arc<AtomicUsize>,
    committed: Vec<Bytes>,
}

struct Life {
    log: Log,
    writer: ManualWriter,
    histories: BTreeMap<GroupId, History>,
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 2 << 10,
        preallocate_bytes: 512,
        cache_bytes_max: 1 << 10,
        spare_segments_max: 1,
        idle_after: Duration::from_millis(1),
        ..LogConfig::default()
    }
}

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

fn open(disk: &FaultyDisk) -> Result<(Log, ManualWriter), LogError> {
    let (log, _, writer) = Log::open_manual(Arc::new(disk.clone()), dir(), config())?;
    Ok((log, writer))
}

fn model(log: &Log, group: GroupId) -> Model {
    let state = log.state(group);
    let entries = log.read(group, 0..u64::MAX, usize::MAX).expect("read what was recovered");
    assert_eq!(entries.first().map(|entry| entry.index), state.first.map(|first| first.index));
    assert_eq!(entries.last().map(|entry| entry.index), state.last.map(|last| last.index));
    let purged = state.purged.map(|purged| {
        assert_eq!(purged.bytes, purge_name(purged.index));
        purged.index
    });
    let entries = entries.into_iter().map(|entry| (entry.index, entry)).collect();
    let (is_forgotten, floor) = (state.is_forgotten, state.floor);
    Model { vote: state.vote, purged, is_forgotten, floor, entries }
}

fn purge_name(index: u64) -> Bytes {
    Bytes::from(format!("purged {index}"))
}

impl Life {
    fn begin(log: Log, writer: ManualWriter) -> Life {
        let history = |group| History {
            states: vec![model(&log, group)],
            committed: log.state(group).committed.into_iter().collect(),
            ..History::default()
        };
        let histories = GROUPS.into_iter().map(|group| (group, history(group))).collect();
        Life { log, writer, histories }
    }

    /// One operation of a random kind on a random group.
    fn operate(&mut self, random: &mut SmallRng, serial: u64) {
        let group = *GROUPS.choose(random).expect("there are groups");
        let history = self.histories.get_mut(&group).expect("every group has a history");
        let mut model = history.states.last().expect("never empty").clone();
        let position = history.states.len();
        let acknowledged = history.acknowledged.clone();
        let done = move |outcome: Result<(), LogError>| {
            if outcome.is_ok() {
                acknowledged.fetch_max(position, Ordering::Relaxed);
            }
        };
        match random.random_range(0..100) {
            0..60 => {
                let first = model.last() + 1;
                let entry = |index| {
                    let text = format!("{serial}/{index} ").repeat(random.random_range(0..12));
                    EntryRecord { index, term: serial, bytes: Bytes::from(text) }
                };
                let entries: Vec<_> = (first..first + 1 + serial % 4).map(entry).collect();
                let entry = |entry: &EntryRecord| (entry.index, entry.clone());
                model.entries.extend(entries.iter().map(entry));
                model.is_forgotten = false;
                let reached = (serial, model.last());
                model.floor = model.floor.filter(|floor| (floor.term, floor.index) > reached);
                self.log.append(group, entries, done);
            }
            60..70 => {
                let vote = Bytes::from(format!("vote {serial}"));
                model.vote = Some(vote.clone());
                self.log.save_vote(group, vote, done);
            }
            70..78 => {
                let from = (model.last() + 2).saturating_sub(random.random_range(0..8));
                let from = from.max(model.purged.map_or(0, |purged| purged + 1));
                model.entries.split_off(&from);
                self.log.truncate(group, from, done);
            }
            // The first group is a lagging one: it purges seldom, so others' segments wait for it.
            78..90 if group != GROUPS[0] || serial.is_multiple_of(16) => {
                let beyond = if serial.is_multiple_of(8) { 4 } else { 0 };
                let through = (model.last() + beyond).saturating_sub(random.random_range(0..6));
                if model.purged.is_none_or(|purged| purged <= through) {
                    (model.purged, model.is_forgotten) = (Some(through), false);
                    model.entries = model.entries.split_off(&(through + 1));
                }
                self.log.purge(group, through, purge_name(through), done);
            }
            // Nothing of the group is left but its vote and how far it had come; what comes next may
            // begin anywhere.
            90..93 => {
                let term = serial + random.random_range(0..60);
                let floor = Some(EntryId { index: model.last(), term });
                model = Model { vote: model.vote, is_forgotten: true, floor, ..Model::default() };
                self.log.forget(group, floor, done);
            }
            _ => {
                let committed = Bytes::from(format!("committed {serial}"));
                history.committed.push(committed.clone());
                self.log.save_committed(group, committed);
                return;
            }
        }
        history.states.push(model);
    }

    /// Works until the disk fails or there is enough; returns the number of batches.
    fn run(&mut self, random: &mut SmallRng, serial: &mut u64) {
        let batch_after = random.random_range(1..6);
        for _ in 0..random.random_range(1..200) {
            *serial += 1;
            self.operate(random, *serial);
            if random.random_range(0..batch_after) == 0 && !self.writer.write_batch() {
                return;
            }
            if random.random_range(0..30) == 0 && !self.writer.write_batch() {
                return;
            }
        }
    }

    /// Checks that a reopened log is where this life may have left it.
    fn check(&self, reopened: &Log, seed: u64) {
        for (group, history) in &self.histories {
            let acknowledged = history.acknowledged.load(Ordering::Relaxed);
            let found = model(reopened, *group);
            let possible = &history.states[acknowledged..];
            assert!(
                possible.contains(&found),
                "seed {seed}, group {group}: found {found:#?}\nneither acknowledged nor asked for \
                 after operation {acknowledged}: {:#?}",
                history.states[acknowledged]
            );
            let committed = reopened.state(*group).committed;
            let known = |committed| history.committed.contains(committed);
            assert!(committed.iter().all(known), "seed {seed}: committed id was invented");
        }
    }
}

/// Opens the log, sometimes with power cuts while it recovers.
fn reopen(mut disk: FaultyDisk, random: &mut SmallRng, seed: u64) -> (FaultyDisk, Life) {
    for attempt in 0.. {
        if attempt < 3 && random.random_bool(0.3) {
            let cut_at_call = Some(random.random_range(1..8));
            disk.set_faults(Faults { cut_at_call, ..Faults::default() });
        }
        match open(&disk) {
            Ok((log, writer)) => return (disk, Life::begin(log, writer)),
            Err(LogError::Disk { .. }) => disk = disk.cut_power(),
            Err(error) => panic!("seed {seed}: cannot open: {error}"),
        }
    }
    unreachable!("the loop has no end")
}

/// What recovery returned must survive a power cut right after it.
fn check_recovery_is_durable(disk: &FaultyDisk, life: &Life, seed: u64) {
    let (log, _) = open(&disk.fork().cut_power()).expect("open a copy");
    for (group, history) in &life.histories {
        assert_eq!(model(&log, *group), history.states[0], "seed {seed}, group {group}");
    }
}

fn crash_and_reopen(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut serial = 0;
    let (mut disk, mut life) = reopen(FaultyDisk::new(seed), &mut random, seed);
    for _ in 0..6 {
        match random.random_range(0..4) {
            0 => disk.set_faults(Faults::default()),
            1 => disk.set_faults(Faults {
                fail_at_sync: Some(random.random_range(1..40)),
                ..Faults::default()
            }),
            _ => disk.set_faults(Faults {
                cut_at_call: Some(random.random_range(1..150)),
                ..Faults::default()
            }),
        }
        life.run(&mut random, &mut serial);
        disk = if random.random_bool(0.7) { disk.cut_power() } else { disk.kill() };
        let (next_disk, next) = reopen(disk, &mut random, seed);
        life.check(&next.log, seed);
        check_recovery_is_durable(&next_disk, &next, seed);
        (disk, life) = (next_disk, next);
    }
}

#[test]
fn what_was_acknowledged_survives_every_crash_and_nothing_is_invented() {
    let seeds = std::env::var("PITON_LOG_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(300) {
        crash_and_reopen(seed);
    }
}

/// Goal: every tear of the last batch is cut, none of the batches before is touched.
#[test]
fn a_batch_torn_at_any_byte_is_cut_and_the_one_before_stays() {
    let disk = FaultyDisk::new(1);
    let (log, mut writer) = open(&disk).expect("open");
    let entry =
        |index| EntryRecord { index, term: 1, bytes: Bytes::from(format!("entry {index}")) };
    let before = |disk: &FaultyDisk| disk.contents().pop().expect("there is a segment");
    log.append(GROUPS[0], vec![entry(1), entry(2)], |_| {});
    assert!(writer.write_batch());
    let (path, whole_before) = before(&disk);
    log.append(GROUPS[0], vec![entry(3), entry(4)], |_| {});
    assert!(writer.write_batch());
    let (_, whole) = before(&disk);
    let differs = |at: &usize| whole[*at] != whole_before[*at];
    let start = (0..whole.len()).find(differs).expect("the batch was written");
    let end = (0..whole.len()).rfind(differs).expect("the batch was written") + 1;
    for torn_at in start..end {
        let mut bytes = whole.clone();
        bytes[torn_at..end].fill(0);
        let torn = disk_with(&[(path.clone(), bytes)]);
        let (log, _) = open(&torn).expect("open a torn log");
        let read = log.read(GROUPS[0], 0..9, usize::MAX).expect("read");
        assert_eq!(read, [entry(1), entry(2)], "torn at {torn_at}");
    }
    let (log, _) = open(&disk.kill()).expect("open the whole log");
    assert_eq!(log.read(GROUPS[0], 0..9, usize::MAX).expect("read").len(), 4);
}

fn disk_with(files: &[(PathBuf, Vec<u8>)]) -> FaultyDisk {
    use piton_raft::log::Disk;
    let disk = FaultyDisk::new(1);
    for (path, bytes) in files {
        let file = disk.create(path).expect("create");
        file.write_at(bytes, 0).expect("write");
        file.sync().expect("sync");
    }
    disk.sync_dir(&dir()).expect("sync");
    disk
}
