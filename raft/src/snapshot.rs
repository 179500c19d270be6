//! Checksummed snapshot files: the state of one group at exactly one mark.
//!
//! Owns `snapshot/` of the node's directory. A file is written under a temporary name, synced, read
//! back, renamed, and its directory synced; only then is it the group's snapshot. What the rows
//! mean is the replica's business. All calls here block on the disk.
//!
//! ```text
//! head   magic(7) version(1) group(4) index(8) mark length(4) mark crc(4)
//! block  length(4) crc(4) kind(1)=rows { key length(4) key value length(4) value }*
//! end    length(4) crc(4) kind(1)=end rows(8)
//! ```
//! Numbers are big endian. A block's checksum begins with the block's number, so that a block
//! missing, doubled or moved is found.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use piton_store::{Mark, Row};

use crate::error::SnapshotError;
use crate::log::{Disk, DiskFile, GroupId};
use crate::replica::SnapshotRows;
use crate::wire;

mod files;
mod stats;
mod writer;

use files::index_in;
pub(crate) use files::{Head, heads, is_received, remove_all};
pub use stats::SnapshotStats;
use writer::Writer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use writer::{block_bytes, head_bytes};

const MAGIC: &[u8; 7] = b"PITONSS";
/// The version that is written, as a digit: of all that follows the head, which stays as it is.
const VERSION: u8 = b'1';
/// Magic, version, group, index and length of the mark.
const HEAD_FIXED_BYTES: usize = 24;
/// A mark holds a log id and a membership.
const MARK_BYTES_MAX: usize = 1 << 20;
/// Length and checksum of a block.
const BLOCK_HEAD_BYTES: usize = 8;
/// A block is closed when it is at least this long.
const BLOCK_BYTES: usize = 256 << 10;
/// A block ends with the row that makes it long enough, and no row is longer than a log record.
const BLOCK_BYTES_MAX: u64 = 512 << 20;
/// Rows asked of the replica at once.
const ROWS_AT_ONCE: usize = 256;
const KIND_ROWS: u8 = 0;
const KIND_END: u8 = 1;

const FINAL_SUFFIX: &str = ".snapshot";
/// Before it in the name of a snapshot that came from another node: the log may be behind it.
const RECEIVED: &str = "-received";
const TEMPORARY_SUFFIX: &str = ".writing";

/// A snapshot file, complete when it is handed out. Readable even after its name is gone.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
    /// Where the state in it stands.
    pub(crate) mark: Mark,
    /// The file's length.
    pub(crate) bytes: u64,
    /// Another node made it.
    pub(crate) is_received: bool,
    file: Arc<dyn DiskFile>,
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.bytes)
    }
}

impl SnapshotFile {
    /// Reads a part of the file, as it is, for sending.
    pub(crate) fn part(&self, offset: u64, bytes_max: usize) -> Result<Bytes, SnapshotError> {
        let length = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(bytes_max);
        let mut part = vec![0; length.min(bytes_max)];
        read_exact(&*self.file, &self.path, offset, &mut part)?;
        Ok(Bytes::from(part))
    }
}

/// The snapshot files of one group.
pub(crate) struct Snapshots {
    group: GroupId,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    current: Mutex<Option<SnapshotFile>>,
    /// One whose head cannot be read, which there was instead of a current one.
    lost: Mutex<Option<(PathBuf, SnapshotError)>>,
    /// The current one was found damaged: it is of use to nobody, and another takes its place.
    is_damaged: AtomicBool,
    /// Names temporary files apart.
    temporary: AtomicU64,
    stats: Arc<SnapshotStats>,
}

