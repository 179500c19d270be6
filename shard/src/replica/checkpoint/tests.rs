use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use bytes::Bytes;
use piton_store::{Batch, Mark, MemoryStore, Passing, Store, Write};

use super::*;

impl Checkpoints {
    /// How many groups are looked after.
    pub(crate) fn tables(&self) -> usize {
        self.shared.tables.lock().len()
    }
}

/// How long a test waits for the thread before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn put(table: &Table, index: u64, bytes: usize) {
    let mark = Mark { index, bytes: Bytes::new() };
    table.apply(vec![Write::put(index.to_be_bytes().to_vec(), vec![7; bytes])], mark);
}

fn config(interval: Duration, table_bytes: usize) -> CheckpointConfig {
    CheckpointConfig { interval, table_bytes, room: Room::default() }
}

/// A thread whose checkpoints the receiver hears of.
fn start(config: CheckpointConfig, synced: SyncedIndex) -> (Checkpoints, mpsc::Receiver<usize>) {
    let (tx, rx) = mpsc::channel();
    let observer: CheckpointObserver = Arc::new(move |_, rows, _| {
        // A test that is over does not listen.
        let _ = tx.send(rows);
    });
    (Checkpoints::start(Execution::Threads, config, synced, observer).expect("a thread starts"), rx)
}

#[test]
fn changes_reach_the_store_within_the_interval() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let tables = [1, 2].map(|group| Table::open(store.clone(), group).expect("it opens"));
    let (checkpoints, wrote) =
        start(config(Duration::from_millis(5), usize::MAX), Arc::new(|_| u64::MAX));
    for table in &tables {
        checkpoints.add(table.clone());
        put(table, 1, 10);
    }
    for _ in 0..2 {
        assert_eq!(wrote.recv_timeout(PATIENCE), Ok(1));
    }
    assert_eq!(tables.map(|table| table.checkpointed()), [Some(1), Some(1)]);
    checkpoints.stop();
}

#[test]
fn a_full_table_does_not_wait_for_the_interval() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let table = Table::open(store, 1).expect("it opens");
    let (checkpoints, wrote) =
        start(config(Duration::from_secs(3_600), 1_000), Arc::new(|_| u64::MAX));
    checkpoints.add(table.clone());
    put(&table, 1, 2_000);
    assert_eq!(wrote.recv_timeout(PATIENCE), Ok(1));
    checkpoints.stop();
}

#[test]
fn a_checkpoint_never_passes_the_synced_log_and_admission_slows_meanwhile() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let table = Table::open(store, 1).expect("it opens");
    let synced = Arc::new(AtomicU64::new(0));
    let index = Arc::clone(&synced);
    let synced_index: SyncedIndex = Arc::new(move |group| {
        assert_eq!(group, GroupId(1));
        index.load(Ordering::SeqCst)
    });
    let (checkpoints, wrote) = start(config(Duration::from_millis(1), 1_000), synced_index);
    checkpoints.add(table.clone());
    put(&table, 1, 5_000);
    let deadline = Instant::now() + PATIENCE;
    while !checkpoints.is_admission_slowed() {
        assert!(Instant::now() < deadline, "admission was never slowed");
        thread::yield_now();
    }
    assert_eq!(table.checkpointed(), None);
    synced.store(1, Ordering::SeqCst);
    assert_eq!(wrote.recv_timeout(PATIENCE), Ok(1));
    while checkpoints.is_admission_slowed() {
        assert!(Instant::now() < deadline, "admission stayed slowed");
        thread::yield_now();
    }
    checkpoints.stop();
}

/// Goal: a follower's table is filled by its leader, whom nothing slows here, and so it is the
/// applying that waits.
#[test]
fn what_is_committed_waits_while_the_tables_are_full() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let table = Table::open(store, 1).expect("it opens");
    let synced = Arc::new(AtomicU64::new(0));
    let index = Arc::clone(&synced);
    let synced_index: SyncedIndex = Arc::new(move |_| index.load(Ordering::SeqCst));
    let (checkpoints, wrote) = start(config(Duration::from_millis(1), 1_000), synced_index);
    checkpoints.add(table.clone());
    checkpoints.await_room();
    put(&table, 1, 5_000);
    let deadline = Instant::now() + PATIENCE;
    while !*checkpoints.shared.is_full.lock() {
        assert!(Instant::now() < deadline, "the tables never count as full");
        thread::yield_now();
    }
    let (waits, through) = (checkpoints.clone(), Arc::new(AtomicBool::new(false)));
    let passed = Arc::clone(&through);
    let waiting = thread::spawn(move || {
        waits.await_room();
        passed.store(true, Ordering::SeqCst);
    });
    assert!(!through.load(Ordering::SeqCst), "it went through");
    synced.store(1, Ordering::SeqCst);
    assert_eq!(wrote.recv_timeout(PATIENCE), Ok(1));
    waiting.join().expect("there is room again");
    // Nobody waits for a thread that has ended.
    put(&table, 9, 5_000);
    checkpoints.stop();
    checkpoints.await_room();
}

