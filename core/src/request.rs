//! What may be asked of a workflow. The shell draws time, ids and numbers beforehand ([`Drawn`]),
//! so that deciding is a function of values.

use std::sync::Arc;

use piton_proto::common::{Header, Payloads, WorkerVersionStamp, WorkflowExecution};
use piton_proto::failure::Failure;
use piton_proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
    StartWorkflowExecutionRequest,
};
use serde::{Deserialize, Serialize};

use crate::effect::{ChildOutcome, ErrandKey, ParentLink};
use crate::id::{EventId, NamespaceId, RunId};
use crate::limits::Limits;
use crate::message::{self, Proto};
use crate::time::Timestamp;

/// What deciding needs from outside; all of it drawn by the shell.
#[derive(Clone, Debug)]
pub struct Drawn<'a> {
    /// Never earlier than the last transition's.
    pub now: Timestamp,
    /// The term this node leads in; part of a workflow task's token.
    pub term: u64,
    /// Fresh for this request: the number of a workflow task handed out by it.
    pub number: u64,
    /// Fresh for this request: the id of a run created by it.
    pub run_id: RunId,
    pub limits: &'a Limits,
    /// The namespace's name, for events that show it.
    pub namespace_name: &'a str,
    /// Namespaces named by commands, resolved by the shell: `(name, id)`.
    pub namespaces: &'a [(Arc<str>, NamespaceId)],
    /// Whether upserted search attributes are known and well typed; else the text of the refusal.
    /// Returns the attributes with their `type` metadata filled in.
    pub search_attributes: &'a dyn SearchAttributeCheck,
}

/// Knows the search attributes of the request's namespace.
pub trait SearchAttributeCheck {
    /// Fills in `type` metadata and checks names, types and sizes.
    ///
    /// # Errors
    /// The text of the refusal.
    fn check(&self, attributes: &mut piton_proto::common::SearchAttributes) -> Result<(), String>;
}

impl std::fmt::Debug for dyn SearchAttributeCheck + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SearchAttributeCheck")
    }
}

/// Starts a run, perhaps with a signal. Validated by the frontend but for the id policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRequest {
    /// With defaults filled in: policies, timeouts, request id, retry policy.
    #[serde(with = "message::one")]
    pub start: Box<StartWorkflowExecutionRequest>,
    pub signal: Option<Signal>,
    /// Set when the run is a child.
    pub parent: Option<Parent>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parent {
    pub link: ParentLink,
    pub namespace_name: Arc<str>,
    #[serde(with = "message::one")]
    pub root: WorkflowExecution,
}

/// A signal to a run.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Signal {
    pub name: String,
    #[serde(with = "message::optional")]
    pub input: Option<Payloads>,
    pub identity: String,
    #[serde(with = "message::optional")]
    pub header: Option<Header>,
    /// Empty: never recognised as a repetition.
    pub request_id: String,
    /// The workflow that sent it, if one did.
    #[serde(with = "message::optional")]
    pub sender: Option<WorkflowExecution>,
    /// Only if the target is a child of the sender.
    pub child_only: bool,
    #[serde(with = "message::list")]
    pub links: Vec<piton_proto::common::Link>,
}

