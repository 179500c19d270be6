//! redb's store on a disk that forgets what was not synced, in part and in any order: what was
//! synced is there afterwards, whole. (sled's store is not kept across a loss of power.)

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "a failing run names its seed")]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use piton_store::redb::{RedbStore, open_on};
use piton_store::{Batch, KeyRange, Order, Store, StoreError, Write};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CACHE_BYTES: u64 = 1 << 20;
const ROWS: u32 = 60;
/// Of a write that was not synced, each such part is kept or lost by itself.
const SECTOR: usize = 512;

/// A device that can lose its power. Clones are handles to the same one.
#[derive(Debug, Clone)]
struct Device(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    visible: Vec<u8>,
    durable: Vec<u8>,
    /// Where each write since the last sync began, and what it wrote.
    unsynced: Vec<(usize, Vec<u8>)>,
    calls_left: usize,
}

impl Device {
    fn new(bytes: Vec<u8>, calls_left: usize) -> Device {
        let platter =
            Platter { visible: bytes.clone(), durable: bytes, unsynced: Vec::new(), calls_left };
        Device(Arc::new(Mutex::new(platter)))
    }

    /// The platter, unless the power is gone.
    fn call(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.0.lock().unwrap();
        if platter.calls_left == 0 {
            return Err(io::Error::other("the power is off"));
        }
        platter.calls_left -= 1;
        Ok(platter)
    }

    /// What the next life finds.
    fn cut_power(&self, random: &mut SmallRng) -> Vec<u8> {
        let mut platter = self.0.lock().unwrap();
        platter.calls_left = 0;
        let mut left = platter.durable.clone();
        if random.random() {
            left.resize(platter.visible.len(), 0);
        }
        let kept_of_eight = [0, 1, 4, 7, 8][random.random_range(0..5)];
        for (offset, bytes) in &platter.unsynced {
            let mut start = 0;
            while start < bytes.len() {
                let end = (((offset + start) / SECTOR + 1) * SECTOR - offset).min(bytes.len());
                let place = offset + start..offset + end;
                if random.random_range(0..8) < kept_of_eight && place.end <= left.len() {
                    left[place].copy_from_slice(&bytes[start..end]);
                }
                start = end;
            }
        }
        left
    }
}

impl ::redb::StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.call()?.visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.call()?;
        let start = offset as usize;
        let bytes = platter.visible.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call()?.visible.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.call()?;
        platter.durable = platter.visible.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.call()?;
        let start = offset as usize;
        platter.visible[start..start + data.len()].copy_from_slice(data);
        platter.unsynced.push((start, data.to_vec()));
        Ok(())
    }
}

/// Puts the number of the batch into every row; every third batch changes their lengths.
fn batch(number: u64) -> Batch {
    let row = |n: u32| {
        let mut value = number.to_be_bytes().to_vec();
        value.resize(8 + (n as usize * 37 + number as usize / 3 * 101) % 3_000, n as u8);
        Write::put(n.to_be_bytes().to_vec(), value)
    };
    Batch { writes: (0..ROWS).map(row).collect() }
}

/// The number in every row; 0 if the store is empty.
fn number(store: &dyn Store) -> Result<u64, StoreError> {
    let rows = store.scan(KeyRange::all(), Order::Ascending, usize::MAX)?;
    let Some(first) = rows.first() else { return Ok(0) };
    let number = u64::from_be_bytes(*first.value.first_chunk().unwrap());
    let writes: Vec<Write> = rows.into_iter().map(|row| Write::put(row.key, row.value)).collect();
    assert_eq!(writes, batch(number).writes);
    Ok(number)
}

/// Writes until the power goes; the last batch that was synced, `synced` if none was.
fn write(store: &RedbStore, first: u64, mut synced: u64, random: &mut SmallRng) -> u64 {
    for number in first.. {
        if store.write(batch(number)).is_err() {
            break;
        }
        if random.random_ratio(1, 2) {
            if store.sync().is_err() {
                break;
            }
            synced = number;
        }
    }
    synced
}

#[test]
fn what_was_synced_survives_the_loss_of_power_at_any_call() {
    let (mut lives, mut grew) = (0, 0);
    for seed in 0..60 {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bytes = Vec::new();
        let mut synced = 0;
        for _ in 0..8 {
            let device = Device::new(bytes, random.random_range(1..400));
            match open_on(device.clone(), CACHE_BYTES) {
                Ok(store) => {
                    lives += 1;
                    if let Ok(found) = number(&store) {
                        assert!(found >= synced, "found {found}, synced {synced}");
                        let before = synced;
                        synced = write(&store, found + 1, synced, &mut random);
                        grew += usize::from(synced > before);
                    }
                }
                // The power went while it was opened; nothing else is a reason.
                Err(error) => assert_eq!(device.0.lock().unwrap().calls_left, 0, "{error:?}"),
            }
            bytes = device.cut_power(&mut random);
            if synced == 0 {
                // Cut while it was made: the next one is made anew, as a directory would be.
                bytes.clear();
            }
        }
        let store = open_on(Device::new(bytes, usize::MAX), CACHE_BYTES).unwrap();
        let found = number(&store).unwrap();
        assert!(found >= synced, "found {found}, synced {synced}");
    }
    println!("{lives} lives, {grew} of them synced something");
    assert!(grew > 100, "{grew}");
}
