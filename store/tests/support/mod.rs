//! What the table's tests share.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use piton_store::{Batch, KeyRange, Mark, MemoryStore, Order, Passing, Row, Store, StoreError};

pub(crate) const GROUP: u32 = 7;
pub(crate) const NO_LIMIT: u64 = u64::MAX;

pub(crate) fn mark(index: u64) -> Mark {
    Mark { index, bytes: Bytes::from(format!("mark of {index}")) }
}

/// A store whose calls begin to fail after a number of changes, half of them after the change was
/// made: what a full disk or a kill amid a checkpoint looks like from above.
pub(crate) struct Failing {
    pub(crate) inner: Arc<MemoryStore>,
    pub(crate) changes_left: AtomicI64,
    /// Done once, when rows are read next, before they are.
    pub(crate) before_scan: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Failing {
    pub(crate) fn over(inner: Arc<MemoryStore>, changes_left: i64) -> Arc<Failing> {
        let changes_left = AtomicI64::new(changes_left);
        Arc::new(Failing { inner, changes_left, before_scan: Mutex::default() })
    }

    fn change(&self, change: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let refused = || StoreError::Stopped { doing: "a test" };
        match self.changes_left.fetch_sub(1, Ordering::SeqCst) {
            1.. => change(),
            0 => change().and(Err(refused())),
            _ => Err(refused()),
        }
    }
}

impl Passing for Failing {
    fn below(&self) -> &dyn Store {
        self.inner.as_ref()
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if let Some(first) = self.before_scan.lock().unwrap().take() {
            first();
        }
        self.inner.scan(range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.change(|| self.inner.write(batch))
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.change(|| self.inner.clear_prefix(prefix))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.change(|| self.inner.sync())
    }
}
