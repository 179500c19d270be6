//! A store whose failures are told to whoever must act on them: the node, which then discards it
//! and rebuilds it from snapshots and the log (D13).

use std::sync::Arc;

use bytes::Bytes;

use crate::{Batch, Compacted, KeyRange, Order, Row, Store, StoreError};

/// Hears of an error that only a rebuild repairs. Called on the thread that met it.
pub type FailureListener = Box<dyn Fn(&StoreError) + Send + Sync>;

/// Passes every call on, and tells of errors. The caller gets them too.
pub struct Watched {
    store: Arc<dyn Store>,
    listener: FailureListener,
}

impl Watched {
    pub fn over(store: Arc<dyn Store>, listener: FailureListener) -> Watched {
        Watched { store, listener }
    }

    fn watch<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && error.needs_rebuild()
        {
            (self.listener)(error);
        }
        result
    }
}

impl Store for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.watch(self.store.get(key))
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.watch(self.store.scan(range, order, limit))
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.watch(self.store.write(batch))
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.watch(self.store.clear_prefix(prefix))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.watch(self.store.sync())
    }

    fn losses(&self) -> u64 {
        self.store.losses()
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.watch(self.store.bytes_on_disk())
    }

    /// An error of it is not one of the store's: if the store has failed too, the next call tells.
    fn compact(&self, go_on: &dyn Fn() -> bool) -> Result<Option<Compacted>, StoreError> {
        self.store.compact(go_on)
    }

    fn close(&self) {
        self.store.close();
    }
}
