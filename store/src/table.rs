//! One Raft group's rows that are applied but not yet checkpointed, over the shared store.
//!
//! Owns the group's mark (which log index the state stands at), the checkpoint (table to store)
//! and the replacement of the whole group by a snapshot. It never decides when a checkpoint is
//! due, and it never touches another group's keys.
//!
//! ```text
//! reads --> active layer --> frozen layer --> store         a key is looked for in this order
//!              ^                  |             ^
//!            apply             freeze --- checkpoint (one batch: rows and mark)
//!
//! store key of a row    group (4, big endian) | key
//! store key of a mark   ff ff ff ff | group (4, big endian)
//! value of a mark       index (8, big endian) | bytes of the Raft adapter
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use crate::{Batch, KeyRange, Order, Row, Store, StoreError, Write, key_after};

mod layer;
mod merge;

use layer::Layer;

/// The group number under which the store keeps its own records.
pub(crate) const RESERVED_GROUP: u32 = u32::MAX;
/// How often a read goes without the lock before it holds freezes back.
const READ_ATTEMPTS_MAX: usize = 3;

/// Where in the log a state stands: the index of the last entry applied, and what the Raft adapter
/// wants back with it (term, membership).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub index: u64,
    pub bytes: Bytes,
}

/// What a call of [`Table::checkpoint`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointReport {
    /// The store now stands at `index`; `rows` and `bytes` were written (deletes count as rows).
    Written {
        index: u64,
        rows: usize,
        bytes: usize,
    },
    /// Nothing was applied since the last checkpoint.
    Unchanged,
    Postponed(PostponedBecause),
}

/// Why a checkpoint did not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostponedBecause {
    /// The frozen rows stand at `index`, which the local log has not synced yet. They stay frozen,
    /// so the next call writes them once the log has caught up, whatever is applied meanwhile.
    BeyondLimit { index: u64 },
    /// A [`Held`] is alive.
    Held,
    /// Another checkpoint, a restore or the clearing of the group is at work.
    Busy,
}

/// The rows of one group; clones share them. Calls that reach the store block on the disk.
#[derive(Clone)]
pub struct Table {
    shared: Arc<Shared>,
}

struct Shared {
    group: u32,
    store: Arc<dyn Store>,
    /// Counts what makes the store differ from (store + layers) as a reader saw them: freezes and
    /// replacements. Changed only under the write lock of `layers`.
    generation: AtomicU64,
    layers: RwLock<Layers>,
    /// Held by whoever writes to the store; the number of [`Held`] alive.
    /// ORDER: taken before `layers`, never while holding it.
    store_turn: Mutex<usize>,
}

struct Layers {
    active: Layer,
    frozen: Option<(Arc<Layer>, Mark)>,
    applied: Option<Mark>,
    stored: Option<Mark>,
    /// From `begin_restore` until `finish`: the store's rows are neither the old nor the new ones.
    restoring: bool,
    /// How often the whole group was replaced.
    replacements: u64,
}

impl Table {
    /// Opens a group where the store stands. What an unfinished restore left behind is removed.
    pub fn open(store: Arc<dyn Store>, group: u32) -> Result<Table, StoreError> {
        if group == RESERVED_GROUP {
            return Err(StoreError::ReservedGroup { group });
        }
        let stored = match store.get(&mark_key(group))? {
            Some(value) => Some(decode_mark(group, &value)?),
            None => {
                // INVARIANT: rows without a mark are leftovers; a checkpoint writes both at once,
                // and a restore removes the mark first and writes it last.
                store.clear_prefix(&group.to_be_bytes())?;
                None
            }
        };
        let layers = Layers {
            active: Layer::default(),
            frozen: None,
            applied: stored.clone(),
            stored,
            restoring: false,
            replacements: 0,
        };
        let shared = Shared {
            group,
            store,
            generation: AtomicU64::new(0),
            layers: RwLock::new(layers),
            store_turn: Mutex::new(0),
        };
        Ok(Table { shared: Arc::new(shared) })
    }

    pub fn group(&self) -> u32 {
        self.shared.group
    }

    /// The mark of the last entry applied; `None`: nothing ever was.
    pub fn applied(&self) -> Option<Mark> {
        self.shared.layers.read().applied.clone()
    }

    /// The index the store stands at, synced; `None`: nothing was ever checkpointed.
    pub fn checkpointed(&self) -> Option<u64> {
        self.shared.layers.read().stored.as_ref().map(|mark| mark.index)
    }

