//! Folds one event of history into the state: dispatch only; and rebuilds a run from its rows
//! when it is hosted again. It never decides anything and never touches a note while folding.

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as A;

use super::facts::{Ending, Facts, Fold};
use super::{RunState, Status};
use crate::id::{EventId, RunId, WorkflowKey};
use crate::note::{Note, NoteKey, RunNote};
use crate::time::Timestamp;

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
    /// Rebuilds the state of a run from what is stored of it: folds the events, then overlays the
    /// notes. Nothing is held afterwards and nothing is uncommitted.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn from_history(
        key: WorkflowKey,
        run_id: RunId,
        events: impl IntoIterator<Item = HistoryEvent>,
        notes: impl IntoIterator<Item = (NoteKey, Note)>,
    ) -> Result<Self, FoldError> {
        Self::unborn(key, run_id).fold_on(events, notes)
    }

    /// Folds the events that follow, then overlays the notes.
    pub(super) fn fold_on(
        self,
        events: impl IntoIterator<Item = HistoryEvent>,
        notes: impl IntoIterator<Item = (NoteKey, Note)>,
    ) -> Result<Self, FoldError> {
        let mut run = self;
        for event in events {
            run.check_next(&event)?;
            run.fold(&event);
        }
        if run.next_event_id == EventId::FIRST {
            return Err(FoldError::NoHistory { run_id: run.run_id });
        }
        run.overlay(notes)?;
        if !run.status.is_open() {
            run.forget_children();
        }
        Ok(run)
    }

    /// A run before its first event.
    pub(super) fn unborn(key: WorkflowKey, run_id: RunId) -> Self {
        Self {
            key,
            run_id,
            status: Status::Running,
            started: Arc::default(),
            start_time: Timestamp::default(),
            user_metadata: None,
            start_links: Arc::default(),
            next_event_id: EventId::FIRST,
            history_bytes: 0,
            last_event_time: Timestamp::default(),
            close_time: None,
            close_event: None,
            previous_started: EventId::default(),
            cancel_requested: None,
            signals: 0,
            memo: Arc::default(),
            search_attributes: Arc::default(),
            worker_version: None,
            worker_deployment: Arc::from(""),
            activities: BTreeMap::new(),
            timers: BTreeMap::new(),
            children: BTreeMap::new(),
            external_signals: BTreeMap::new(),
            external_cancels: BTreeMap::new(),
            buffered: BTreeMap::new(),
            note: RunNote { next_attempt: 1, ..RunNote::default() },
            held: None,
            uncommitted: Vec::new(),
        }
    }

    fn check_next(&self, event: &HistoryEvent) -> Result<(), FoldError> {
        let run_id = || self.run_id.clone();
        let event_id = EventId(event.event_id);
        if event_id != self.next_event_id {
            let expected = self.next_event_id;
            return Err(FoldError::Gap { run_id: run_id(), expected, found: event_id });
        }
        if !self.status.is_open() {
            return Err(FoldError::AfterClose { run_id: run_id(), event_id });
        }
        let starts = match &event.attributes {
            None => return Err(FoldError::NoAttributes { run_id: run_id(), event_id }),
            Some(a) => matches!(a, A::WorkflowExecutionStartedEventAttributes(_)),
        };
        if event_id == EventId::FIRST && !starts {
            return Err(FoldError::FirstNotStarted { run_id: run_id() });
        }
        Ok(())
    }

    fn overlay(
        &mut self,
        notes: impl IntoIterator<Item = (NoteKey, Note)>,
    ) -> Result<(), FoldError> {
        let mut own = None;
        let mut without: Vec<EventId> = self.activities.keys().copied().collect();
        for (key, note) in notes {
            match (key, note) {
                (NoteKey::Run, Note::Run(note)) => own = Some(note),
                (NoteKey::Activity(scheduled), Note::Activity(note)) => {
                    let Some(activity) = self.activities.get_mut(&scheduled) else {
                        let run_id = self.run_id.clone();
                        return Err(FoldError::UnknownActivity { run_id, scheduled });
                    };
                    Arc::make_mut(activity).note = note;
                    without.retain(|&id| id != scheduled);
                }
                (NoteKey::Buffered(number), Note::Buffered(event)) => {
                    self.buffered.insert(number, Arc::new(event.0));
                }
                (key, Note::Run(_) | Note::Activity(_) | Note::Buffered(_)) => {
                    return Err(FoldError::NoteKind { run_id: self.run_id.clone(), key });
                }
            }
        }
        if let Some(&scheduled) = without.first() {
            return Err(FoldError::NoActivityNote { run_id: self.run_id.clone(), scheduled });
        }
        self.note = own.ok_or_else(|| FoldError::NoRunNote { run_id: self.run_id.clone() })?;
        Ok(())
    }

    /// Dispatches an event to its concern.
    pub(super) fn fold_attributes(&mut self, event: &HistoryEvent) {
        let Some(facts) = Facts::of_event(event) else { return };
        match facts.fold {
            Fold::Nothing => {}
            Fold::Begins(a) => self.fold_started(event, a),
            Fold::CompletesTask(a) => self.fold_workflow_task_completed(a),
            Fold::AddsActivity(a) => self.fold_activity_scheduled(event, a),
            Fold::CancelsActivity(a) => self.fold_activity_cancel_requested(event, a),
            Fold::AddsTimer(a) => self.fold_timer_started(event, a),
            Fold::AddsChild(a) => self.fold_child_initiated(event, a),
            Fold::StartsChild(a) => self.fold_child_started(event, a),
            Fold::AddsExternalSignal(a) => self.fold_external_signal_initiated(event, a),
            Fold::AddsExternalCancel(a) => self.fold_external_cancel_initiated(event, a),
            Fold::SetsSearchAttributes(a) => self.fold_search_attributes_upserted(a),
            Fold::SetsMemo(a) => self.fold_memo_modified(a),
            Fold::CountsSignal => self.fold_signaled(),
            Fold::AsksToCancel => self.fold_cancel_requested(event),
            Fold::Ends(Ending::Activity(scheduled)) => self.fold_activity_closed(scheduled),
            Fold::Ends(Ending::Timer(started)) => self.fold_timer_closed(started),
            Fold::Ends(Ending::Child(initiated)) => self.fold_child_closed(initiated),
            Fold::Ends(Ending::ExternalSignal(id)) => self.fold_external_signal_closed(id),
            Fold::Ends(Ending::ExternalCancel(id)) => self.fold_external_cancel_closed(id),
            Fold::Closes(closing) => self.fold_closed(event, closing.status()),
        }
    }
}
