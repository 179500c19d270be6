//! Reads entries back from a segment and checks that they are what was written. Owns a small
//! read-ahead, since a lagging follower reads entries that lie one after the other.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskFile;
use super::index::Slot;
use super::record::{self, HEADER_BYTES, Place, RecordKind, Unread};
use super::{GroupId, LogError};

const READ_AHEAD_BYTES: usize = 64 << 10;

pub(super) struct EntryReader {
    pub(super) segment: u64,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    buffer: Vec<u8>,
    buffer_start: u32,
}

impl EntryReader {
    pub(super) fn new(segment: u64, file: Arc<dyn DiskFile>, path: PathBuf) -> EntryReader {
        EntryReader { segment, file, path, buffer: Vec::new(), buffer_start: 0 }
    }

    /// Reads the bytes of one entry.
    pub(super) fn read(
        &mut self,
        group: GroupId,
        index: u64,
        slot: &Slot,
        offset: u32,
    ) -> Result<Bytes, LogError> {
        let length = HEADER_BYTES + slot.length as usize;
        self.fill(offset, length)?;
        let start = (offset - self.buffer_start) as usize;
        let bytes = self.buffer.get(start..start + length).unwrap_or_default();
        let place = Place { segment: self.segment, offset };
        let damaged = |damage| LogError::corrupt(&self.path, u64::from(offset), damage);
        let (header, payload) = record::decode(bytes, place).map_err(|unread| match unread {
            Unread::Invalid => damaged("an entry is not as written"),
            Unread::Newer(newer) => LogError::newer(&self.path, u64::from(offset), newer),
        })?;
        let is_entry = matches!(header.kind, RecordKind::Entry | RecordKind::RewrittenEntry);
        if !is_entry || (header.group, header.index, header.term) != (group, index, slot.term) {
            return Err(damaged("another record where an entry should be"));
        }
        Ok(Bytes::copy_from_slice(payload))
    }

    /// Makes the buffer hold these bytes, as far as the file has them.
    fn fill(&mut self, offset: u32, length: usize) -> Result<(), LogError> {
        let have =
            u64::from(self.buffer_start)..u64::from(self.buffer_start) + self.buffer.len() as u64;
        if have.contains(&u64::from(offset)) && u64::from(offset) + length as u64 <= have.end {
            return Ok(());
        }
        let failed = |error| LogError::disk("read entry from", &self.path, error);
        // The length may come from a footer: no room is made for more than the file has.
        let left = self.file.length().map_err(failed)?.saturating_sub(u64::from(offset));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        self.buffer.resize(length.max(READ_AHEAD_BYTES).min(left), 0);
        let read = self.file.read_at(&mut self.buffer, u64::from(offset)).map_err(failed)?;
        self.buffer.truncate(read);
        self.buffer_start = offset;
        Ok(())
    }
}
