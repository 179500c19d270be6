//! The workflow task from its scheduling to its end: normal, transient and sticky. What a worker's
//! answer does is in `completion`.
//!
//! A *scheduled* task is a note. A *held* one is volatile: taking it changes [`RunState::held`]
//! alone, and nothing enters history until it ends, so its Started event, and the Scheduled event
//! of a transient task, get the ids then that they were handed out with.

use std::sync::Arc;

use piton_proto::enums::{TimeoutType, WorkflowTaskFailedCause};
use piton_proto::failure::{Failure, ServerFailureInfo, failure::FailureInfo};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    WorkflowTaskFailedEventAttributes, WorkflowTaskScheduledEventAttributes,
    WorkflowTaskTimedOutEventAttributes,
};
use piton_proto::taskqueue::TaskQueue;

use super::{Decided, HeldTask, RunState, Step};
use crate::effect::QueueName;
use crate::error::Rejection;
use crate::id::EventId;
use crate::note::{WorkflowTaskKind, WorkflowTaskNote};
use crate::request::{Drawn, WorkflowTaskRef};
use crate::time::{Span, Timestamp};

/// The identity in events that the server makes by itself.
pub(crate) const HISTORY_SERVICE: &str = "history-service";

/// From this attempt on, each gets more time than the one before.
const SLOWER_FROM_ATTEMPT: u32 = 4;
const SLOWER_BY: Span = Span::from_secs(5);
const SLOWER_BY_MAX: Span = Span::from_secs(600);

/// How a held task ends other than by completing.
pub(super) enum TaskEnd {
    Failed(Box<WorkflowTaskFailedEventAttributes>),
    TimedOut,
}

impl TaskEnd {
    pub(super) fn failed(cause: WorkflowTaskFailedCause, identity: &str) -> Self {
        Self::Failed(Box::new(WorkflowTaskFailedEventAttributes {
            cause: cause.into(),
            identity: identity.into(),
            ..Default::default()
        }))
    }

    /// Failed by the server, which says why.
    pub(super) fn refused(cause: WorkflowTaskFailedCause, message: String, identity: &str) -> Self {
        Self::Failed(Box::new(WorkflowTaskFailedEventAttributes {
            cause: cause.into(),
            failure: Some(server_failure(message)),
            identity: identity.into(),
            ..Default::default()
        }))
    }

    fn attributes(self, scheduled: EventId, started: EventId) -> Attributes {
        match self {
            Self::Failed(attributes) => {
                Attributes::WorkflowTaskFailedEventAttributes(WorkflowTaskFailedEventAttributes {
                    scheduled_event_id: scheduled.0,
                    started_event_id: started.0,
                    ..*attributes
                })
            }
            Self::TimedOut => timed_out(scheduled, started, TimeoutType::StartToClose),
        }
    }
}

/// The Scheduled event of a task.
pub(super) fn workflow_task_scheduled(task: &WorkflowTaskNote, attempt: u32) -> Attributes {
    Attributes::WorkflowTaskScheduledEventAttributes(WorkflowTaskScheduledEventAttributes {
        task_queue: Some(queue_to_proto(&task.queue)),
        start_to_close_timeout: Some(task.start_to_close.to_proto()),
        attempt: attempt as i32,
    })
}

fn timed_out(scheduled: EventId, started: EventId, kind: TimeoutType) -> Attributes {
    Attributes::WorkflowTaskTimedOutEventAttributes(WorkflowTaskTimedOutEventAttributes {
        scheduled_event_id: scheduled.0,
        started_event_id: started.0,
        timeout_type: kind.into(),
    })
}

fn server_failure(message: String) -> Failure {
    Failure {
        message,
        failure_info: Some(FailureInfo::ServerFailureInfo(ServerFailureInfo::default())),
        ..Failure::default()
    }
}

/// A queue as events and answers show it.
pub(super) fn queue_to_proto(queue: &QueueName) -> TaskQueue {
    use piton_proto::enums::TaskQueueKind;
    let kind = if queue.is_sticky() { TaskQueueKind::Sticky } else { TaskQueueKind::Normal };
    TaskQueue {
        name: queue.name.as_ref().into(),
        kind: kind.into(),
        normal_name: queue.normal.as_deref().unwrap_or_default().into(),
    }
}

