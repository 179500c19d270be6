//! Folds one event of history into the state: dispatch only; and rebuilds a run from its rows
//! when it is hosted again. It never decides anything and never touches a note while folding.

use piton_proto::history::HistoryEvent;

use crate::id::{EventId, RunId, WorkflowKey};
use crate::note::{Note, NoteKey};
use crate::run::RunState;

/// Why rows of a run do not make a state. Each means that what is stored is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error("run {run_id} has no history")]
    NoHistory { run_id: RunId },
    #[error("event 1 of run {run_id} is not WorkflowExecutionStarted")]
    FirstNotStarted { run_id: RunId },
    #[error("history of run {run_id} continues with event {found} where {expected} is next")]
    Gap { run_id: RunId, expected: EventId, found: EventId },
    #[error("event {event_id} of run {run_id} has no attributes")]
    NoAttributes { run_id: RunId, event_id: EventId },
    #[error("event {event_id} of run {run_id} comes after its close")]
    AfterClose { run_id: RunId, event_id: EventId },
    #[error("run {run_id} has no note of its own")]
    NoRunNote { run_id: RunId },
    #[error("note of activity {scheduled}, which is not pending in run {run_id}")]
    UnknownActivity { run_id: RunId, scheduled: EventId },
    #[error("pending activity {scheduled} of run {run_id} has no note")]
    NoActivityNote { run_id: RunId, scheduled: EventId },
    #[error("note {key:?} of run {run_id} holds something else")]
    NoteKind { run_id: RunId, key: NoteKey },
}

impl RunState {
    /// Rebuilds the state of a run from what is stored of it.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn from_history(
        _key: WorkflowKey,
        _run_id: RunId,
        _events: impl IntoIterator<Item = HistoryEvent>,
        _notes: impl IntoIterator<Item = (NoteKey, Note)>,
    ) -> Result<RunState, FoldError> {
        unimplemented!()
    }

    pub(super) fn fold_attributes(&mut self, _event: &HistoryEvent) {
        unimplemented!()
    }
}
