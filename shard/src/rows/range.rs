//! The range of slots that a shard owns, as an entry of its log and a row of its own have it:
//! `version(8) first slot(2) end slot(2)`, big endian.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use piton_core::placement::{SLOTS, Slot};

/// The slots that a shard owns. Fences every transition inside the group (D1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotRange {
    /// Grows with each change; an older range is refused.
    pub(crate) version: u64,
    pub(crate) slots: Range<u16>,
}

/// Bytes that are not a range of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangeError {
    #[error("a range of slots ends too early")]
    Short,
    #[error("a range of slots is not valid")]
    Invalid,
}

impl SlotRange {
    pub(crate) fn contains(&self, slot: Slot) -> bool {
        self.slots.contains(&slot.0)
    }

    pub(crate) fn put(&self, bytes: &mut BytesMut) {
        bytes.put_u64(self.version);
        bytes.put_u16(self.slots.start);
        bytes.put_u16(self.slots.end);
    }

    pub(crate) fn take(rest: &mut Bytes) -> Result<SlotRange, RangeError> {
        let version = rest.try_get_u64().map_err(|_| RangeError::Short)?;
        let start = rest.try_get_u16().map_err(|_| RangeError::Short)?;
        let end = rest.try_get_u16().map_err(|_| RangeError::Short)?;
        if start > end || end > SLOTS {
            return Err(RangeError::Invalid);
        }
        Ok(SlotRange { version, slots: start..end })
    }
}
