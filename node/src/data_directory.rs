//! The directory that holds all a node knows: created, locked against a second process, and, when
//! ephemeral, removed at exit. Knows nothing of what is stored in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const LOCK_FILE: &str = "piton.lock";
/// So many directories above it may be new, too.
const NEW_PARENTS_MAX: usize = 3;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    #[error("create the data directory {}", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("create a temporary data directory")]
    CreateTemporary(#[source] io::Error),
    #[error("open the lock file {}", path.display())]
    OpenLock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the data directory {} is in use by another piton process; stop it, or choose another directory with --data-dir",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("lock the data directory {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A locked data directory. The lock is the kernel's: it goes with the process, however it ends.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    // ORDER: fields drop in this order; the lock is released before the directory is removed.
    _lock: File,
    temporary: Option<TempDir>,
}

impl DataDirectory {
    /// Creates the directory if needed and locks it.
    ///
    /// # Errors
    /// When it cannot be created, or another process holds it.
    pub fn open(path: &Path) -> Result<Self, DataDirectoryError> {
        let create = |source| DataDirectoryError::Create { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(create)?;
        let path = path.canonicalize().map_err(create)?;
        // A directory that a power cut takes back would take everything in it along.
        for parent in path.ancestors().skip(1).take(NEW_PARENTS_MAX) {
            // One that may not be opened was there before.
            if let Ok(directory) = File::open(parent) {
                directory.sync_all().map_err(create)?;
            }
        }
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock, temporary: None })
    }

    /// A fresh temporary directory, removed when this value is dropped.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn ephemeral() -> Result<Self, DataDirectoryError> {
        let temporary = tempfile::Builder::new()
            .prefix("piton-")
            .tempdir()
            .map_err(DataDirectoryError::CreateTemporary)?;
        let path = temporary.path().to_owned();
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock, temporary: Some(temporary) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_ephemeral(&self) -> bool {
        self.temporary.is_some()
    }
}

fn lock(directory: &Path) -> Result<File, DataDirectoryError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| DataDirectoryError::OpenLock { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(DataDirectoryError::InUse { path: directory.to_owned() })
        }
        Err(TryLockError::Error(source)) => Err(DataDirectoryError::Lock { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = DataDirectory::open(&path).unwrap();
        let refused = DataDirectory::open(&path).unwrap_err();
        assert!(matches!(refused, DataDirectoryError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains("in use by another piton process"), "{refused}");
        drop(first);
        DataDirectory::open(&path).unwrap();
    }

    #[test]
    fn an_ephemeral_directory_is_removed_at_the_end() {
        let directory = DataDirectory::ephemeral().unwrap();
        let path = directory.path().to_owned();
        std::fs::write(path.join("row"), "x").unwrap();
        drop(directory);
        assert!(!path.exists());
    }
}
