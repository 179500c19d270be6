//! redb's store on a disk that fills up: what was synced is there and read, nothing is discarded, and
//! it goes on once there is room.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use piton_store::redb::open_on;
use piton_store::{
    Batch, CheckpointReport, KeyRange, Mark, Order, Passing, Store, StoreError, Table, Write,
    without_waiting,
};

const CACHE_BYTES: u64 = 1 << 20;
/// How long a test waits for a thread before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A device that takes no byte behind its capacity. Clones are handles to the same one.
#[derive(Debug, Clone, Default)]
struct Device(Arc<Mutex<Blocks>>);

#[derive(Debug, Default)]
struct Blocks {
    bytes: Vec<u8>,
    /// Where the last byte lies that was ever written: so much is the file's own.
    used: usize,
    is_full: bool,
    /// Room runs out only when what was written is to reach the disk, as on a thin volume, at the next
    /// sync; then there is room.
    is_thin: bool,
    is_refused: bool,
    /// Who asks for the length after a refused write, since it opens the file again, tells that it is
    /// there, and waits.
    at_open: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

impl Device {
    fn set_full(&self, is_full: bool) {
        self.0.lock().unwrap().is_full = is_full;
    }

    fn wait_at_open(&self) {
        let at_open = {
            let mut blocks = self.0.lock().unwrap();
            let is_refused = blocks.is_refused;
            blocks.at_open.take_if(|_| is_refused)
        };
        if let Some((begun, go_on)) = at_open {
            begun.send(()).unwrap();
            go_on.recv().unwrap();
        }
    }
}

impl ::redb::StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        self.wait_at_open();
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        out.copy_from_slice(&self.0.lock().unwrap().bytes[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().bytes.resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if std::mem::take(&mut self.0.lock().unwrap().is_thin) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut blocks = self.0.lock().unwrap();
        let (start, end) = (offset as usize, offset as usize + data.len());
        if blocks.is_full && end > blocks.used {
            blocks.is_refused = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        blocks.used = blocks.used.max(end);
        blocks.bytes[start..end].copy_from_slice(data);
        Ok(())
    }
}

fn batch(first: u32, rows: u32) -> Batch {
    let value = |n: u32| vec![n as u8; 4_000];
    let put = |n: u32| Write::put(n.to_be_bytes().to_vec(), value(n));
    Batch { writes: (first..first + rows).map(put).collect() }
}

fn rows(store: &dyn Store) -> usize {
    store.scan(KeyRange::all(), Order::Ascending, usize::MAX).unwrap().len()
}

/// Writes and syncs until the disk is full.
fn fill(store: &dyn Store) -> StoreError {
    let writes = (0..100).map(|n| batch(1_000 + n * 200, 200));
    let mut outcomes = writes.map(|batch| store.write(batch).and_then(|()| store.sync()));
    outcomes.find_map(Result::err).expect("the disk takes all")
}

#[test]
fn a_full_disk_leaves_what_was_synced_readable_and_the_store_goes_on() {
    let device = Device::default();
    let store = open_on(device.clone(), CACHE_BYTES).unwrap();
    store.write(batch(0, 100)).unwrap();
    store.sync().unwrap();
    device.set_full(true);
    for round in 1..3 {
        let refused = fill(&store);
        assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
        assert!(!refused.needs_rebuild());
        assert!(rows(&store) >= 100, "what was synced is read");
        assert_eq!(store.losses(), round);
    }
    device.set_full(false);
    store.write(batch(500, 100)).unwrap();
    store.sync().unwrap();
    assert!(rows(&store) >= 200);
    store.close();
    let again = open_on(device, CACHE_BYTES).unwrap();
    assert!(rows(&again) >= 200, "it opens as it is");
}

#[test]
fn those_who_read_while_the_disk_fills_up_meet_no_error() {
    let device = Device::default();
    let store = Arc::new(open_on(device.clone(), 0).unwrap());
    store.write(batch(0, 100)).unwrap();
    store.sync().unwrap();
    device.set_full(true);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let key = |n: u32| (n % 100).to_be_bytes();
            (0..20_000).all(|n| store.get(&key(n)).is_ok_and(|value| value.is_some()))
        });
        for _ in 0..5 {
            assert!(matches!(fill(store.as_ref()), StoreError::Full { .. }));
        }
        assert!(reader.join().unwrap(), "a read failed");
    });
}

