//! What an operator asks, and what comes back.

use std::collections::BTreeMap;

use piton_core::id::ShardId;
use piton_raft::NodeId;
use piton_shard::NodeState;
use piton_store::codec::Kind;
use serde::{Deserialize, Serialize};

use crate::operator::ClusterReport;

/// What an operator asks of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OperatorCall {
    /// All that the node knows of the cluster.
    Report,
    /// What a node is to be to the cluster. [`NodeState::Removed`] is not asked for: a node that leaves is
    /// removed once nothing needs it any more.
    SetState { node: NodeId, state: NodeState },
    /// Hand the leadership of a shard to another of its voters.
    Transfer { shard: ShardId, to: NodeId },
    /// Move a replica of a shard to a node that has none.
    Move { shard: ShardId, from: NodeId, to: NodeId },
    /// Take a snapshot of a shard, or of all, on the node that is asked.
    Snapshot { shard: Option<ShardId> },
    /// Spread replicas and leaders evenly, or leave them where they are.
    Rebalance { is_paused: bool },
    /// Raise the feature level, once every node knows it: from then on what is new is written.
    Upgrade { to: u32 },
}

pub(super) const OPERATOR_ANSWER: Kind<OperatorAnswer> = Kind::new("an answer to an operator", &[]);

/// What it is answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OperatorAnswer {
    Report(Box<ClusterReport>),
    /// It is recorded; a report says when it has been carried out.
    Recorded,
    /// The index that each snapshot holds.
    Snapshots(BTreeMap<ShardId, u64>),
    Refused(OperatorRefusal),
}

/// Why a node does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum OperatorRefusal {
    /// There is no such node or shard.
    #[error("{0}")]
    NotFound(String),
    /// It would do harm, or means nothing.
    #[error("{0}")]
    Refused(String),
    /// The cluster cannot decide it now: asked again later, it may.
    #[error("{0}")]
    Unavailable(String),
}
