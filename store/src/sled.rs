//! The store in sled; the only file that names it.
//!
//! Owns the store's directory, and the rule for when its contents are thrown away: sled survives
//! the end of a process, but after a power loss it may return old pages, and some damage makes it
//! panic, now or later. So every call runs under `catch_unwind`, and a store that was last opened
//! before the machine started, or that does not open, is discarded. It never repairs.
//!
//! ```text
//! <dir>/boot_id     the layout's version, the boot id of the machine when the store was made
//! <dir>/sled/       sled's own files
//! ```

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::frame::{Engine, Framed};
use crate::{KeyRange, Order, Row, StoreError, Write};

/// Pages sled keeps in memory unless the configuration says otherwise.
pub const CACHE_BYTES_DEFAULT: u64 = 128 * 1024 * 1024;

/// Precedes the boot id; another one means another layout.
const LAYOUT: &str = "piton store 1";
const BOOT_ID_FILE: &str = "boot_id";
/// A row in a tree of its own, the first one written. sled opens a file without one valid segment
/// as an empty database, which would look like a store that was never written to.
const SEAL_TREE: &str = "seal";
const SEAL_KEY: &[u8] = b"sealed";
const ENGINE_DIRECTORY: &str = "sled";
/// sled reclaims space only in its flush thread, so that cannot be switched off; checkpoints sync
/// by themselves.
const FLUSH_EVERY_MS: u64 = 1_000;
/// sled's threads may keep the file open a moment longer than the handle that was dropped.
const IN_USE_WAIT_MAX: Duration = Duration::from_secs(2);
const IN_USE_RETRY: Duration = Duration::from_millis(20);

/// A [`crate::Store`] in sled.
pub type SledStore = Framed<SledEngine>;

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The store is as it was left.
    Kept,
    /// The store is empty; there was none.
    Created,
    /// The store is empty; what was there could not be relied on.
    Discarded { reason: String },
}

/// The id the kernel drew when the machine started; a store is not kept across it.
pub fn machine_boot_id() -> Result<String, StoreError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(PATH).map_err(file("read the boot id at", Path::new(PATH)))?;
    Ok(id.trim().to_owned())
}

/// Opens the store in `dir`, or discards what is there and makes an empty one.
///
/// # Errors
/// [`StoreError::InUse`] if another process has it open (nothing is discarded then); any other
/// error means that not even an empty store can be made here.
pub fn open_or_rebuild(
    dir: &Path,
    boot_id: &str,
    cache_bytes: u64,
) -> Result<(SledStore, Opened), StoreError> {
    let engine_dir = dir.join(ENGINE_DIRECTORY);
    let existed = engine_dir.exists();
    let reason = match recorded_boot_id(dir) {
        Ok(recorded) if recorded == boot_id => match reopen(&engine_dir, cache_bytes) {
            Ok(engine) => return Ok((Framed::over(engine), Opened::Kept)),
            Err(error @ StoreError::InUse { .. }) => return Err(error),
            Err(error) => with_causes(&error),
        },
        Ok(recorded) => format!("the machine was restarted (boot id was {recorded:?})"),
        Err(reason) => reason,
    };
    discard(dir)?;
    let boot_id_path = dir.join(BOOT_ID_FILE);
    fs::create_dir_all(dir).map_err(file("create the store's directory", dir))?;
    // ORDER: the boot id is written before the engine makes its files, so whatever lies beside it
    // was written since that boot.
    fs::write(&boot_id_path, format!("{LAYOUT}\n{boot_id}\n"))
        .map_err(file("write the boot id to", &boot_id_path))?;
    let engine = SledEngine::open(&engine_dir, cache_bytes)?;
    engine.seal()?;
    let opened = if existed { Opened::Discarded { reason } } else { Opened::Created };
    Ok((Framed::over(engine), opened))
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

/// Discards what is in `dir`: the next start makes an empty store and has it rebuilt.
///
/// # Errors
/// When files cannot be removed.
pub fn discard(dir: &Path) -> Result<(), StoreError> {
    let remove = |path: &Path, result: std::io::Result<()>| match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(file("discard the store at", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    };
    // ORDER: the boot id goes first. Without it the rest is discarded at the next start too, so a
    // store that was half deleted is never opened.
    let boot_id = dir.join(BOOT_ID_FILE);
    remove(&boot_id, fs::remove_file(&boot_id))?;
    remove(dir, fs::remove_dir_all(dir))
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::File { doing, path: path.to_owned(), source }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub struct SledEngine {
    /// `None` once it is closed. Calls hold it for reading.
    db: RwLock<Option<sled::Db>>,
    /// Set by a panic: what sled holds in memory may be half-changed.
    stopped: AtomicBool,
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
            match caught("open the store", open) {
                Ok(db) => {
                    return Ok(SledEngine {
                        db: RwLock::new(Some(db)),
                        stopped: AtomicBool::new(false),
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
        let result = caught(doing, || call(db));
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

fn caught<T>(doing: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    // Unwind safe: after a panic the engine is stopped, and nobody looks at what was half-changed.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StoreError::Engine { doing, source: Box::new(error) }),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let message = text.unwrap_or_else(|| "no message".to_owned());
            Err(StoreError::Panicked { doing, message })
        }
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

impl Engine for SledEngine {
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

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for write in &writes {
            match write {
                Write::Put { key, value } => batch.insert(key.as_ref(), value.as_ref()),
                Write::Delete { key } => batch.remove(key.as_ref()),
            }
        }
        self.call("write a batch", |db| db.apply_batch(batch))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.call("sync", |db| db.flush()).map(|_| ())
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.call("measure the files", |db| db.size_on_disk())
    }

    fn close(&self) {
        let db = self.db.write().take();
        // sled flushes when it is dropped; a panic there must not take the process with it.
        let closed = caught("close the store", move || {
            drop(db);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }
}
