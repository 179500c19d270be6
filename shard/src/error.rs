//! Why a request came to nothing, split by what the caller can do about it.

use piton_core::error::Rejection;
use piton_core::id::ShardId;
use piton_raft::NodeId;
use serde::{Deserialize, Serialize};

/// A request that was not carried out, or whose outcome is unknown.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum ShardError {
    /// Refused for good; nothing was recorded unless the rejection says so.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No such namespace.
    #[error("Namespace {name} is not found.")]
    NamespaceNotFound { name: String },
    /// Not carried out, since another node leads the shard, or none does.
    #[error("this node does not lead shard {shard}")]
    NotLeader {
        shard: ShardId,
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Not carried out for now; the caller may try again.
    #[error("{0}")]
    Unavailable(String),
    /// Perhaps carried out, perhaps not. The caller may try again with the same request id.
    #[error("{0}; whether the request was carried out is unknown")]
    OutcomeUnknown(String),
    /// A bound on memory or work is reached; nothing was recorded.
    #[error("{0}")]
    Overloaded(String),
    /// The caller's time was over first.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// A token that does not decode, or is not for this request.
    #[error("{0}")]
    BadToken(String),
    /// A bug or damage on this node.
    #[error("{0}")]
    Internal(String),
}

/// Why a change of the meta state was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MetaError {
    #[error("Namespace {name} already exists.")]
    NamespaceExists { name: String },
    #[error("Namespace {name} is not found.")]
    NamespaceNotFound { name: String },
    #[error("Search attribute {name} already exists.")]
    AttributeExists { name: String },
    #[error("Search attribute {name} doesn't exist.")]
    AttributeNotFound { name: String },
    /// Malformed; the text is for the caller.
    #[error("{0}")]
    Invalid(String),
    /// Not carried out, since the node that was asked does not lead the meta group.
    #[error("the meta group is led by another node")]
    NotLed { leader: Option<NodeId> },
    /// Not carried out, or the outcome is unknown; the caller may try again.
    #[error("{0}")]
    Unavailable(String),
}

impl From<MetaError> for ShardError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::NamespaceNotFound { name } => Self::NamespaceNotFound { name },
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl ShardError {
    /// Whether trying again, perhaps elsewhere, may help.
    pub fn is_retriable(&self) -> bool {
        self.is_passing() || matches!(self, Self::OutcomeUnknown(_) | Self::Overloaded(_))
    }

    /// Whether it was not carried out for a reason that passes once the shard has a leader.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::NotLeader { .. } | Self::Unavailable(_))
    }

    /// Whether the answer means that the addressed run does not exist or is closed.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::Rejected(
                Rejection::NotFound(_)
                    | Rejection::AlreadyCompleted
                    | Rejection::ActivityNotFound(_)
            ) | Self::NamespaceNotFound { .. }
        )
    }
}
