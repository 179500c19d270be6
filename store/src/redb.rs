//! The store in redb; the only file that names it.
//!
//! Owns one file and the rule for when it is thrown away: when it does not open, when its first row
//! is gone, or when a change failed. Every call runs under `catch_unwind`, as sled's do.
//!
//! A full disk is no such failure. redb answers nothing more after it, so the file is opened again,
//! where the last sync left it: who wrote since then learns by the error, or by
//! [`Store::losses`](crate::Store::losses).
//!
//! A batch is a commit of redb's durability `None`, and `sync` is an empty one of durability
//! `Immediate`, which makes all earlier commits durable with one `fdatasync`. redb never overwrites
//! a committed page, and both commit slots carry checksums over the whole tree, so after a power
//! loss the file opens at the last synced state or a later commit (redb's `docs/design.md`, "Commit
//! strategies" and "Assumptions about underlying media"). So, unlike sled's, this store is kept
//! across a restart of the machine: no boot id is recorded.
//!
//! A file that was not closed is read and checked as a whole when it is opened, which takes time
//! in proportion to its size; redb's "quick repair" would avoid that at the price of a second sync
//! for each checkpoint. Damage in a file that was closed is found when its page is read.
//!
//! The lock has redb 4.1, the newest for rustc 1.89. By redb's change log, two of its faults are
//! mended in releases that need rustc 1.90, under which this file compiles and passes its suite
//! too (4.6): the page cache's queue grows a little with each page rewritten while the cache is not
//! full (4.4), and branch pages damaged into a cycle end the process instead of the call (4.2).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use redb::backends::FileBackend;
use redb::{Durability, ReadableDatabase, StorageBackend};

use crate::caught::{caught, drop_caught, engine};
use crate::compaction::Beside;
use crate::directory::{EngineKind, Opened, Unkept, file, keep_or_make, remove, sync_directory};
use crate::frame::{Engine, Framed, View};
use crate::noted::{Noted, SyncFailed};
use crate::waiting::may_wait;
use crate::{KeyRange, Order, Row, StoreError, Write};

type Definition = redb::TableDefinition<'static, &'static [u8], &'static [u8]>;

const ROWS: Definition = redb::TableDefinition::new("rows");
/// Holds one row, the first one written: the layout's version. redb takes a file that was emptied
/// for a new one, which would look like a store that was never written to.
const SEAL: Definition = redb::TableDefinition::new("seal");
const SEAL_KEY: &[u8] = b"layout";
const LAYOUT: &[u8] = b"piton store 1";
const FILE: &str = "store.redb";
/// Each further one is needed only if the disk was met full once more.
const READ_ATTEMPTS_MAX: usize = 10;

/// A [`crate::Store`] in redb.
pub type RedbStore = Framed<RedbEngine>;

/// Opens the store in `dir`, or discards what is there and makes an empty one.
///
/// # Errors
/// As [`crate::open_or_rebuild`].
pub fn open_or_rebuild(dir: &Path, cache_bytes: u64) -> Result<(RedbStore, Opened), StoreError> {
    let own_dir = dir.join(EngineKind::Redb.name());
    let path = own_dir.join(FILE);
    let make = || {
        fs::create_dir_all(&own_dir).map_err(file("create the directory", &own_dir))?;
        let engine = RedbEngine::create(&path, cache_bytes)?;
        engine.seal()?;
        // ORDER: before anything relies on the new file. A power loss must not bring back the one
        // that was discarded.
        sync_directory(&own_dir)?;
        sync_directory(dir)?;
        Ok(engine)
    };
    keep_or_make(dir, EngineKind::Redb, || keep(dir, cache_bytes), make)
}

/// Opens the store in `dir` as it is.
pub(crate) fn keep(dir: &Path, cache_bytes: u64) -> Result<RedbEngine, Unkept> {
    let path = dir.join(EngineKind::Redb.name()).join(FILE);
    remove(&fresh(&path))?;
    let engine = RedbEngine::open(&path, cache_bytes)?;
    engine.check_seal()?;
    Ok(engine)
}

