//! The mutable state of one run: a fold of its history, overlaid with its notes.
//!
//! [`RunState::decide`] answers a request with the state after it; nothing else changes a state.
//! Every event enters through `RunState::append`, which folds it at once, so that the live state
//! and the fold of the stored history cannot differ. This file only dispatches; each concern has
//! its own file with its decisions and its fold side by side. Step 3 of a request's way.

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_proto::common::{Link, Memo, Payload, WorkerVersionStamp};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    ActivityTaskScheduledEventAttributes, HistoryEvent,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes, WorkflowExecutionStartedEventAttributes,
};
use piton_proto::sdk::UserMetadata;
use prost::Message;
use serde::{Deserialize, Serialize};

use self::event::Annotations;
pub use self::facts::{Closing, Ending, Facts};
use crate::effect::Effect;
use crate::error::Rejection;
use crate::id::{EventId, RunId, WorkflowKey};
use crate::note::{ActivityNote, RunNote, WorkflowTaskKind};
use crate::request::{Drawn, RunRequest};
use crate::time::Timestamp;
use crate::transition::Change;

mod activity;
mod activity_command;
mod activity_retry;
mod activity_timeout;
mod buffer;
mod child;
mod close;
mod command;
mod completion;
mod continue_as_new;
mod describe;
mod event;
mod external;
mod facts;
mod field;
mod fold;
mod gate;
mod milestone;
mod oversize;
mod owed;
mod property;
mod reply;
mod signal;
mod start;
mod successor;
mod take;
mod timer;
mod worker_version;
mod workflow_task;

pub use activity::inherit_priority;
pub use describe::QueryRoute;
pub use fold::FoldError;
pub use gate::Step;
pub use milestone::Milestone;
pub use reply::{ActivityTask, Reply, StartedTask};
pub use start::{Met, StartedRun, decide_start};

/// How a run stands. `Paused` is not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    Running,
    Completed,
    Failed,
    Canceled,
    Terminated,
    ContinuedAsNew,
    TimedOut,
}

impl Status {
    pub fn is_open(self) -> bool {
        self == Self::Running
    }

    /// What a run is after this event, if the event closes it.
    pub fn closed_by(event: &HistoryEvent) -> Option<Self> {
        Some(Facts::of_event(event)?.closes()?.status())
    }

    pub fn to_proto(self) -> piton_proto::enums::WorkflowExecutionStatus {
        use piton_proto::enums::WorkflowExecutionStatus as S;
        match self {
            Self::Running => S::Running,
            Self::Completed => S::Completed,
            Self::Failed => S::Failed,
            Self::Canceled => S::Canceled,
            Self::Terminated => S::Terminated,
            Self::ContinuedAsNew => S::ContinuedAsNew,
            Self::TimedOut => S::TimedOut,
        }
    }
}

/// Mutable state of one run. Cheap to clone: whatever is large is behind an [`Arc`].
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    pub key: WorkflowKey,
    pub run_id: RunId,
    pub status: Status,
    /// Event 1, without input, header and results of the run before it.
    pub started: Arc<WorkflowExecutionStartedEventAttributes>,
    pub start_time: Timestamp,
    pub user_metadata: Option<Arc<UserMetadata>>,
    /// The links of event 1, which each run of the chain has.
    pub start_links: Arc<[Link]>,
    pub next_event_id: EventId,
    /// Sum of the encoded events' lengths.
    pub history_bytes: u64,
    /// The time of the last event; the next event's is not earlier.
    pub last_event_time: Timestamp,
    pub close_time: Option<Timestamp>,
    /// The event that closed the run.
    pub close_event: Option<Arc<HistoryEvent>>,
    /// Started event of the last *completed* workflow task, 0 before the first.
    pub previous_started: EventId,
    /// The event that asked for cancellation.
    pub cancel_requested: Option<EventId>,
    pub signals: u64,
    pub memo: Arc<Memo>,
    pub search_attributes: Arc<BTreeMap<String, Payload>>,
    /// What the worker said of its build that completed the last workflow task.
    pub worker_version: Option<Arc<WorkerVersionStamp>>,
    /// The deployment that it belongs to; empty if it said none.
    pub worker_deployment: Arc<str>,
    pub activities: BTreeMap<EventId, Arc<Activity>>,
    /// By the event that started it.
    pub timers: BTreeMap<EventId, Arc<Timer>>,
    /// By its Initiated event; after close, those that the run still has to know.
    pub children: BTreeMap<EventId, Arc<Child>>,
    pub external_signals:
        BTreeMap<EventId, Arc<SignalExternalWorkflowExecutionInitiatedEventAttributes>>,
    pub external_cancels:
        BTreeMap<EventId, Arc<RequestCancelExternalWorkflowExecutionInitiatedEventAttributes>>,
    /// Events without an id that wait for the started workflow task to end, by their note's number.
    pub buffered: BTreeMap<u32, Arc<HistoryEvent>>,
    /// The single facts that history does not hold.
    pub note: RunNote,
    /// Volatile: the workflow task handed out by this life of the actor. Never stored.
    pub held: Option<Arc<HeldTask>>,
    /// Events appended since the last [`RunState::take_uncommitted`], oldest first.
    pub uncommitted: Vec<Arc<HistoryEvent>>,
}

