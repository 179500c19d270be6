//! A copy that takes the place of a store, where the disk is full or the power goes: what was synced is
//! there, and what was lost is not taken for kept.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use piton_store::compaction::{Beside, Compacting};
use piton_store::frame::{Engine, Framed, View};
use piton_store::{
    Batch, CheckpointReport, KeyRange, Mark, Order, Passing, Row, Store, StoreError, Table, Write,
};

type Rows = BTreeMap<Bytes, Bytes>;

/// More than the copy takes at once, so that there is a time between two of its steps.
const ROWS: u32 = 1_000;

/// What lies under the store's name on a disk, and beside it.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Files>>);

#[derive(Default)]
struct Files {
    named: Arc<Mutex<File>>,
    copies: usize,
}

/// The rows of one engine: as they are read, and as a loss of power leaves them.
#[derive(Default)]
struct File {
    visible: Rows,
    durable: Rows,
    losses: u64,
    /// The next sync meets a full disk.
    is_full: bool,
}

impl File {
    /// It is opened again, where its last sync left it.
    fn lose(&mut self) {
        self.visible = self.durable.clone();
        self.losses += 1;
    }
}

impl Disk {
    fn named(&self) -> Arc<Mutex<File>> {
        Arc::clone(&self.0.lock().unwrap().named)
    }

    /// Whether a copy has been begun.
    fn is_copying(&self) -> bool {
        self.0.lock().unwrap().copies > 0
    }

    /// The store on this disk, which always takes up far too much.
    fn open(&self) -> Framed<Compacting<Forgetful>> {
        Framed::over(Compacting::over(Forgetful { disk: self.clone(), file: self.named() }, 0))
    }

    /// The power goes and comes back.
    fn restart(&self) -> Framed<Compacting<Forgetful>> {
        self.named().lock().unwrap().lose();
        self.open()
    }
}

/// An engine that loses what is not synced when its disk is full.
struct Forgetful {
    disk: Disk,
    file: Arc<Mutex<File>>,
}

impl Forgetful {
    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap()
    }
}

impl View for Forgetful {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.file().visible.get(key).cloned())
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        assert_eq!(order, Order::Ascending);
        let file = self.file();
        let from = file.visible.range(Bytes::copy_from_slice(range.start)..);
        let within = from.take_while(|(key, _)| range.end.is_none_or(|end| &key[..] < end));
        let row = |(key, value): (&Bytes, &Bytes)| Row { key: key.clone(), value: value.clone() };
        Ok(within.take(limit).map(row).collect())
    }
}

impl Engine for Forgetful {
    fn view<T>(&self, read: impl Fn(&dyn View) -> Result<T, StoreError>) -> Result<T, StoreError> {
        read(self)
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let mut file = self.file();
        for write in writes {
            match write {
                Write::Put { key, value } => drop(file.visible.insert(key, value)),
                Write::Delete { key } => drop(file.visible.remove(&key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut file = self.file();
        if std::mem::take(&mut file.is_full) {
            file.lose();
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(StoreError::Full { doing: "sync", source: source.into() });
        }
        file.durable = file.visible.clone();
        Ok(())
    }

    fn losses(&self) -> u64 {
        self.file().losses
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        Ok(1 << 30)
    }

    fn close(&self) {}
}

impl Beside for Forgetful {
    const FILES_PER_LIVE_MAX: u64 = 2;

    fn beside(&self) -> Result<Forgetful, StoreError> {
        self.disk.0.lock().unwrap().copies += 1;
        Ok(Forgetful { disk: self.disk.clone(), file: Arc::default() })
    }

    fn take_place(self, _: &Forgetful) -> Result<Forgetful, StoreError> {
        self.disk.0.lock().unwrap().named = Arc::clone(&self.file);
        Ok(self)
    }

    fn give_up(self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn key(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

fn put(store: &dyn Store, keys: impl Iterator<Item = u32>, value: &'static str) {
    let writes = keys.map(|n| Write::put(key(n), value)).collect();
    store.write(Batch { writes }).unwrap();
}

fn all(store: &dyn Store) -> Rows {
    let rows = store.scan(KeyRange::all(), Order::Ascending, usize::MAX).unwrap();
    rows.into_iter().map(|row| (row.key, row.value)).collect()
}

/// Goal: a batch whose sync failed is in the store as a whole or not at all, also if part of it had
/// reached the copy.
#[test]
fn a_copy_is_given_up_when_a_sync_fails() {
    let disk = Disk::default();
    let store = disk.open();
    put(&store, 0..ROWS, "old");
    store.sync().unwrap();
    let before = all(&store);
    let steps = AtomicUsize::new(0);
    let go_on = || {
        if disk.is_copying() && steps.fetch_add(1, Ordering::SeqCst) == 2 {
            put(&store, [0, ROWS - 1].into_iter(), "new");
            disk.named().lock().unwrap().is_full = true;
            assert!(matches!(store.sync(), Err(StoreError::Full { .. })));
        }
        true
    };
    assert_eq!(store.compact(&go_on).unwrap(), None);
    assert_eq!(steps.load(Ordering::SeqCst), 3, "it was at its third step");
    assert!(all(&store) == before, "a part of the lost batch is there");
}

#[test]
fn a_loss_of_power_right_after_the_swap_loses_nothing_that_was_synced() {
    let disk = Disk::default();
    let store = disk.open();
    put(&store, 0..ROWS, "synced");
    store.sync().unwrap();
    let steps = AtomicUsize::new(0);
    let go_on = || {
        // Both before and behind what is copied by now.
        if disk.is_copying() && steps.fetch_add(1, Ordering::SeqCst) == 2 {
            put(&store, [1, ROWS - 2].into_iter(), "synced later");
            store.sync().unwrap();
        }
        true
    };
    assert!(store.compact(&go_on).unwrap().is_some());
    let before = all(&store);
    assert_eq!(before.values().filter(|value| &value[..] == b"synced later").count(), 2);
    assert!(all(&disk.restart()) == before, "what was synced is lost");
}

/// Another group's write meets a full disk between a checkpoint's batch and its sync, and then a copy
/// takes the store's place.
struct SwappedBetween {
    store: Framed<Compacting<Forgetful>>,
    disk: Disk,
    is_swapped: AtomicBool,
}

impl Passing for SwappedBetween {
    fn below(&self) -> &dyn Store {
        &self.store
    }

    fn sync(&self) -> Result<(), StoreError> {
        if !self.is_swapped.swap(true, Ordering::SeqCst) {
            self.disk.named().lock().unwrap().lose();
            assert!(self.store.compact(&|| true).unwrap().is_some());
        }
        self.store.sync()
    }
}

#[test]
fn a_checkpoint_that_was_lost_before_a_swap_is_written_again() {
    let disk = Disk::default();
    let store = Arc::new(SwappedBetween {
        store: disk.open(),
        disk: disk.clone(),
        is_swapped: AtomicBool::new(false),
    });
    let table = Table::open(store as Arc<dyn Store>, 1).unwrap();
    table.apply(vec![Write::put("row", "value")], Mark { index: 1, bytes: Bytes::new() });
    let lost = table.checkpoint(u64::MAX);
    assert!(matches!(lost, Err(StoreError::Unsynced { group: 1 })), "{lost:?}");
    let written = table.checkpoint(u64::MAX).unwrap();
    assert!(matches!(written, CheckpointReport::Written { index: 1, .. }), "{written:?}");
    let again = Table::open(Arc::new(disk.restart()), 1).unwrap();
    assert_eq!(again.get(b"row").unwrap().as_deref(), Some(&b"value"[..]));
}