/// As [`open_or_rebuild`], but on a device of the caller's: for tests that take the power away. An
/// empty device gets a new store; what cannot be relied on is an error.
pub fn open_on(
    device: impl StorageBackend + Clone,
    cache_bytes: u64,
) -> Result<RedbStore, StoreError> {
    let doing = "open the store";
    let is_new = device.len().map_err(engine(doing))? == 0;
    let sync_failed = SyncFailed::default();
    let failed = sync_failed.clone();
    let open = move || {
        let device = Noted::over(device.clone(), failed.clone());
        caught(doing, || builder(cache_bytes).create_with_backend(device).map_err(engine(doing)))
    };
    let mut opened = RedbEngine::over(open()?, Path::new(""), cache_bytes, sync_failed);
    opened.device = Some(Box::new(open));
    if is_new {
        opened.seal()?;
    }
    match opened.check_seal() {
        Ok(()) => Ok(Framed::over(opened)),
        Err(Unkept::Failed(error)) => Err(error),
        Err(Unkept::Stale(_)) => {
            let key = Bytes::from_static(SEAL_KEY);
            Err(StoreError::Corrupt { key, what: "the first row ever written is gone" })
        }
    }
}

pub struct RedbEngine {
    /// `None` once it is closed. Calls hold it for reading.
    db: RwLock<Option<redb::Database>>,
    path: PathBuf,
    cache_bytes: u64,
    /// Opens what is no file; for tests.
    device: Option<Box<Open>>,
    /// Set by a panic and by a change that failed: redb promises nothing of what follows.
    stopped: AtomicBool,
    /// How often the file was opened again, and lost what was not synced.
    losses: AtomicU64,
    sync_failed: SyncFailed,
}

type Open = dyn Fn() -> Result<redb::Database, StoreError> + Send + Sync;

type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;

