//! What the two ends of a run's history say of it, without the events between them: enough to read a
//! closed run's pages, to find a run in lists, and to say how it ended.

use bytes::Bytes;
use piton_core::id::{EventId, RequestId, RunId, WorkflowKey};
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::history::history_event::Attributes;
use piton_core::run::{StartedRun, Status};
use piton_core::time::Timestamp;
use piton_store::{KeyRange, Order};

use crate::rows::writes::visibility_key;
use crate::rows::{LoadError, WorkflowRows, end_of, keys, workflow};

/// A run by its first and its last event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunEnds {
    /// First run of the chain.
    pub(crate) first_run_id: RunId,
    pub(crate) start_time: Timestamp,
    /// The history's end, not included.
    pub(crate) next_event_id: EventId,
    /// How and when it was closed; `None`: it is open.
    pub(crate) closed: Option<(Status, Timestamp)>,
}

impl RunEnds {
    /// What the repetition of a start has to know of the run, if it is closed. Its request id is not among it.
    pub(crate) fn into_closed(self, run_id: &RunId) -> Option<StartedRun> {
        let (status, _) = self.closed?;
        Some(StartedRun {
            run_id: run_id.clone(),
            first_run_id: self.first_run_id,
            status,
            start_request_id: RequestId::from(""),
        })
    }
}

impl WorkflowRows {
    /// `None`: there is no such run.
    pub(crate) fn run_ends(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Option<RunEnds>, LoadError> {
        // Without its first batch a run is being deleted: it is not there any more.
        let (Some((first, _)), Some((_, last))) = (
            self.batch_ends(key, run_id, EventId::FIRST)?,
            self.batch_ends(key, run_id, EventId(i64::MAX - 1))?,
        ) else {
            return Ok(None);
        };
        if EventId(first.event_id) != EventId::FIRST {
            return Ok(None);
        }
        let time = |event: &HistoryEvent| Timestamp::from_proto(event.event_time.as_ref());
        let chain = match &first.attributes {
            Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) => {
                started.first_execution_run_id.as_str().into()
            }
            _ => return Err(self.bad_value("the first event of a run", "it is no start")),
        };
        Ok(Some(RunEnds {
            first_run_id: chain,
            start_time: time(&first).unwrap_or_default(),
            next_event_id: EventId(last.event_id).next(),
            // No event of a run is later than the one that closes it.
            closed: Status::closed_by(&last)
                .map(|status| (status, time(&last).unwrap_or_default())),
        }))
    }

    /// The ends of the batch that holds the event, or of the last one if the event is not there yet.
    fn batch_ends(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
        event: EventId,
    ) -> Result<Option<(HistoryEvent, HistoryEvent)>, LoadError> {
        let Some(batch) = self.batch_at(key, run_id, event)? else { return Ok(None) };
        batch.ends().map_err(|source| self.bad_value("a batch of history", source))
    }

    /// The first run of a workflow at or behind a key, and the first key behind that run.
    pub(crate) fn next_run(
        &self,
        key: &WorkflowKey,
        from: &Bytes,
    ) -> Result<Option<(RunId, Bytes)>, LoadError> {
        let end = end_of(&workflow(key).runs());
        let found = self.scan(KeyRange::new(from, &end), Order::Ascending, 1)?.pop();
        let Some(row) = found else { return Ok(None) };
        let run_id = match keys::parse_entity_row(&row.key) {
            Some((
                _,
                keys::EntityRow::Event { run_id, .. }
                | keys::EntityRow::Milestone { run_id }
                | keys::EntityRow::Note { run_id, .. },
            )) => RunId::new(run_id),
            _ => return Err(self.bad_key("runs")),
        };
        let behind = end_of(&workflow(key).run(run_id.as_str()));
        Ok(Some((run_id, behind)))
    }

    /// A run's row in the order by time; `None`: it is not there, or is being deleted.
    pub(crate) fn listed_run(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Option<(Bytes, Bytes)>, LoadError> {
        loop {
            let Some(ends) = self.run_ends(key, run_id)? else { return Ok(None) };
            let closed = ends.closed.map(|(_, when)| when);
            let row = visibility_key(key, run_id, ends.start_time, closed);
            if let Some(value) = self.get(&row)? {
                return Ok(Some((row, value)));
            }
            // It was closed in between, which moves its row once; or it is being deleted, and its first
            // event went in the same transition.
            if self.run_ends(key, run_id)?.as_ref() == Some(&ends) {
                return Err(LoadError::Unsteady { key: key.clone(), run_id: run_id.clone() });
            }
        }
    }
}
