//! A store over another one, which does most of what it is asked as that one does.

use bytes::Bytes;

use crate::{Batch, Compacted, KeyRange, Order, Row, Store, StoreError};

/// What is not said here, the store below does. Whatever is one is a [`Store`]. For tests that have a
/// store fail, wait or lose at one call.
pub trait Passing: Send + Sync + 'static {
    /// The store below.
    fn below(&self) -> &dyn Store;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.below().get(key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.below().scan(range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.below().write(batch)
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.below().clear_prefix(prefix)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.below().sync()
    }
}

impl<P: Passing> Store for P {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Passing::get(self, key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        Passing::scan(self, range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        Passing::write(self, batch)
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        Passing::clear_prefix(self, prefix)
    }

    fn sync(&self) -> Result<(), StoreError> {
        Passing::sync(self)
    }

    fn losses(&self) -> u64 {
        self.below().losses()
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.below().bytes_on_disk()
    }

    fn compact(&self, go_on: &dyn Fn() -> bool) -> Result<Option<Compacted>, StoreError> {
        self.below().compact(go_on)
    }

    fn close(&self) {
        self.below().close();
    }
}
