//! Why the log refused or failed. Every variant can be handed to many waiting callers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::GroupId;
use super::record::Newer;

/// An error of the node's log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The disk refused. In the writer this is fatal: the log takes nothing more.
    #[error("{action} {}", path.display())]
    Disk {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    /// Bytes that were durable are no longer what was written. This node counts as wiped.
    #[error("log is damaged in {} at offset {offset}: {damage}", file.display())]
    Corrupt { file: PathBuf, offset: u64, damage: &'static str },
    /// A newer release has written here. Nothing is cut and nothing is damaged.
    #[error(
        "log has a record in {} at offset {offset} that only a newer release knows (kind {kind}, \
         version {version}): start that one",
        file.display()
    )]
    Newer { file: PathBuf, offset: u64, kind: u8, version: u8 },
    /// Entries of a group are missing between those that are there.
    #[error("log in {} lacks entry {index} of group {group}", dir.display())]
    Missing { dir: PathBuf, group: GroupId, index: u64 },
    /// The writer failed before; nothing is acknowledged any more.
    #[error("log has failed and takes nothing more: {reason}")]
    Failed { reason: String },
    /// The log was shut down.
    #[error("log is closed")]
    Closed,
    /// An entry does not continue its group's log.
    #[error("append entry {found} to group {group}, where {expected} is next")]
    NotNext { group: GroupId, expected: u64, found: u64 },
    /// One record or vote is larger than the log can frame.
    #[error("write {bytes} bytes for group {group}: over the limit of one record")]
    TooLarge { group: GroupId, bytes: usize },
}

impl LogError {
    pub(super) fn disk(action: &'static str, path: &Path, source: io::Error) -> LogError {
        LogError::Disk { action, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(super) fn corrupt(file: &Path, offset: u64, damage: &'static str) -> LogError {
        LogError::Corrupt { file: file.to_owned(), offset, damage }
    }

    pub(super) fn newer(file: &Path, offset: u64, Newer { kind, version }: Newer) -> LogError {
        LogError::Newer { file: file.to_owned(), offset, kind, version }
    }
}
