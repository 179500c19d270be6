//! Lays out the bytes of a snapshot file.

use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use piton_store::Row;

use super::{
    BLOCK_BYTES, BLOCK_HEAD_BYTES, KIND_END, KIND_ROWS, MAGIC, VERSION, block_crc, disk_error,
};
use crate::error::SnapshotError;
use crate::log::{DiskFile, GroupId};
use crate::wire;
use piton_store::Mark;

/// Lays out a snapshot file from front to back.
pub(super) struct Writer<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    offset: u64,
    block: u64,
    rows: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(file: &'a dyn DiskFile, path: &'a Path) -> Self {
        Self { file, path, offset: 0, block: 0, rows: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file.write_at(bytes, self.offset).map_err(disk_error("write", self.path))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn head(&mut self, group: GroupId, mark: &Mark) -> Result<(), SnapshotError> {
        self.put(&head_bytes(group, mark.index, &mark.bytes))
    }

    pub(super) fn rows(&mut self, rows: &[Row]) -> Result<(), SnapshotError> {
        let mut payload = BytesMut::new();
        for row in rows {
            if payload.is_empty() {
                payload.put_u8(KIND_ROWS);
            }
            wire::put_bytes(&mut payload, &row.key);
            wire::put_bytes(&mut payload, &row.value);
            self.rows += 1;
            if payload.len() >= BLOCK_BYTES {
                self.block(&payload)?;
                payload.clear();
            }
        }
        if payload.is_empty() { Ok(()) } else { self.block(&payload) }
    }

    pub(super) fn end(&mut self) -> Result<(), SnapshotError> {
        let mut payload = BytesMut::new();
        payload.put_u8(KIND_END);
        payload.put_u64(self.rows);
        self.block(&payload)
    }

    fn block(&mut self, payload: &[u8]) -> Result<(), SnapshotError> {
        let block = block_bytes(self.block, payload);
        self.block += 1;
        self.put(&block)
    }
}

/// The head of a file.
pub(crate) fn head_bytes(group: GroupId, index: u64, mark: &[u8]) -> Bytes {
    let mut head = BytesMut::new();
    head.put_slice(MAGIC);
    head.put_u8(VERSION);
    head.put_u32(group.0);
    head.put_u64(index);
    wire::put_bytes(&mut head, mark);
    let crc = crc32c::crc32c(&head);
    head.put_u32(crc);
    head.freeze()
}

/// A block with its length and checksum.
pub(crate) fn block_bytes(number: u64, payload: &[u8]) -> Bytes {
    let mut block = BytesMut::with_capacity(payload.len() + BLOCK_HEAD_BYTES);
    block.put_u32(wire::length(payload.len()));
    block.put_u32(block_crc(number, payload));
    block.put_slice(payload);
    block.freeze()
}
