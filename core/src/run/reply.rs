//! What a decision answers its caller.

use piton_proto::failure::Failure;
use piton_proto::history::HistoryEvent;
use piton_proto::workflowservice::PollActivityTaskQueueResponse;
use serde::{Deserialize, Serialize};

use crate::effect::QueueName;
use crate::id::{EventId, RunId};
use crate::message;
use crate::run::Status;
use crate::time::Timestamp;

/// The answer to a request that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The offered task is not there any more: drop the offer, keep the poll.
    Gone,
    Started {
        run_id: RunId,
        first_run_id: RunId,
        /// Whether this request (or its first try) created the run.
        started: bool,
        status: Status,
        /// The first workflow task, if eager start was asked for and granted.
        eager: Option<Box<StartedTask>>,
    },
    WorkflowTask(Box<StartedTask>),
    WorkflowTaskCompleted {
        next: Option<Box<StartedTask>>,
        eager_activities: Vec<ActivityTask>,
    },
    Activity(Box<ActivityTask>),
    Heartbeat {
        cancel_requested: bool,
    },
    /// The activity's failure is recorded, but for what was too large, each of which these stand for.
    ActivityFailed {
        #[serde(with = "message::list")]
        left_out: Vec<Failure>,
    },
    /// The child's start is recorded: it may go on. Or this run is closed or never asked for the
    /// child: it must not.
    ChildRecorded(bool),
}

/// A workflow task as handed to a worker; the shell adds pages of history and the token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartedTask {
    pub run_id: RunId,
    pub workflow_type: String,
    pub term: u64,
    pub number: u64,
    pub attempt: u32,
    pub scheduled_event_id: EventId,
    pub started_event_id: EventId,
    /// Started event of the last completed task, 0 if none.
    pub previous_started: EventId,
    /// Committed history that belongs to the task: `[from, end)`.
    pub history_from: EventId,
    pub history_end: EventId,
    /// Events after `end` that are not committed: the Started event, before it perhaps Scheduled.
    #[serde(with = "message::list")]
    pub suffix: Vec<HistoryEvent>,
    pub scheduled_at: Timestamp,
    pub started_at: Timestamp,
    /// When the answer has to be there.
    pub due: Timestamp,
    /// The run's normal queue.
    pub queue: QueueName,
}

/// An activity task as handed to a worker; the shell adds the token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivityTask {
    pub scheduled: EventId,
    pub attempt: u32,
    pub stamp: u32,
    /// All but the token.
    #[serde(with = "message::one")]
    pub response: Box<PollActivityTaskQueueResponse>,
}
