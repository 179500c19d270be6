//! What is asked of the meta group's leader.

use std::collections::{BTreeMap, BTreeSet};

use piton_core::id::{NamespaceId, ShardId};
use piton_core::time::{Span, Timestamp};
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

use crate::message::nodes::{ClusterSettings, NodeRecord, NodeState};

/// A call to the leader of the meta group. Its answer is a version: whoever sees that one or a later one
/// sees what was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaCall {
    /// The newest version, confirmed by a quorum.
    Version,
    /// Decide on the newest state, and commit.
    Change(MetaRequest),
}

/// A change that somebody asks for. It is decided where the group is led.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaRequest {
    RegisterNamespace {
        /// Drawn by who asks, so that an attempt whose outcome is unknown and the next one are the same
        /// namespace.
        id: NamespaceId,
        new: NewNamespace,
    },
    UpdateNamespace {
        name: String,
        update: NamespaceUpdate,
    },
    /// Not to be used for new workflows; nothing else changes.
    DeprecateNamespace {
        name: String,
    },
    AddSearchAttributes {
        namespace: NamespaceId,
        /// Types by their numbers in the API.
        types: BTreeMap<String, i32>,
    },
    RemoveSearchAttributes {
        namespace: NamespaceId,
        names: Vec<String>,
    },
    /// Sets these; the others stay as they are.
    SetLimits(BTreeMap<String, u64>),
    /// Gives a new cluster its routes: that many even ranges. One that has routes keeps them.
    BootstrapRoutes {
        shards: u32,
    },
    /// Makes it a node of the cluster, or says where one that is has moved to. Its state is left as it is.
    PutNode(NodeRecord),
    SetNodeState {
        node: NodeId,
        state: NodeState,
    },
    /// Puts a shard elsewhere, if its placement is still of this version; 0: if it has none.
    Place {
        shard: ShardId,
        expected: u64,
        voters: BTreeSet<NodeId>,
    },
    SetCluster(ClusterSettings),
}

/// A namespace to be registered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NewNamespace {
    pub name: String,
    pub description: String,
    pub owner: String,
    pub data: BTreeMap<String, String>,
    /// How long closed runs are kept; [`Span::ZERO`]: the cluster's default.
    pub retention: Span,
    /// The time now.
    pub created: Timestamp,
}

/// What of a namespace changes; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamespaceUpdate {
    pub description: Option<String>,
    pub owner: Option<String>,
    pub retention: Option<Span>,
    /// Merged into what is there.
    pub data: BTreeMap<String, String>,
}
