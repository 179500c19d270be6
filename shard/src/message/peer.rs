//! The way to other nodes: calls to the leader of a shard or of the meta group, deliveries to a node that
//! holds a poll, calls to a node itself.

use std::time::Duration;

use async_trait::async_trait;
use piton_core::id::ShardId;
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::{MetaError, ShardError};
use crate::message::{Answer, Call, Delivery, NodeAnswer, NodeCall, PollId, Receipt};

/// A call on its one hop to another node. It is answered there, or refused; never sent on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forwarded {
    pub shard: ShardId,
    /// How long its sender still waits for the answer.
    pub timeout: Duration,
    /// How far the sender's copy of the meta state had got.
    pub meta_version: u64,
    pub call: Call,
}

/// Reaches the other nodes of the cluster.
#[async_trait]
pub trait Peer: Send + Sync + 'static {
    /// Asks `node`, which is thought to lead the shard. Ends when the call's timeout is over.
    ///
    /// # Errors
    /// What the node answers: `NotLeader` when it does not lead the shard. `Unavailable` when the
    /// call has certainly not got there, `OutcomeUnknown` when it may have and no answer came.
    async fn call(&self, node: NodeId, call: Forwarded) -> Result<Answer, ShardError>;

    /// Hands a task to a poll that `node` holds open.
    async fn deliver(&self, node: NodeId, poll: PollId, delivery: Delivery) -> Receipt;

    /// Asks `node` something that is not about one of its shards.
    ///
    /// # Errors
    /// What the node answers; `NotLed` where it cannot have been asked, `Unavailable` where it does not
    /// answer.
    async fn node(&self, node: NodeId, call: NodeCall) -> Result<NodeAnswer, MetaError>;
}

/// The peers of a cluster of one: there are none.
pub struct NoPeers;

#[async_trait]
impl Peer for NoPeers {
    async fn call(&self, node: NodeId, _: Forwarded) -> Result<Answer, ShardError> {
        Err(ShardError::Unavailable(format!("this node knows no other node {node}")))
    }

    async fn deliver(&self, _: NodeId, _: PollId, _: Delivery) -> Receipt {
        Receipt::Unreachable
    }

    async fn node(&self, _: NodeId, _: NodeCall) -> Result<NodeAnswer, MetaError> {
        Err(MetaError::NotLed { leader: None })
    }
}
