//! The shell around `piton-core`: hosts each workflow as an actor on its shard's leader, replicates
//! what it decides, and carries out the effects. The only crate that names ractor.
//!
//! A request comes in through [`Cluster`], goes to the leader of its workflow's shard (here, or
//! through [`Peer`]), is decided by the workflow's actor, proposed, applied by the replica, and only
//! then answered. Nothing here speaks gRPC and nothing here decides what a workflow does.

mod checkpoint;
mod child_start;
mod clock;
mod cluster;
mod cluster_api;
mod config;
mod entry;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod host;
mod ids;
mod matching_actor;
mod meta;
mod meta_decide;
mod meta_state;
mod metrics;
mod outbox;
mod peer;
mod polls;
mod proposer;
mod query;
mod queue;
mod recovery;
mod replica;
mod retention;
mod row_codes;
mod row_values;
mod row_writes;
mod rows;
mod search_attribute;
mod shard;
mod timer_actor;
mod token;
mod visibility;
mod workflow_actor;
mod workflow_answer;
mod workflow_ask;
mod workflow_batch;
mod workflow_measure;
mod workflow_reading;

pub use clock::{Clock, WallTime};
pub use cluster::{Cluster, Poll, Serving, WorkflowQuery};
pub use config::ShardConfig;
pub use error::ShardError;
pub use host::{HostParts, ShardHost};
pub use ids::Ids;
pub use meta::{
    META_GROUP, Meta, MetaError, MetaState, Namespace, NamespaceAttributes, NamespaceState,
    NamespaceUpdate, NewNamespace, Route, SearchAttributeTypes,
};
pub use metrics::ShardMetrics;
pub use peer::{
    Answer, Call, CountReply, Delivery, HistoryPage, HistoryPageReply, NoPeers, Peer, Poller,
    QueueType, Receipt, TaskQueueView,
};
pub use polls::PollId;
pub use token::{ActivityToken, QueryToken, TaskToken, TokenError, WorkflowTaskToken};
