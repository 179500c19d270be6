//! What is asked, answered and delivered, by recipient; tokens; the trait that reaches other nodes.
//!
//! Everything here but the traits is plain data, which [`wire`] makes bytes of. A time that ends is a
//! remaining duration: each node has its own clock. On one node a call and a delivery are function
//! calls. Calls may be lost or repeated; no logic relies on their order.

mod answer;
mod call;
mod delivery;
mod meta;
mod nodes;
mod peer;
mod queue;
mod repeat;
mod status;
pub(crate) mod token;
pub(crate) mod wire;

pub use answer::{Answer, CountReply, HistoryPageReply};
pub(crate) use call::named_namespaces;
pub use call::{Call, HeldEvents, HistoryPage, QueueCall, ReadCall, WorkflowCall};
pub use delivery::{Delivery, PollId, Receipt};
pub use meta::{MetaCall, MetaRequest, NamespaceUpdate, NewNamespace};
pub use nodes::{ClusterSettings, NodeHealth, NodeRecord, NodeState, Placement};
pub use peer::{Forwarded, NoPeers, Peer};
pub use queue::{
    Offer, OfferedTask, PollRequest, Poller, QueueKey, QueueType, TaskQueueView, Ticket,
    WantedTasks,
};
pub use status::{NodeAnswer, NodeCall, NodeStatus, ReplicaStatus};
pub use token::{ActivityToken, QueryToken, TaskToken, TokenError, WorkflowTaskToken};
pub use wire::{Carrier, PeerAnswer, PeerRequest, Unanswered, WirePeer};

pub(crate) use queue::{PollName, ticket_id};
