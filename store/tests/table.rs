//! The table: reads through the layers, checkpoints, holds, restores, and all of them against a
//! model, with crashes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use piton_store::frame::{Engine, Framed};
use piton_store::memory::MemoryEngine;
use piton_store::{
    Batch, CheckpointReport, KeyRange, Mark, MemoryStore, Order, PostponedBecause, Row, Store,
    StoreError, Table, Write, sled,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const GROUP: u32 = 7;
const NO_LIMIT: u64 = u64::MAX;

fn mark(index: u64) -> Mark {
    Mark { index, bytes: Bytes::from(format!("mark of {index}")) }
}

fn table() -> (Arc<MemoryStore>, Table) {
    let store = Arc::new(MemoryStore::new());
    let table = Table::open(store.clone(), GROUP).unwrap();
    (store, table)
}

fn reopen(store: &Arc<MemoryStore>) -> Table {
    Table::open(store.clone(), GROUP).unwrap()
}

fn put(table: &Table, index: u64, key: &'static str, value: &'static str) {
    table.apply(vec![Write::put(key, value)], mark(index));
}

fn delete(table: &Table, index: u64, key: &'static str) {
    table.apply(vec![Write::delete(key)], mark(index));
}

fn all(table: &Table) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let rows = table.scan(KeyRange::all(), Order::Ascending, 1000).unwrap();
    rows.iter().map(|row| (text(&row.key), text(&row.value))).collect()
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn written(report: CheckpointReport) -> (u64, usize) {
    match report {
        CheckpointReport::Written { index, rows, .. } => (index, rows),
        other => panic!("not written: {other:?}"),
    }
}

#[test]
fn a_new_table_is_empty_and_stands_nowhere() {
    let (_store, table) = table();
    assert_eq!(table.applied(), None);
    assert_eq!(table.checkpointed(), None);
    assert_eq!(table.dirty_bytes(), 0);
    assert_eq!(all(&table), []);
    assert_eq!(table.checkpoint(NO_LIMIT).unwrap(), CheckpointReport::Unchanged);
    assert!(matches!(table.hold(), Err(StoreError::NoCheckpoint { group: GROUP })));
}

#[test]
fn the_reserved_group_is_refused() {
    let store = Arc::new(MemoryStore::new());
    assert!(matches!(Table::open(store, u32::MAX), Err(StoreError::ReservedGroup { .. })));
}

#[test]
fn reads_look_in_the_table_then_in_the_store() {
    let (_store, table) = table();
    put(&table, 1, "a", "old");
    put(&table, 2, "b", "stored");
    put(&table, 3, "c", "stored");
    table.checkpoint(NO_LIMIT).unwrap();
    put(&table, 4, "a", "new");
    delete(&table, 5, "c");
    put(&table, 6, "d", "fresh");
    assert_eq!(all(&table), pairs(&[("a", "new"), ("b", "stored"), ("d", "fresh")]));
    assert_eq!(table.get(b"a").unwrap().unwrap(), "new");
    assert_eq!(table.get(b"b").unwrap().unwrap(), "stored");
    assert_eq!(table.get(b"c").unwrap(), None);
    assert_eq!(table.applied(), Some(mark(6)));
    assert_eq!(table.checkpointed(), Some(3));
}

#[test]
fn a_checkpoint_survives_a_crash_and_what_came_after_does_not() {
    let (store, table) = table();
    put(&table, 1, "a", "1");
    table.advance(mark(2));
    assert_eq!(written(table.checkpoint(NO_LIMIT).unwrap()), (2, 1));
    assert_eq!(table.dirty_bytes(), 0);
    put(&table, 3, "a", "3");
    store.crash();
    let table = reopen(&store);
    assert_eq!(table.applied(), Some(mark(2)));
    assert_eq!(table.checkpointed(), Some(2));
    assert_eq!(all(&table), pairs(&[("a", "1")]));
}

#[test]
fn a_checkpoint_of_entries_that_wrote_nothing_moves_the_mark() {
    let (store, table) = table();
    table.advance(mark(5));
    assert_eq!(written(table.checkpoint(NO_LIMIT).unwrap()), (5, 0));
    assert_eq!(table.checkpoint(NO_LIMIT).unwrap(), CheckpointReport::Unchanged);
    store.crash();
    assert_eq!(reopen(&store).applied(), Some(mark(5)));
}

#[test]
fn a_row_that_came_and_went_between_checkpoints_never_reaches_the_engine() {
    let store = Arc::new(Framed::over(Recording::default()));
    let table = Table::open(store.clone(), GROUP).unwrap();
    put(&table, 1, "short-lived", "value");
    put(&table, 1, "kept", "value");
    delete(&table, 2, "short-lived");
    table.checkpoint(NO_LIMIT).unwrap();
    let written = store.engine().written.lock().unwrap();
    assert!(written.iter().any(|write| write.key().ends_with(b"kept")));
    assert!(!written.iter().any(|write| write.key().ends_with(b"short-lived")), "{written:?}");
}

#[test]
fn a_checkpoint_never_passes_the_synced_log_and_still_gets_on() {
    let (store, table) = table();
    put(&table, 1, "a", "1");
    put(&table, 2, "a", "2");
    let beyond = PostponedBecause::BeyondLimit { index: 2 };
    assert_eq!(table.checkpoint(1).unwrap(), CheckpointReport::Postponed(beyond));
    assert_eq!(store.engine_rows().len(), 0);
    // Entries applied later do not keep the frozen ones back.
    put(&table, 3, "b", "3");
    assert_eq!(all(&table), pairs(&[("a", "2"), ("b", "3")]));
    assert_eq!(written(table.checkpoint(2).unwrap()), (2, 1));
    assert_eq!(table.checkpointed(), Some(2));
    assert_eq!(written(table.checkpoint(3).unwrap()), (3, 1));
    assert_eq!(all(&table), pairs(&[("a", "2"), ("b", "3")]));
}

#[test]
fn dirty_bytes_count_what_is_not_checkpointed() {
    let (_store, table) = table();
    put(&table, 1, "a", "0123456789");
    let one = table.dirty_bytes();
    assert!(one >= 11);
    put(&table, 2, "a", "01234");
    assert_eq!(table.dirty_bytes(), one - 5);
    delete(&table, 3, "a");
    assert_eq!(table.dirty_bytes(), one - 10);
    table.checkpoint(0).unwrap();
    put(&table, 4, "b", "0123456789");
    assert_eq!(table.dirty_bytes(), one + one - 10);
    table.checkpoint(NO_LIMIT).unwrap();
    table.checkpoint(NO_LIMIT).unwrap();
    assert_eq!(table.dirty_bytes(), 0);
}

#[test]
fn groups_in_one_store_do_not_see_each_other() {
    let store = Arc::new(MemoryStore::new());
    let tables: Vec<Table> =
        [0, 1, 256, u32::MAX - 1].map(|g| Table::open(store.clone(), g).unwrap()).into();
    for table in &tables {
        let name = Bytes::from(table.group().to_string());
        table.apply(vec![Write::put(name.clone(), name)], mark(u64::from(table.group())));
        table.checkpoint(NO_LIMIT).unwrap();
    }
    tables[1].clear().unwrap();
    for (at, table) in tables.iter().enumerate() {
        let name = table.group().to_string();
        let expected = if at == 1 { vec![] } else { vec![(name.clone(), name)] };
        assert_eq!(all(table), expected);
        let reopened = Table::open(store.clone(), table.group()).unwrap();
        assert_eq!(all(&reopened), expected);
        assert_eq!(reopened.applied().is_some(), at != 1);
    }
}

#[test]
fn held_rows_stand_at_the_checkpoint_while_the_table_goes_on() {
    let (_store, table) = table();
    for (index, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        put(&table, index as u64 + 1, key, "held");
    }
    table.checkpoint(NO_LIMIT).unwrap();
    put(&table, 6, "a", "later");
    delete(&table, 7, "b");
    let mut held = table.hold().unwrap();
    assert_eq!(held.mark(), &mark(5));
    put(&table, 8, "f", "later");
    let postponed = CheckpointReport::Postponed(PostponedBecause::Held);
    assert_eq!(table.checkpoint(NO_LIMIT).unwrap(), postponed);
    let mut rows = Vec::new();
    loop {
        let page = held.next_rows(2).unwrap();
        assert!(page.len() <= 2);
        if page.is_empty() {
            break;
        }
        rows.extend(page);
    }
    assert!(rows.iter().map(|row| row.key.as_ref()).eq([b"a", b"b", b"c", b"d", b"e"]));
    assert!(rows.iter().all(|row| row.value == "held"));
    let second = table.hold().unwrap();
    drop(held);
    assert_eq!(table.checkpoint(NO_LIMIT).unwrap(), postponed);
    drop(second);
    assert_eq!(written(table.checkpoint(NO_LIMIT).unwrap()), (8, 3));
}

fn rows(values: &[(&'static str, &'static str)]) -> Vec<Row> {
    let row = |&(key, value): &(&'static str, &'static str)| Row {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
    };
    values.iter().map(row).collect()
}

#[test]
fn a_restore_replaces_everything_of_the_group() {
    let (store, table) = table();
    put(&table, 1, "old-stored", "x");
    table.checkpoint(NO_LIMIT).unwrap();
    put(&table, 2, "old-frozen", "x");
    table.checkpoint(0).unwrap();
    put(&table, 3, "old-active", "x");
    let mut restore = table.begin_restore().unwrap();
    restore.rows(rows(&[("a", "1"), ("b", "2")])).unwrap();
    restore.rows(rows(&[("c", "3")])).unwrap();
    restore.finish(mark(100)).unwrap();
    let expected = pairs(&[("a", "1"), ("b", "2"), ("c", "3")]);
    assert_eq!(all(&table), expected);
    assert_eq!((table.applied(), table.checkpointed()), (Some(mark(100)), Some(100)));
    store.crash();
    let table = reopen(&store);
    assert_eq!(all(&table), expected);
    assert_eq!(table.applied(), Some(mark(100)));
    put(&table, 101, "d", "4");
    assert_eq!(written(table.checkpoint(NO_LIMIT).unwrap()), (101, 1));
}

#[test]
fn everything_but_another_restore_is_refused_during_a_restore() {
    let (_store, table) = table();
    put(&table, 1, "a", "1");
    table.checkpoint(NO_LIMIT).unwrap();
    let mut held = table.hold().unwrap();
    let mut first = table.begin_restore().unwrap();
    assert!(matches!(held.next_rows(1), Err(StoreError::Replaced { .. })));
    drop(held);
    assert!(matches!(table.get(b"a"), Err(StoreError::Restoring { group: GROUP })));
    let range = KeyRange::all();
    assert!(matches!(table.scan(range, Order::Ascending, 1), Err(StoreError::Restoring { .. })));
    assert!(matches!(table.checkpoint(NO_LIMIT), Err(StoreError::Restoring { .. })));
    assert!(matches!(table.hold(), Err(StoreError::Restoring { .. })));
    let second = table.begin_restore().unwrap();
    assert!(matches!(first.rows(rows(&[("x", "x")])), Err(StoreError::Replaced { .. })));
    assert!(matches!(first.finish(mark(1)), Err(StoreError::Replaced { .. })));
    second.finish(mark(9)).unwrap();
    assert_eq!((all(&table), table.applied()), (vec![], Some(mark(9))));
}

#[test]
fn a_crash_during_a_restore_leaves_an_empty_group_without_a_mark() {
    for kept in 0..12 {
        let (store, table) = table();
        put(&table, 1, "a", "old");
        put(&table, 2, "b", "old");
        table.checkpoint(NO_LIMIT).unwrap();
        let mut restore = table.begin_restore().unwrap();
        restore.rows(rows(&[("a", "new")])).unwrap();
        restore.rows(rows(&[("c", "new")])).unwrap();
        store.crash_keeping(kept);
        let reopened = reopen(&store);
        assert_eq!((all(&reopened), reopened.applied()), (vec![], None), "{kept} batches kept");
        assert_eq!(store.engine_rows(), [], "nothing half-filled is left");
        reopened.apply(vec![Write::put("fresh", "1")], mark(1));
        assert_eq!(all(&reopened), pairs(&[("fresh", "1")]));
    }
}

#[test]
fn a_cleared_group_starts_from_nothing() {
    let (store, table) = table();
    put(&table, 8, "a", "1");
    table.checkpoint(NO_LIMIT).unwrap();
    table.clear().unwrap();
    assert_eq!((all(&table), table.applied(), table.checkpointed()), (vec![], None, None));
    put(&table, 1, "b", "1");
    assert_eq!(all(&table), pairs(&[("b", "1")]));
    store.crash();
    assert_eq!(reopen(&store).applied(), None);
}

#[test]
fn a_damaged_group_can_be_restored() {
    let (store, table) = table();
    put(&table, 1, "a", "1");
    table.checkpoint(NO_LIMIT).unwrap();
    store.damage(&[&GROUP.to_be_bytes()[..], b"a"].concat());
    assert!(matches!(table.get(b"a"), Err(StoreError::Corrupt { .. })));
    let restore = table.begin_restore().unwrap();
    restore.finish(mark(4)).unwrap();
    assert_eq!((all(&table), table.applied()), (vec![], Some(mark(4))));
}

#[test]
#[should_panic(expected = "entry 4 applied after 5")]
fn an_entry_before_the_last_one_is_a_broken_invariant() {
    let (_store, table) = table();
    put(&table, 5, "a", "5");
    put(&table, 4, "a", "4");
}

/// Reaching below the store's interface, for assertions about what lies there.
trait Below {
    fn engine_rows(&self) -> Vec<Row>;
    fn damage(&self, key: &[u8]);
}

impl Below for MemoryStore {
    fn engine_rows(&self) -> Vec<Row> {
        self.engine().scan(KeyRange::all(), Order::Ascending, usize::MAX).unwrap()
    }

    fn damage(&self, key: &[u8]) {
        let key = Bytes::from([b"r", key].concat());
        let mut value = self.engine().get(&key).unwrap().unwrap().to_vec();
        value[0] ^= 1;
        self.engine().write(vec![Write::put(key, value)]).unwrap();
    }
}

/// The memory engine, keeping what it was told to write.
#[derive(Default)]
struct Recording {
    engine: MemoryEngine,
    written: Mutex<Vec<Write>>,
}

impl Engine for Recording {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.engine.get(key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.engine.scan(range, order, limit)
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.written.lock().unwrap().extend(writes.iter().cloned());
        self.engine.write(writes)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.engine.sync()
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.engine.bytes_on_disk()
    }
}

/// A store whose calls begin to fail after a number of changes, half of them after the change was
/// made: what a full disk or a kill amid a checkpoint looks like from above.
struct Failing {
    inner: Arc<MemoryStore>,
    changes_left: AtomicI64,
}

impl Failing {
    fn change(&self, change: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let refused = || StoreError::Stopped { doing: "a test" };
        match self.changes_left.fetch_sub(1, Ordering::SeqCst) {
            1.. => change(),
            0 => change().and(Err(refused())),
            _ => Err(refused()),
        }
    }
}

impl Store for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.change(|| self.inner.write(batch))
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.change(|| self.inner.clear_prefix(prefix))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.change(|| self.inner.sync())
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.inner.bytes_on_disk()
    }
}

