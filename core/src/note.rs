//! The few facts of a run that the API keeps out of its history; each is a key of its own,
//! replaced in place (D6). State = fold(history) overlaid with these.

use std::sync::Arc;

use piton_proto::common::{Payloads, WorkerVersionStamp};
use piton_proto::failure::Failure;
use piton_proto::history::HistoryEvent;
use serde::{Deserialize, Serialize};

use crate::effect::{ErrandKey, QueueName};
use crate::id::{EventId, RequestId};
use crate::message::Proto;
use crate::time::{Span, Timestamp};

/// Names a note within its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NoteKey {
    /// All facts of which a run has one each.
    Run,
    /// One pending activity, by its Scheduled event.
    Activity(EventId),
    /// One event that waits for the started workflow task to end, in order of arrival.
    Buffered(u32),
}

/// A note's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "short-lived, and never many at a time")]
pub enum Note {
    Run(RunNote),
    Activity(ActivityNote),
    Buffered(Proto<HistoryEvent>),
}

/// The single facts of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunNote {
    /// Transitions of this run.
    pub transitions: u64,
    /// The request that created the run.
    pub start_request_id: Option<RequestId>,
    /// The task that is scheduled, or held started by this life of the actor.
    pub workflow_task: Option<WorkflowTaskNote>,
    pub sticky: Option<Sticky>,
    /// Attempt of the next workflow task: 1 unless the last ones failed or timed out.
    pub next_attempt: u32,
    /// The first workflow task may not be scheduled before the parent has recorded the start.
    pub waits_for_parent: bool,
    /// The first workflow task is scheduled then (continue-as-new backoff).
    pub first_task_at: Option<Timestamp>,
    /// Errands of a *closed* run that are not settled yet.
    pub owed: Vec<ErrandKey>,
    /// Number of the next buffered event's note.
    pub next_buffered: u32,
    /// Grows with each workflow task offer, so that no two of a run are the same.
    pub last_stamp: u32,
}

/// Where a run's next workflow tasks go while its worker holds the run in its cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sticky {
    pub queue: QueueName,
    pub schedule_to_start: Span,
}

/// A scheduled workflow task. That it is started is never noted: see docs/design.md,
/// "The held workflow task".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkflowTaskNote {
    /// The id its Scheduled event has, or would get if it were written now.
    pub scheduled_event_id: EventId,
    pub kind: WorkflowTaskKind,
    pub attempt: u32,
    pub queue: QueueName,
    pub start_to_close: Span,
    pub scheduled_at: Timestamp,
    /// When the first task of a chain of heartbeats was scheduled.
    pub original_scheduled_at: Timestamp,
    /// Set for a sticky queue: when the task goes to the normal queue instead.
    pub schedule_to_start_due: Option<Timestamp>,
    pub stamp: u32,
}

/// What of a workflow task enters history, and when. Stored by its number: a new kind, as the
/// speculative task of an update will be one, comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkflowTaskKind {
    /// A further attempt after one that failed: nothing of it, unless it completes.
    Transient,
    /// The Scheduled event at once, all else when it ends.
    Normal,
}

impl WorkflowTaskKind {
    /// The kind of a task with this attempt's number.
    pub(crate) fn of_attempt(attempt: u32) -> Self {
        if attempt == 1 { Self::Normal } else { Self::Transient }
    }

    /// Whether its Scheduled event is written when it is scheduled, and not with its answer.
    pub fn is_written_ahead(self) -> bool {
        match self {
            Self::Normal => true,
            Self::Transient => false,
        }
    }

    /// Whether events are left of a handed-out task that ends without its completion.
    pub fn leaves_events(self) -> bool {
        match self {
            Self::Normal => true,
            Self::Transient => false,
        }
    }

    /// Whether the worker that holds the run in its cache may have it.
    pub fn may_be_sticky(self) -> bool {
        match self {
            Self::Normal => true,
            Self::Transient => false,
        }
    }
}

/// What history does not say of a pending activity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivityNote {
    pub attempt: u32,
    /// Changes whenever an older offer or token must not count any more.
    pub stamp: u32,
    /// When this attempt was or will be offered: later than now while in backoff.
    pub attempt_scheduled_at: Timestamp,
    pub started: Option<ActivityStart>,
    pub last_failure: Option<Proto<Failure>>,
    pub last_worker_identity: String,
    pub last_attempt_completed_at: Option<Timestamp>,
    pub heartbeat_details: Option<Proto<Payloads>>,
    pub heartbeat_at: Option<Timestamp>,
    /// The wait before this attempt, for `describe`.
    pub retry_wait: Option<Span>,
}

/// A handed-out attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivityStart {
    pub at: Timestamp,
    pub identity: String,
    /// The ticket by which it was handed out; the Started event's request id.
    pub request_id: Arc<str>,
    /// What the worker says of its build; shown by the Started event.
    pub worker_version: Option<Proto<WorkerVersionStamp>>,
}