impl RunState {
    /// Schedules a workflow task unless there is one, or there may be none now.
    pub(crate) fn ensure_workflow_task(&mut self, drawn: &Drawn<'_>) {
        if !self.has_workflow_task() && self.may(Step::ScheduleWorkflowTask) {
            self.schedule_workflow_task(None, drawn);
        }
    }

    /// Ends the backoff of the first workflow task, as a cancel request does.
    pub(crate) fn end_first_task_backoff(&mut self, drawn: &Drawn<'_>) {
        self.note.first_task_at = None;
        self.ensure_workflow_task(drawn);
    }

    /// Schedules a task. `heartbeats_since`: when the chain of heartbeats began that it continues.
    pub(super) fn schedule_workflow_task(
        &mut self,
        heartbeats_since: Option<Timestamp>,
        drawn: &Drawn<'_>,
    ) {
        let attempt = self.note.next_attempt.max(1);
        let kind = WorkflowTaskKind::of_attempt(attempt);
        let sticky = self.note.sticky.as_ref().filter(|_| kind.may_be_sticky());
        let queue = sticky.map_or_else(|| self.normal_queue(), |s| s.queue.clone());
        let schedule_to_start_due = sticky.map(|s| drawn.now + s.schedule_to_start);
        let mut task = WorkflowTaskNote {
            scheduled_event_id: self.next_event_id,
            kind,
            attempt,
            queue,
            start_to_close: self.start_to_close(attempt, drawn),
            scheduled_at: drawn.now.max(self.last_event_time),
            original_scheduled_at: heartbeats_since.unwrap_or(drawn.now),
            schedule_to_start_due,
            stamp: self.next_stamp(),
        };
        if kind.is_written_ahead() {
            task.scheduled_event_id =
                self.append(drawn.now, workflow_task_scheduled(&task, attempt));
        }
        self.note.workflow_task = Some(task);
    }

    /// The queue that the run was started on.
    pub fn normal_queue(&self) -> QueueName {
        QueueName::normal(self.started.task_queue.as_ref().map_or("", |queue| &queue.name))
    }

    fn next_stamp(&mut self) -> u32 {
        self.note.last_stamp += 1;
        self.note.last_stamp
    }

    /// A stuck worker takes the whole timeout: letting it grow paces the retries.
    fn start_to_close(&self, attempt: u32, drawn: &Drawn<'_>) -> Span {
        let given = Span::from_proto(self.started.workflow_task_timeout.as_ref());
        let base = drawn.limits.task_timeout(given);
        let Some(doublings) = attempt.checked_sub(SLOWER_FROM_ATTEMPT) else { return base };
        base + SLOWER_BY.times(1 << doublings.min(16)).min(SLOWER_BY_MAX)
    }

    /// The held task, if the token is its.
    pub(super) fn held_by(&self, token: WorkflowTaskRef) -> Result<Arc<HeldTask>, Rejection> {
        let held = self.held.as_ref().filter(|h| (h.term, h.number) == (token.term, token.number));
        held.cloned().ok_or(Rejection::WorkflowTaskNotFound)
    }

    /// Writes the events by which the held task was handed out: `(scheduled, started)`.
    pub(super) fn write_held(&mut self, held: &HeldTask) -> (EventId, EventId) {
        let scheduled = match &held.scheduled {
            Some(event) => self.append_event(event.clone()),
            None => self.scheduled_event_id(),
        };
        (scheduled, self.append_event(held.started.clone()))
    }

    fn scheduled_event_id(&self) -> EventId {
        self.note.workflow_task.as_ref().map_or(EventId(0), |task| task.scheduled_event_id)
    }

