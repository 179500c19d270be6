//! What goes between nodes: one call to a shard's leader, one delivery to a node that holds a poll.
//!
//! Everything here is plain data, so that a later gRPC peer only has to encode it. On one node both
//! are function calls. Calls may be lost or repeated; no logic relies on their order.

use async_trait::async_trait;
use piton_core::effect::{QueueName, TaskKey};
use piton_core::id::{NamespaceId, RunId, ShardId, WorkflowKey};
use piton_core::list_filter::ListFilter;
use piton_core::proto::enums::QueryRejectCondition;
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::query::WorkflowQuery;
use piton_core::proto::workflow::WorkflowExecutionInfo;
use piton_core::proto::workflowservice::{
    DescribeWorkflowExecutionResponse, PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse, QueryWorkflowResponse, RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse,
    StartWorkflowExecutionResponse,
};
use piton_core::request::{RunRequest, StartRequest};
use piton_core::run::Reply;
use piton_core::time::Timestamp;
use piton_raft::NodeId;
use tokio::time::Instant;

use crate::error::ShardError;
use crate::message::token::{QueryToken, WorkflowTaskToken};
use crate::route::polls::PollId;

/// Reaches the other nodes of the cluster.
#[async_trait]
pub trait Peer: Send + Sync + 'static {
    /// Asks `node`, which is thought to lead `shard`.
    ///
    /// # Errors
    /// What the node answers; `Unavailable` when it cannot be reached or does not lead.
    async fn call(&self, node: NodeId, shard: ShardId, call: Call) -> Result<Answer, ShardError>;

    /// Hands a task to a poll that `node` holds open.
    async fn deliver(&self, node: NodeId, poll: PollId, delivery: Delivery) -> Receipt;
}

/// The peers of a cluster of one: there are none.
pub struct NoPeers;

#[async_trait]
impl Peer for NoPeers {
    async fn call(&self, node: NodeId, _: ShardId, _: Call) -> Result<Answer, ShardError> {
        Err(ShardError::Unavailable(format!("this node knows no other node {}", node.0)))
    }

    async fn deliver(&self, _: NodeId, _: PollId, _: Delivery) -> Receipt {
        Receipt::Unreachable
    }
}

/// A request to the leader of a shard.
#[derive(Clone, Debug)]
pub enum Call {
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
        answer: Box<RespondWorkflowTaskCompletedRequest>,
    },
    Query {
        key: WorkflowKey,
        run_id: Option<RunId>,
        query: WorkflowQuery,
        reject: QueryRejectCondition,
        deadline: Instant,
    },
    AnswerQuery {
        token: QueryToken,
        answer: Box<RespondQueryTaskCompletedRequest>,
    },
    Describe {
        key: WorkflowKey,
        run_id: Option<RunId>,
    },
    History {
        key: WorkflowKey,
        run_id: Option<RunId>,
        page: HistoryPage,
    },
    List {
        namespace: NamespaceId,
        filter: ListFilter,
        after: Option<Vec<u8>>,
        limit: usize,
    },
    Count {
        namespace: NamespaceId,
        filter: ListFilter,
    },

    /// To the leader of a queue's shard: a task seeks a worker.
    Offer(Offer),
    /// To the leader of a queue's shard: the task is settled, or must not be taken any more.
    Withdraw {
        queue: QueueKey,
        origin: ShardId,
        key: WorkflowKey,
        run_id: RunId,
        task: OfferedTask,
    },
    /// To the leader of a queue's shard: a worker seeks a task.
    Poll(PollRequest),
    /// To the leader of a queue's shard: the worker has gone away.
    WithdrawPoll {
        queue: QueueKey,
        node: NodeId,
        poll: PollId,
    },
    /// To the leader of a queue's shard: forget this worker's polls and its sticky queue.
    ShutdownWorker {
        queue: QueueKey,
        worker_instance_key: String,
    },
    DescribeQueue {
        queue: QueueKey,
    },
    /// To every shard: how many tasks of the queue wait here, and since when the oldest.
    Backlog {
        queue: QueueKey,
    },
    /// To a workflow's shard: an offer met a poll.
    Ticket(Ticket),
    /// To a workflow's shard: the queue has room again.
    Room {
        queue: QueueKey,
    },
    /// To a workflow's shard: nobody polls the queue this task or query was offered to.
    NoPoller {
        key: WorkflowKey,
        run_id: RunId,
        task: OfferedTask,
    },
}

