//! The store in sled; the only file that names it.
//!
//! Owns sled's files, and the rule for when they are thrown away: sled survives the end of a
//! process, but after a power loss it may return old pages, and some damage makes it panic, now or
//! later. So every call runs under `catch_unwind`, and a store that was made before the machine
//! started, or that does not open, is discarded. It never repairs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::caught::{caught, drop_caught, engine};
use crate::compaction::Beside;
use crate::directory::{BOOT_ID_FILE, EngineKind, Opened, Unkept, file, keep_or_make, remove};
use crate::frame::{Engine, Framed, View};
use crate::{KeyRange, Order, Row, StoreError, Write};

/// Pages sled keeps in memory unless the configuration says otherwise.
pub const CACHE_BYTES_DEFAULT: u64 = 128 * 1024 * 1024;

/// Precedes the boot id; another one means another layout.
const LAYOUT: &str = "piton store 1";
/// A row in a tree of its own, the first one written. sled opens a file without one valid segment
/// as an empty database, which would look like a store that was never written to.
const SEAL_TREE: &str = "seal";
const SEAL_KEY: &[u8] = b"sealed";
/// A copy that is being made, and what it takes the place of.
const FRESH: &str = "new";
const OLD: &str = "old";
/// sled reclaims space only in its flush thread, so that cannot be switched off; checkpoints sync
/// by themselves.
const FLUSH_EVERY_MS: u64 = 1_000;
/// sled's threads may keep the file open a moment longer than the handle that was dropped.
const IN_USE_WAIT_MAX: Duration = Duration::from_secs(2);
const IN_USE_RETRY: Duration = Duration::from_millis(20);

/// A [`crate::Store`] in sled.
pub type SledStore = Framed<SledEngine>;

/// The id the kernel drew when the machine started; a store is not kept across it.
pub fn machine_boot_id() -> Result<String, StoreError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(PATH).map_err(file("read the boot id at", Path::new(PATH)))?;
    Ok(id.trim().to_owned())
}

/// Opens the store in `dir`, or discards what is there and makes an empty one. `boot_id` is that of
/// the machine; a store that was made under another one is discarded.
///
/// # Errors
/// As [`crate::open_or_rebuild`].
pub fn open_or_rebuild(
    dir: &Path,
    boot_id: &str,
    cache_bytes: u64,
) -> Result<(SledStore, Opened), StoreError> {
    let engine_dir = dir.join(EngineKind::Sled.name());
    let make = || {
        // ORDER: the boot id is written before the engine makes its files, so whatever lies beside
        // it was written since that boot.
        let boot_id_path = dir.join(BOOT_ID_FILE);
        fs::write(&boot_id_path, format!("{LAYOUT}\n{boot_id}\n"))
            .map_err(file("write the boot id to", &boot_id_path))?;
        let engine = SledEngine::open(&engine_dir, cache_bytes)?;
        engine.seal()?;
        Ok(engine)
    };
    keep_or_make(dir, EngineKind::Sled, || keep(dir, boot_id, cache_bytes), make)
}

/// Opens the store in `dir` as it is.
pub(crate) fn keep(dir: &Path, boot_id: &str, cache_bytes: u64) -> Result<SledEngine, Unkept> {
    let engine_dir = dir.join(EngineKind::Sled.name());
    match recorded_boot_id(dir) {
        Ok(recorded) if recorded == boot_id => {
            remove(&engine_dir.with_extension(FRESH))?;
            remove(&engine_dir.with_extension(OLD))?;
            Ok(reopen(&engine_dir, cache_bytes)?)
        }
        Ok(recorded) => {
            Err(Unkept::Stale(format!("the machine was restarted (boot id was {recorded:?})")))
        }
        Err(reason) => Err(Unkept::Stale(reason)),
    }
}

fn reopen(dir: &Path, cache_bytes: u64) -> Result<SledEngine, StoreError> {
    let engine = SledEngine::open(dir, cache_bytes)?;
    if engine.is_sealed()? {
        Ok(engine)
    } else {
        let key = Bytes::from_static(SEAL_KEY);
        Err(StoreError::Corrupt { key, what: "the first row ever written is gone" })
    }
}

/// The boot id in the directory, or why it says none.
fn recorded_boot_id(dir: &Path) -> Result<String, String> {
    let path = dir.join(BOOT_ID_FILE);
    let bytes = fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let boot_id = text.strip_prefix(LAYOUT).and_then(|rest| rest.strip_prefix('\n'));
    match boot_id {
        Some(boot_id) => Ok(boot_id.trim().to_owned()),
        None => Err("it was written with another layout".to_owned()),
    }
}

pub struct SledEngine {
    /// `None` once it is closed. Calls hold it for reading.
    db: RwLock<Option<sled::Db>>,
    /// Set by a panic: what sled holds in memory may be half-changed.
    stopped: AtomicBool,
    /// Held for reading by each view, which may read several rows, and for writing while a batch
    /// is put in. (sled stops its own readers for as long, so this costs little.)
    between_batches: RwLock<()>,
    dir: PathBuf,
    cache_bytes: u64,
}

