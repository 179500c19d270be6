//! Ordered keys, atomic batches, and the table in front of them; the only crate that names sled
//! and redb.
//!
//! What lies here is a projection of the log (D13): crash-consistent at some applied
//! index, and never the truth. Whoever finds it damaged deletes it and rebuilds it from a snapshot
//! and the log. This crate knows bytes, groups and marks; it never knows workflows, and it never
//! decides when a checkpoint is due.
//!
//! Read in this order: [`Store`] (the contract), [`frame`] (how a value lies in an engine),
//! [`sled`], [`redb`] and [`memory`] (the engines), `directory` (which of them keeps a node's store,
//! and what is thrown away), [`compaction`] (space given back), [`table`] (rows applied but not yet checkpointed).

mod caught;
pub mod codec;
pub mod compaction;
mod directory;
mod error;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod golden;
pub mod memory;
mod noted;
mod own;
mod passing;
pub mod redb;
pub mod sled;
pub mod table;
mod waiting;
mod watched;

use bytes::{BufMut, Bytes, BytesMut};

pub use directory::{EngineKind, Opened, discard, open_kept, open_or_rebuild};
pub use error::{StoreError, with_causes};
pub use memory::MemoryStore;
pub use own::{marks, owner, set_owner};
pub use passing::Passing;
pub use redb::RedbStore;
pub use sled::SledStore;
pub use table::{CheckpointReport, Held, Mark, PostponedBecause, Restore, Table};
pub use waiting::{may_wait, without_waiting};
pub use watched::{FailureListener, Watched};

/// A durable map from ordered keys to values.
///
/// The contract of every implementation:
///
/// - A batch is atomic for concurrent readers and across a crash: all of it is there, or none.
/// - Batches become durable in the order of their writes. After a crash the store stands where
///   some batch left it, and that batch is not older than the last one that `sync` covered.
/// - Each `get` and each `scan` sees the store between two batches.
/// - A value whose checksum does not match is [`StoreError::Corrupt`], never a wrong answer.
/// - An error of `write` or `sync` leaves the outcome unknown; writing the same batch again is safe.
///
/// Calls block on the disk: they belong on storage threads.
pub trait Store: Send + Sync + 'static {
    /// Reads the value of one key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Reads rows with `start <= key < end` in the given key order, at most `limit`.
    fn scan(&self, range: KeyRange<'_>, order: Order, limit: usize)
    -> Result<Vec<Row>, StoreError>;

    /// Writes all of the batch or nothing; of several writes to one key the last one wins.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;

    /// Deletes every key that begins with `prefix`, without reading the values, so it also removes
    /// what is damaged. Not atomic: a crash may leave some of them.
    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError>;

    /// Returns once every batch written before survives the end of this process.
    fn sync(&self) -> Result<(), StoreError>;

    /// How often batches that were written and not yet synced have been lost since the store was opened,
    /// as they are when an engine has to be opened again; see [`StoreError::Full`].
    fn losses(&self) -> u64 {
        0
    }

    /// Bytes the store occupies where it keeps its data.
    fn bytes_on_disk(&self) -> Result<u64, StoreError>;

    /// Gives space back if the files take up far more than what is live, while others read and
    /// write. May take long; it is given up once `go_on` says no. `None`: nothing was given back.
    ///
    /// # Errors
    /// When it cannot be done; the store is as it was, unless it has failed by itself.
    fn compact(&self, _go_on: &dyn Fn() -> bool) -> Result<Option<Compacted>, StoreError> {
        Ok(None)
    }

    /// Lets go of the files, whoever else still holds this store: calls that run are waited for,
    /// later ones are [`StoreError::Stopped`]. What lies in memory stays as it is.
    fn close(&self);
}

/// What giving space back did: the bytes on disk before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    pub before: u64,
    pub after: u64,
}

/// Keys from `start` (included) to `end` (not included; `None`: to the last key).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    pub start: &'a [u8],
    pub end: Option<&'a [u8]>,
}

impl<'a> KeyRange<'a> {
    /// Keys with `start <= key < end`.
    pub fn new(start: &'a [u8], end: &'a [u8]) -> KeyRange<'a> {
        KeyRange { start, end: Some(end) }
    }

    /// Every key at or after `start`.
    pub fn from(start: &'a [u8]) -> KeyRange<'a> {
        KeyRange { start, end: None }
    }

    /// Every key.
    pub fn all() -> KeyRange<'static> {
        KeyRange { start: &[], end: None }
    }

    /// True when no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.start)
    }
}

/// The smallest key that is greater than every key beginning with `prefix`; `None` if there is
/// none (the prefix is empty or all 0xff). The end of a scan over a prefix.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// The first key after `key`: where a scan goes on.
pub fn key_after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The direction of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub key: Bytes,
    pub value: Bytes,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes },
}

impl Write {
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Write {
        Write::Put { key: key.into(), value: value.into() }
    }

    pub fn delete(key: impl Into<Bytes>) -> Write {
        Write::Delete { key: key.into() }
    }

    pub fn key(&self) -> &Bytes {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

/// Changes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    pub writes: Vec<Write>,
}
