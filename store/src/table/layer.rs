//! A sorted set of changed rows in memory; the later change of a key replaces the earlier one.
//! It never knows what lies below it, so a delete stays as a mark of absence.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::{KeyRange, Order};

/// What a row costs beside its key and value: two `Bytes`, its place in the tree, allocations.
const ROW_OVERHEAD_BYTES: usize = 128;

#[derive(Default)]
pub(super) struct Layer {
    /// `None`: the row is deleted.
    rows: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl Layer {
    pub(super) fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        let value_bytes = value_bytes(&value);
        let key_bytes = key.len();
        match self.rows.insert(key, value) {
            Some(old) => self.bytes -= self::value_bytes(&old),
            None => self.bytes += key_bytes + ROW_OVERHEAD_BYTES,
        }
        self.bytes += value_bytes;
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.rows.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Bytes, &Option<Bytes>)> {
        self.rows.iter()
    }

    /// The rows of a range that is not empty, in the given order.
    pub(super) fn range<'a>(
        &'a self,
        range: KeyRange<'_>,
        order: Order,
    ) -> Box<dyn Iterator<Item = (&'a Bytes, &'a Option<Bytes>)> + 'a> {
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.rows.range::<[u8], _>((Bound::Included(range.start), end));
        match order {
            Order::Ascending => Box::new(rows),
            Order::Descending => Box::new(rows.rev()),
        }
    }
}

fn value_bytes(value: &Option<Bytes>) -> usize {
    value.as_ref().map_or(0, Bytes::len)
}