    /// Bytes the layers take up in memory, about: keys, values and a fixed sum for each row.
    pub fn dirty_bytes(&self) -> usize {
        let layers = self.shared.layers.read();
        layers.active.bytes() + layers.frozen.as_ref().map_or(0, |(layer, _)| layer.bytes())
    }

    /// Reads one row.
    ///
    /// # Errors
    /// [`StoreError::Restoring`] between `begin_restore` and `finish`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.read(
            |layers| layers.get(key).cloned(),
            |found| match found {
                Some(value) => Ok(value),
                None => self.shared.store.get(&row_key(self.shared.group, key)),
            },
        )
    }

    /// Reads rows with `start <= key < end` in the given order, at most `limit`, all as of one
    /// applied index.
    ///
    /// # Errors
    /// [`StoreError::Restoring`] between `begin_restore` and `finish`.
    pub fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        self.read(
            |layers| {
                let frozen = layers.frozen.as_ref().map(|(layer, _)| layer.as_ref());
                merge::overlay(&layers.active, frozen, range, order, limit)
            },
            |overlay| {
                merge::with_store(
                    overlay,
                    self.shared.store.as_ref(),
                    self.shared.group,
                    range,
                    order,
                    limit,
                )
            },
        )
    }

    /// Applies the writes of one or more whole entries; readers see all of them or none. Keys and
    /// values are kept as they are: a slice of a large buffer keeps the buffer until checkpointed.
    ///
    /// # Panics
    /// If `mark` is before the last one, or a restore is going on: the caller broke the order of
    /// the log.
    pub fn apply(&self, writes: Vec<Write>, mark: Mark) {
        let mut layers = self.shared.layers.write();
        layers.advance(mark);
        for write in writes {
            match write {
                Write::Put { key, value } => layers.active.put(key, Some(value)),
                Write::Delete { key } => layers.active.put(key, None),
            }
        }
    }

    /// Goes past an entry that wrote nothing (blank, membership).
    ///
    /// # Panics
    /// As [`Table::apply`].
    pub fn advance(&self, mark: Mark) {
        self.shared.layers.write().advance(mark);
    }

    /// Writes what was applied since the last checkpoint, merged, and the mark, as one atomic
    /// batch, and syncs it. `limit` is the last index that the local log has synced: the store
    /// never passes it, since a log that lost its tail could not explain such a store.
    ///
    /// One runs at a time, and none while the group is emptied or filled. After an error the rows stay in
    /// the table, and the next call writes them again.
    pub fn checkpoint(&self, limit: u64) -> Result<CheckpointReport, StoreError> {
        // A group that is being emptied or filled must not keep the others' checkpoints waiting.
        let Some(holds) = self.shared.store_turn.try_lock() else {
            return Ok(CheckpointReport::Postponed(PostponedBecause::Busy));
        };
        if *holds > 0 {
            return Ok(CheckpointReport::Postponed(PostponedBecause::Held));
        }
        let Some((layer, mark)) = self.freeze()? else {
            return Ok(CheckpointReport::Unchanged);
        };
        if mark.index > limit {
            let because = PostponedBecause::BeyondLimit { index: mark.index };
            return Ok(CheckpointReport::Postponed(because));
        }
        let mut writes = Vec::with_capacity(layer.len() + 1);
        writes.extend(layer.iter().map(|(key, value)| {
            let key = row_key(self.shared.group, key);
            match value {
                Some(value) => Write::Put { key, value: value.clone() },
                None => Write::Delete { key },
            }
        }));
        writes.push(mark_write(self.shared.group, &mark));
        let losses = self.shared.store.losses();
        self.shared.store.write(Batch { writes })?;
        self.shared.store.sync()?;
        self.shared.refuse_if_lost(losses)?;
        let report = CheckpointReport::Written {
            index: mark.index,
            rows: layer.len(),
            bytes: layer.bytes(),
        };
        let mut layers = self.shared.layers.write();
        layers.frozen = None;
        layers.stored = Some(mark);
        Ok(report)
    }

    /// Holds checkpoints back while the result is alive, and reads the store's rows of this group,
    /// which stand at exactly the checkpointed mark. Waits for a running checkpoint.
    ///
    /// # Errors
    /// [`StoreError::NoCheckpoint`] if there never was one; [`StoreError::Restoring`].
    pub fn hold(&self) -> Result<Held, StoreError> {
        let group = self.shared.group;
        let mut holds = self.shared.store_turn.lock();
        let layers = self.shared.layers.read();
        layers.refuse_if_restoring(group)?;
        let mark = layers.stored.clone().ok_or(StoreError::NoCheckpoint { group })?;
        *holds += 1;
        Ok(Held {
            table: self.clone(),
            mark,
            replacements: layers.replacements,
            next: Some(row_key(group, &[])),
        })
    }

    /// Empties the group, in the store too, to be filled with the rows of a snapshot. Until
    /// [`Restore::finish`], reads are refused, and a crash leaves the group empty without a mark.
    /// A restore begun later takes over from this one. A [`Held`] ends with an error.
    pub fn begin_restore(&self) -> Result<Restore, StoreError> {
        let group = self.shared.group;
        let _turn = self.shared.store_turn.lock();
        let replacements = {
            let mut layers = self.shared.layers.write();
            layers.active = Layer::default();
            layers.frozen = None;
            layers.applied = None;
            layers.stored = None;
            layers.restoring = true;
            layers.replacements += 1;
            self.shared.generation.fetch_add(1, Ordering::Release);
            layers.replacements
        };
        let losses = self.shared.store.losses();
        // ORDER: the mark is gone for good before any row is touched, so that no crash leaves a
        // mark above rows that it does not stand for.
        self.shared.store.write(Batch { writes: vec![Write::delete(mark_key(group))] })?;
        self.shared.store.sync()?;
        self.shared.store.clear_prefix(&group.to_be_bytes())?;
        Ok(Restore { table: self.clone(), replacements, losses })
    }

    /// Empties the group for good: no rows, no mark; it can be applied to from the log's start.
    pub fn clear(&self) -> Result<(), StoreError> {
        self.begin_restore()?.end(None)
    }

    /// Moves what was applied into the frozen layer, unless one is still waiting to be written.
    fn freeze(&self) -> Result<Option<(Arc<Layer>, Mark)>, StoreError> {
        let mut layers = self.shared.layers.write();
        layers.refuse_if_restoring(self.shared.group)?;
        if layers.frozen.is_none() {
            let Some(mark) = layers.applied.clone() else { return Ok(None) };
            if layers.stored.as_ref() == Some(&mark) {
                return Ok(None);
            }
            let layer = Arc::new(std::mem::take(&mut layers.active));
            layers.frozen = Some((layer, mark));
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
        Ok(layers.frozen.clone())
    }

    /// Reads the layers, then the store, as of one moment.
    ///
    /// INVARIANT: while the generation stands still, the store changes only by rows of the frozen
    /// layer that `from_layers` saw, which cover them. So the store is read without the lock (it
    /// may take long), and the read is repeated if a freeze or a restore came between.
    fn read<Found, Answer>(
        &self,
        from_layers: impl Fn(&Layers) -> Found,
        from_store: impl Fn(Found) -> Result<Answer, StoreError>,
    ) -> Result<Answer, StoreError> {
        for _ in 0..READ_ATTEMPTS_MAX {
            let (found, generation) = {
                let layers = self.shared.layers.read();
                layers.refuse_if_restoring(self.shared.group)?;
                (from_layers(&layers), self.shared.generation.load(Ordering::Acquire))
            };
            let answer = from_store(found);
            if self.shared.generation.load(Ordering::Acquire) == generation {
                return answer;
            }
        }
        let layers = self.shared.layers.read();
        layers.refuse_if_restoring(self.shared.group)?;
        from_store(from_layers(&layers))
    }
}