#[test]
fn nothing_is_written_to_a_disk_without_room() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let table = Table::open(store, 1).expect("it opens");
    let config = config(Duration::from_millis(1), 1_000);
    let room = config.room.clone();
    room.set(0, true);
    let (checkpoints, wrote) = start(config, Arc::new(|_| u64::MAX));
    checkpoints.add(table.clone());
    put(&table, 1, 3_000);
    let deadline = Instant::now() + PATIENCE;
    while !checkpoints.is_admission_slowed() {
        assert!(Instant::now() < deadline, "it never looked");
        thread::yield_now();
    }
    // Whatever the thread has got to, this is a whole round.
    checkpoints.shared.round().expect("nothing fails");
    assert_eq!(table.checkpointed(), None);
    room.set(1 << 30, false);
    assert_eq!(wrote.recv_timeout(PATIENCE), Ok(1));
    checkpoints.stop();
}

#[test]
fn stopping_writes_what_is_left() {
    let store: Arc<MemoryStore> = Arc::new(MemoryStore::new());
    let table = Table::open(store, 1).expect("it opens");
    let (checkpoints, _wrote) =
        start(config(Duration::from_secs(3_600), usize::MAX), Arc::new(|_| u64::MAX));
    checkpoints.add(table.clone());
    put(&table, 4, 10);
    checkpoints.stop();
    assert_eq!(table.checkpointed(), Some(4));
    assert_eq!(checkpoints.failed().borrow().clone(), None);
}

/// Goal: a disk that turns out to be full, whatever was measured, is no damage: new work is refused, and
/// the rows are written once there is room.
#[test]
fn a_full_disk_that_the_store_meets_is_no_failure_of_it() {
    let store = Arc::new(Filling { store: MemoryStore::new(), is_full: AtomicBool::new(true) });
    let table = Table::open(Arc::clone(&store) as Arc<dyn Store>, 1).expect("it opens");
    let config = config(Duration::from_millis(1), usize::MAX);
    let room = config.room.clone();
    let (checkpoints, wrote) = start(config, Arc::new(|_| u64::MAX));
    checkpoints.add(table.clone());
    put(&table, 1, 10);
    let deadline = Instant::now() + PATIENCE;
    while !room.is_short() {
        assert!(Instant::now() < deadline, "new work is never refused");
        thread::yield_now();
    }
    assert_eq!(checkpoints.failed().borrow().clone(), None);
    store.is_full.store(false, Ordering::SeqCst);
    assert_eq!(wrote.recv_timeout(PATIENCE), Ok(1));
    checkpoints.stop();
    assert!(!room.is_short());
    assert_eq!(table.checkpointed(), Some(1));
}

/// A store whose disk fills up.
struct Filling {
    store: MemoryStore,
    is_full: AtomicBool,
}

impl Passing for Filling {
    fn below(&self) -> &dyn Store {
        &self.store
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if self.is_full.load(Ordering::SeqCst) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(StoreError::Full { doing: "write a batch", source: source.into() });
        }
        self.store.write(batch)
    }
}

/// A store whose disk is gone.
struct Broken(MemoryStore);

impl Passing for Broken {
    fn below(&self) -> &dyn Store {
        &self.0
    }

    fn write(&self, _: Batch) -> Result<(), StoreError> {
        Err(StoreError::Stopped { doing: "write a batch" })
    }
}

#[tokio::test]
async fn a_store_that_fails_is_told_and_admission_stays_slowed() {
    let table = Table::open(Arc::new(Broken(MemoryStore::new())), 3).expect("it opens");
    let (checkpoints, _wrote) =
        start(config(Duration::from_millis(1), usize::MAX), Arc::new(|_| u64::MAX));
    let mut failed = checkpoints.failed();
    checkpoints.add(table.clone());
    put(&table, 1, 10);
    let told = tokio::time::timeout(PATIENCE, failed.wait_for(Option::is_some)).await;
    let reason = told.expect("in time").expect("the thread is there").clone();
    assert!(reason.is_some_and(|text| text.contains("group 3")));
    assert!(checkpoints.is_admission_slowed());
    checkpoints.stop();
}
