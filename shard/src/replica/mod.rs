//! A shard's replica: decode, check the fence, put the rows (step 5 of a request's way). No workflow
//! logic, no clock: every replica of the group does exactly the same (D3, D4).

pub(crate) mod checkpoint;
pub(crate) mod entry;
pub(crate) mod proposer;

use std::collections::HashMap;

use bytes::Bytes;
use piton_core::id::Position;
use piton_core::placement::slot_of;
use piton_raft::{CommittedEntry, Replica, ReplicaError, SnapshotError, SnapshotRows};
use piton_store::{Held, Mark, Row, Table, Write};

use crate::replica::checkpoint::Checkpoints;
use crate::replica::entry::{Entry, TransitionRecord, Verdict};
use crate::rows::range::SlotRange;
use crate::rows::writes::range_write;
use crate::rows::{EntityKey, WorkflowRows, decode_position};

/// Rows of a snapshot written to the store at once.
const RESTORE_ROWS: usize = 1_024;
/// Bytes of such rows.
const RESTORE_BYTES: usize = 4 << 20;

/// A shard's state as Raft applies to it.
pub(crate) struct ShardReplica {
    rows: WorkflowRows,
    checkpoints: Option<Checkpoints>,
    /// The range row, read once: only `apply` and `restore` change it.
    range: Option<SlotRange>,
}

impl ShardReplica {
    /// # Errors
    /// When the shard's range cannot be read.
    pub(crate) fn open(rows: WorkflowRows) -> Result<ShardReplica, ReplicaError> {
        let range = rows.range().map_err(|e| ReplicaError::new("read its slot range", e))?;
        Ok(ShardReplica { rows, checkpoints: None, range })
    }

    /// From now on it waits for these where too much waits for the store.
    pub(crate) fn slowed_by(self, checkpoints: Checkpoints) -> ShardReplica {
        ShardReplica { checkpoints: Some(checkpoints), ..self }
    }

    fn table(&self) -> &Table {
        self.rows.table()
    }

    /// All rows are others now.
    fn begin_anew(&mut self) -> Result<(), ReplicaError> {
        self.rows.known_positions().clear();
        let range = self.rows.range();
        self.range = range.map_err(|e| ReplicaError::new("read its slot range", e))?;
        Ok(())
    }
}

impl Replica for ShardReplica {
    fn applied(&self) -> Option<Mark> {
        self.table().applied()
    }

    fn checkpointed(&self) -> u64 {
        self.table().checkpointed().unwrap_or(0)
    }

    fn apply(
        &mut self,
        entries: Vec<CommittedEntry>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError> {
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.await_room();
        }
        let decoded = decode(&entries)?;
        self.apply_decoded(decoded, mark)
    }

    fn try_apply(
        &mut self,
        entries: &[CommittedEntry],
        mark: &Mark,
    ) -> Result<Option<Vec<Bytes>>, ReplicaError> {
        // The thread of the replica may wait until there is room; Raft's own may not.
        if self.checkpoints.as_ref().is_some_and(|checkpoints| !checkpoints.has_room()) {
            return Ok(None);
        }
        let decoded = decode(entries)?;
        let known = self.rows.known_positions();
        let is_known = |(_, entry): &(u64, Entry)| match entry {
            Entry::Range(_) => true,
            Entry::Transitions(transitions) => {
                transitions.iter().all(|transition| known.get(&transition.key).is_some())
            }
        };
        if !decoded.iter().all(is_known) {
            return Ok(None);
        }
        self.apply_decoded(decoded, mark.clone()).map(Some)
    }

