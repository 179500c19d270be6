//! The table against a model: random steps with crashes, failures, restores; and readers that run
//! beside applies and checkpoints.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "a failing run names its seed")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use piton_store::{
    CheckpointReport, EngineKind, KeyRange, MemoryStore, Opened, Order, PostponedBecause, Row,
    Store, StoreError, Table, Write, open_or_rebuild,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Failing, GROUP, NO_LIMIT, mark};

const CACHE_BYTES: u64 = 1 << 24;

type Rows = BTreeMap<Bytes, Bytes>;

/// Two ways to end a process: what is not synced may be lost (memory), or the handle is closed and
/// opened again (the engines on disk).
enum Disk {
    Memory(Arc<MemoryStore>),
    Directory(EngineKind, tempfile::TempDir),
}

/// A group's log, every state it went through, and the table under test.
struct Model {
    random: SmallRng,
    disk: Disk,
    /// Entry n + 1 of the log.
    log: Vec<Vec<Write>>,
    /// The state after entry n; the first is the empty one.
    states: Vec<Rows>,
    failing: Option<Arc<Failing>>,
    table: Table,
}

impl Model {
    fn new(seed: u64, disk: Disk) -> Model {
        let (store, failing) = open(&disk);
        let table = Table::open(store, GROUP).unwrap();
        let random = SmallRng::seed_from_u64(seed);
        Model { random, disk, log: vec![], states: vec![Rows::new()], failing, table }
    }

    fn index(&self) -> u64 {
        self.log.len() as u64
    }

    fn state(&self) -> &Rows {
        &self.states[self.log.len()]
    }

    fn key(&mut self) -> Bytes {
        let length = self.random.random_range(0..3);
        (0..length).map(|_| [0, b'a', b'b', 0xff][self.random.random_range(0..4)]).collect()
    }

    fn value(&mut self) -> Bytes {
        let length = match self.random.random_range(0..20) {
            0 => self.random.random_range(7_000..30_000),
            _ => self.random.random_range(0..20),
        };
        let byte = self.random.random();
        vec![byte; length].into()
    }

    fn append(&mut self) {
        let mut writes = Vec::new();
        for _ in 0..self.random.random_range(1..6) {
            let key = self.key();
            let write = if self.random.random_bool(0.4) {
                Write::delete(key)
            } else {
                Write::put(key, self.value())
            };
            writes.push(write);
        }
        let mut state = self.state().clone();
        for write in writes.clone() {
            match write {
                Write::Put { key, value } => state.insert(key, value),
                Write::Delete { key } => state.remove(&key),
            };
        }
        self.log.push(writes);
        self.states.push(state);
    }

    /// Applies 1 to 3 entries at once.
    fn apply(&mut self) {
        let first = self.log.len();
        for _ in 0..self.random.random_range(1..4) {
            self.append();
        }
        self.table.apply(self.log[first..].concat(), mark(self.index()));
    }

    fn advance(&mut self) {
        let state = self.state().clone();
        self.log.push(Vec::new());
        self.states.push(state);
        self.table.advance(mark(self.index()));
    }

    fn checkpoint(&mut self) {
        let back = self.random.random_range(0..4_u64);
        let limit = self.index().saturating_sub(back);
        let before = self.table.checkpointed();
        let outcome = self.table.checkpoint(limit);
        let stands = self.table.checkpointed();
        assert!(stands <= Some(limit).max(before), "{outcome:?} with limit {limit}");
        if outcome.is_err() {
            assert!(self.failing.is_some());
            self.crash();
        }
    }

    fn read(&mut self) {
        let key = self.key();
        assert_eq!(self.table.get(&key).unwrap().as_ref(), self.state().get(&key));
        let (start, end) = (self.key(), self.key());
        let end = self.random.random_bool(0.7).then_some(end);
        let limit = self.random.random_range(0..12);
        let inside = |key: &Bytes| *key >= start && end.as_ref().is_none_or(|end| key < end);
        let found = self.state().iter().filter(|(key, _)| inside(key));
        let found = found.map(|(key, value)| Row { key: key.clone(), value: value.clone() });
        let range = KeyRange { start: &start, end: end.as_deref() };
        let expected: Vec<Row> = found.clone().take(limit).collect();
        assert_eq!(self.table.scan(range, Order::Ascending, limit).unwrap(), expected);
        let expected: Vec<Row> = found.rev().take(limit).collect();
        assert_eq!(self.table.scan(range, Order::Descending, limit).unwrap(), expected);
    }

    fn hold(&mut self) {
        let Ok(mut held) = self.table.hold() else { return };
        let state = self.states[held.mark().index as usize].clone();
        assert_eq!(held.mark(), &mark(held.mark().index));
        self.apply();
        self.checkpoint_while_held();
        let limit = self.random.random_range(1..5);
        let mut rows = Rows::new();
        loop {
            let page = held.next_rows(limit).unwrap();
            if page.is_empty() {
                break;
            }
            rows.extend(page.into_iter().map(|row| (row.key, row.value)));
        }
        assert_eq!(rows, state);
    }

    fn checkpoint_while_held(&mut self) {
        let postponed = CheckpointReport::Postponed(PostponedBecause::Held);
        assert_eq!(self.table.checkpoint(NO_LIMIT).unwrap(), postponed);
    }

    /// Takes the state of a later index as a snapshot from elsewhere would bring it; sometimes the
    /// process ends amid it.
    fn restore(&mut self) {
        for _ in 0..self.random.random_range(0..3) {
            self.append();
        }
        let rows: Vec<Row> = self.state().clone().into_iter().map(row).collect();
        let outcome = (|| {
            let mut restore = self.table.begin_restore()?;
            for page in rows.chunks(3) {
                if self.random.random_bool(0.05) {
                    return Err(StoreError::Stopped { doing: "crash" });
                }
                restore.rows(page.to_vec())?;
            }
            restore.finish(mark(self.index()))
        })();
        match outcome {
            Ok(()) => assert_eq!(self.table.checkpointed(), Some(self.index())),
            Err(_) => self.crash(),
        }
    }