impl Shared {
    /// Whether what was written since `losses` were counted is still there, once it is synced.
    fn refuse_if_lost(&self, losses: u64) -> Result<(), StoreError> {
        let is_kept = self.store.losses() == losses;
        if is_kept { Ok(()) } else { Err(StoreError::Unsynced { group: self.group }) }
    }
}

impl Layers {
    /// `Some(None)`: known to be deleted. `None`: the store knows.
    fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        let frozen = || self.frozen.as_ref().and_then(|(layer, _)| layer.get(key));
        self.active.get(key).or_else(frozen)
    }

    fn advance(&mut self, mark: Mark) {
        assert!(!self.restoring, "entry {} applied during a restore", mark.index);
        if let Some(applied) = &self.applied {
            let last = applied.index;
            assert!(mark.index >= last, "entry {} applied after {last}", mark.index);
        }
        self.applied = Some(mark);
    }

    fn refuse_if_restoring(&self, group: u32) -> Result<(), StoreError> {
        if self.restoring { Err(StoreError::Restoring { group }) } else { Ok(()) }
    }
}

/// Reads the rows a group has in the store, at exactly one mark, in key order. While it is alive,
/// checkpoints are postponed; the table takes the writes.
pub struct Held {
    table: Table,
    mark: Mark,
    replacements: u64,
    /// The store key to go on from; `None`: all rows were read.
    next: Option<Bytes>,
}