    fn advance(&mut self, mark: Mark) {
        self.table().advance(mark);
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotRows>, ReplicaError> {
        snapshot(self.table())
    }

    fn restore(
        &mut self,
        mark: Mark,
        rows: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
    ) -> Result<(), ReplicaError> {
        restore(self.table(), mark, rows)?;
        self.begin_anew()
    }

    fn clear(&mut self) -> Result<(), ReplicaError> {
        self.table().clear().map_err(|e| ReplicaError::new("clear its rows", e))?;
        self.begin_anew()
    }
}

impl ShardReplica {
    fn apply_decoded(
        &mut self,
        entries: Vec<(u64, Entry)>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError> {
        let mut batch = ApplyBatch {
            rows: &self.rows,
            range: self.range.clone(),
            positions: HashMap::new(),
            writes: Vec::new(),
        };
        let mut verdicts = Vec::with_capacity(entries.len());
        for (term, entry) in entries {
            let found = match entry {
                Entry::Range(range) => vec![batch.put_range(range)],
                Entry::Transitions(transitions) => transitions
                    .into_iter()
                    .map(|transition| batch.put(transition, term))
                    .collect::<Result<_, _>>()?,
            };
            verdicts.push(entry::encode_verdicts(&found));
        }
        let ApplyBatch { range, positions, writes, .. } = batch;
        self.range = range;
        self.table().apply(writes, mark);
        self.rows.known_positions().moved(positions);
        Ok(verdicts)
    }
}

/// Entries with their terms. One that does not decode is damage or a newer release's: the shard
/// stops here.
fn decode(entries: &[CommittedEntry]) -> Result<Vec<(u64, Entry)>, ReplicaError> {
    let decode = |committed: &CommittedEntry| {
        let entry = entry::decode_entry(committed.payload.clone())
            .map_err(|e| ReplicaError::new("decode a committed entry", e))?;
        Ok((committed.term, entry))
    };
    entries.iter().map(decode).collect()
}

/// The entries that are applied together, as far as they were checked.
struct ApplyBatch<'a> {
    rows: &'a WorkflowRows,
    range: Option<SlotRange>,
    /// Positions that this batch has moved; the table does not have them yet.
    positions: HashMap<EntityKey, Position>,
    writes: Vec<Write>,
}

impl ApplyBatch<'_> {
    /// Checks the fence; puts the writes or drops the transition alone.
    fn put(
        &mut self,
        transition: TransitionRecord,
        entry_term: u64,
    ) -> Result<Verdict, ReplicaError> {
        let TransitionRecord { term, key, base, writes } = transition;
        if !self.range.as_ref().is_some_and(|range| range.contains(slot_of(&key.key))) {
            return Ok(Verdict::SlotNotHere);
        }
        // The term is compared with the entry's, never with this replica's vote.
        if term != entry_term {
            return Ok(Verdict::WrongTerm);
        }
        if self.position(&key)? != base {
            return Ok(Verdict::Moved);
        }
        let current = key.rows().current();
        let moved = writes.iter().rev().find(|write| *write.key() == current);
        match moved {
            Some(Write::Put { value, .. }) => {
                let position = decode_position(value)
                    .map_err(|e| ReplicaError::new("read a transition's position", e))?;
                self.positions.insert(key, position);
            }
            Some(Write::Delete { .. }) => {
                self.positions.insert(key, Position(0));
            }
            None => {}
        }
        self.writes.extend(writes);
        Ok(Verdict::Applied)
    }

    fn position(&self, key: &EntityKey) -> Result<Position, ReplicaError> {
        if let Some(&position) = self.positions.get(key) {
            return Ok(position);
        }
        if let Some(position) = self.rows.known_positions().get(key) {
            return Ok(position);
        }
        self.rows.position(key).map_err(|e| ReplicaError::new("read an entity's position", e))
    }

    /// The first range is taken as it is; later ones must be newer. The same one again is fine, so
    /// that a leader which never learned the outcome may propose it once more.
    fn put_range(&mut self, range: SlotRange) -> Verdict {
        match &self.range {
            Some(current) if *current == range => Verdict::Applied,
            Some(current) if current.version >= range.version => Verdict::Moved,
            Some(_) | None => {
                self.writes.push(range_write(&range));
                self.range = Some(range);
                Verdict::Applied
            }
        }
    }
}

/// The store's rows of a group, for a snapshot; checkpoints are held back while it is read.
pub(crate) fn snapshot(table: &Table) -> Result<Box<dyn SnapshotRows>, ReplicaError> {
    let held = table.hold().map_err(|e| ReplicaError::new("hold its rows for a snapshot", e))?;
    Ok(Box::new(StandingRows { held }))
}

/// Replaces all rows of a group by those of a snapshot.
pub(crate) fn restore(
    table: &Table,
    mark: Mark,
    rows: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
) -> Result<(), ReplicaError> {
    const DOING: &str = "restore its rows from a snapshot";
    let mut restore = table.begin_restore().map_err(|e| ReplicaError::new(DOING, e))?;
    let mut batch = Vec::new();
    let mut bytes = 0;
    for row in rows {
        let row = row.map_err(|e| ReplicaError::new(DOING, e))?;
        bytes += row.key.len() + row.value.len();
        batch.push(row);
        if batch.len() == RESTORE_ROWS || bytes >= RESTORE_BYTES {
            restore.rows(std::mem::take(&mut batch)).map_err(|e| ReplicaError::new(DOING, e))?;
            bytes = 0;
        }
    }
    restore.rows(batch).map_err(|e| ReplicaError::new(DOING, e))?;
    restore.finish(mark).map_err(|e| ReplicaError::new(DOING, e))
}

struct StandingRows {
    held: Held,
}

impl SnapshotRows for StandingRows {
    fn mark(&self) -> Mark {
        self.held.mark().clone()
    }

    fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, ReplicaError> {
        let rows = self.held.next_rows(limit);
        rows.map_err(|e| ReplicaError::new("read its rows for a snapshot", e))
    }
}

#[cfg(test)]
pub(crate) mod tests;