/// A request to one existing run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RunRequest {
    Signal(Signal),
    RequestCancel(CancelRequest),
    Terminate(TerminateRequest),
    ResetSticky,

    /// An offer met a poll: hand the task out. Volatile; nothing is recorded.
    TakeWorkflowTask {
        scheduled: EventId,
        stamp: u32,
        taker: Taker,
    },
    CompleteWorkflowTask {
        token: WorkflowTaskRef,
        #[serde(with = "message::one")]
        answer: Box<RespondWorkflowTaskCompletedRequest>,
    },
    FailWorkflowTask {
        token: WorkflowTaskRef,
        #[serde(with = "message::one")]
        answer: Box<RespondWorkflowTaskFailedRequest>,
    },
    /// The start-to-close time of the task that this life of the actor handed out is over.
    WorkflowTaskTimedOut {
        number: u64,
    },
    /// The node that should have handed out the task could not: offer it again.
    WorkflowTaskUndelivered {
        number: u64,
    },
    /// The sticky queue has no poller: offer the task on the normal queue, as it is.
    StickyUnavailable {
        stamp: u32,
    },
    /// The sticky queue's worker did not answer a query in time: what comes next goes to the normal
    /// queue.
    StickyLost,

    /// An offer met a poll: record the attempt as started.
    StartActivity {
        scheduled: EventId,
        stamp: u32,
        /// Since when its offer says that it waits. A ticket may outlive a commit that failed; by then
        /// another activity may have this number.
        created: Timestamp,
        taker: Taker,
    },
    ActivityUndelivered {
        scheduled: EventId,
        stamp: u32,
        request_id: Arc<str>,
    },
    CompleteActivity {
        activity: ActivityRef,
        #[serde(with = "message::optional")]
        result: Option<Payloads>,
        identity: String,
    },
    FailActivity {
        activity: ActivityRef,
        #[serde(with = "message::optional")]
        failure: Option<Failure>,
        #[serde(with = "message::optional")]
        last_heartbeat_details: Option<Payloads>,
        identity: String,
    },
    CancelActivity {
        activity: ActivityRef,
        #[serde(with = "message::optional")]
        details: Option<Payloads>,
        identity: String,
    },
    HeartbeatActivity {
        activity: ActivityRef,
        #[serde(with = "message::optional")]
        details: Option<Payloads>,
        /// Of whom the activity's end tells if the details are too large.
        identity: String,
    },

    /// Something may be due; fires everything that is.
    Due,
    /// First request after re-hosting: flushes buffered events if there are any.
    Rehosted,

    /// A child asks whether its start is recorded here; this records it.
    ChildStarted {
        initiated: EventId,
        run_id: RunId,
        #[serde(with = "message::optional")]
        header: Option<Header>,
    },
    ChildRefused {
        initiated: EventId,
        cause: ChildRefusal,
    },
    ChildClosed {
        initiated: EventId,
        outcome: Box<ChildOutcome>,
    },
    /// The parent has recorded the start: schedule the first workflow task.
    ParentRecorded,
    ExternalSignalDone {
        initiated: EventId,
        refusal: Option<ExternalRefusal>,
    },
    ExternalCancelDone {
        initiated: EventId,
        refusal: Option<ExternalRefusal>,
    },
    /// An errand of a closed run is done.
    ErrandDone(ErrandKey),
}

/// Who takes a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taker {
    pub identity: String,
    /// The ticket, as text: the Started event's request id.
    pub request_id: Arc<str>,
    /// Whether the poll was on the sticky queue.
    pub sticky: bool,
    /// What it says of its build; shown by the Started event.
    #[serde(with = "message::optional")]
    pub worker_version: Option<WorkerVersionStamp>,
}

/// The started workflow task that an answer is for (its token, decoded).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowTaskRef {
    pub term: u64,
    pub number: u64,
}

/// The activity that an answer is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActivityRef {
    /// By its token.
    Attempt { scheduled: EventId, attempt: u32, stamp: u32 },
    /// By the id that the workflow gave it.
    Id(String),
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct CancelRequest {
    pub reason: String,
    pub identity: String,
    pub request_id: String,
    /// Must be the first run of the chain, unless empty.
    pub first_run_id: String,
    /// The workflow that asked, and the event by which it did.
    pub sender: Option<(Proto<WorkflowExecution>, EventId)>,
    pub child_only: bool,
    #[serde(with = "message::list")]
    pub links: Vec<piton_proto::common::Link>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct TerminateRequest {
    pub reason: String,
    #[serde(with = "message::optional")]
    pub details: Option<Payloads>,
    pub identity: String,
    pub first_run_id: String,
    #[serde(with = "message::list")]
    pub links: Vec<piton_proto::common::Link>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildRefusal {
    AlreadyExists,
    NamespaceNotFound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalRefusal {
    NotFound,
    NamespaceNotFound,
    SignalCountLimit,
}
