//! Looking after a cluster: what an operator may ask any node for, how it is answered, and the way to ask.
//!
//! Asked over the peer port, as a node that wants to join asks: in TLS it takes a certificate of the
//! cluster's CA, and without TLS nobody from another machine gets there. A node answers of what it has heard
//! of the others within the last second or so; what changes something goes through the meta group's leader,
//! whichever node is asked.

mod answer;
mod call;
mod client;
mod report;

pub(crate) use answer::answer;
pub use answer::operate;
pub use call::{OperatorAnswer, OperatorCall, OperatorRefusal};
pub use client::{OperatorClient, OperatorError};
pub use report::{ClusterReport, MemberReport, NodeReport, ReplicaRole, ShardReport, write_id};
