//! The table: reads through the layers, checkpoints, holds, restores, one claim at a time.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use piton_store::frame::{Engine, Framed, View};
use piton_store::memory::MemoryEngine;
use piton_store::{
    CheckpointReport, KeyRange, MemoryStore, Order, Passing, PostponedBecause, Row, Store,
    StoreError, Table, Write,
};
use support::{Failing, GROUP, NO_LIMIT, mark};

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

// Far more rows are hidden than a scan asks of the store at once, so it has to go on from page to
// page, in both directions.
#[test]
fn a_scan_goes_past_many_deleted_rows() {
    let (_store, table) = table();
    let key = |n: u16| n.to_be_bytes().to_vec();
    let puts = (0..1000).map(|n| Write::put(key(n), key(n))).collect();
    table.apply(puts, mark(1));
    table.checkpoint(NO_LIMIT).unwrap();
    let hidden = |n: &u16| (200..800).contains(n) || n.is_multiple_of(2);
    table.apply((0..1000).filter(hidden).map(|n| Write::delete(key(n))).collect(), mark(2));
    table.apply(vec![Write::put(key(500), "new")], mark(3));
    let scan = |start: u16, end: u16, order, limit| {
        let rows = table.scan(KeyRange::new(&key(start), &key(end)), order, limit).unwrap();
        let number = |row: &Row| u16::from_be_bytes(*row.key.first_chunk().unwrap());
        rows.iter().map(number).collect::<Vec<u16>>()
    };
    assert_eq!(scan(196, 1000, Order::Ascending, 5), [197, 199, 500, 801, 803]);
    assert_eq!(scan(0, 804, Order::Descending, 5), [803, 801, 500, 199, 197]);
    assert_eq!(scan(200, 800, Order::Ascending, 5), [500]);
    assert_eq!(scan(200, 800, Order::Descending, 5), [500]);
    let left: Vec<u16> = (0..1000).filter(|n| !hidden(n) || *n == 500).collect();
    assert_eq!(scan(0, 1000, Order::Ascending, usize::MAX), left);
    assert!(scan(0, 1000, Order::Descending, usize::MAX).iter().rev().eq(&left));
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

impl View for Recording {
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
}

impl Engine for Recording {
    fn view<T>(&self, read: impl Fn(&dyn View) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.engine.view(read)
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

    fn close(&self) {
        self.engine.close();
    }
}

#[test]
fn a_checkpoint_that_failed_is_written_by_the_next_one() {
    let inner = Arc::new(MemoryStore::new());
    let store = Failing::over(inner.clone(), i64::MAX);
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

#[test]
fn a_scan_that_a_checkpoint_overtakes_stands_at_one_index() {
    let store = Failing::over(Arc::new(MemoryStore::new()), i64::MAX);
    let table = Table::open(store.clone(), GROUP).unwrap();
    put(&table, 1, "b", "of 1");
    table.checkpoint(NO_LIMIT).unwrap();
    put(&table, 2, "a", "of 2");
    let overtaking = table.clone();
    let checkpoint = move || {
        overtaking.apply(vec![Write::put("a", "of 3"), Write::put("b", "of 3")], mark(3));
        overtaking.checkpoint(NO_LIMIT).unwrap();
    };
    *store.before_scan.lock().unwrap() = Some(Box::new(checkpoint));
    assert_eq!(all(&table), pairs(&[("a", "of 3"), ("b", "of 3")]));
}

/// A store in which nothing is cleared before it is told to.
struct SlowToClear {
    store: MemoryStore,
    begun: std::sync::mpsc::Sender<()>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Passing for SlowToClear {
    fn below(&self) -> &dyn Store {
        &self.store
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.begun.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        self.store.clear_prefix(prefix)
    }
}

/// Goal: one thread writes the checkpoints of all groups, and a group that is being cleared, which
/// may take long, does not keep it.
#[test]
fn a_checkpoint_does_not_wait_for_a_group_that_is_being_cleared() {
    let (begun, begins) = std::sync::mpsc::channel();
    let (goes_on, go_on) = std::sync::mpsc::channel();
    let store = SlowToClear { store: MemoryStore::new(), begun, go_on: Mutex::new(go_on) };
    // Opening a group without a mark clears it, too.
    goes_on.send(()).unwrap();
    let table = Table::open(Arc::new(store), 1).unwrap();
    begins.recv().unwrap();
    put(&table, 1, "a", "1");
    let cleared = table.clone();
    let clearing = std::thread::spawn(move || cleared.clear());
    begins.recv().unwrap();
    let busy = CheckpointReport::Postponed(PostponedBecause::Busy);
    assert_eq!(table.checkpoint(9).unwrap(), busy);
    goes_on.send(()).unwrap();
    clearing.join().unwrap().unwrap();
    assert_eq!(table.checkpoint(9).unwrap(), CheckpointReport::Unchanged);
}
