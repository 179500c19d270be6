//! The shell around `piton-core`: hosts each workflow as an actor on its shard's leader, replicates
//! what it decides, and carries out the effects. The only crate that names ractor.
//!
//! A request comes in through [`Cluster`], goes to the leader of its workflow's shard (here, or
//! through [`Peer`]), is decided by the workflow's actor, proposed, applied by the replica, and only
//! then answered. Nothing here speaks gRPC and nothing here decides what a workflow does.

mod clock;
mod config;
mod entity;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod ids;
mod leader;
mod message;
mod meta;
mod metrics;
mod placement;
mod read_threads;
mod release;
mod replica;
mod room;
mod route;
mod rows;
mod workflow;

pub use clock::{Clock, WallTime};
pub use config::ShardConfig;
pub use error::{MetaError, ShardError};
pub use ids::Ids;
pub use message::{
    ActivityToken, Answer, Call, Carrier, ClusterSettings, CountReply, Delivery, Forwarded,
    HeldEvents, HistoryPage, HistoryPageReply, MetaCall, MetaRequest, NamespaceUpdate,
    NewNamespace, NoPeers, NodeAnswer, NodeCall, NodeHealth, NodeRecord, NodeState, NodeStatus,
    Offer, OfferedTask, Peer, PeerAnswer, PeerRequest, Placement, PollId, PollRequest, Poller,
    QueryToken, QueueCall, QueueKey, QueueType, ReadCall, Receipt, ReplicaStatus, TaskQueueView,
    TaskToken, Ticket, TokenError, Unanswered, WantedTasks, WirePeer, WorkflowCall,
    WorkflowTaskToken,
};
pub use meta::{
    META_GROUP, Meta, MetaState, Namespace, NamespaceAttributes, NamespaceState, Route,
    SearchAttributeTypes,
};
pub use metrics::ShardMetrics;
pub use placement::serving::Serving;
pub use release::{feature_level, pass_for_next_release};
pub use room::Room;
pub use route::cluster::{Cluster, Poll, WorkflowQuery};
pub use route::host::{HostParts, ShardHost};
pub use route::sightings::Sighting;
