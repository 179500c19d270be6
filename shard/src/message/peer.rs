//! The way to other nodes: a call to a shard's leader, a delivery to a node that holds a poll, a call to
//! the meta group's leader.

use async_trait::async_trait;
use piton_core::id::ShardId;
use piton_raft::NodeId;

use crate::error::{MetaError, ShardError};
use crate::message::{Answer, Call, Delivery, MetaCall, PollId, Receipt};

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

    /// Asks `node`, which is thought to lead the meta group; see [`MetaCall`].
    ///
    /// # Errors
    /// What the node answers; `NotLed` where it cannot have been asked, `Unavailable` where it does not
    /// answer.
    async fn meta(&self, node: NodeId, call: MetaCall) -> Result<u64, MetaError>;
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

    async fn meta(&self, _: NodeId, _: MetaCall) -> Result<u64, MetaError> {
        Err(MetaError::NotLed { leader: None })
    }
}