/// A pending activity.
#[derive(Clone, Debug, PartialEq)]
pub struct Activity {
    pub scheduled_event_id: EventId,
    pub attributes: Arc<ActivityTaskScheduledEventAttributes>,
    pub user_metadata: Option<Arc<UserMetadata>>,
    /// When the first attempt was scheduled.
    pub scheduled_at: Timestamp,
    pub cancel_requested: Option<EventId>,
    pub note: ActivityNote,
}

/// A pending timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub timer_id: String,
    pub started_event_id: EventId,
    pub fires_at: Timestamp,
}

/// A pending child, or a closed run's child that it owes something or that lives on.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub initiated_event_id: EventId,
    /// In full until the child is started, then without its input.
    pub attributes: Arc<StartChildWorkflowExecutionInitiatedEventAttributes>,
    pub user_metadata: Option<Arc<UserMetadata>>,
    /// The child's first run and the event that says so.
    pub started: Option<(RunId, EventId)>,
}

/// The workflow task that a worker holds now. Its Started event is written, byte for byte, with
/// the answer (docs/design.md, "The held workflow task").
#[derive(Clone, Debug, PartialEq)]
pub struct HeldTask {
    pub term: u64,
    pub number: u64,
    /// Written before `started` when the Scheduled event is not in history yet (transient task).
    pub scheduled: Option<HistoryEvent>,
    pub started: HistoryEvent,
    pub started_at: Timestamp,
    /// When the start-to-close time is over.
    pub due: Timestamp,
    /// When a chain of heartbeats began, if this task continues one.
    pub heartbeat_since: Option<Timestamp>,
    pub kind: WorkflowTaskKind,
    pub attempt: u32,
    /// Its answer is being applied: what that brings about waits behind the commands' own events.
    pub answered: bool,
}

/// What a decision comes to: runs of one workflow as they are after it. All of them are committed
/// together or not at all.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The addressed run. Equal to the one before when nothing happened.
    pub run: Option<RunState>,
    /// Whatever runs the decision changes or begins beside, in any number, without making them the
    /// current one; each with its transition counted.
    pub others: Vec<RunState>,
    /// A new run that becomes the workflow's current one, begun by a start or by a run's end.
    pub successor: Option<RunState>,
    /// Told only after all of this is committed. `Err` with a changed run: the refusal is recorded.
    pub reply: Result<Reply, Rejection>,
}

impl Decided {
    fn done(run: RunState) -> Self {
        Self::with(run, Reply::Done)
    }

    fn with(run: RunState, reply: Reply) -> Self {
        Self::of(run, Ok(reply))
    }

    fn of(run: RunState, reply: Result<Reply, Rejection>) -> Self {
        Self { run: Some(run), others: Vec::new(), successor: None, reply }
    }

    /// An answer that changes nothing.
    fn answer(reply: Reply) -> Self {
        Self { run: None, others: Vec::new(), successor: None, reply: Ok(reply) }
    }

    /// Counts the transition if the decision recorded anything.
    fn counted(mut self, before: &RunState) -> Self {
        if let Some(run) = self.run.as_mut().filter(|run| run.is_changed_since(before)) {
            run.note.transitions += 1;
        }
        self
    }
}

impl RunState {
    /// Decides one request. The state it is called on is left as it is.
    ///
    /// # Errors
    /// The refusal; then nothing is recorded.
    pub fn decide(&self, request: RunRequest, drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        let decided = self.clone().dispatch(request, drawn)?;
        Ok(decided.limit_history(drawn).counted(self))
    }

