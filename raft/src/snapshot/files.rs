//! The files of all groups' snapshots by their names: whose they are, where they stand, which go.

use std::io;
use std::path::{Path, PathBuf};

use piton_store::Mark;

use super::{FINAL_SUFFIX, RECEIVED, disk_error, read_head};
use crate::error::SnapshotError;
use crate::log::{Disk, GroupId};

/// Removes all files of a group. What a crash leaves of them is removed when asked again.
///
/// # Errors
/// When the directory cannot be read, or a file stays.
pub(crate) fn remove_all(disk: &dyn Disk, dir: &Path, group: GroupId) -> Result<(), SnapshotError> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(disk_error("list", dir))?,
    };
    for name in names.iter().filter(|name| name.starts_with(&format!("{group}-"))) {
        let path = dir.join(name);
        disk.remove(&path).map_err(disk_error("remove", &path))?;
    }
    // ORDER: before the log holds anything of the group again, which a snapshot that came back would
    // contradict. Also where nothing is left to remove: an earlier call may have ended in between.
    disk.sync_dir(dir).map_err(disk_error("sync", dir))
}

/// Whose a snapshot is, where it stands, and its file.
pub(crate) struct Head {
    pub(crate) group: GroupId,
    pub(crate) path: PathBuf,
    /// Or why it cannot be read.
    pub(crate) mark: Result<Mark, SnapshotError>,
}

/// The heads of all snapshots in a directory, by group; nothing is written.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn heads(disk: &dyn Disk, dir: &Path) -> Result<Vec<Head>, SnapshotError> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(disk_error("list", dir))?,
    };
    let head = |name: String| {
        let (group, rest) = name.split_once('-')?;
        let group = GroupId(group.parse().ok().filter(|_| index_in(rest).is_some())?);
        let path = dir.join(&name);
        let read = || {
            let file = disk.open(&path).map_err(disk_error("open", &path))?;
            read_head(&*file, &path, group).map(|(mark, _)| mark)
        };
        let mark = read();
        Some(Head { group, path, mark })
    };
    Ok(names.into_iter().filter_map(head).collect())
}

/// The index in a snapshot's name, which is what follows the group.
pub(super) fn index_in(name: &str) -> Option<u64> {
    let index = name.strip_suffix(FINAL_SUFFIX)?;
    index.strip_suffix(RECEIVED).unwrap_or(index).parse().ok()
}

/// Whether a snapshot of that name came from another node.
pub(crate) fn is_received(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem.ends_with(RECEIVED))
}
