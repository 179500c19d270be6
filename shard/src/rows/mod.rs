//! A workflow's rows and how they are read: the run that is current, request ids, history, notes,
//! and what a new leader finds of timers, tasks and errands. The writing is in `writes`.
//!
//! Reads block on the disk when a row is not in memory. Nothing here decides anything.

pub(crate) mod codes;
pub(crate) mod history;
pub(crate) mod keys;
pub(crate) mod load;
pub(crate) mod lookup;
mod positions;
pub(crate) mod range;
pub(crate) mod recent;
pub(crate) mod records;
pub(crate) mod retention;
pub(crate) mod run_ends;
pub(crate) mod scan;
pub(crate) mod tasks;
pub(crate) mod values;
pub(crate) mod visibility;
pub(crate) mod writes;

use std::sync::Arc;

use bytes::Bytes;
use piton_core::id::{EventId, Position, RequestId, RunId, WorkflowKey};
use piton_core::proto::history::{History, HistoryEvent};
use piton_core::run::FoldError;
use piton_core::time::Timestamp;
use piton_store::codec::Kind;
use piton_store::{KeyRange, Order, Row, StoreError, Table, key_after, without_waiting};
use prost::Message;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::rows::codes::unsigned;
pub(crate) use crate::rows::positions::Positions;
use crate::rows::range::SlotRange;
pub(crate) use crate::rows::values::{
    Current, EntityKey, ErrandRow, HistoryBatch, RequestKind, RequestRow, TaskRow, TimerRow,
    decode_position, end_of, entity_key, workflow,
};
use crate::rows::values::{decode_current, decode_range, errand_row, timer_row};
pub(crate) use crate::rows::writes::{
    batch_in, change_writes, current_delete, current_write, milestone_write, offer_of,
    request_writes,
};

/// Rows read from the table at once.
const PAGE_ROWS: usize = 256;
/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("read rows of group {group}")]
    Store {
        group: u32,
        #[source]
        source: StoreError,
    },
    /// The stored bytes are not what a release of ours writes.
    #[error("decode {what} of group {group}")]
    Value {
        group: u32,
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("group {group} has a key among its {what} that is none")]
    Key { group: u32, what: &'static str },
    #[error("load run {run_id} of workflow {}", key.workflow_id)]
    Fold {
        key: WorkflowKey,
        run_id: RunId,
        #[source]
        source: FoldError,
    },
    /// The run is there, and the event is not.
    #[error("read event {event} of run {run_id} of workflow {}: it is not there", key.workflow_id)]
    Missing { key: WorkflowKey, run_id: RunId, event: EventId },
    /// Transitions kept coming while it was read; try again.
    #[error("load run {run_id} of workflow {}: it kept changing", key.workflow_id)]
    Unsteady { key: WorkflowKey, run_id: RunId },
}

/// Reads one shard's rows. Clones share the table, and which positions are known.
#[derive(Clone)]
pub(crate) struct WorkflowRows {
    table: Table,
    positions: Arc<Positions>,
}

