//! The store in memory, with crashes at will: for tests, where it stands in for a disk that keeps
//! what was synced and forgets the rest. It never touches a file.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::frame::{Engine, Framed, View};
use crate::{KeyRange, Order, Row, StoreError, Write};

/// A [`crate::Store`] in memory.
pub type MemoryStore = Framed<MemoryEngine>;

#[derive(Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
    /// As sled's.
    between_batches: RwLock<()>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Bytes, Bytes>,
    /// For each batch since the last sync, in order: what its keys held before it.
    unsynced: Vec<Vec<(Bytes, Option<Bytes>)>>,
}

impl MemoryStore {
    #[expect(clippy::new_without_default, reason = "a store is opened, not defaulted")]
    pub fn new() -> MemoryStore {
        Framed::over(MemoryEngine::default())
    }

    /// Drops every batch that was not synced, as the end of the process would at worst.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Drops the batches that were not synced but for the first `batches` of them: a disk may have
    /// kept more than it promised.
    pub fn crash_keeping(&self, batches: usize) {
        let mut state = self.engine().state.write();
        let from = batches.min(state.unsynced.len());
        let undone = state.unsynced.split_off(from);
        for (key, before) in undone.into_iter().rev().flatten() {
            state.set(key, before);
        }
        state.unsynced.clear();
    }

    /// How many batches a crash would drop.
    pub fn batches_unsynced(&self) -> usize {
        self.engine().state.read().unsynced.len()
    }
}

impl State {
    /// Changes one row and returns what it held before.
    fn set(&mut self, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        match value {
            Some(value) => self.rows.insert(key, value),
            None => self.rows.remove(&key),
        }
    }
}

impl View for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state.read().rows.get(key).cloned())
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let state = self.state.read();
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let found = state.rows.range::<[u8], _>((Bound::Included(range.start), end));
        let row = |(key, value): (&Bytes, &Bytes)| Row { key: key.clone(), value: value.clone() };
        Ok(match order {
            Order::Ascending => found.take(limit).map(row).collect(),
            Order::Descending => found.rev().take(limit).map(row).collect(),
        })
    }
}

impl Engine for MemoryEngine {
    fn view<T>(
        &self,
        read: impl FnOnce(&dyn View) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _between = self.between_batches.read();
        read(self)
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let _alone = self.between_batches.write();
        let mut state = self.state.write();
        let mut before = Vec::with_capacity(writes.len());
        for write in writes {
            let (key, value) = match write {
                Write::Put { key, value } => (key, Some(value)),
                Write::Delete { key } => (key, None),
            };
            let held = state.set(key.clone(), value);
            before.push((key, held));
        }
        state.unsynced.push(before);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.state.write().unsynced.clear();
        Ok(())
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        let state = self.state.read();
        Ok(state.rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }

    fn close(&self) {}
}
