//! Nodes of the cluster and what each of them holds, as the meta group records it.

use std::collections::BTreeSet;
use std::time::Duration;

use piton_core::id::ShardId;
use piton_core::time::Timestamp;
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    /// Host and port where other nodes reach it.
    pub peer_address: String,
    /// Host and port of its API.
    pub api_address: String,
    /// Host and port of its metrics and probes.
    pub http_address: String,
    /// What fails together with it: replicas of a shard are spread over zones. Empty: nothing is known.
    pub zone: String,
    pub state: NodeState,
    /// The highest feature level that its release knows.
    pub level: u32,
    /// When it joined.
    pub joined: Timestamp,
}

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Holds replicas and leads.
    Up,
    /// Holds its replicas, and leads nothing where somebody else can.
    Draining,
    /// Its replicas are moved to other nodes; it is removed when it has none.
    Leaving,
    /// Gone for good. Its id is kept, since no other node may ever have it.
    Removed,
}

/// Which nodes are to hold a shard: what its leader brings about, one step after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub shard: ShardId,
    /// One more with each change: a leader carries out no older one.
    pub version: u64,
    pub voters: BTreeSet<NodeId>,
}

/// What holds for the cluster as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// The feature level: what every node may write, since every node can read it.
    pub level: u32,
    /// Replicas that a shard is to have, where there are enough nodes.
    pub replicas: u32,
    /// Nothing is moved to spread replicas and leaders evenly.
    pub is_rebalancing_paused: bool,
    /// A node that has not been heard of for so long is down.
    pub down_after: Duration,
    /// Replicas of a node that is down are moved to others that have none of their shard.
    pub replaces_down: bool,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            level: 1,
            replicas: 3,
            is_rebalancing_paused: false,
            down_after: Duration::from_secs(600),
            replaces_down: true,
        }
    }
}

/// How a node is, as another one has heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeHealth {
    /// It has said how it is just now.
    Heard,
    /// It has missed a few times.
    Silent,
    /// It has been silent for as long as the cluster's settings say.
    Down,
}

impl NodeHealth {
    /// The word for it in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
            Self::Down => "down",
        }
    }
}

impl NodeState {
    /// Whether replicas may be put on it.
    pub fn takes_replicas(self) -> bool {
        matches!(self, Self::Up)
    }

    /// Whether it is a node of the cluster still.
    pub fn is_member(self) -> bool {
        !matches!(self, Self::Removed)
    }

    /// The word for it in tables and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Leaving => "leaving",
            Self::Removed => "removed",
        }
    }
}