impl WorkflowRows {
    pub(crate) fn new(table: Table) -> WorkflowRows {
        WorkflowRows { table, positions: Arc::default() }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The slots this shard owns; `None` until its first range entry is applied.
    pub(crate) fn range(&self) -> Result<Option<SlotRange>, LoadError> {
        let Some(value) = self.get(&keys::range())? else { return Ok(None) };
        decode_range(value).map(Some).map_err(|source| self.bad_value("the slot range", source))
    }

    /// The workflow's current run; `None`: there is no such workflow, its position is 0.
    pub(crate) fn current(&self, key: &WorkflowKey) -> Result<Option<Current>, LoadError> {
        let reading = self.positions.begin_reading();
        let value = self.get(&workflow(key).current())?;
        let current = value.map(|value| decode_current(&value)).transpose();
        let current = current.map_err(|source| self.bad_value("a current row", source))?;
        // Who asks for it will hardly ask for nothing else: the next entry may move it.
        let position = current.as_ref().map_or(Position(0), |current| current.position);
        self.positions.learn(&key.clone().into(), position, reading);
        Ok(current)
    }

    /// Positions that can be told without the table.
    pub(crate) fn known_positions(&self) -> &Positions {
        &self.positions
    }

    pub(crate) fn position(&self, key: &EntityKey) -> Result<Position, LoadError> {
        let Some(value) = self.get(&key.rows().current())? else { return Ok(Position(0)) };
        decode_position(&value).map_err(|source| self.bad_value("a current row", source))
    }

    pub(crate) fn request(
        &self,
        key: &EntityKey,
        id: &RequestId,
    ) -> Result<Option<RequestRow>, LoadError> {
        let Some(value) = self.get(&key.rows().request(id.as_str()))? else { return Ok(None) };
        self.decode(&records::REQUEST, &value).map(Some)
    }

    /// Batches that hold events with `from <= id < end`, oldest first: until there are
    /// `events_max` events, or before the next one would exceed `bytes_max`; at least one.
    pub(crate) fn history(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
        ids: std::ops::Range<EventId>,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<HistoryBatch>, LoadError> {
        if ids.start >= ids.end {
            return Ok(Vec::new());
        }
        // The first id may lie within a batch, whose key is that of an earlier event.
        let holding = self.batch_at(key, run_id, ids.start)?;
        let first = holding.map_or(ids.start, |batch| batch.first);
        let start = workflow(key).event(run_id.as_str(), unsigned(first));
        let end = workflow(key).event(run_id.as_str(), unsigned(ids.end));
        let budget = PageBudget { events: events_max, bytes: bytes_max };
        self.batches(start, end, Order::Ascending, budget)
    }

    /// Batches that hold events with `id <= last`, newest first, bounded as [`Self::history`].
    pub(crate) fn history_back(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
        last: EventId,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<HistoryBatch>, LoadError> {
        let start = workflow(key).events(run_id.as_str());
        let end = workflow(key).event(run_id.as_str(), unsigned(last.next()));
        let budget = PageBudget { events: events_max, bytes: bytes_max };
        self.batches(start, end, Order::Descending, budget)
    }

    /// The batch that holds the event, or the last one if the event is not there yet.
    pub(crate) fn batch_at(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
        event: EventId,
    ) -> Result<Option<HistoryBatch>, LoadError> {
        let start = workflow(key).events(run_id.as_str());
        let end = workflow(key).event(run_id.as_str(), unsigned(event.next()));
        let range = KeyRange::new(&start, &end);
        let found = self.scan(range, Order::Descending, 1)?;
        found.into_iter().next().map(|row| self.batch(row)).transpose()
    }

    fn batches(
        &self,
        mut start: Bytes,
        mut end: Bytes,
        order: Order,
        mut budget: PageBudget,
    ) -> Result<Vec<HistoryBatch>, LoadError> {
        const ROWS: usize = 32;
        let mut batches = Vec::new();
        loop {
            let rows = self.scan(KeyRange::new(&start, &end), order, ROWS)?;
            let is_last = rows.len() < ROWS;
            if let Some(row) = rows.last() {
                match order {
                    Order::Ascending => start = key_after(&row.key),
                    Order::Descending => end = row.key.clone(),
                }
            }
            for row in rows {
                let batch = self.batch(row)?;
                if !batches.is_empty() && batch.raw.len() > budget.bytes {
                    return Ok(batches);
                }
                budget.bytes = budget.bytes.saturating_sub(batch.raw.len());
                budget.events = budget.events.saturating_sub(batch.len());
                batches.push(batch);
                if budget.events == 0 || budget.bytes == 0 {
                    return Ok(batches);
                }
            }
            if is_last {
                return Ok(batches);
            }
        }
    }

    /// The events of a batch.
    pub(crate) fn events(&self, batch: &HistoryBatch) -> Result<Vec<HistoryEvent>, LoadError> {
        let history = History::decode(batch.raw.clone());
        Ok(history.map_err(|source| self.bad_value("a batch of history", source))?.events)
    }

    fn batch(&self, row: Row) -> Result<HistoryBatch, LoadError> {
        let parsed = keys::parse_entity_row(&row.key);
        let Some((_, keys::EntityRow::Event { first_event_id, .. })) = parsed else {
            return Err(self.bad_key("batches of history"));
        };
        let raw = records::EVENTS.body(&row.value);
        let raw = raw.map_err(|source| self.bad_value("a batch of history", source))?;
        let first = EventId(i64::try_from(first_event_id).unwrap_or(i64::MAX));
        Ok(HistoryBatch { first, raw: row.value.slice_ref(raw) })
    }

    /// Timers with `from <= due <= until`, by due time.
    pub(crate) fn timers_between(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<TimerRow>, LoadError> {
        let end = keys::timers_after(until.as_nanos());
        let start = from.as_nanos().checked_sub(1).map_or_else(keys::timers, keys::timers_after);
        let mut timers = Vec::new();
        self.each_in(start, end, |row| {
            timers.push(timer_row(&row.key).ok_or_else(|| self.bad_key("timers"))?);
            Ok(true)
        })?;
        Ok(timers)
    }

    /// Every run that has errands to do, each once.
    pub(crate) fn runs_with_errands(&self) -> Result<Vec<(EntityKey, RunId)>, LoadError> {
        let mut runs: Vec<(EntityKey, RunId)> = Vec::new();
        self.each_below(&keys::errands(), |row| {
            let errand = errand_row(&row.key).ok_or_else(|| self.bad_key("errands"))?;
            let run = (errand.key, errand.run_id);
            if runs.last() != Some(&run) {
                runs.push(run);
            }
            Ok(true)
        })?;
        Ok(runs)
    }

    /// A run's errands in event order.
    pub(crate) fn errands(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Vec<ErrandRow>, LoadError> {
        let mut errands = Vec::new();
        self.each_below(&keys::errands_of(&workflow(key)), |row| {
            let errand = errand_row(&row.key).ok_or_else(|| self.bad_key("errands"))?;
            if errand.run_id == *run_id {
                errands.push(errand);
            }
            Ok(true)
        })?;
        Ok(errands)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, LoadError> {
        self.read(|| self.table.get(key))
    }

    pub(crate) fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, LoadError> {
        self.read(|| self.table.scan(range, order, limit))
    }

    /// Whoever reads while the store is opened again waits for it.
    fn read<T>(&self, read: impl Fn() -> Result<T, StoreError>) -> Result<T, LoadError> {
        let found = match without_waiting(&read) {
            Err(StoreError::Opening { .. }) => beside_the_runtime(read),
            found => found,
        };
        found.map_err(|source| self.store(source))
    }

    /// Calls `row` for each row below a prefix, in key order, until it answers false.
    pub(crate) fn each_below(
        &self,
        prefix: &[u8],
        row: impl FnMut(Row) -> Result<bool, LoadError>,
    ) -> Result<(), LoadError> {
        self.each_in(Bytes::copy_from_slice(prefix), end_of(prefix), row)
    }

    /// Calls `row` for each row with `start <= key < end`, in key order, until it answers false.
    pub(crate) fn each_in(
        &self,
        start: Bytes,
        end: Bytes,
        mut row: impl FnMut(Row) -> Result<bool, LoadError>,
    ) -> Result<(), LoadError> {
        let mut rest = start..end;
        while !self.next_in(&mut rest, PAGE_ROWS, &mut row)? {}
        Ok(())
    }

    /// Calls `row` for the next rows of a range, at most `limit`, and takes them off it. True: there
    /// are no more, or `row` answered false.
    fn next_in(
        &self,
        range: &mut std::ops::Range<Bytes>,
        limit: usize,
        mut row: impl FnMut(Row) -> Result<bool, LoadError>,
    ) -> Result<bool, LoadError> {
        let bounds = KeyRange::new(&range.start, &range.end);
        let rows = self.scan(bounds, Order::Ascending, limit)?;
        let is_last = rows.len() < limit;
        if let Some(last) = rows.last() {
            range.start = key_after(&last.key);
        }
        for found in rows {
            if !row(found)? {
                return Ok(true);
            }
        }
        Ok(is_last)
    }

    pub(crate) fn decode<T: serde::de::DeserializeOwned>(
        &self,
        kind: &Kind<T>,
        value: &[u8],
    ) -> Result<T, LoadError> {
        kind.decode(value).map_err(|source| self.bad_value(kind.name(), source))
    }

    fn store(&self, source: StoreError) -> LoadError {
        LoadError::Store { group: self.table.group(), source }
    }

    pub(crate) fn bad_key(&self, what: &'static str) -> LoadError {
        LoadError::Key { group: self.table.group(), what }
    }

    pub(crate) fn bad_value(
        &self,
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> LoadError {
        LoadError::Value { group: self.table.group(), what, source: source.into() }
    }
}

/// What a page may still take.
struct PageBudget {
    events: usize,
    bytes: usize,
}

/// Waits on this thread, which the runtime replaces by another if it is one of its own.
fn beside_the_runtime<T>(wait: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    let is_shared = matches!(flavor, Ok(RuntimeFlavor::MultiThread));
    if is_shared {
        return tokio::task::block_in_place(wait);
    }
    wait()
}

#[cfg(test)]
pub(crate) mod tests;
