//! Why the store refused or failed. What a caller can do: rebuild the group (`Corrupt`), rebuild
//! the whole store (`Engine`, `Panicked`, `Stopped`, `File`), or call again later (the rest; `Full`
//! when there is room).

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The stored bytes are not those that were written: rebuild what the key belongs to.
    #[error("read key {}: {what}", hex(key))]
    Corrupt { key: Bytes, what: &'static str },

    #[error("{doing} in the storage engine")]
    Engine {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("{doing} in the storage engine: it panicked: {message}")]
    Panicked { doing: &'static str, message: String },

    /// An earlier call panicked; what the engine holds in memory can no longer be relied on.
    #[error("{doing}: the storage engine stopped after an earlier panic")]
    Stopped { doing: &'static str },

    #[error("{doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    /// Another process, or another handle of this one, has the directory open.
    #[error("open the store at {}: another process is using it", path.display())]
    InUse { path: PathBuf },

    /// It does not open for a reason that has nothing to do with what lies in it: nothing is
    /// discarded for that.
    #[error(
        "open the store at {}: it is not damaged, so it is kept; see to the reason, and start again",
        path.display()
    )]
    Unopened {
        path: PathBuf,
        #[source]
        source: Box<StoreError>,
    },

    /// The disk took no more. Nothing is damaged: the store stands where the last sync left it, or
    /// later, and goes on.
    #[error("{doing} in the storage engine: the disk is full")]
    Full {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The store is being opened again after its disk was full, and the caller would not wait; see
    /// [`crate::without_waiting`].
    #[error("{doing}: the store is being opened again")]
    Opening { doing: &'static str },

    /// What was written for the group was lost before it was synced, since another write met a full
    /// disk.
    #[error("the rows of group {group} were lost before they were synced")]
    Unsynced { group: u32 },

    #[error("group {group} is being restored from a snapshot")]
    Restoring { group: u32 },

    #[error("the rows of group {group} were replaced while they were read")]
    Replaced { group: u32 },

    /// There is no state on disk yet that a snapshot could be made of.
    #[error("group {group} has no checkpoint")]
    NoCheckpoint { group: u32 },

    #[error("group {group} is reserved for the store's own records")]
    ReservedGroup { group: u32 },
}

impl StoreError {
    /// Whether the machine refused, and not what lies in the store: no right to read it, no room, no
    /// file handles, no memory.
    pub(crate) fn is_of_machine(&self) -> bool {
        const TOO_MANY_FILES: [i32; 2] = [23, 24];
        self.is_of_system(|io| {
            let by_kind = matches!(
                io.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::OutOfMemory
            );
            let by_code = io.raw_os_error().is_some_and(|code| TOO_MANY_FILES.contains(&code));
            by_kind || by_code || is_no_room(io)
        })
    }

    /// Whether a disk without room is the cause.
    pub(crate) fn is_of_room(&self) -> bool {
        self.is_of_system(is_no_room)
    }

    /// Whether what the system said is among the causes, and such.
    fn is_of_system(&self, is_such: impl Fn(&io::Error) -> bool) -> bool {
        let first: &(dyn std::error::Error + 'static) = self;
        let mut causes = std::iter::successors(Some(first), |cause| cause.source());
        causes.any(|cause| {
            let io = cause.downcast_ref::<io::Error>();
            let io = io.or_else(|| crate::redb::io_error(cause));
            io.or_else(|| crate::sled::io_error(cause)).is_some_and(&is_such)
        })
    }

    /// Whether the store has failed, and nothing but another one in its place helps.
    pub fn needs_rebuild(&self) -> bool {
        matches!(
            self,
            StoreError::Corrupt { .. }
                | StoreError::Engine { .. }
                | StoreError::Panicked { .. }
                | StoreError::Stopped { .. }
                | StoreError::File { .. }
        )
    }
}

fn is_no_room(io: &io::Error) -> bool {
    matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error and its causes, for a text that goes where the error itself cannot.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The first bytes of a key, enough to find it by.
fn hex(key: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 64;
    key.iter().take(SHOWN_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect()
}