impl SledEngine {
    fn open(dir: &Path, cache_bytes: u64) -> Result<SledEngine, StoreError> {
        let started = Instant::now();
        loop {
            let open = || {
                sled::Config::new()
                    .path(dir)
                    .cache_capacity(cache_bytes)
                    .flush_every_ms(Some(FLUSH_EVERY_MS))
                    .open()
            };
            match caught("open the store", || open().map_err(engine("open the store"))) {
                Ok(db) => {
                    return Ok(SledEngine {
                        db: RwLock::new(Some(db)),
                        stopped: AtomicBool::new(false),
                        between_batches: RwLock::new(()),
                        dir: dir.to_owned(),
                        cache_bytes,
                    });
                }
                Err(StoreError::Engine { source, .. }) if says_in_use(source.as_ref()) => {
                    if started.elapsed() > IN_USE_WAIT_MAX {
                        return Err(StoreError::InUse { path: dir.to_owned() });
                    }
                    std::thread::sleep(IN_USE_RETRY);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn seal(&self) -> Result<(), StoreError> {
        self.call("seal the new store", |db| {
            db.open_tree(SEAL_TREE)?.insert(SEAL_KEY, &[])?;
            db.flush().map(|_| ())
        })
    }

    fn is_sealed(&self) -> Result<bool, StoreError> {
        self.call("look for the seal", |db| db.open_tree(SEAL_TREE)?.contains_key(SEAL_KEY))
    }

    fn call<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let db = self.db.read();
        let Some(db) = db.as_ref().filter(|_| !self.stopped.load(Ordering::Acquire)) else {
            return Err(StoreError::Stopped { doing });
        };
        let result = caught(doing, || call(db).map_err(engine(doing)));
        if matches!(result, Err(StoreError::Panicked { .. })) {
            self.stopped.store(true, Ordering::Release);
        }
        result
    }
}

impl Drop for SledEngine {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the file system said, if that is in an error of sled's.
pub(crate) fn io_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a std::io::Error> {
    match error.downcast_ref::<sled::Error>() {
        Some(sled::Error::Io(io)) => Some(io),
        _ => None,
    }
}

/// sled tells a taken lock only by its message.
fn says_in_use(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(
        error.downcast_ref::<sled::Error>(),
        Some(sled::Error::Io(io)) if io.to_string().contains("could not acquire lock")
    )
}

fn bytes(value: &sled::IVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

impl View for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.call("read a row", |db| db.get(key))?;
        Ok(found.as_ref().map(bytes))
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.call("scan rows", |db| {
            let rows = match range.end {
                Some(end) => db.range(range.start..end),
                None => db.range(range.start..),
            };
            let row = |found: sled::Result<(sled::IVec, sled::IVec)>| {
                found.map(|(key, value)| Row { key: bytes(&key), value: bytes(&value) })
            };
            match order {
                Order::Ascending => rows.take(limit).map(row).collect(),
                Order::Descending => rows.rev().take(limit).map(row).collect(),
            }
        })
    }
}

impl Engine for SledEngine {
    fn view<T>(&self, read: impl Fn(&dyn View) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let _between = self.between_batches.read();
        read(self)
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for write in &writes {
            match write {
                Write::Put { key, value } => batch.insert(key.as_ref(), value.as_ref()),
                Write::Delete { key } => batch.remove(key.as_ref()),
            }
        }
        let _alone = self.between_batches.write();
        self.call("write a batch", |db| db.apply_batch(batch))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.call("sync", |db| db.flush()).map(|_| ())
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.call("measure the files", |db| db.size_on_disk())
    }

    fn close(&self) {
        drop_caught(self.db.write().take());
    }
}

impl Beside for SledEngine {
    const FILES_PER_LIVE_MAX: u64 = 4;

    fn beside(&self) -> Result<SledEngine, StoreError> {
        let dir = self.dir.with_extension(FRESH);
        remove(&dir)?;
        let engine = SledEngine::open(&dir, self.cache_bytes)?;
        engine.seal()?;
        Ok(engine)
    }

    /// sled goes by its files' names, so it is opened anew under the old ones. A crash between the
    /// two renames leaves no store, which is then rebuilt.
    fn take_place(self, old: &SledEngine) -> Result<SledEngine, StoreError> {
        self.close();
        old.close();
        let gone = old.dir.with_extension(OLD);
        remove(&gone)?;
        fs::rename(&old.dir, &gone).map_err(file("rename", &old.dir))?;
        fs::rename(&self.dir, &old.dir).map_err(file("rename", &self.dir))?;
        remove(&gone)?;
        reopen(&old.dir, self.cache_bytes)
    }

    fn give_up(self) -> Result<(), StoreError> {
        self.close();
        remove(&self.dir)
    }
}
