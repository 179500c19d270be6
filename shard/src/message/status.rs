//! What is asked of a node as such, and what it says of itself.

use std::collections::{BTreeMap, BTreeSet};

use piton_core::id::ShardId;
use piton_core::time::{Span, Timestamp};
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

use crate::message::meta::MetaCall;

/// A call to a node that is not about one of its shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeCall {
    /// To the leader of the meta group.
    Meta(MetaCall),
    /// What another node says of itself. Answered with the same of this one, so that a node that has
    /// just started knows of the others at once.
    Status(Box<NodeStatus>),
    /// Hand the leadership of a shard to another of its voters.
    Lead { shard: ShardId, to: NodeId },
    /// How a shard's leader sees it. Answered where it leads, with the members that are committed.
    Replica { shard: ShardId },
}

/// What it is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAnswer {
    Done,
    /// Whoever sees this version of the meta state, or a later one, sees what was asked for.
    Version(u64),
    Replica(Box<ReplicaStatus>),
    /// How the node that was told is itself.
    Status(Box<NodeStatus>),
}

/// What a node says of itself to all others, about once in a second. It may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: NodeId,
    /// Its release, for people.
    pub release: String,
    /// The highest feature level that it knows.
    pub level: u32,
    /// The meta state that it has seen.
    pub meta_version: u64,
    /// What its clock showed.
    pub clock: Timestamp,
    /// Its replica of the meta group.
    pub meta: ReplicaStatus,
    pub shards: BTreeMap<ShardId, ReplicaStatus>,
    /// It is given nothing to lead: it is about to stop, or its clock is far from the others'.
    pub leads_nothing: bool,
    /// By how much its clock is ahead of most others'; `None`: it could not be compared.
    pub clock_ahead: Option<Span>,
    /// Groups that it cannot go on with, and why; the meta group is `None`.
    pub stopped: BTreeMap<Option<ShardId>, String>,
}

impl ReplicaStatus {
    /// Whether its leader counts the node in no way, and changes nothing.
    pub(crate) fn is_without(&self, node: NodeId) -> bool {
        !self.is_changing && !self.voters.contains(&node) && !self.learners.contains(&node)
    }
}

/// A replica as its node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    pub term: u64,
    pub leader: Option<NodeId>,
    /// It leads, and what was committed before is applied.
    pub serves: bool,
    /// Who votes; during a change, who voted before or will.
    pub voters: BTreeSet<NodeId>,
    /// Who is filled and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// A change of the voters is under way.
    pub is_changing: bool,
    /// Where it leads: the version of the placement that it has carried out last; 0: none yet.
    pub placed: u64,
    pub last_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    /// Where it leads: entries that each other member has not acknowledged.
    pub behind: BTreeMap<NodeId, u64>,
}