/// The rows as of one commit.
struct RowsView {
    rows: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl RedbEngine {
    fn open(path: &Path, cache_bytes: u64) -> Result<RedbEngine, StoreError> {
        let failed = SyncFailed::default();
        let db = open_file(path, cache_bytes, &failed)?;
        Ok(RedbEngine::over(db, path, cache_bytes, failed))
    }

    fn create(path: &Path, cache_bytes: u64) -> Result<RedbEngine, StoreError> {
        let doing = "make the store";
        fs::File::create_new(path).map_err(file(doing, path))?;
        RedbEngine::open(path, cache_bytes)
    }

    fn over(
        db: redb::Database,
        path: &Path,
        cache_bytes: u64,
        sync_failed: SyncFailed,
    ) -> RedbEngine {
        RedbEngine {
            db: RwLock::new(Some(db)),
            path: path.to_owned(),
            cache_bytes,
            device: None,
            stopped: AtomicBool::new(false),
            losses: AtomicU64::new(0),
            sync_failed,
        }
    }

    fn seal(&self) -> Result<(), StoreError> {
        self.change("seal the new store", Durability::Immediate, |transaction| {
            transaction.open_table(SEAL)?.insert(SEAL_KEY, LAYOUT)?;
            transaction.open_table(ROWS)?;
            Ok(())
        })
    }

    fn check_seal(&self) -> Result<(), Unkept> {
        const DOING: &str = "look for the seal";
        let layout = self.call(DOING, |db| {
            let read = || -> Result<Option<Vec<u8>>, redb::Error> {
                let seal = db.begin_read()?.open_table(SEAL)?;
                Ok(seal.get(SEAL_KEY)?.map(|layout| layout.value().to_vec()))
            };
            read().map_err(engine(DOING))
        })?;
        match layout.as_deref() {
            Some(LAYOUT) => Ok(()),
            Some(_) => Err(Unkept::Stale("it was written with another layout".to_owned())),
            None => Err(Unkept::Stale("the first row ever written is gone".to_owned())),
        }
    }

    /// One write transaction. If it fails, the outcome is unknown, and so is what would become of
    /// the next one: the engine stops, and its file goes, so that nobody opens it again.
    fn change(
        &self,
        doing: &'static str,
        durability: Durability,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let mut losses = 0;
        let result = self.call(doing, |db| {
            // Nobody opens the file again while a call has it.
            losses = self.losses();
            let change = || -> Result<(), redb::Error> {
                let mut transaction = db.begin_write()?;
                transaction.set_durability(durability)?;
                change(&transaction)?;
                Ok(transaction.commit()?)
            };
            change().map_err(engine(doing))
        });
        match result {
            Err(error) if self.may_be_opened_again(&error) => {
                self.open_again(losses)?;
                Err(StoreError::Full { doing, source: Box::new(error) })
            }
            Err(error @ StoreError::Engine { .. }) => {
                self.stop();
                Err(error)
            }
            result => result,
        }
    }

    /// Whether no more has happened than that the disk was full, for this caller or for one before it:
    /// what was synced is as it was. Unless it was a sync that said so, after which nobody knows what has
    /// reached the disk.
    fn may_be_opened_again(&self, error: &StoreError) -> bool {
        !self.sync_failed.get() && (error.is_of_room() || follows_another(error))
    }

    /// Opens the file again after redb met an error and answers nothing more, unless somebody did so
    /// since `losses` were counted. Those who read meanwhile wait, if they may.
    fn open_again(&self, losses: u64) -> Result<(), StoreError> {
        let mut db = self.db.write();
        if self.losses() != losses || self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        drop_caught(db.take());
        self.losses.fetch_add(1, Ordering::AcqRel);
        let opened = match &self.device {
            Some(open) => open(),
            None => open_file(&self.path, self.cache_bytes, &self.sync_failed),
        };
        match opened {
            Ok(opened) => {
                *db = Some(opened);
                Ok(())
            }
            Err(error) => {
                // The file stays: it is looked through at the next start, and that may have been the
                // machine's fault alone.
                self.stopped.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    fn call<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce(&redb::Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Whoever opens it again holds it alone.
        let db = if may_wait() { Some(self.db.read()) } else { self.db.try_read() };
        let db = db.ok_or(StoreError::Opening { doing })?;
        let Some(db) = db.as_ref().filter(|_| !self.stopped.load(Ordering::Acquire)) else {
            return Err(StoreError::Stopped { doing });
        };
        let result = caught(doing, || call(db));
        if matches!(result, Err(StoreError::Panicked { .. })) {
            self.stop();
        }
        result
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the failed store stays");
        }
    }
}

/// An empty file becomes a store.
fn open_file(
    path: &Path,
    cache_bytes: u64,
    failed: &SyncFailed,
) -> Result<redb::Database, StoreError> {
    let doing = "open the store";
    let opened = fs::File::options().read(true).write(true).open(path);
    let opened = opened.map_err(file(doing, path))?;
    caught(doing, || {
        let opened = FileBackend::new(opened).map_err(in_use_or_failed(doing, path))?;
        let opened = builder(cache_bytes).create_with_backend(Noted::over(opened, failed.clone()));
        opened.map_err(in_use_or_failed(doing, path))
    })
}

/// Whether redb refused only since it met an error before, which whoever met it acts on.
fn follows_another(error: &StoreError) -> bool {
    use redb::StorageError;
    let StoreError::Engine { source, .. } = error else { return false };
    let by_storage = source.downcast_ref::<StorageError>();
    matches!(source.downcast_ref(), Some(redb::Error::PreviousIo))
        || matches!(by_storage, Some(StorageError::PreviousIo))
}

impl Drop for RedbEngine {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the file system said, if that is in an error of redb's.
pub(crate) fn io_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a std::io::Error> {
    use redb::{DatabaseError, StorageError};
    if let Some(DatabaseError::Storage(StorageError::Io(io))) = error.downcast_ref() {
        return Some(io);
    }
    match (error.downcast_ref::<redb::Error>(), error.downcast_ref::<StorageError>()) {
        (Some(redb::Error::Io(io)), _) | (_, Some(StorageError::Io(io))) => Some(io),
        _ => None,
    }
}

/// Where a copy is made.
fn fresh(path: &Path) -> PathBuf {
    path.with_extension("redb.new")
}

fn builder(cache_bytes: u64) -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX));
    builder.set_repair_callback(|repair| {
        if repair.progress() == 0.0 {
            tracing::info!("the store was not closed: all of it is checked");
        }
    });
    builder
}

fn in_use_or_failed(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(redb::DatabaseError) -> StoreError {
    move |error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        error => engine(doing)(error),
    }
}

impl View for RowsView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.rows.get(key).map_err(engine("read a row"))?;
        Ok(found.map(|value| Bytes::copy_from_slice(value.value())))
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
        let rows = match range.end {
            Some(end) => self.rows.range::<&[u8]>(range.start..end),
            None => self.rows.range::<&[u8]>(range.start..),
        };
        let rows = rows.map_err(engine("scan rows"))?;
        let row = |found: Result<(Guard<'_>, Guard<'_>), redb::StorageError>| {
            let (key, value) = found.map_err(engine("scan rows"))?;
            let copied = |guard: Guard<'_>| Bytes::copy_from_slice(guard.value());
            Ok(Row { key: copied(key), value: copied(value) })
        };
        match order {
            Order::Ascending => rows.take(limit).map(row).collect(),
            Order::Descending => rows.rev().take(limit).map(row).collect(),
        }
    }
}

