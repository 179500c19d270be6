//! What carries frames between nodes. Knows nodes, lanes and bytes; what a frame says is the
//! business of `network.rs`.

use std::sync::Arc;

use bytes::Bytes;

use crate::config::NodeId;
use crate::error::TransportError;

/// Carries frames to other nodes, at most once each. Frames of one lane to one node arrive in the
/// order they were sent, or not at all. Requests, answers and time limits are built on top.
pub trait Transport: Send + Sync + 'static {
    /// Called once, when this node opens its groups: whom to hand what other nodes send.
    fn listen(&self, inbox: Arc<dyn Inbox>);

    /// Whether there is a connection to `to`, so that nothing is made ready for a node that is not
    /// there.
    fn is_connected(&self, to: NodeId, lane: Lane) -> bool {
        let _ = (to, lane);
        true
    }

    /// Queues a frame for `to`, never waiting. An error, or silence, means that it is lost.
    ///
    /// # Errors
    /// [`TransportError`] when it is known at once that the frame will not arrive.
    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), TransportError>;
}

/// Where a transport hands over what arrived.
pub trait Inbox: Send + Sync + 'static {
    /// Takes one frame, quickly and without waiting. Damaged frames are dropped.
    fn receive(&self, from: NodeId, frame: Bytes);

    /// The connection to a peer has ended: what was sent on it is lost, if it was not answered.
    fn sent_is_lost(&self, to: NodeId, lane: Lane) {
        let _ = (to, lane);
    }

    /// The connection from a peer has ended, or a new one has begun: answers of it may be lost.
    fn answers_are_lost(&self, from: NodeId, lane: Lane) {
        let _ = (from, lane);
    }
}

/// Which queue a frame goes through: heartbeats must not wait behind entries, nor entries behind
/// snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, votes, leadership transfer: small, at once.
    Urgent,
    /// Entries and their acknowledgements.
    Entries,
    /// Snapshots.
    Bulk,
}
