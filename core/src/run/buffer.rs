//! Events that wait for the held workflow task to end, and their flush.
//!
//! While a worker holds a workflow task, nothing enters history but what its answer says: other
//! events wait here, each a note, without ids. Whatever a waiting event ends counts as closed for
//! every decision, although it is folded only when flushed.

use std::sync::Arc;

use piton_proto::enums::{EventType, WorkflowTaskFailedCause};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as A;
use piton_proto::sdk::UserMetadata;
use prost::Message;

use super::facts::{Ending, Entry, Facts};
use super::workflow_task::{HISTORY_SERVICE, TaskEnd};
use super::{Decided, RunState};
use crate::error::Rejection;
use crate::id::{EventId, RunId};
use crate::request::Drawn;
use crate::time::Timestamp;

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
        let waits = Facts::of_event(&event).is_some_and(|facts| facts.entry != Entry::AtOnce);
        if waits && self.is_task_held() {
            self.buffer_event(event);
            self.limit_buffered(drawn);
        } else {
            self.append_late(event);
        }
    }

    /// As [`RunState::buffer_event`], for an event that is made now.
    pub(crate) fn let_wait(&mut self, drawn: &Drawn<'_>, attributes: A) {
        let time = drawn.now.max(self.last_event_time);
        self.buffer_event(super::event::event(time, attributes, None));
    }

    /// Lets an event wait, be a task held or not; [`RunState::release_buffered`] has to follow in
    /// the same decision, when all is there that happens together.
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
        let is_result = |facts: Facts<'_>| facts.entry == Entry::WaitsLast;
        let (results, others): (Vec<_>, Vec<_>) =
            waiting.into_values().partition(|event| Facts::of_event(event).is_some_and(is_result));
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
        let Some((result, id)) = event.attributes.as_mut().and_then(result_of) else { return };
        if *id == 0 {
            *id = match result {
                ResultOf::Activity(scheduled) => self.uncommitted_activity_start(scheduled),
                ResultOf::Child(initiated) => self.child_start(EventId(initiated)),
            };
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

    /// The ChildWorkflowExecutionStarted event of a child, or 0.
    fn child_start(&self, initiated: EventId) -> i64 {
        let child = self.children.get(&initiated);
        child.and_then(|child| child.started.as_ref()).map_or(0, |(_, started)| started.0)
    }

    /// Whether the last event of this waits in the buffer: then it counts as closed.
    pub(crate) fn is_ending_buffered(&self, of: Ending) -> bool {
        self.any_buffered(|facts| facts.ends() == Some(of))
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
        self.any_buffered(|facts| facts.kind == EventType::WorkflowExecutionCancelRequested)
    }

    fn any_buffered(&self, is_it: impl Fn(Facts<'_>) -> bool) -> bool {
        self.buffered.values().any(|event| Facts::of_event(event).is_some_and(&is_it))
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

/// The result of something that a Started event tells of, by the event that asked for it.
enum ResultOf {
    Activity(i64),
    Child(i64),
}

/// Of a result: whose it is, and where it names the Started event.
fn result_of(attributes: &mut A) -> Option<(ResultOf, &mut i64)> {
    use ResultOf::{Activity, Child};
    Some(match attributes {
        A::ActivityTaskCompletedEventAttributes(a) => {
            (Activity(a.scheduled_event_id), &mut a.started_event_id)
        }
        A::ActivityTaskFailedEventAttributes(a) => {
            (Activity(a.scheduled_event_id), &mut a.started_event_id)
        }
        A::ActivityTaskTimedOutEventAttributes(a) => {
            (Activity(a.scheduled_event_id), &mut a.started_event_id)
        }
        A::ActivityTaskCanceledEventAttributes(a) => {
            (Activity(a.scheduled_event_id), &mut a.started_event_id)
        }
        A::ChildWorkflowExecutionCompletedEventAttributes(a) => {
            (Child(a.initiated_event_id), &mut a.started_event_id)
        }
        A::ChildWorkflowExecutionFailedEventAttributes(a) => {
            (Child(a.initiated_event_id), &mut a.started_event_id)
        }
        A::ChildWorkflowExecutionCanceledEventAttributes(a) => {
            (Child(a.initiated_event_id), &mut a.started_event_id)
        }
        A::ChildWorkflowExecutionTimedOutEventAttributes(a) => {
            (Child(a.initiated_event_id), &mut a.started_event_id)
        }
        A::ChildWorkflowExecutionTerminatedEventAttributes(a) => {
            (Child(a.initiated_event_id), &mut a.started_event_id)
        }
        _ => return None,
    })
}