impl View for RedbEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.view(|view| view.get(key))
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.view(|view| view.scan(range, order, limit))
    }
}

impl Engine for RedbEngine {
    /// A read transaction: writers go on beside it.
    fn view<T>(&self, read: impl Fn(&dyn View) -> Result<T, StoreError>) -> Result<T, StoreError> {
        const DOING: &str = "read rows";
        let rows = |db: &redb::Database| -> Result<RowsView, redb::Error> {
            Ok(RowsView { rows: db.begin_read()?.open_table(ROWS)? })
        };
        let mut left = READ_ATTEMPTS_MAX;
        loop {
            let mut losses = 0;
            let result = self.call(DOING, |db| {
                losses = self.losses();
                read(&rows(db).map_err(engine(DOING))?)
            });
            match result {
                Err(error) if left > 0 && self.may_be_opened_again(&error) => {
                    if !may_wait() {
                        return Err(StoreError::Opening { doing: DOING });
                    }
                    self.open_again(losses)?;
                }
                result => return result,
            }
            left -= 1;
        }
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.change("write a batch", Durability::None, |transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            for write in &writes {
                match write {
                    Write::Put { key, value } => drop(rows.insert(&key[..], &value[..])?),
                    Write::Delete { key } => drop(rows.remove(&key[..])?),
                }
            }
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.change("sync", Durability::Immediate, |_| Ok(()))
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        const BLOCK_BYTES: u64 = 512;
        let doing = "measure the file";
        self.call(doing, |_| {
            let metadata = fs::metadata(&self.path).map_err(file(doing, &self.path))?;
            Ok(metadata.blocks() * BLOCK_BYTES)
        })
    }

    fn close(&self) {
        drop_caught(self.db.write().take());
    }
}

impl Beside for RedbEngine {
    const FILES_PER_LIVE_MAX: u64 = 2;

    fn beside(&self) -> Result<RedbEngine, StoreError> {
        let path = fresh(&self.path);
        remove(&path)?;
        let engine = RedbEngine::create(&path, self.cache_bytes)?;
        engine.seal()?;
        Ok(engine)
    }

    /// The file that is open stays so under its new name.
    fn take_place(mut self, old: &RedbEngine) -> Result<RedbEngine, StoreError> {
        old.close();
        fs::rename(&self.path, &old.path).map_err(file("rename", &self.path))?;
        self.path.clone_from(&old.path);
        sync_directory(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(self)
    }

    fn give_up(self) -> Result<(), StoreError> {
        self.close();
        remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Store};

    const CACHE_BYTES: u64 = 1 << 20;

    /// Goal: a file is not deleted for what may have been the machine's fault alone.
    #[test]
    fn a_file_that_does_not_open_again_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open_or_rebuild(dir.path(), CACHE_BYTES).unwrap();
        store.write(Batch { writes: vec![Write::put("key", "value")] }).unwrap();
        store.sync().unwrap();
        let mut engine = store.into_engine();
        let path = engine.path.clone();
        let refused = move || {
            let too_many_files = std::io::Error::from_raw_os_error(24);
            Err(file("open the store", Path::new("store"))(too_many_files))
        };
        engine.device = Some(Box::new(refused));
        let error = engine.open_again(0).unwrap_err();
        assert!(matches!(error, StoreError::File { .. }), "{error:?}");
        // Nobody goes on with it, and whoever tries does not delete it either.
        let store = Framed::over(engine);
        let later = store.sync().unwrap_err();
        assert!(matches!(later, StoreError::Stopped { .. }), "{later:?}");
        assert!(store.get(b"key").is_err());
        drop(store);
        assert!(path.exists());
        let (store, opened) = open_or_rebuild(dir.path(), CACHE_BYTES).unwrap();
        assert_eq!(opened, Opened::Kept);
        assert_eq!(store.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    }
}
