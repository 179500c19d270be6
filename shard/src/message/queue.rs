//! Task queues: their names, what is offered to them, who polls them, and the ticket of a pair.

use piton_core::effect::{QueueName, TaskKey};
use piton_core::id::{NamespaceId, RunId, ShardId, WorkflowKey};
use piton_core::matching::{Class, Poll};
use piton_core::message;
use piton_core::proto::common::WorkerVersionStamp;
use piton_core::time::Timestamp;
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

use crate::message::delivery::PollId;

/// Workflow, activity or Nexus tasks. Nothing offers Nexus tasks yet: their polls wait and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QueueType {
    Workflow,
    Activity,
    Nexus,
}

/// Names a task queue in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueKey {
    pub namespace: NamespaceId,
    pub queue: QueueName,
    pub kind: QueueType,
}

/// What is offered to a queue: a task that stands in a row, or a query that stands nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OfferedTask {
    Task(TaskKey),
    Query(u64),
}

/// A task seeks a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub queue: QueueKey,
    /// The shard that the task stands in.
    pub origin: ShardId,
    pub key: WorkflowKey,
    pub run_id: RunId,
    pub task: OfferedTask,
    pub class: Class,
    /// How far the turn of its fairness key moves on with it.
    pub stride: u32,
    pub created: Timestamp,
    /// More tasks of this shard and class wait behind it, which have not been offered: the queue's
    /// owner asks for them when it has room.
    pub more_behind: bool,
}

/// A queue has room for more of a shard's tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedTasks {
    pub queue: QueueKey,
    /// `None`: for tasks of every class.
    pub class: Option<Class>,
    /// How many of each class.
    pub limit: usize,
}

/// Names a poll in the cluster.
pub(crate) type PollName = (NodeId, PollId);

/// A worker seeks a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PollRequest {
    pub queue: QueueKey,
    pub node: NodeId,
    pub poll: PollId,
    pub identity: String,
    pub worker_instance_key: String,
    /// What the worker says of its build.
    #[serde(with = "message::optional")]
    pub worker_version: Option<WorkerVersionStamp>,
}

/// An offer met a poll.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    pub offer: Offer,
    pub node: NodeId,
    pub poll: PollId,
    pub identity: String,
    #[serde(with = "message::optional")]
    pub worker_version: Option<WorkerVersionStamp>,
}

/// What is known of a task queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskQueueView {
    pub pollers: Vec<Poller>,
    pub backlog_count: u64,
    /// When the oldest waiting task was created.
    pub oldest: Option<Timestamp>,
    /// Shards that hold more tasks than these.
    pub beyond_window: Vec<ShardId>,
}

/// A worker seen polling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poller {
    pub identity: String,
    pub last_access: Timestamp,
}

impl Ticket {
    pub(crate) fn new(offer: Offer, poll: Poll<PollName>) -> Self {
        let Poll { id: (node, poll), identity, worker_version, .. } = poll;
        Self { offer, node, poll, identity, worker_version }
    }

    /// Names the pairing: the same text for the same poll of the same task.
    pub(crate) fn id(&self) -> String {
        ticket_id(self.node, self.poll)
    }
}

/// The ticket that a poll of a node was paired by, as text.
pub(crate) fn ticket_id(node: NodeId, poll: PollId) -> String {
    format!("{}-{}", node.0, poll.0)
}
