//! This crate's decoders, to be given hostile bytes: by its tests, and by the targets in
//! `tests/fuzz`. See `piton_store::fuzzing` for what a decoder function is and how bytes go wrong.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use piton_store::Mark;

use crate::error::SnapshotError;
use crate::frame::Frame;
use crate::log::{Disk, FaultyDisk, GroupId};
use crate::snapshot::{self, Snapshots};
use crate::wire;

pub use crate::log::fuzzing::{record, segment_file, segment_of_valid_records};

const GROUP: GroupId = GroupId(7);

/// A frame from another node.
pub fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(Bytes::copy_from_slice(bytes)) {
        // Sets may have come unsorted, so the bytes need not be the same, but what they say is.
        let again = Frame::decode(frame.encode()).expect("it was encoded");
        assert_eq!(format!("{again:?}"), format!("{frame:?}"));
    }
}

/// What the log and a mark hold beside entries: votes, log ids, memberships.
pub fn wire(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(vote) = wire::vote_from_bytes(bytes.clone()) {
        assert_eq!(wire::vote_to_bytes(&vote), bytes);
    }
    if let Ok(id) = wire::log_id_from_bytes(bytes.clone()) {
        assert_eq!(wire::log_id_to_bytes(&id), bytes);
    }
    if let Ok(entry) = wire::entry_from_parts(3, 4, bytes.clone()) {
        let record = wire::entry_to_record(&entry);
        assert_eq!(wire::entry_from_parts(3, 4, record).expect("it was encoded"), entry);
    }
    if let Ok((applied, membership)) = wire::mark_parts(&Mark { index: 4, bytes }) {
        let again = wire::mark(&applied, &membership);
        assert_eq!(wire::mark_parts(&again).expect("it was encoded"), (applied, membership));
    }
}

/// A snapshot file as it lies on the disk or comes from another node.
pub fn snapshot_file(bytes: &[u8]) {
    read_snapshot(bytes);
}

/// A snapshot file whose checksums are right, whatever else it says. Of the input, the first byte is
/// the length of the mark that follows; then come blocks, each a length of two bytes and so many.
pub fn snapshot_of_valid_blocks(bytes: &[u8]) {
    let mut rest = bytes;
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at(length.min(rest.len()));
        rest = left;
        taken
    };
    let mark_bytes = take(1).first().copied().map_or(0, usize::from);
    let mut file = BytesMut::from(&snapshot::head_bytes(GROUP, 4, take(mark_bytes))[..]);
    for number in 0.. {
        let &[high, low] = take(2) else { break };
        let payload = take(usize::from(high) << 8 | usize::from(low));
        file.put_slice(&snapshot::block_bytes(number, payload));
    }
    read_snapshot(&file);
}

fn read_snapshot(bytes: &[u8]) {
    let disk = FaultyDisk::new(0);
    let dir = PathBuf::from("/snapshot");
    disk.create_dir(&dir).expect("memory takes all");
    put_file(&disk, &dir.join(format!("{GROUP}-4.snapshot")), bytes);
    let read = || -> Result<(), SnapshotError> {
        let snapshots =
            Snapshots::open(Arc::new(disk.clone()), dir.clone(), GROUP, Arc::default())?;
        let Some(file) = snapshots.current() else { return Ok(()) };
        // The mark goes to the adapter, which decodes it.
        let _ = wire::mark_parts(&file.mark);
        snapshots.rows(&file)?.try_for_each(|row| row.map(drop))
    };
    let _ = read();
}

pub(crate) fn put_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let file = disk.create(path).expect("memory takes all");
    file.write_at(bytes, 0).expect("memory takes all");
}

#[cfg(test)]
mod tests;
