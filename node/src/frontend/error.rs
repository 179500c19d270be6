//! Why the frontend refuses a request, or why what it asked for failed. `status.rs` chooses the
//! gRPC code and the detail of each.

use piton_core::error::Rejection;
use piton_proto::enums::NamespaceState;
use piton_shard::{MetaError, ShardError};

/// An RPC that is answered with an error.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Against a rule of the API. The text is for the caller.
    #[error("{0}")]
    Invalid(String),
    /// The request uses a part of the API that this server does not have.
    #[error("{field} is not implemented by this server")]
    FieldNotBuilt { field: &'static str },
    /// The whole RPC is one that this server does not have.
    #[error("{method} is not implemented by this server")]
    MethodNotBuilt { method: String },
    #[error("Namespace {namespace} is in state {}, which does not allow this.", state.as_str_name())]
    NamespaceState { namespace: String, state: NamespaceState },
    #[error("Context timeout is too short.")]
    PollTimeTooShort,
    #[error("{requests} {kind} requests are being answered, which is as many as this node takes")]
    TooManyRequests { kind: &'static str, requests: usize },
    #[error("this node is stopping; try again")]
    Stopping,
    /// The client's time was over before there was an answer.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The text begins as gRPC for Go words it: SDKs recognise it by that.
    #[error("grpc: received message larger than max ({0})")]
    MessageTooLarge(String),
    #[error(
        "Client version {version} of {name} is not supported. Server supports client versions: {supported}"
    )]
    ClientVersion { name: String, version: String, supported: &'static str },
    #[error(
        "Server version {server} is not supported by client that supports versions: {supported}"
    )]
    ServerVersion { server: &'static str, supported: String },
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl ApiError {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        Self::Shard(ShardError::Rejected(rejection))
    }
}