    /// Ends the held task without its completion, and flushes what waited for it. A transient
    /// task leaves no event. Scheduling the next one is the caller's.
    // ORDER: buffered events are flushed before the next task is scheduled, so that it shows them;
    // if there were any it is a normal task again.
    pub(super) fn end_held_task(&mut self, end: TaskEnd, drawn: &Drawn<'_>) {
        let Some(held) = self.held.take() else { return };
        if held.kind.leaves_events() {
            let (scheduled, started) = self.write_held(&held);
            self.append(drawn.now, end.attributes(scheduled, started));
        }
        let task = self.note.workflow_task.take();
        let was_sticky = task.is_some_and(|task| task.queue.is_sticky());
        self.note.sticky = None;
        self.note.next_attempt = if was_sticky { 1 } else { held.attempt + 1 };
        if self.flush_buffered() {
            self.note.next_attempt = 1;
        }
    }

    /// Before a close that the server makes: fails a held task, drops a scheduled one, and flushes.
    pub(crate) fn fail_held_task_for_close(&mut self, drawn: &Drawn<'_>) {
        let cause = WorkflowTaskFailedCause::ForceCloseCommand;
        self.end_held_task(TaskEnd::failed(cause, HISTORY_SERVICE), drawn);
        self.note.workflow_task = None;
        self.flush_buffered();
    }

    pub(super) fn time_out_workflow_task(
        mut self,
        number: u64,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if self.holds(number) {
            self.end_held_task(TaskEnd::TimedOut, drawn);
            self.ensure_workflow_task(drawn);
        }
        Ok(Decided::done(self))
    }

    fn holds(&self, number: u64) -> bool {
        self.held.as_ref().is_some_and(|held| held.number == number)
    }

    /// Nobody has seen the task: offers it again under a new stamp.
    pub(super) fn take_back_workflow_task(
        mut self,
        number: u64,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if self.holds(number) {
            self.held = None;
            self.flush_buffered();
            let stamp = self.next_stamp();
            let wait = self.note.sticky.as_ref().map(|s| s.schedule_to_start);
            if let Some(task) = &mut self.note.workflow_task {
                task.stamp = stamp;
                if task.queue.is_sticky() {
                    task.schedule_to_start_due = Some(drawn.now + wait.unwrap_or_default());
                }
            }
        }
        Ok(Decided::done(self))
    }

    /// The sticky queue has no poller: the task moves to the normal queue as it is written.
    pub(super) fn leave_sticky(
        mut self,
        stamp: u32,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if self.note.workflow_task.as_ref().is_some_and(|task| task.stamp == stamp) {
            self.move_to_normal_queue();
        }
        Ok(Decided::done(self))
    }

    pub(super) fn reset_sticky(self) -> Result<Decided, Rejection> {
        if !self.status.is_open() {
            return Err(Rejection::AlreadyCompleted);
        }
        self.lose_sticky()
    }

    /// The same of a run that may be closed: it has none, and nothing to lose.
    pub(super) fn lose_sticky(mut self) -> Result<Decided, Rejection> {
        self.move_to_normal_queue();
        self.note.sticky = None;
        Ok(Decided::done(self))
    }

    fn move_to_normal_queue(&mut self) {
        let queue = self.normal_queue();
        let held = self.is_task_held();
        let task = self.note.workflow_task.as_mut().filter(|t| t.queue.is_sticky() && !held);
        if let Some(task) = task {
            self.note.last_stamp += 1;
            task.stamp = self.note.last_stamp;
            task.queue = queue;
            task.schedule_to_start_due = None;
            self.note.sticky = None;
        }
    }

    /// Fires the end of the first task's backoff, and the timeout of a task on a sticky queue.
    pub(super) fn fire_workflow_task(&mut self, drawn: &Drawn<'_>) {
        if self.note.first_task_at.is_some_and(|at| at <= drawn.now) {
            self.end_first_task_backoff(drawn);
        }
        let Some(task) = &mut self.note.workflow_task else { return };
        if task.schedule_to_start_due.is_none_or(|due| due > drawn.now) {
            return;
        }
        if let Some(held) = &self.held {
            // Taken in time. The row stays in case the task comes back, but not due before it may.
            let later = held.due.max(drawn.now + Span::from_millis(1));
            task.schedule_to_start_due = Some(later);
            return;
        }
        let scheduled = task.scheduled_event_id;
        self.note.workflow_task = None;
        self.note.sticky = None;
        self.append(drawn.now, timed_out(scheduled, EventId(0), TimeoutType::ScheduleToStart));
        self.ensure_workflow_task(drawn);
    }
}