#[test]
fn a_checkpoint_that_failed_is_written_by_the_next_one() {
    let inner = Arc::new(MemoryStore::new());
    let changes_left = AtomicI64::new(i64::MAX);
    let store = Arc::new(Failing { inner: inner.clone(), changes_left });
    let table = Table::open(store.clone(), GROUP).unwrap();
    put(&table, 1, "a", "1");
    for changes in [-1, 0, 1] {
        store.changes_left.store(changes, Ordering::SeqCst);
        assert!(table.checkpoint(NO_LIMIT).is_err());
        assert_eq!(table.checkpointed(), None);
        assert_eq!(all(&table), pairs(&[("a", "1")]));
    }
    put(&table, 2, "b", "2");
    store.changes_left.store(100, Ordering::SeqCst);
    assert_eq!(written(table.checkpoint(NO_LIMIT).unwrap()), (1, 1));
    assert_eq!(written(table.checkpoint(NO_LIMIT).unwrap()), (2, 1));
    inner.crash();
    assert_eq!(all(&reopen(&inner)), pairs(&[("a", "1"), ("b", "2")]));
}

type Rows = BTreeMap<Bytes, Bytes>;

/// Two engines, one way to end a process: what is not synced may be lost (memory), or the handle is
/// closed and opened again (sled).
enum Disk {
    Memory(Arc<MemoryStore>),
    Sled(tempfile::TempDir),
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
        // The old table has to go first: sled's files are locked by it.
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
            let changes_left = AtomicI64::new(i64::MAX);
            let failing = Arc::new(Failing { inner: store.clone(), changes_left });
            (failing.clone(), Some(failing))
        }
        Disk::Sled(dir) => {
            let (store, opened) = sled::open_or_rebuild(dir.path(), "boot", 1 << 24).unwrap();
            assert!(!matches!(opened, sled::Opened::Discarded { .. }), "{opened:?}");
            (Arc::new(store), None)
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
fn the_table_equals_a_model_over_sled_with_reopening() {
    for seed in 0..3 {
        println!("seed {seed}");
        Model::new(seed, Disk::Sled(tempfile::tempdir().unwrap())).run(300);
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
fn concurrent_readers_see_one_applied_index_over_sled() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = sled::open_or_rebuild(dir.path(), "boot", 1 << 24).unwrap();
    readers_see_one_applied_index(Arc::new(store), 5_000);
}
