//! What nodes ask each other and answer, as bytes; and [`WirePeer`], the peer that sends them.
//!
//! Nodes of two releases talk to each other during an upgrade, so what an older one knows is written
//! as ever: kinds of calls and answers, and of all that is in them, are only added, each at the end
//! of its enum; what has to change its shape becomes another kind. A new kind is sent once all nodes
//! know it. A node that gets one before that refuses it by name and does nothing.
//!
//! The API's messages travel as their own bytes. `testdata/records.txt` has bytes of every kind; a
//! test turns red when they change.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use piton_raft::NodeId;
use piton_store::codec::{CodecError, Kind};
use piton_store::with_causes;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::error::{MetaError, ShardError};
use crate::message::{Answer, Delivery, Forwarded, NodeAnswer, NodeCall, Peer, PollId, Receipt};

/// How long a node waits to hear what became of a delivery, or of what it asked the meta group's leader.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What a node asks of another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "short-lived, and most are calls")]
pub enum PeerRequest {
    Call(Forwarded),
    Deliver { poll: PollId, delivery: Delivery },
    Node(NodeCall),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerAnswer {
    /// It cannot read the request, of which nothing was carried out, and says why.
    NotUnderstood(String),
    Call(Result<Answer, ShardError>),
    Deliver(Receipt),
    Node(Result<NodeAnswer, MetaError>),
}

pub(crate) const PEER_REQUEST: Kind<PeerRequest> = Kind::new("a request of another node", &[]);
pub(crate) const PEER_ANSWER: Kind<PeerAnswer> = Kind::new("an answer of another node", &[]);

impl PeerRequest {
    /// # Errors
    /// When it is too large.
    pub fn encode(&self) -> Result<Bytes, CodecError> {
        PEER_REQUEST.encode(self)
    }

    /// # Errors
    /// When the bytes are none, or of a kind that only a newer release knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        PEER_REQUEST.decode(bytes)
    }
}

impl PeerAnswer {
    /// The answer to a request that does not decode.
    pub(crate) fn not_understood(error: &CodecError) -> Self {
        let why = with_causes(error);
        Self::NotUnderstood(format!(
            "the request is of a newer release than this node's, or damaged ({why})"
        ))
    }

    /// Its bytes; those of a refusal if it is too large.
    pub fn encode(&self) -> Bytes {
        PEER_ANSWER.encode(self).unwrap_or_else(|error| {
            let refusal = Self::Call(Err(ShardError::Internal(with_causes(&error))));
            PEER_ANSWER.encode(&refusal).expect("a few words are not too large")
        })
    }

    /// # Errors
    /// When the bytes are none, or of a kind that only a newer release knows.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        PEER_ANSWER.decode(bytes)
    }
}

/// Carries requests to other nodes and brings their answers: a network, which knows bytes only.
#[async_trait]
pub trait Carrier: Send + Sync + 'static {
    /// Has `node` answer a request; nobody waits any longer than `timeout`.
    ///
    /// # Errors
    /// Why there is no answer.
    async fn ask(
        &self,
        node: NodeId,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Unanswered>;
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It has certainly not got there.
    #[error("node {node} cannot be reached: {why}")]
    NotSent { node: NodeId, why: String },
    /// It may have got there.
    #[error("node {node} has not answered: {why}")]
    Lost { node: NodeId, why: String },
}

impl From<Unanswered> for ShardError {
    fn from(error: Unanswered) -> Self {
        let text = error.to_string();
        match error {
            Unanswered::NotSent { .. } => Self::Unavailable(text),
            Unanswered::Lost { .. } => Self::OutcomeUnknown(text),
        }
    }
}

/// The other nodes, over a network.
pub struct WirePeer<C>(pub C);

impl<C: Carrier> WirePeer<C> {
    async fn ask(
        &self,
        node: NodeId,
        request: PeerRequest,
        wait: Duration,
    ) -> Result<PeerAnswer, ShardError> {
        let bytes = request.encode().map_err(|e| ShardError::Internal(with_causes(&e)))?;
        drop(request);
        let answered = timeout(wait, self.0.ask(node, bytes, wait)).await;
        let bytes = answered.unwrap_or_else(|_| {
            let why = format!("it was given {} ms", wait.as_millis());
            Err(Unanswered::Lost { node, why })
        })?;
        PeerAnswer::decode(&bytes).map_err(|error| {
            let why = with_causes(&error);
            ShardError::OutcomeUnknown(format!("cannot read the answer of node {node}: {why}"))
        })
    }
}

#[async_trait]
impl<C: Carrier> Peer for WirePeer<C> {
    async fn call(&self, node: NodeId, call: Forwarded) -> Result<Answer, ShardError> {
        let wait = call.timeout;
        match self.ask(node, PeerRequest::Call(call), wait).await? {
            PeerAnswer::Call(answer) => answer,
            PeerAnswer::NotUnderstood(why) => {
                Err(ShardError::Unavailable(format!("node {node} refuses a request: {why}")))
            }
            PeerAnswer::Deliver(_) | PeerAnswer::Node(_) => {
                let text = format!("node {node} answered a call with something else");
                Err(ShardError::OutcomeUnknown(text))
            }
        }
    }

    async fn deliver(&self, node: NodeId, poll: PollId, delivery: Delivery) -> Receipt {
        let request = PeerRequest::Deliver { poll, delivery };
        match self.ask(node, request, ANSWER_WAIT).await {
            Ok(PeerAnswer::Deliver(receipt)) => receipt,
            // Offered again at once, it might come back without end: it is left to its timeout.
            Ok(PeerAnswer::NotUnderstood(why)) => {
                tracing::warn!(%node, why, "a node refuses a delivery");
                Receipt::Unknown
            }
            Ok(PeerAnswer::Call(_) | PeerAnswer::Node(_)) => Receipt::Unknown,
            Err(_) => Receipt::Unreachable,
        }
    }

    async fn node(&self, node: NodeId, call: NodeCall) -> Result<NodeAnswer, MetaError> {
        match self.ask(node, PeerRequest::Node(call), ANSWER_WAIT).await {
            Ok(PeerAnswer::Node(answer)) => answer,
            Ok(PeerAnswer::NotUnderstood(why)) => {
                Err(MetaError::Unavailable(format!("node {node} refuses a request: {why}")))
            }
            Ok(PeerAnswer::Call(_) | PeerAnswer::Deliver(_)) => {
                let text = format!("node {node} answered with something else");
                Err(MetaError::Unavailable(text))
            }
            Err(ShardError::Unavailable(_)) => Err(MetaError::NotLed { leader: None }),
            Err(error) => Err(MetaError::Unavailable(error.to_string())),
        }
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
