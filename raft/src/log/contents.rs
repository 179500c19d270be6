//! What lies in a log's directory, read without opening the log: nothing is written, so that a log
//! that does not fit what is known beside it can be left as it was found.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::index::GroupIndex;
use super::{Disk, GroupId, GroupLogState, LogConfig, LogError, recovery};

/// What a log holds.
#[derive(Debug)]
pub struct LogContents {
    /// The newest segment.
    pub(super) file: PathBuf,
    /// Where its last whole batch ends.
    pub(super) end: u32,
    pub(super) groups: BTreeMap<GroupId, GroupIndex>,
}

impl LogContents {
    /// Reads the log in `dir`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// As [`super::Log::open`].
    pub fn read(
        disk: &dyn Disk,
        dir: &Path,
        config: &LogConfig,
    ) -> Result<Option<LogContents>, LogError> {
        recovery::read(disk, dir, config)
    }

    /// What it holds of a group.
    pub fn state(&self, group: GroupId) -> GroupLogState {
        self.groups.get(&group).map(GroupIndex::state).unwrap_or_default()
    }

    /// The term of a group's entry, if it is there.
    pub fn term_of(&self, group: GroupId, index: u64) -> Option<u64> {
        Some(self.groups.get(&group)?.slot(index)?.term)
    }

    /// The newest segment, and the offset at which what is whole of it ends.
    pub fn end(&self) -> (&Path, u64) {
        (&self.file, u64::from(self.end))
    }
}

/// Whether there is a log in `dir`.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn is_there(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    Ok(recovery::newest_segment(disk, dir)?.is_some())
}
