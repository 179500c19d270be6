//! Events that wait for the held workflow task to end, and their flush.
//!
//! While a worker holds a workflow task, nothing enters history but what its answer says: other
//! events wait here, each a note, without ids. Whatever a waiting event ends counts as closed for
//! every decision, although it is folded only when flushed.

use std::sync::Arc;

use piton_proto::enums::WorkflowTaskFailedCause;
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as A;
use piton_proto::sdk::UserMetadata;
use prost::Message;

use super::workflow_task::{HISTORY_SERVICE, TaskEnd};
use super::{Decided, RunState};
use crate::error::Rejection;
use crate::id::{EventId, RunId};
use crate::request::Drawn;
use crate::time::Timestamp;

/// Something pending, as named by the event that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By its Scheduled event.
    Activity(EventId),
    /// By its Started event.
    Timer(EventId),
    /// By its Initiated event: a terminal event, or that the start failed.
    Child(EventId),
    /// By its Initiated event.
    ExternalSignal(EventId),
    /// By its Initiated event.
    ExternalCancel(EventId),
}

impl Ending {
    /// What an event ends, if it ends something.
    pub(super) fn of(attributes: &A) -> Option<Self> {
        let activity = |id| Some(Self::Activity(EventId(id)));
        let timer = |id| Some(Self::Timer(EventId(id)));
        let child = |id| Some(Self::Child(EventId(id)));
        let signal = |id| Some(Self::ExternalSignal(EventId(id)));
        let cancel = |id| Some(Self::ExternalCancel(EventId(id)));
        match attributes {
            A::ActivityTaskCompletedEventAttributes(a) => activity(a.scheduled_event_id),
            A::ActivityTaskFailedEventAttributes(a) => activity(a.scheduled_event_id),
            A::ActivityTaskTimedOutEventAttributes(a) => activity(a.scheduled_event_id),
            A::ActivityTaskCanceledEventAttributes(a) => activity(a.scheduled_event_id),
            A::TimerFiredEventAttributes(a) => timer(a.started_event_id),
            A::TimerCanceledEventAttributes(a) => timer(a.started_event_id),
            A::StartChildWorkflowExecutionFailedEventAttributes(a) => child(a.initiated_event_id),
            A::ChildWorkflowExecutionCompletedEventAttributes(a) => child(a.initiated_event_id),
            A::ChildWorkflowExecutionFailedEventAttributes(a) => child(a.initiated_event_id),
            A::ChildWorkflowExecutionCanceledEventAttributes(a) => child(a.initiated_event_id),
            A::ChildWorkflowExecutionTimedOutEventAttributes(a) => child(a.initiated_event_id),
            A::ChildWorkflowExecutionTerminatedEventAttributes(a) => child(a.initiated_event_id),
            A::SignalExternalWorkflowExecutionFailedEventAttributes(a) => {
                signal(a.initiated_event_id)
            }
            A::ExternalWorkflowExecutionSignaledEventAttributes(a) => signal(a.initiated_event_id),
            A::RequestCancelExternalWorkflowExecutionFailedEventAttributes(a) => {
                cancel(a.initiated_event_id)
            }
            A::ExternalWorkflowExecutionCancelRequestedEventAttributes(a) => {
                cancel(a.initiated_event_id)
            }
            _ => None,
        }
    }
}

/// Whether an event waits while a workflow task is held. Never: what begins or closes the run,
/// workflow task events, and what the task's own commands write.
fn waits_for_task(attributes: &A) -> bool {
    match attributes {
        A::TimerCanceledEventAttributes(_) => false,
        A::WorkflowExecutionSignaledEventAttributes(_)
        | A::WorkflowExecutionCancelRequestedEventAttributes(_)
        | A::WorkflowExecutionOptionsUpdatedEventAttributes(_)
        | A::ActivityTaskStartedEventAttributes(_)
        | A::ChildWorkflowExecutionStartedEventAttributes(_) => true,
        _ => Ending::of(attributes).is_some(),
    }
}