impl Snapshots {
    /// Finds the group's newest snapshot and removes what was left half written.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        group: GroupId,
        stats: Arc<SnapshotStats>,
    ) -> Result<Snapshots, SnapshotError> {
        disk.create_dir(&dir).map_err(disk_error("create", &dir))?;
        let (current, lost, is_damaged) =
            (Mutex::default(), Mutex::default(), AtomicBool::default());
        let temporary = AtomicU64::new(0);
        let snapshots = Snapshots { group, dir, disk, current, lost, is_damaged, temporary, stats };
        let mut newest: Option<(u64, String)> = None;
        for name in
            snapshots.disk.list(&snapshots.dir).map_err(disk_error("list", &snapshots.dir))?
        {
            let Some(rest) = name.strip_prefix(&format!("{group}-")) else { continue };
            if rest.ends_with(TEMPORARY_SUFFIX) {
                snapshots.remove(&snapshots.dir.join(&name));
                continue;
            }
            let Some(index) = index_in(rest) else { continue };
            let old = match &newest {
                Some((newest_index, _)) if *newest_index > index => Some(name),
                _ => newest.replace((index, name)).map(|(_, old)| old),
            };
            if let Some(old) = old {
                snapshots.remove(&snapshots.dir.join(old));
            }
        }
        if let Some((_, name)) = newest {
            let path = snapshots.dir.join(name);
            match snapshots.open_file(&path) {
                Ok(file) => *snapshots.current.lock() = Some(file),
                // A group whose state is whole does not need it.
                Err(error @ SnapshotError::Corrupt { .. }) => {
                    *snapshots.lost.lock() = Some((path, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(snapshots)
    }

    /// Why there is no current snapshot, where there was one that is damaged.
    pub(crate) fn damage(&self) -> Option<SnapshotError> {
        self.lost.lock().as_ref().map(|(_, error)| error.clone())
    }

    /// Lets go of the files; they stay.
    pub(crate) fn close(&self) {
        *self.current.lock() = None;
    }

    /// The newest complete snapshot.
    pub(crate) fn current(&self) -> Option<SnapshotFile> {
        self.current.lock().clone()
    }

    /// Index of the newest snapshot; 0 if there is none.
    pub(crate) fn index(&self) -> u64 {
        self.current.lock().as_ref().map_or(0, |file| file.mark.index)
    }

    /// Index of the newest snapshot, if another node made it: the log may be behind that.
    pub(crate) fn received_index(&self) -> Option<u64> {
        let current = self.current.lock();
        current.as_ref().filter(|file| file.is_received).map(|file| file.mark.index)
    }

    pub(crate) fn stats(&self) -> &SnapshotStats {
        &self.stats
    }

    /// Size of the newest snapshot: what the state occupies, roughly.
    pub(crate) fn bytes(&self) -> u64 {
        self.current.lock().as_ref().map_or(0, |file| file.bytes)
    }

    /// Writes a snapshot, makes it durable and makes it the current one.
    pub(crate) fn write(&self, rows: &mut dyn SnapshotRows) -> Result<SnapshotFile, SnapshotError> {
        let mark = rows.mark();
        if let Some(current) = self.current()
            && !self.is_to_be_replaced(&current, &mark)
        {
            return Ok(current);
        }
        let path = self.temporary_path();
        let result = self.write_temporary(&path, &mark, rows).and_then(|file| self.adopt(file));
        match &result {
            Ok(file) => self.stats.took(file.bytes),
            Err(_) => self.remove(&path),
        }
        result
    }

    fn write_temporary(
        &self,
        path: &Path,
        mark: &Mark,
        rows: &mut dyn SnapshotRows,
    ) -> Result<SnapshotFile, SnapshotError> {
        let file = self.disk.create(path).map_err(disk_error("create", path))?;
        let mut writer = Writer::new(&*file, path);
        writer.head(self.group, mark)?;
        loop {
            let some = rows.next_rows(ROWS_AT_ONCE).map_err(SnapshotError::Rows)?;
            if some.is_empty() {
                break;
            }
            writer.rows(&some)?;
        }
        writer.end()?;
        file.sync().map_err(disk_error("sync", path))?;
        let written = self.open_file(path)?;
        self.verify(&written)?;
        Ok(written)
    }

    /// Begins to receive a snapshot from another node.
    pub(crate) fn receive(&self) -> Result<IncomingSnapshot, SnapshotError> {
        let path = self.temporary_path();
        let file = self.disk.create(&path).map_err(disk_error("create", &path))?;
        Ok(IncomingSnapshot { path, file, bytes: 0 })
    }

    /// Makes a received file durable and checks every byte of it.
    pub(crate) fn received(
        &self,
        incoming: IncomingSnapshot,
    ) -> Result<SnapshotFile, SnapshotError> {
        let IncomingSnapshot { path, file, .. } = incoming;
        let result = (|| {
            file.sync().map_err(disk_error("sync", &path))?;
            let file = self.open_file(&path)?;
            self.verify(&file)?;
            Ok(SnapshotFile { is_received: true, ..file })
        })();
        if result.is_err() {
            self.remove(&path);
        }
        result
    }

    /// Gives up on a file that is being received.
    pub(crate) fn discard(&self, incoming: &IncomingSnapshot) {
        self.remove(&incoming.path);
    }

    /// Removes a received file that did not become a snapshot.
    pub(crate) fn remove_unless_adopted(&self, file: &SnapshotFile) {
        self.remove(&file.path);
    }

    /// Gives a complete, synced file its final name, durably, and makes it the current snapshot,
    /// unless there is a newer one.
    pub(crate) fn adopt(&self, mut file: SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        let mut current = self.current.lock();
        let origin = if file.is_received { RECEIVED } else { "" };
        let name = format!("{}-{}{origin}{FINAL_SUFFIX}", self.group, file.mark.index);
        let path = self.dir.join(name);
        if let Some(current) = current.as_ref()
            && !self.is_to_be_replaced(current, &file.mark)
        {
            if file.path != current.path {
                self.remove(&file.path);
            }
            return Ok(current.clone());
        }
        self.disk.rename(&file.path, &path).map_err(disk_error("rename", &file.path))?;
        self.disk.sync_dir(&self.dir).map_err(disk_error("sync", &self.dir))?;
        file.path = path;
        // ORDER: the old snapshot goes only after the new one is durable under its name.
        let old = current.replace(file.clone()).map(|old| old.path);
        let lost = self.lost.lock().take().map(|(lost, _)| lost);
        for old in old.into_iter().chain(lost).filter(|old| *old != file.path) {
            self.remove(&old);
        }
        self.is_damaged.store(false, Ordering::Relaxed);
        Ok(file)
    }

    /// Whether a state at that mark takes the place of the current snapshot.
    fn is_to_be_replaced(&self, current: &SnapshotFile, mark: &Mark) -> bool {
        current.mark.index < mark.index || current.mark.index == mark.index && self.is_damaged()
    }

    /// Reads the current snapshot to its end, since somebody could not use what it was sent. One that
    /// is damaged is replaced when the next is taken.
    pub(crate) fn examine(&self, file: &SnapshotFile) {
        if let Err(error) = self.verify(file)
            && self.note_damage(file)
        {
            let error = &error as &dyn std::error::Error;
            tracing::error!(group = %self.group, error, "snapshot is damaged, another is taken");
        }
    }

    /// Notes that a file cannot be read. False if that is known, or another is current by now.
    pub(crate) fn note_damage(&self, file: &SnapshotFile) -> bool {
        let current = self.current.lock();
        let is_current =
            current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.file, &file.file));
        is_current && !self.is_damaged.swap(true, Ordering::Relaxed)
    }

    /// Whether the current snapshot was found damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    /// The rows of a snapshot, each checked as it is read.
    pub(crate) fn rows(&self, file: &SnapshotFile) -> Result<Rows, SnapshotError> {
        let (mark, offset) = read_head(&*file.file, &file.path, self.group)?;
        if mark != file.mark {
            return Err(corrupt(&file.path, 0, "the head has changed"));
        }
        Ok(Rows {
            source: file.clone(),
            offset,
            block: 0,
            ready: Vec::new().into_iter(),
            read: 0,
            state: RowsState::Reading,
        })
    }

    fn verify(&self, file: &SnapshotFile) -> Result<(), SnapshotError> {
        self.rows(file)?.try_for_each(|row| row.map(drop))
    }

    fn open_file(&self, path: &Path) -> Result<SnapshotFile, SnapshotError> {
        let file = self.disk.open(path).map_err(disk_error("open", path))?;
        let (mark, _) = read_head(&*file, path, self.group)?;
        let bytes = file.length().map_err(disk_error("measure", path))?;
        let is_received = is_received(path);
        Ok(SnapshotFile { path: path.to_path_buf(), mark, bytes, is_received, file })
    }

    fn temporary_path(&self) -> PathBuf {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{}-{number}{TEMPORARY_SUFFIX}", self.group))
    }

    /// A file that stays is removed at the next start.
    fn remove(&self, path: &Path) {
        if let Err(error) = self.disk.remove(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "old snapshot file stays");
        }
    }
}

/// A snapshot that is being received, part by part.
pub(crate) struct IncomingSnapshot {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl IncomingSnapshot {
    /// How much has arrived.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the next part.
    pub(crate) fn write(&mut self, part: &[u8]) -> Result<(), SnapshotError> {
        self.file.write_at(part, self.bytes).map_err(disk_error("write", &self.path))?;
        self.bytes += part.len() as u64;
        Ok(())
    }
}

/// Iterates the rows of a snapshot file. Ends after the first error.
pub(crate) struct Rows {
    source: SnapshotFile,
    offset: u64,
    block: u64,
    ready: std::vec::IntoIter<Row>,
    read: u64,
    state: RowsState,
}

enum RowsState {
    Reading,
    Complete,
    Failed(SnapshotError),
}

impl Rows {
    /// How far the file was read.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Why the rows were not read to their end, if they were not.
    pub(crate) fn take_error(self) -> Option<SnapshotError> {
        let unread = self.ready.len() > 0;
        match self.state {
            RowsState::Complete if !unread => None,
            RowsState::Failed(error) => Some(error),
            RowsState::Reading | RowsState::Complete => {
                Some(corrupt(&self.source.path, self.offset, "it was not read to its end"))
            }
        }
    }

    /// Reads the next block; `false` at the end.
    fn next_block(&mut self) -> Result<bool, SnapshotError> {
        let path = &self.source.path;
        let mut head = [0; BLOCK_HEAD_BYTES];
        read_exact(&*self.source.file, path, self.offset, &mut head)?;
        let mut reader = &head[..];
        let (length, crc) = (u64::from(reader.get_u32()), reader.get_u32());
        let begin = self.offset + BLOCK_HEAD_BYTES as u64;
        let here = self.source.bytes.saturating_sub(begin).min(BLOCK_BYTES_MAX);
        if length == 0 || length > here {
            return Err(corrupt(path, self.offset, "a block's length does not fit"));
        }
        let length = usize::try_from(length).expect("a block's length is 32 bits wide");
        let mut payload = vec![0; length];
        read_exact(&*self.source.file, path, begin, &mut payload)?;
        if block_crc(self.block, &payload) != crc {
            return Err(corrupt(path, self.offset, "a block's checksum does not match"));
        }
        let more = self.decode(Bytes::from(payload))?;
        self.block += 1;
        self.offset = begin + length as u64;
        if !more && self.offset != self.source.bytes {
            return Err(corrupt(&self.source.path, self.offset, "bytes follow the end"));
        }
        Ok(more)
    }

    fn decode(&mut self, payload: Bytes) -> Result<bool, SnapshotError> {
        let (path, offset) = (&self.source.path, self.offset);
        let misfit = |_| corrupt(path, offset, "a block does not decode");
        let mut reader = wire::Reader::new(payload, "a block");
        match reader.u8().map_err(misfit)? {
            KIND_ROWS => {
                let mut rows = Vec::new();
                while !reader.is_empty() {
                    let key = reader.bytes().map_err(misfit)?;
                    rows.push(Row { key, value: reader.bytes().map_err(misfit)? });
                }
                self.read += rows.len() as u64;
                self.ready = rows.into_iter();
                Ok(true)
            }
            KIND_END => {
                let rows = reader.u64().map_err(misfit)?;
                reader.end().map_err(misfit)?;
                if rows == self.read {
                    Ok(false)
                } else {
                    Err(corrupt(path, offset, "the number of rows does not match"))
                }
            }
            _ => Err(corrupt(path, offset, "a block is of an unknown kind")),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, SnapshotError>;

    fn next(&mut self) -> Option<Result<Row, SnapshotError>> {
        loop {
            if let Some(row) = self.ready.next() {
                return Some(Ok(row));
            }
            if !matches!(self.state, RowsState::Reading) {
                return None;
            }
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => self.state = RowsState::Complete,
                Err(error) => {
                    self.state = RowsState::Failed(error.clone());
                    return Some(Err(error));
                }
            }
        }
    }
}

fn read_head(
    file: &dyn DiskFile,
    path: &Path,
    group: GroupId,
) -> Result<(Mark, u64), SnapshotError> {
    let mut fixed = [0; HEAD_FIXED_BYTES];
    read_exact(file, path, 0, &mut fixed)?;
    let mut reader = &fixed[MAGIC.len()..];
    let version = reader.get_u8();
    let (found, index) = (GroupId(reader.get_u32()), reader.get_u64());
    let mark_bytes = usize::try_from(reader.get_u32()).unwrap_or(usize::MAX);
    if !fixed.starts_with(MAGIC) || mark_bytes > MARK_BYTES_MAX {
        return Err(corrupt(path, 0, "it does not begin like a snapshot"));
    }
    let mut rest = vec![0; mark_bytes + 4];
    read_exact(file, path, HEAD_FIXED_BYTES as u64, &mut rest)?;
    let (mark, mut stored) = rest.split_at(mark_bytes);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&fixed), mark);
    if stored.get_u32() != crc {
        return Err(corrupt(path, 0, "the head's checksum does not match"));
    }
    if version != VERSION {
        return Err(SnapshotError::Newer { file: path.to_path_buf(), version });
    }
    if found != group {
        return Err(SnapshotError::OtherGroup { file: path.to_path_buf(), group, found });
    }
    let mark = Mark { index, bytes: Bytes::copy_from_slice(mark) };
    Ok((mark, (HEAD_FIXED_BYTES + mark_bytes + 4) as u64))
}

fn block_crc(block: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block.to_be_bytes()), payload)
}

fn read_exact(
    file: &dyn DiskFile,
    path: &Path,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), SnapshotError> {
    let read = file.read_at(buffer, offset).map_err(disk_error("read", path))?;
    if read == buffer.len() {
        return Ok(());
    }
    Err(corrupt(path, offset + read as u64, "it ends too early"))
}

fn corrupt(path: &Path, offset: u64, reason: &'static str) -> SnapshotError {
    SnapshotError::Corrupt { file: path.to_path_buf(), offset, reason }
}

fn disk_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Disk { doing, file: path.to_path_buf(), source: Arc::new(source) }
}

#[cfg(test)]
mod tests;
