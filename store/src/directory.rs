//! The directory of a node's store: which engine keeps it, and when what lies there is thrown
//! away. It never repairs: the store is a projection of the log, and is rebuilt from it.
//!
//! ```text
//! <dir>/boot_id            sled only: the layout's version, the machine's boot id at the making
//! <dir>/sled/              sled's own files
//! <dir>/redb/store.redb    redb's one file
//! ```
//! A copy that is being made (see [`crate::compaction`]) lies beside it, with `.new` at the end of
//! its name.
//! What another engine left is discarded as a whole, so no two engines' files lie side by side.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::compaction::{Beside, Compacting, FLOOR_BYTES};
use crate::frame::{Engine, Framed};
use crate::{Store, StoreError, redb, sled, with_causes};

/// Precedes the boot id. Goes first when a store is discarded: without it sled's files are
/// discarded at the next start too, so a store that was half deleted is never opened.
pub(crate) const BOOT_ID_FILE: &str = "boot_id";

/// What keeps a store's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    Sled,
    Redb,
}

impl EngineKind {
    pub const ALL: [EngineKind; 2] = [EngineKind::Sled, EngineKind::Redb];

    /// Its name, which is that of its directory too.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Sled => "sled",
            EngineKind::Redb => "redb",
        }
    }
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The store is as it was left.
    Kept,
    /// The store is empty; there was none.
    Created,
    /// The store is empty; what was there could not be relied on, or is another engine's.
    Discarded { reason: String },
}

/// Opens the store in `dir` with the given engine, or discards what is there and makes an empty
/// one. `cache_bytes` is what the engine may keep in memory.
///
/// # Errors
/// [`StoreError::InUse`] if another process has it open (nothing is discarded then); any other
/// error means that not even an empty store can be made here.
pub fn open_or_rebuild(
    engine: EngineKind,
    dir: &Path,
    cache_bytes: u64,
) -> Result<(Arc<dyn Store>, Opened), StoreError> {
    Ok(match engine {
        EngineKind::Sled => {
            let boot_id = sled::machine_boot_id()?;
            let (store, opened) = sled::open_or_rebuild(dir, &boot_id, cache_bytes)?;
            (compacting(store), opened)
        }
        EngineKind::Redb => {
            let (store, opened) = redb::open_or_rebuild(dir, cache_bytes)?;
            (compacting(store), opened)
        }
    })
}

/// Opens the store in `dir` as it is, whichever engine made it, and discards nothing; `None` where
/// there is none that can be relied on.
///
/// # Errors
/// When it does not open.
pub fn open_kept(dir: &Path, cache_bytes: u64) -> Result<Option<Arc<dyn Store>>, StoreError> {
    let there = |engine: &EngineKind| dir.join(engine.name()).exists();
    let kept: Result<Arc<dyn Store>, Unkept> = match EngineKind::ALL.into_iter().find(there) {
        None => return Ok(None),
        Some(EngineKind::Sled) => {
            let boot_id = sled::machine_boot_id()?;
            sled::keep(dir, &boot_id, cache_bytes).map(|kept| Arc::new(Framed::over(kept)) as _)
        }
        Some(EngineKind::Redb) => {
            redb::keep(dir, cache_bytes).map(|kept| Arc::new(Framed::over(kept)) as _)
        }
    };
    match kept {
        Ok(store) => Ok(Some(store)),
        Err(Unkept::Failed(error)) => Err(error),
        Err(Unkept::Stale(_)) => Ok(None),
    }
}

fn compacting<E: Beside>(store: Framed<E>) -> Arc<dyn Store> {
    Arc::new(Framed::over(Compacting::over(store.into_engine(), FLOOR_BYTES)))
}

/// Discards what is in `dir`, whichever engine made it: the next start makes an empty store and
/// has it rebuilt.
///
/// # Errors
/// When files cannot be removed.
pub fn discard(dir: &Path) -> Result<(), StoreError> {
    // ORDER: see BOOT_ID_FILE. redb's one file is there as a whole or not at all.
    remove(&dir.join(BOOT_ID_FILE))?;
    remove(dir)
}