/// What a call is answered with.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Reply(Box<Reply>),
    Started(Box<StartWorkflowExecutionResponse>),
    WorkflowTaskCompleted(Box<RespondWorkflowTaskCompletedResponse>),
    Query(Box<QueryWorkflowResponse>),
    Describe(Box<DescribeWorkflowExecutionResponse>),
    History(HistoryPageReply),
    List { rows: Vec<(Vec<u8>, WorkflowExecutionInfo)>, covered: Vec<std::ops::Range<u16>> },
    Count { counts: CountReply, covered: Vec<std::ops::Range<u16>> },
    Queue(TaskQueueView),
}

/// What a poll receives.
#[derive(Clone, Debug)]
pub enum Delivery {
    WorkflowTask(Box<PollWorkflowTaskQueueResponse>),
    ActivityTask(Box<PollActivityTaskQueueResponse>),
    /// The match came to nothing, or the queue's owner changed: poll again.
    Again,
    /// The worker is shutting down: answer empty.
    Shutdown,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// The poll has it.
    Taken,
    /// The poll has ended without a task, so that nobody has it.
    Gone,
    /// The poll is not there. It may have had this task before, or be of an earlier life of its node.
    Unknown,
    /// The node does not answer: it may have given it to the poll or not.
    Unreachable,
}

/// Workflow or activity tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueType {
    Workflow,
    Activity,
}

/// Names a task queue in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey {
    pub namespace: NamespaceId,
    pub queue: QueueName,
    pub kind: QueueType,
}

/// What is offered to a queue: a task that stands in a row, or a query that stands nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfferedTask {
    Task(TaskKey),
    Query(u64),
}

/// A task seeks a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub queue: QueueKey,
    /// The shard that the task stands in.
    pub origin: ShardId,
    pub key: WorkflowKey,
    pub run_id: RunId,
    pub task: OfferedTask,
    pub priority: u8,
    pub created: Timestamp,
    /// More tasks of this shard wait behind it, which have not been offered: the queue's owner asks
    /// for them when it has room.
    pub more_behind: bool,
}

/// A worker seeks a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollRequest {
    pub queue: QueueKey,
    pub node: NodeId,
    pub poll: PollId,
    pub identity: String,
    pub worker_instance_key: String,
}

/// An offer met a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub offer: Offer,
    pub node: NodeId,
    pub poll: PollId,
    pub identity: String,
}

/// Which part of a history is asked for.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    pub token: Vec<u8>,
    pub max_events: usize,
    /// Hold the call until there is something new.
    pub wait: bool,
    /// Only the event that closes the run.
    pub close_only: bool,
    /// Newest first.
    pub reverse: bool,
    pub deadline: Instant,
}

#[derive(Clone, Debug, Default)]
pub struct HistoryPageReply {
    pub events: Vec<HistoryEvent>,
    /// Empty at the end.
    pub next_page_token: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountReply {
    pub total: u64,
    /// Value of the `GROUP BY` attribute and how many have it.
    pub groups: Vec<(String, u64)>,
}

/// What is known of a task queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskQueueView {
    pub pollers: Vec<Poller>,
    pub backlog_count: u64,
    /// When the oldest waiting task was created.
    pub oldest: Option<Timestamp>,
    /// Shards that hold more tasks than these.
    pub beyond_window: Vec<ShardId>,
}

/// A worker seen polling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poller {
    pub identity: String,
    pub last_access: Timestamp,
}

impl Ticket {
    /// Names the pairing: the same text for the same poll of the same task.
    pub(crate) fn id(&self) -> String {
        ticket_id(self.node, self.poll)
    }
}

/// The ticket that a poll of a node was paired by, as text.
pub(crate) fn ticket_id(node: NodeId, poll: PollId) -> String {
    format!("{}-{}", node.0, poll.0)
}
