//! What is asked of a shard's leader, by who answers it there: a workflow's actor, a queue's actor,
//! or the shard's rows.

use std::time::Duration;

use piton_core::id::{NamespaceId, RunId, ShardId, WorkflowKey};
use piton_core::list_filter::ListFilter;
use piton_core::message;
use piton_core::proto::command::command::Attributes;
use piton_core::proto::enums::QueryRejectCondition;
use piton_core::proto::query::WorkflowQuery;
use piton_core::proto::workflowservice::{
    RespondQueryTaskCompletedRequest, RespondWorkflowTaskCompletedRequest,
};
use piton_core::request::{RunRequest, StartRequest};
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

use crate::message::delivery::PollId;
use crate::message::queue::{Offer, OfferedTask, PollRequest, QueueKey, Ticket, WantedTasks};
use crate::message::{QueryToken, WorkflowTaskToken};

/// A request to the leader of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "most are calls to a workflow, the largest")]
pub enum Call {
    /// To a workflow of the shard.
    Workflow(WorkflowCall),
    /// To a queue that the shard owns.
    Queue(QueueCall),
    /// To the shard's rows.
    Read(ReadCall),
    /// To a shard for more of whose tasks a queue has room.
    Wanted(WantedTasks),
}

/// A call to a workflow's actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WorkflowCall {
    Start {
        key: WorkflowKey,
        request: StartRequest,
    },
    Run {
        key: WorkflowKey,
        run_id: Option<RunId>,
        request: RunRequest,
    },
    CompleteWorkflowTask {
        token: WorkflowTaskToken,
        #[serde(with = "message::one")]
        answer: Box<RespondWorkflowTaskCompletedRequest>,
    },
    Query {
        key: WorkflowKey,
        run_id: Option<RunId>,
        #[serde(with = "message::one")]
        query: WorkflowQuery,
        #[serde(with = "message::number")]
        reject: QueryRejectCondition,
        /// How long its caller waits.
        timeout: Duration,
    },
    AnswerQuery {
        token: QueryToken,
        #[serde(with = "message::one")]
        answer: Box<RespondQueryTaskCompletedRequest>,
    },
    Describe {
        key: WorkflowKey,
        run_id: Option<RunId>,
    },
    /// An offer met a poll.
    Ticket(Ticket),
    /// Nobody polls the queue that this task or query was offered to.
    NoPoller {
        key: WorkflowKey,
        run_id: RunId,
        task: OfferedTask,
    },
}

impl WorkflowCall {
    /// Whether it is a client's, and leads to something that has to be kept.
    pub(crate) fn writes(&self) -> bool {
        match self {
            WorkflowCall::Start { .. }
            | WorkflowCall::Run { .. }
            | WorkflowCall::CompleteWorkflowTask { .. } => true,
            WorkflowCall::Query { .. }
            | WorkflowCall::AnswerQuery { .. }
            | WorkflowCall::Describe { .. }
            | WorkflowCall::Ticket(_)
            | WorkflowCall::NoPoller { .. } => false,
        }
    }
}

/// A call to a task queue's matching actor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum QueueCall {
    /// A task seeks a worker.
    Offer(Offer),
    /// The task is settled, or must not be taken any more.
    Withdraw {
        queue: QueueKey,
        origin: ShardId,
        key: WorkflowKey,
        run_id: RunId,
        task: OfferedTask,
    },
    /// A worker seeks a task.
    Poll(PollRequest),
    /// The worker has gone away.
    WithdrawPoll {
        queue: QueueKey,
        node: NodeId,
        poll: PollId,
    },
    /// Forget this worker's polls and its sticky queue.
    ShutdownWorker {
        queue: QueueKey,
        worker_instance_key: String,
    },
    Describe {
        queue: QueueKey,
    },
}

/// A call that a shard answers from its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ReadCall {
    History {
        key: WorkflowKey,
        run_id: Option<RunId>,
        page: HistoryPage,
    },
    List {
        namespace: NamespaceId,
        filter: ListFilter,
        #[serde(with = "serde_bytes")]
        after: Option<Vec<u8>>,
        limit: usize,
        /// How long its caller waits; `None`: it does not say.
        timeout: Option<Duration>,
    },
    Count {
        namespace: NamespaceId,
        filter: ListFilter,
        timeout: Option<Duration>,
    },
    /// To every shard: how many tasks of the queue wait here, and since when the oldest.
    Backlog {
        queue: QueueKey,
        timeout: Option<Duration>,
    },
}

/// Which part of a history is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryPage {
    #[serde(with = "serde_bytes")]
    pub token: Vec<u8>,
    pub max_events: usize,
    /// Hold the call this long until there is something new; `None`: answer at once.
    pub wait: Option<Duration>,
    /// Only the event that closes the run.
    pub close_only: bool,
    /// Newest first.
    pub reverse: bool,
    pub held: HeldEvents,
}

/// Whether a page that ends at the history's end goes on with the events of the workflow task that a
/// worker holds, which are written with its answer. They are gone if the workflow's actor goes, so
/// a page that waits for more never has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldEvents {
    Hidden,
    /// The Started event of a first attempt: the official server writes it when it hands the task out.
    FirstAttempt,
    /// Also those of a further attempt, for clients that know that these are not in history.
    EveryAttempt,
}

impl WorkflowCall {
    /// The workflow that is called.
    pub fn key(&self) -> WorkflowKey {
        match self {
            Self::Start { key, .. }
            | Self::Run { key, .. }
            | Self::Query { key, .. }
            | Self::Describe { key, .. }
            | Self::NoPoller { key, .. } => key.clone(),
            Self::CompleteWorkflowTask { token, .. } => token.key(),
            Self::AnswerQuery { token, .. } => token.key(),
            Self::Ticket(ticket) => ticket.offer.key.clone(),
        }
    }
}

impl QueueCall {
    /// The queue that is called.
    pub fn queue(&self) -> &QueueKey {
        match self {
            Self::Offer(offer) => &offer.queue,
            Self::Poll(poll) => &poll.queue,
            Self::Withdraw { queue, .. }
            | Self::WithdrawPoll { queue, .. }
            | Self::ShutdownWorker { queue, .. }
            | Self::Describe { queue } => queue,
        }
    }
}

/// The namespaces that a worker's commands name; none stands for the run's own.
#[expect(deprecated, reason = "workers still send them")]
pub(crate) fn named_namespaces(
    answer: &RespondWorkflowTaskCompletedRequest,
) -> impl Iterator<Item = &str> {
    let named = answer.commands.iter().filter_map(|command| match command.attributes.as_ref()? {
        Attributes::StartChildWorkflowExecutionCommandAttributes(a) => Some(&a.namespace),
        Attributes::SignalExternalWorkflowExecutionCommandAttributes(a) => Some(&a.namespace),
        Attributes::RequestCancelExternalWorkflowExecutionCommandAttributes(a) => {
            Some(&a.namespace)
        }
        _ => None,
    });
    named.map(String::as_str).filter(|name| !name.is_empty())
}

impl From<WorkflowCall> for Call {
    fn from(call: WorkflowCall) -> Self {
        Self::Workflow(call)
    }
}

impl From<QueueCall> for Call {
    fn from(call: QueueCall) -> Self {
        Self::Queue(call)
    }
}

impl From<ReadCall> for Call {
    fn from(call: ReadCall) -> Self {
        Self::Read(call)
    }
}