/// Whether an event is flushed after all others: the results of activities and children, so that
/// each comes after its Started event.
fn is_result(attributes: &A) -> bool {
    match attributes {
        A::StartChildWorkflowExecutionFailedEventAttributes(_) => false,
        _ => matches!(Ending::of(attributes), Some(Ending::Activity(_) | Ending::Child(_))),
    }
}

impl RunState {
    /// Writes an event into history, or lets it wait while a workflow task is held.
    pub(crate) fn add_event(
        &mut self,
        drawn: &Drawn<'_>,
        attributes: A,
        user_metadata: Option<UserMetadata>,
    ) {
        let event = super::event::event(drawn.now, attributes, user_metadata);
        self.add_whole_event(drawn, event);
    }

    /// As [`RunState::add_event`], for an event that has links.
    pub(crate) fn add_whole_event(&mut self, drawn: &Drawn<'_>, mut event: HistoryEvent) {
        self.delay_to_last_event(&mut event);
        let waits = event.attributes.as_ref().is_some_and(waits_for_task);
        if waits && self.is_task_held() {
            self.buffer_event(event);
            self.limit_buffered(drawn);
        } else {
            self.append_late(event);
        }
    }

    /// Lets an event wait, be a task held or not; [`RunState::release_buffered`] has to follow in
    /// the same decision.
    pub(crate) fn buffer_event(&mut self, event: HistoryEvent) {
        self.buffered.insert(self.note.next_buffered, Arc::new(event));
        self.note.next_buffered += 1;
    }

    /// Ends the wait of what waits for no held task. So what happens together enters history as
    /// what waited together does: each result after all that is none.
    pub(crate) fn release_buffered(&mut self, drawn: &Drawn<'_>) {
        if self.is_task_held() {
            self.limit_buffered(drawn);
        } else {
            self.flush_buffered();
        }
    }

    /// Too much waits: takes the task from its worker, so that it can enter history.
    fn limit_buffered(&mut self, drawn: &Drawn<'_>) {
        let answering = self.held.as_ref().is_none_or(|held| held.answered);
        let bytes: usize = self.buffered.values().map(|event| event.encoded_len()).sum();
        let over = self.buffered.len() as u64 > drawn.limits.buffered_events_max
            || bytes as u64 > drawn.limits.buffered_bytes_max;
        if over && !answering {
            let cause = WorkflowTaskFailedCause::ForceCloseCommand;
            self.end_held_task(TaskEnd::failed(cause, HISTORY_SERVICE), drawn);
            self.ensure_workflow_task(drawn);
        }
    }

    /// Writes what waits into history; no task may be held. False when nothing did.
    // ORDER: results come last, so that the Started event of each is in history before it, and its
    // id can be put in.
    pub(crate) fn flush_buffered(&mut self) -> bool {
        if self.buffered.is_empty() {
            return false;
        }
        let waiting = std::mem::take(&mut self.buffered);
        let (results, others): (Vec<_>, Vec<_>) =
            waiting.into_values().partition(|e| e.attributes.as_ref().is_some_and(is_result));
        for event in others.into_iter().chain(results) {
            self.append_late(Arc::unwrap_or_clone(event));
        }
        true
    }

    /// Appends an event that may have been made before others that are in history by now; it keeps
    /// its time.
    fn append_late(&mut self, mut event: HistoryEvent) -> EventId {
        self.wire_started(&mut event);
        self.append_event(event)
    }

    /// A clock that is behind the one before it does not take a history back.
    fn delay_to_last_event(&self, event: &mut HistoryEvent) {
        let time = Timestamp::from_proto(event.event_time.as_ref()).unwrap_or_default();
        event.event_time = Some(time.max(self.last_event_time).to_proto());
    }

