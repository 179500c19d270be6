//! Handing out a workflow task. Volatile: nothing but [`RunState::held`] changes.

use std::sync::Arc;

use piton_proto::enums::SuggestContinueAsNewReason;
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{HistoryEvent, WorkflowTaskStartedEventAttributes};

use super::workflow_task::workflow_task_scheduled;
use super::{Decided, HeldTask, Reply, RunState, StartedTask, Step};
use crate::error::Rejection;
use crate::id::EventId;
use crate::note::{WorkflowTaskKind, WorkflowTaskNote};
use crate::request::{Drawn, Taker};

impl RunState {
    /// Hands the offered task out. The same ticket gets the same task again.
    pub(super) fn take_workflow_task(
        mut self,
        scheduled: EventId,
        stamp: u32,
        taker: Taker,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let task = self.note.workflow_task.as_ref();
        let task = task.filter(|_| self.may(Step::DispatchWorkflowTask));
        let Some(task) = task.filter(|t| (t.scheduled_event_id, t.stamp) == (scheduled, stamp))
        else {
            return Ok(Decided::with(self, Reply::Gone));
        };
        let from = match taker.sticky && task.queue.is_sticky() {
            true => self.previous_started.next(),
            false => EventId::FIRST,
        };
        match &self.held {
            Some(held) if request_id(held) != &*taker.request_id => {
                return Ok(Decided::with(self, Reply::Gone));
            }
            Some(_) => {}
            None => self.hold(&taker, drawn),
        }
        let reply = self.handed_out(from).map_or(Reply::Gone, |t| Reply::WorkflowTask(Box::new(t)));
        Ok(Decided::with(self, reply))
    }

    /// Hands the scheduled task to `taker`; its events get the ids they will have in history.
    // INVARIANT: while a task is held nothing enters history, so those ids stay right; the buffer
    // upholds it.
    pub(super) fn hold(&mut self, taker: &Taker, drawn: &Drawn<'_>) {
        let Some(task) = &self.note.workflow_task else { return };
        let (kind, attempt) = self.kind_when_taken(task);
        let mut next = self.next_event_id;
        let mut scheduled_id = task.scheduled_event_id;
        let scheduled = (!task.kind.is_written_ahead()).then(|| {
            let time = task.scheduled_at.max(self.last_event_time);
            scheduled_id = next;
            next = next.next();
            let attributes = workflow_task_scheduled(task, attempt);
            numbered(scheduled_id, super::event::event(time, attributes, None))
        });
        let started_at = drawn.now.max(self.last_event_time).max(task.scheduled_at);
        let attributes = self.started_attributes(scheduled_id, next, taker, drawn);
        let started = numbered(next, super::event::event(started_at, attributes, None));
        self.held = Some(Arc::new(HeldTask {
            term: drawn.term,
            number: drawn.number,
            scheduled,
            started,
            started_at,
            due: started_at + task.start_to_close,
            heartbeat_since: heartbeats_since(task),
            kind,
            attempt,
            answered: false,
        }));
    }

    /// What a scheduled task is by the time it is handed out, and its attempt: a transient one that
    /// others have overtaken in history is a normal one.
    fn kind_when_taken(&self, task: &WorkflowTaskNote) -> (WorkflowTaskKind, u32) {
        let overtaken = task.scheduled_event_id != self.next_event_id;
        match task.kind {
            WorkflowTaskKind::Transient if overtaken => (WorkflowTaskKind::Normal, 1),
            WorkflowTaskKind::Transient | WorkflowTaskKind::Normal => (task.kind, task.attempt),
        }
    }

    #[allow(deprecated, reason = "workers say what build they are of, and the event has it")]
    fn started_attributes(
        &self,
        scheduled: EventId,
        started: EventId,
        taker: &Taker,
        drawn: &Drawn<'_>,
    ) -> Attributes {
        let mut reasons = Vec::new();
        if self.history_bytes >= drawn.limits.history_bytes_suggest {
            reasons.push(SuggestContinueAsNewReason::HistorySizeTooLarge.into());
        }
        if started.0 >= drawn.limits.history_events_suggest as i64 {
            reasons.push(SuggestContinueAsNewReason::TooManyHistoryEvents.into());
        }
        Attributes::WorkflowTaskStartedEventAttributes(WorkflowTaskStartedEventAttributes {
            scheduled_event_id: scheduled.0,
            identity: taker.identity.clone(),
            request_id: taker.request_id.as_ref().into(),
            worker_version: taker.worker_version.clone(),
            suggest_continue_as_new: !reasons.is_empty(),
            suggest_continue_as_new_reasons: reasons,
            history_size_bytes: self.history_bytes as i64,
            ..Default::default()
        })
    }

    /// The held task as its worker gets it, with history from `from` on.
    pub(super) fn handed_out(&self, from: EventId) -> Option<StartedTask> {
        let (task, held) = (self.note.workflow_task.as_ref()?, self.held.as_ref()?);
        let started_event_id = EventId(held.started.event_id);
        let scheduled_event_id =
            held.scheduled.as_ref().map_or(task.scheduled_event_id, |e| EventId(e.event_id));
        Some(StartedTask {
            run_id: self.run_id.clone(),
            workflow_type: self.workflow_type().into(),
            term: held.term,
            number: held.number,
            attempt: held.attempt,
            scheduled_event_id,
            started_event_id,
            previous_started: self.previous_started,
            history_from: from,
            history_end: self.next_event_id,
            suffix: held.scheduled.iter().chain([&held.started]).cloned().collect(),
            scheduled_at: task.scheduled_at,
            started_at: held.started_at,
            due: held.due,
            queue: self.normal_queue(),
        })
    }

    pub(crate) fn workflow_type(&self) -> &str {
        self.started.workflow_type.as_ref().map_or("", |t| &t.name)
    }
}

/// When the chain of heartbeats began that a task continues.
fn heartbeats_since(task: &WorkflowTaskNote) -> Option<crate::time::Timestamp> {
    (task.original_scheduled_at < task.scheduled_at).then_some(task.original_scheduled_at)
}

/// The ticket by which a task was handed out.
pub(super) fn request_id(held: &HeldTask) -> &str {
    match &held.started.attributes {
        Some(Attributes::WorkflowTaskStartedEventAttributes(a)) => &a.request_id,
        _ => "",
    }
}

fn numbered(id: EventId, event: HistoryEvent) -> HistoryEvent {
    HistoryEvent { event_id: id.0, task_id: id.0, ..event }
}