impl Held {
    /// The mark at which all rows stand.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// The next rows, at most `limit` (at least one row is read); empty: there are no more.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if a restore began meanwhile.
    pub fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, StoreError> {
        let Some(start) = self.next.clone() else { return Ok(Vec::new()) };
        let shared = &self.table.shared;
        let limit = limit.max(1);
        let end = rows_end(shared.group);
        let found = shared.store.scan(KeyRange::new(&start, &end), Order::Ascending, limit);
        // ORDER: checked after the scan; a restore counts itself before it deletes a row.
        if shared.layers.read().replacements != self.replacements {
            return Err(StoreError::Replaced { group: shared.group });
        }
        let rows = found?;
        self.next = match rows.last() {
            Some(row) if rows.len() == limit => Some(key_after(&row.key)),
            Some(_) | None => None,
        };
        Ok(rows.into_iter().map(without_group).collect())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.table.shared.store_turn.lock() -= 1;
    }
}

/// Fills an emptied group; see [`Table::begin_restore`]. Dropped unfinished, it leaves a group that
/// refuses reads until another restore finishes or the table is opened again (then empty).
pub struct Restore {
    table: Table,
    replacements: u64,
    /// The store's when it began.
    losses: u64,
}

impl Restore {
    /// Writes rows of the snapshot, as one batch: the caller bounds its size.
    pub fn rows(&mut self, rows: Vec<Row>) -> Result<(), StoreError> {
        let shared = &self.table.shared;
        let _turn = shared.store_turn.lock();
        self.refuse_if_replaced()?;
        let put = |row: Row| Write::Put { key: row_key(shared.group, &row.key), value: row.value };
        shared.store.write(Batch { writes: rows.into_iter().map(put).collect() })
    }

    /// Makes the rows the group's state, durably; `mark` is what they stand for.
    pub fn finish(self, mark: Mark) -> Result<(), StoreError> {
        self.end(Some(mark))
    }

    fn end(self, mark: Option<Mark>) -> Result<(), StoreError> {
        let shared = &self.table.shared;
        let _turn = shared.store_turn.lock();
        self.refuse_if_replaced()?;
        // ORDER: looked at before the mark is written, which must not stand above rows that are lost.
        shared.store.sync()?;
        shared.refuse_if_lost(self.losses)?;
        if let Some(mark) = &mark {
            // ORDER: the mark is the last batch; batches become durable in the order written.
            shared.store.write(Batch { writes: vec![mark_write(shared.group, mark)] })?;
            shared.store.sync()?;
            shared.refuse_if_lost(self.losses)?;
        }
        let mut layers = shared.layers.write();
        layers.applied = mark.clone();
        layers.stored = mark;
        layers.restoring = false;
        Ok(())
    }

    fn refuse_if_replaced(&self) -> Result<(), StoreError> {
        let group = self.table.shared.group;
        let current = self.table.shared.layers.read().replacements == self.replacements;
        if current { Ok(()) } else { Err(StoreError::Replaced { group }) }
    }
}

fn row_key(group: u32, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 + key.len());
    bytes.put_u32(group);
    bytes.put_slice(key);
    bytes.freeze()
}

/// The first store key after the group's rows.
fn rows_end(group: u32) -> [u8; 4] {
    // INVARIANT: the greatest group is reserved (checked by `open`), so this does not wrap.
    (group + 1).to_be_bytes()
}

/// Takes the group's number off a row as it came from the store.
fn without_group(row: Row) -> Row {
    Row { key: row.key.slice(4..), value: row.value }
}

fn mark_key(group: u32) -> Bytes {
    row_key(RESERVED_GROUP, &group.to_be_bytes())
}

fn mark_write(group: u32, mark: &Mark) -> Write {
    let mut value = BytesMut::with_capacity(8 + mark.bytes.len());
    value.put_u64(mark.index);
    value.put_slice(&mark.bytes);
    Write::Put { key: mark_key(group), value: value.freeze() }
}

pub(crate) fn decode_mark(group: u32, value: &Bytes) -> Result<Mark, StoreError> {
    match value.first_chunk() {
        Some(index) => Ok(Mark { index: u64::from_be_bytes(*index), bytes: value.slice(8..) }),
        None => Err(StoreError::Corrupt { key: mark_key(group), what: "the mark is cut short" }),
    }
}