    /// Puts the id of the Started event into a result that was made before that had one. The
    /// Started event of an activity is written with its result, so it is not committed either.
    fn wire_started(&self, event: &mut HistoryEvent) {
        let of_activity = |scheduled: i64, id: &mut i64| {
            if *id == 0 {
                *id = self.uncommitted_activity_start(scheduled);
            }
        };
        let of_child = |initiated: i64, id: &mut i64| {
            let child = self.children.get(&EventId(initiated));
            if let (0, Some((_, started))) = (*id, child.and_then(|c| c.started.as_ref())) {
                *id = started.0;
            }
        };
        match event.attributes.as_mut() {
            Some(A::ActivityTaskCompletedEventAttributes(a)) => {
                of_activity(a.scheduled_event_id, &mut a.started_event_id);
            }
            Some(A::ActivityTaskFailedEventAttributes(a)) => {
                of_activity(a.scheduled_event_id, &mut a.started_event_id);
            }
            Some(A::ActivityTaskTimedOutEventAttributes(a)) => {
                of_activity(a.scheduled_event_id, &mut a.started_event_id);
            }
            Some(A::ActivityTaskCanceledEventAttributes(a)) => {
                of_activity(a.scheduled_event_id, &mut a.started_event_id);
            }
            Some(A::ChildWorkflowExecutionCompletedEventAttributes(a)) => {
                of_child(a.initiated_event_id, &mut a.started_event_id);
            }
            Some(A::ChildWorkflowExecutionFailedEventAttributes(a)) => {
                of_child(a.initiated_event_id, &mut a.started_event_id);
            }
            Some(A::ChildWorkflowExecutionCanceledEventAttributes(a)) => {
                of_child(a.initiated_event_id, &mut a.started_event_id);
            }
            Some(A::ChildWorkflowExecutionTimedOutEventAttributes(a)) => {
                of_child(a.initiated_event_id, &mut a.started_event_id);
            }
            Some(A::ChildWorkflowExecutionTerminatedEventAttributes(a)) => {
                of_child(a.initiated_event_id, &mut a.started_event_id);
            }
            _ => {}
        }
    }

    /// The last ActivityTaskStarted event of an activity that is not committed yet, or 0.
    fn uncommitted_activity_start(&self, scheduled: i64) -> i64 {
        let started = self.uncommitted.iter().rev().find(|event| {
            matches!(&event.attributes,
                Some(A::ActivityTaskStartedEventAttributes(a)) if a.scheduled_event_id == scheduled)
        });
        started.map_or(0, |event| event.event_id)
    }

    /// Whether the last event of this waits in the buffer: then it counts as closed.
    pub(crate) fn is_ending_buffered(&self, of: Ending) -> bool {
        self.any_buffered(|attributes| Ending::of(attributes) == Some(of))
    }

    /// The run named by a ChildWorkflowExecutionStarted event that waits in the buffer.
    pub(crate) fn buffered_child_start(&self, initiated: EventId) -> Option<RunId> {
        self.buffered.values().find_map(|event| match &event.attributes {
            Some(A::ChildWorkflowExecutionStartedEventAttributes(a))
                if a.initiated_event_id == initiated.0 =>
            {
                a.workflow_execution.as_ref().map(|e| RunId::from(e.run_id.as_str()))
            }
            _ => None,
        })
    }

    /// Whether a WorkflowExecutionCancelRequested event waits in the buffer.
    pub(crate) fn is_cancel_request_buffered(&self) -> bool {
        self.any_buffered(|attributes| {
            matches!(attributes, A::WorkflowExecutionCancelRequestedEventAttributes(_))
        })
    }

    fn any_buffered(&self, is_it: impl Fn(&A) -> bool) -> bool {
        self.buffered.values().any(|event| event.attributes.as_ref().is_some_and(&is_it))
    }

    /// Forgets the buffered TimerFired of a timer, which is being cancelled. False if none waits.
    pub(crate) fn remove_buffered_timer_fired(&mut self, started: EventId) -> bool {
        let before = self.buffered.len();
        self.buffered.retain(|_, event| {
            !matches!(&event.attributes,
                Some(A::TimerFiredEventAttributes(a)) if a.started_event_id == started.0)
        });
        self.buffered.len() < before
    }

    /// A new leader holds no task: what waited for the one before enters history.
    pub(super) fn flush_after_rehosting(mut self, drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        if self.status.is_open() && !self.is_task_held() && self.flush_buffered() {
            self.ensure_workflow_task(drawn);
        }
        Ok(Decided::done(self))
    }
}