/// It is opened again by whoever met the full disk, and may take long.
#[test]
fn who_must_not_wait_while_the_file_is_opened_again_hears_so() {
    let device = Device::default();
    let store = open_on(device.clone(), CACHE_BYTES).unwrap();
    store.write(batch(0, 100)).unwrap();
    store.sync().unwrap();
    let (begun, begins) = mpsc::channel();
    let (goes_on, go_on) = mpsc::channel();
    device.set_full(true);
    device.0.lock().unwrap().at_open = Some((begun, go_on));
    std::thread::scope(|scope| {
        let store = &store;
        let writer = scope.spawn(move || fill(store));
        begins.recv().unwrap();
        let (tell, told) = mpsc::channel();
        let read = move || store.get(&5_u32.to_be_bytes());
        scope.spawn(move || tell.send(without_waiting(read)));
        let refused = told.recv_timeout(PATIENCE);
        let patient = scope.spawn(read);
        goes_on.send(()).unwrap();
        let refused = refused.expect("it waited").unwrap_err();
        assert!(matches!(refused, StoreError::Opening { .. }), "{refused:?}");
        assert!(!refused.needs_rebuild());
        assert!(patient.join().unwrap().unwrap().is_some());
        assert!(matches!(writer.join().unwrap(), StoreError::Full { .. }));
    });
    assert!(without_waiting(|| store.get(&5_u32.to_be_bytes())).unwrap().is_some());
}

/// After a failed sync nobody knows what is on the disk, though all of it can be read from memory.
#[test]
fn a_sync_that_meets_a_full_disk_ends_the_store() {
    let device = Device::default();
    let store = open_on(device.clone(), CACHE_BYTES).unwrap();
    store.write(batch(0, 100)).unwrap();
    store.sync().unwrap();
    device.0.lock().unwrap().is_thin = true;
    let failed = store.write(batch(100, 1)).and_then(|()| store.sync()).unwrap_err();
    assert!(failed.needs_rebuild(), "{failed:?}");
    let later = store.sync().unwrap_err();
    assert!(matches!(later, StoreError::Stopped { .. }), "{later:?}");
}

fn put(table: &Table, index: u64, rows: u32) {
    let writes = batch(0, rows).writes;
    table.apply(writes, Mark { index, bytes: Bytes::new() });
}

/// Goal: a checkpoint that another group's write takes along is not taken for one that was synced.
#[test]
fn a_checkpoint_that_was_lost_before_its_sync_is_written_again() {
    let device = Device::default();
    let store = Arc::new(open_on(device.clone(), CACHE_BYTES).unwrap());
    let between = Arc::new(LosesBetween { store: Arc::clone(&store), device: device.clone() });
    let table = Table::open(between, 1).unwrap();
    put(&table, 1, 10);
    let refused = table.checkpoint(u64::MAX);
    assert!(matches!(refused, Err(StoreError::Unsynced { group: 1 })), "{refused:?}");
    assert_eq!(table.get(&5_u32.to_be_bytes()).unwrap().map(|value| value.len()), Some(4_000));
    device.set_full(false);
    let table = Table::open(store as Arc<dyn Store>, 1).unwrap();
    put(&table, 1, 10);
    let written = table.checkpoint(u64::MAX).unwrap();
    assert!(matches!(written, CheckpointReport::Written { .. }), "{written:?}");
}

/// Fills the disk by another's writes between each batch and its sync.
struct LosesBetween<S> {
    store: Arc<S>,
    device: Device,
}

impl<S: Store> Passing for LosesBetween<S> {
    fn below(&self) -> &dyn Store {
        self.store.as_ref()
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.device.set_full(true);
        fill(self.store.as_ref());
        self.store.sync()
    }
}
