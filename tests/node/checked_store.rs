//! A node's own store behind a check that may refuse or panic.

use std::sync::Arc;

use bytes::Bytes;
use piton_store::{Batch, KeyRange, Order, Passing, Row, Store, StoreError};

/// Told the key that is read first, or nothing where something is written.
pub(crate) type Check = Box<dyn Fn(&[u8]) -> Result<(), StoreError> + Send + Sync>;

pub(crate) struct CheckedStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) check: Check,
}

impl Passing for CheckedStore {
    fn below(&self) -> &dyn Store {
        self.store.as_ref()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        (self.check)(key)?;
        self.store.get(key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        (self.check)(range.start)?;
        self.store.scan(range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        (self.check)(&[])?;
        self.store.write(batch)
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        (self.check)(&[])?;
        self.store.clear_prefix(prefix)
    }

    fn sync(&self) -> Result<(), StoreError> {
        (self.check)(&[])?;
        self.store.sync()
    }
}