    /// Ends the process, opens again, checks that the state is that of the mark, and replays.
    fn crash(&mut self) {
        let checkpointed = self.table.checkpointed();
        // The old table has to go first: the engine's files are locked by it.
        self.table = Table::open(Arc::new(MemoryStore::new()), GROUP).unwrap();
        if let Disk::Memory(store) = &self.disk {
            let kept = self.random.random_range(0..3);
            store.crash_keeping(kept);
        }
        let (store, failing) = open(&self.disk);
        self.failing = failing;
        self.table = Table::open(store, GROUP).unwrap();
        let applied = self.table.applied();
        let stands = applied.as_ref().map(|mark| mark.index);
        assert!(stands >= checkpointed, "at {stands:?}, promised {checkpointed:?}");
        assert_eq!(self.table.checkpointed(), stands);
        let index = stands.unwrap_or(0) as usize;
        assert_eq!(applied, stands.map(mark));
        let found = self.table.scan(KeyRange::all(), Order::Ascending, 1000).unwrap();
        let expected: Vec<Row> = self.states[index].clone().into_iter().map(row).collect();
        assert_eq!(found, expected, "the state at {index}");
        for at in index..self.log.len() {
            self.table.apply(self.log[at].clone(), mark(at as u64 + 1));
        }
    }

    fn fail_soon(&mut self) {
        if let Some(failing) = &self.failing {
            failing.changes_left.store(self.random.random_range(0..6), Ordering::SeqCst);
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.random.random_range(0..100) {
                0..40 => self.apply(),
                40..43 => self.advance(),
                43..60 => self.checkpoint(),
                60..90 => self.read(),
                90..93 => self.hold(),
                93..95 => self.restore(),
                95..97 => self.fail_soon(),
                _ => self.crash(),
            }
        }
        self.crash();
        self.read();
    }
}

fn open(disk: &Disk) -> (Arc<dyn Store>, Option<Arc<Failing>>) {
    match disk {
        Disk::Memory(store) => {
            let failing = Failing::over(store.clone(), i64::MAX);
            (failing.clone(), Some(failing))
        }
        Disk::Directory(engine, dir) => {
            let (store, opened) = open_or_rebuild(*engine, dir.path(), CACHE_BYTES).unwrap();
            assert!(!matches!(opened, Opened::Discarded { .. }), "{opened:?}");
            (store, None)
        }
    }
}

fn row((key, value): (Bytes, Bytes)) -> Row {
    Row { key, value }
}

#[test]
fn the_table_equals_a_model_over_the_memory_engine_with_crashes_and_failures() {
    for seed in 0..300 {
        println!("seed {seed}");
        Model::new(seed, Disk::Memory(Arc::new(MemoryStore::new()))).run(300);
    }
}

#[test]
fn the_table_equals_a_model_over_the_engines_on_disk_with_reopening() {
    for (engine, seed) in EngineKind::ALL.into_iter().flat_map(|e| [(e, 0), (e, 1), (e, 2)]) {
        println!("{engine:?}, seed {seed}");
        Model::new(seed, Disk::Directory(engine, tempfile::tempdir().unwrap())).run(300);
    }
}

/// Every entry puts one number into all rows (and adds or removes a row), checkpoints run all the
/// time, readers scan: each answer is of one entry.
fn readers_see_one_applied_index(store: Arc<dyn Store>, entries: u64) {
    let table = Table::open(store, GROUP).unwrap();
    let entry = |n: u64| {
        let keys = (0..30_u8).map(|k| vec![k]);
        let mut writes: Vec<Write> = keys.map(|k| Write::put(k, n.to_string())).collect();
        let extra = vec![100 + (n / 2 % 3) as u8];
        writes.push(if n.is_multiple_of(2) {
            Write::put(extra, n.to_string())
        } else {
            Write::delete(extra)
        });
        writes
    };
    table.apply(entry(1), mark(1));
    let applied = || table.applied().map_or(0, |mark| mark.index);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while applied() < entries {
                table.checkpoint(NO_LIMIT).unwrap();
            }
        });
        for order in [Order::Ascending, Order::Descending] {
            let (table, applied) = (&table, &applied);
            scope.spawn(move || {
                while applied() < entries {
                    let before = applied();
                    let rows = table.scan(KeyRange::all(), order, 100).unwrap();
                    let after = applied();
                    let seen: u64 = std::str::from_utf8(&rows[0].value).unwrap().parse().unwrap();
                    assert!((before..=after).contains(&seen), "{before} <= {seen} <= {after}");
                    assert!(rows.iter().all(|row| row.value == rows[0].value), "{rows:?}");
                    assert_eq!(rows.len(), 30 + usize::from(seen.is_multiple_of(2)));
                    let one: u64 = std::str::from_utf8(&table.get(&[3]).unwrap().unwrap())
                        .unwrap()
                        .parse()
                        .unwrap();
                    assert!((after..=applied()).contains(&one));
                }
            });
        }
        for n in 2..=entries {
            table.apply(entry(n), mark(n));
        }
    });
}

#[test]
fn concurrent_readers_see_one_applied_index_over_the_memory_engine() {
    readers_see_one_applied_index(Arc::new(MemoryStore::new()), 20_000);
}

#[test]
fn concurrent_readers_see_one_applied_index_over_the_engines_on_disk() {
    for engine in EngineKind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open_or_rebuild(engine, dir.path(), CACHE_BYTES).unwrap();
        readers_see_one_applied_index(store, 5_000);
    }
}
