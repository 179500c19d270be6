//! What a run owes the world: timers to fire, tasks to offer, errands to run to other workflows.
//!
//! Effects are never "sent" by a decision. They are read off a run's state (`RunState::effects`),
//! and the difference between the states before and after a transition becomes index rows in the
//! same batch as the events (D7). So none can be forgotten, and a new leader finds
//! the same ones.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use piton_proto::common::Priority;
use piton_proto::history::{
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes,
};
use serde::{Deserialize, Serialize};

use crate::id::{EventId, RunId, WorkflowId};
use crate::message;
use crate::time::Timestamp;

/// Identifies an effect within its run; the same key means the same effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EffectKey {
    Timer(Timestamp, TimerKind),
    Task(TaskKey),
    Errand(ErrandKey),
}

/// Why a run wants to be woken. When due, the run fires *everything* that is due by then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TimerKind {
    /// A timer the workflow asked for.
    User(EventId),
    /// The nearest of an activity's timeouts, or the end of its retry backoff.
    Activity(EventId),
    /// A task on a sticky queue that nobody takes.
    WorkflowTaskScheduleToStart(EventId),
    /// The end of the first workflow task's backoff.
    FirstWorkflowTask,
    /// The run timeout or the execution timeout, whichever comes first.
    RunExpiry,
}

/// A task that waits for a worker. `stamp` changes whenever an older offer must not be taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskKey {
    Workflow { scheduled: EventId, stamp: u32 },
    Activity { scheduled: EventId, stamp: u32 },
}

/// What must be done at another workflow. Errands from one run to one target keep event order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ErrandKey {
    /// Start the child initiated by this event.
    StartChild(EventId),
    /// Send the signal initiated by this event.
    Signal(EventId),
    /// Send the cancel request initiated by this event.
    Cancel(EventId),
    /// Tell the parent that this run has been started, and ask whether it may go on.
    ReportStart,
    /// Tell the parent how this chain of runs ended.
    ReportClose,
    /// Apply the parent close policy to the child initiated by this event.
    CloseChild(EventId),
}

/// A queue that workers poll. Two are the same by name and kind: not every worker says which normal
/// queue goes with its sticky one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueueName {
    pub name: Arc<str>,
    /// For a sticky queue: the normal queue of the same worker, or nothing.
    pub normal: Option<Arc<str>>,
}

impl QueueName {
    pub fn normal(name: &str) -> Self {
        Self { name: name.into(), normal: None }
    }

    pub fn sticky(name: &str, normal: &str) -> Self {
        Self { name: name.into(), normal: Some(normal.into()) }
    }

    pub fn is_sticky(&self) -> bool {
        self.normal.is_some()
    }

    fn identity(&self) -> (&str, bool) {
        (&self.name, self.is_sticky())
    }
}

impl PartialEq for QueueName {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for QueueName {}

impl PartialOrd for QueueName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for QueueName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl Hash for QueueName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// A task to be offered to a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskOffer {
    pub key: TaskKey,
    pub queue: QueueName,
    /// The version of the workers that must take it; empty: any that names none.
    pub version: Arc<str>,
    /// 1 (first) to 5.
    pub priority: u8,
    /// Keys of one priority take turns, by weight; empty and 0 where nothing is said.
    pub fairness_key: Arc<str>,
    pub fairness_weight: f32,
    /// When it began to wait: the order within a key.
    pub created: Timestamp,
}

impl TaskOffer {
    /// The offer of a task with this priority: 3 where it names none, 5 where it is beyond.
    pub(crate) fn new(
        key: TaskKey,
        queue: QueueName,
        priority: Option<&Priority>,
        created: Timestamp,
    ) -> Self {
        const DEFAULT: u8 = 3;
        const LAST: i32 = 5;
        let fairness_key = priority.map_or("", |p| p.fairness_key.as_str());
        Self {
            key,
            queue,
            // Where build ids route tasks, the version of the task's run stands here.
            version: Arc::default(),
            priority: match priority.map_or(0, |p| p.priority_key) {
                ..=0 => DEFAULT,
                given => given.min(LAST) as u8,
            },
            fairness_key: if fairness_key.is_empty() {
                Arc::default()
            } else {
                fairness_key.into()
            },
            fairness_weight: priority.map_or(0.0, |p| p.fairness_weight),
            created,
        }
    }
}

/// What to do at another workflow, with all that is needed to do it.
#[derive(Clone, Debug, PartialEq)]
pub enum Errand {
    StartChild {
        initiated: EventId,
        attributes: Arc<StartChildWorkflowExecutionInitiatedEventAttributes>,
        user_metadata: Option<piton_proto::sdk::UserMetadata>,
    },
    Signal {
        initiated: EventId,
        attributes: Arc<SignalExternalWorkflowExecutionInitiatedEventAttributes>,
    },
    Cancel {
        initiated: EventId,
        attributes: Arc<RequestCancelExternalWorkflowExecutionInitiatedEventAttributes>,
    },
    ReportStart {
        parent: ParentLink,
    },
    ReportClose {
        parent: ParentLink,
        outcome: Box<ChildOutcome>,
    },
    CloseChild {
        initiated: EventId,
        namespace_id: Arc<str>,
        workflow_id: WorkflowId,
        first_run: RunId,
        /// True: terminate; false: request cancellation.
        terminate: bool,
    },
}

/// The parent's side of a child: where it is, and the event that stands for the child there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentLink {
    pub namespace_id: Arc<str>,
    pub workflow_id: WorkflowId,
    pub run_id: RunId,
    pub initiated: EventId,
}

/// How a child ended, as its parent's event will say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "short-lived, and never many at a time")]
pub enum ChildResult {
    Completed(#[serde(with = "message::optional")] Option<piton_proto::common::Payloads>),
    Failed(#[serde(with = "message::optional")] Option<piton_proto::failure::Failure>, i32),
    Canceled(#[serde(with = "message::optional")] Option<piton_proto::common::Payloads>),
    TimedOut(i32),
    Terminated,
}

/// A child's end with the identity its parent records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChildOutcome {
    pub workflow_id: WorkflowId,
    /// The last run of the chain.
    pub run_id: RunId,
    /// The first run: what the parent's Started event names.
    pub first_run: RunId,
    pub workflow_type: String,
    pub result: ChildResult,
}

/// An effect with its content.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Timer(Timestamp, TimerKind),
    Task(TaskOffer),
    Errand(ErrandKey, Errand),
}

impl Effect {
    pub fn key(&self) -> EffectKey {
        match self {
            Self::Timer(due, kind) => EffectKey::Timer(*due, kind.clone()),
            Self::Task(offer) => EffectKey::Task(offer.key.clone()),
            Self::Errand(key, _) => EffectKey::Errand(*key),
        }
    }
}
