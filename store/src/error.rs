//! Why the store refused or failed. What a caller can do: rebuild the group (`Corrupt`), rebuild
//! the whole store (`Engine`, `Panicked`, `Stopped`, `File`), or call again later (the rest).

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

/// The first bytes of a key, enough to find it by.
fn hex(key: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 64;
    key.iter().take(SHOWN_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect()
}