    fn dispatch(self, request: RunRequest, drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        let run = self;
        match request {
            RunRequest::Signal(signal) => run.take_signal(signal, drawn),
            RunRequest::RequestCancel(cancel) => run.request_cancel(cancel, drawn),
            RunRequest::Terminate(terminate) => run.terminate(terminate, drawn),
            RunRequest::ResetSticky => run.reset_sticky(),

            RunRequest::TakeWorkflowTask { scheduled, stamp, taker } => {
                run.take_workflow_task(scheduled, stamp, taker, drawn)
            }
            RunRequest::CompleteWorkflowTask { token, answer } => {
                run.complete_workflow_task(token, *answer, drawn)
            }
            RunRequest::FailWorkflowTask { token, answer } => {
                run.fail_workflow_task(token, *answer, drawn)
            }
            RunRequest::WorkflowTaskTimedOut { number } => {
                run.time_out_workflow_task(number, drawn)
            }
            RunRequest::WorkflowTaskUndelivered { number } => {
                run.take_back_workflow_task(number, drawn)
            }
            RunRequest::StickyUnavailable { stamp } => run.leave_sticky(stamp, drawn),
            RunRequest::StickyLost => run.lose_sticky(),

            RunRequest::StartActivity { scheduled, stamp, created, taker } => {
                run.start_activity((scheduled, stamp, created), taker, drawn)
            }
            RunRequest::ActivityUndelivered { scheduled, stamp, request_id } => {
                run.take_back_activity(scheduled, stamp, &request_id, drawn)
            }
            RunRequest::CompleteActivity { activity, result, identity } => {
                run.complete_activity(&activity, result, identity, drawn)
            }
            RunRequest::FailActivity { activity, failure, last_heartbeat_details, identity } => {
                run.fail_activity(&activity, failure, last_heartbeat_details, identity, drawn)
            }
            RunRequest::CancelActivity { activity, details, identity } => {
                run.cancel_activity(&activity, details, identity, drawn)
            }
            RunRequest::HeartbeatActivity { activity, details, identity } => {
                run.heartbeat_activity(&activity, details, identity, drawn)
            }

            RunRequest::Due => run.fire_due(drawn),
            RunRequest::Rehosted => run.flush_after_rehosting(drawn),

            RunRequest::ChildStarted { initiated, run_id, header } => {
                run.child_started(initiated, run_id, header, drawn)
            }
            RunRequest::ChildRefused { initiated, cause } => {
                run.child_refused(initiated, cause, drawn)
            }
            RunRequest::ChildClosed { initiated, outcome } => {
                run.child_closed(initiated, *outcome, drawn)
            }
            RunRequest::ParentRecorded => run.parent_recorded(drawn),
            RunRequest::ExternalSignalDone { initiated, refusal } => {
                run.external_signal_done(initiated, refusal, drawn)
            }
            RunRequest::ExternalCancelDone { initiated, refusal } => {
                run.external_cancel_done(initiated, refusal, drawn)
            }
            RunRequest::ErrandDone(errand) => run.errand_done(errand),
        }
    }

    /// Everything that is due at `drawn.now`: timers, activity timeouts and backoffs, the sticky
    /// queue's timeout, the first task's backoff, the run's own expiry. One workflow task hears of it.
    ///
    /// What is overdue fires kind by kind, each in the order of its times, as on the official server:
    /// there one task of a kind fires all that is due of it, and tasks of two kinds run side by side,
    /// so that either may come first.
    fn fire_due(mut self, drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        if !self.may(Step::Fire) {
            return Ok(Decided::done(self));
        }
        if self.is_expired(drawn.now) {
            return Ok(self.time_out_run(drawn));
        }
        self.fire_timers(drawn);
        self.fire_activities(drawn);
        self.fire_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    /// Takes the events that are to be committed.
    pub fn take_uncommitted(&mut self) -> Vec<Arc<HistoryEvent>> {
        std::mem::take(&mut self.uncommitted)
    }

    /// Writes an event into history with the next id and folds it.
    fn append(&mut self, now: Timestamp, attributes: Attributes) -> EventId {
        self.append_with(now, attributes, None)
    }

    fn append_with(
        &mut self,
        now: Timestamp,
        attributes: Attributes,
        annotations: impl Into<Annotations>,
    ) -> EventId {
        let time = now.max(self.last_event_time);
        self.append_event(event::event(time, attributes, annotations))
    }

    /// Gives an event its id, keeps it for the commit and folds it.
    fn append_event(&mut self, mut event: HistoryEvent) -> EventId {
        let id = self.next_event_id;
        event.event_id = id.0;
        event.task_id = id.0;
        self.fold(&event);
        self.uncommitted.push(Arc::new(event));
        id
    }

    /// Folds one event of history. Total: an event that does not fit is a bug that
    /// [`crate::invariant::check`] names, not a panic here.
    pub fn fold(&mut self, event: &HistoryEvent) {
        self.next_event_id = EventId(event.event_id).next();
        self.history_bytes += event.encoded_len() as u64;
        // One that waited, or tells when an attempt began, is older than the event before it.
        let time = Timestamp::from_proto(event.event_time.as_ref());
        self.last_event_time = self.last_event_time.max(time.unwrap_or_default());
        self.fold_attributes(event);
    }

    /// Whether there is something to commit that was not there `before`.
    fn is_changed_since(&self, before: &Self) -> bool {
        let same_activities = || {
            let both = self.activities.iter().zip(&before.activities);
            self.activities.len() == before.activities.len()
                && both.into_iter().all(|((_, a), (_, b))| Arc::ptr_eq(a, b))
        };
        self.uncommitted.len() != before.uncommitted.len()
            || self.note != before.note
            || !same_activities()
    }

    /// Whether a worker holds a workflow task now, so that other events have to wait.
    pub fn is_task_held(&self) -> bool {
        self.held.is_some()
    }

    /// Everything this run owes, errands in event order; what a new leader carries out.
    pub fn owed(&self) -> Vec<Effect> {
        Change::between(None, &mut self.clone()).owed.into_values().collect()
    }

    /// Whether a workflow task is scheduled or held.
    pub fn has_workflow_task(&self) -> bool {
        self.note.workflow_task.is_some()
    }
}