/// Why an engine does not keep what is in its directory.
pub(crate) enum Unkept {
    /// It does not open, or not as what was written.
    Failed(StoreError),
    /// It would open, but cannot be relied on.
    Stale(String),
}

impl From<StoreError> for Unkept {
    fn from(error: StoreError) -> Unkept {
        Unkept::Failed(error)
    }
}

/// Keeps what is there if `own` made it and `keep` opens it; discards it and makes anew otherwise.
pub(crate) fn keep_or_make<E: Engine>(
    dir: &Path,
    own: EngineKind,
    keep: impl FnOnce() -> Result<E, Unkept>,
    make: impl FnOnce() -> Result<E, StoreError>,
) -> Result<(Framed<E>, Opened), StoreError> {
    let mut others = EngineKind::ALL.into_iter().filter(|other| *other != own);
    let there = |engine: &EngineKind| dir.join(engine.name()).exists();
    let other = others.find(there);
    let existed = other.is_some() || there(&own);
    let kept = match other {
        Some(other) => Err(Unkept::Stale(format!("it was made by {}", other.name()))),
        None => keep(),
    };
    let reason = match kept {
        Ok(engine) => return Ok((Framed::over(engine), Opened::Kept)),
        Err(Unkept::Failed(error @ StoreError::InUse { .. })) => return Err(error),
        Err(Unkept::Failed(error)) if existed && error.is_of_machine() => {
            return Err(StoreError::Unopened { path: dir.to_owned(), source: Box::new(error) });
        }
        Err(Unkept::Failed(error)) => with_causes(&error),
        Err(Unkept::Stale(reason)) => reason,
    };
    discard(dir)?;
    fs::create_dir_all(dir).map_err(file("create the store's directory", dir))?;
    let store = Framed::over(make()?);
    Ok((store, if existed { Opened::Discarded { reason } } else { Opened::Created }))
}

/// Removes a file or directory, which may not be there.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file("discard", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes creations and removals in a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    let synced = File::open(dir).and_then(|directory| directory.sync_all());
    synced.map_err(file("sync the directory", dir))
}

pub(crate) fn file(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use std::io;

    // The engines' own crates, which this module's imports hide.
    use ::{redb, sled};

    use super::{EngineKind, Opened, Path, StoreError, Unkept, fs, keep_or_make};
    use crate::caught::engine;

    /// What opening comes to where it fails for that reason.
    fn opened(dir: &Path, error: StoreError) -> Result<Opened, StoreError> {
        let own = EngineKind::Redb;
        let keep = || Err(Unkept::Failed(error));
        let make = || Ok(crate::memory::MemoryEngine::default());
        keep_or_make(dir, own, keep, make).map(|(_, opened)| opened)
    }

    fn io_error(kind: io::ErrorKind) -> redb::DatabaseError {
        redb::DatabaseError::Storage(redb::StorageError::Io(kind.into()))
    }

    #[test]
    fn a_store_that_the_machine_does_not_let_open_is_not_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("redb/store.redb");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "rows").unwrap();
        let path = || dir.path().to_owned();
        for error in [
            engine("open the store")(io_error(io::ErrorKind::PermissionDenied)),
            engine("open the store")(io_error(io::ErrorKind::StorageFull)),
            engine("open the store")(sled::Error::Io(io::ErrorKind::ReadOnlyFilesystem.into())),
            StoreError::File {
                doing: "open",
                path: path(),
                source: io::Error::from_raw_os_error(24),
            },
        ] {
            let text = error.to_string();
            let refused = opened(dir.path(), error).unwrap_err();
            assert!(matches!(refused, StoreError::Unopened { .. }), "{text}: {refused}");
            assert_eq!(fs::read_to_string(&file).unwrap(), "rows");
        }
        let damaged = engine("open the store")(io_error(io::ErrorKind::InvalidData));
        assert!(matches!(opened(dir.path(), damaged), Ok(Opened::Discarded { .. })));
        assert!(!file.exists());
    }
}
