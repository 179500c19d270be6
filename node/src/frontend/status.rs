//! The only place where gRPC codes are chosen.
//!
//! | Refusal | Code | Detail |
//! |---|---|---|
//! | malformed request, bad token, commands refused | INVALID_ARGUMENT | none |
//! | the worker failed the query | INVALID_ARGUMENT | QueryFailedFailure |
//! | a field or an RPC that is not built | UNIMPLEMENTED | none |
//! | no such workflow, run, task, activity; run closed | NOT_FOUND | NotFoundFailure |
//! | no such namespace | NOT_FOUND | NamespaceNotFoundFailure |
//! | start refused by a workflow id policy | ALREADY_EXISTS | WorkflowExecutionAlreadyStartedFailure |
//! | namespace exists | ALREADY_EXISTS | NamespaceAlreadyExistsFailure |
//! | search attribute exists | ALREADY_EXISTS | none |
//! | query before the first workflow task, or while tasks fail | FAILED_PRECONDITION | WorkflowNotReadyFailure |
//! | namespace in the wrong state | FAILED_PRECONDITION | NamespaceInvalidStateFailure |
//! | client or server version | FAILED_PRECONDITION | Client-, ServerVersionNotSupportedFailure |
//! | poll with less than 2 s to go, no worker polls | FAILED_PRECONDITION | none |
//! | bounds on one workflow | RESOURCE_EXHAUSTED | ResourceExhaustedFailure BUSY_WORKFLOW |
//! | bounds on this node | RESOURCE_EXHAUSTED | ResourceExhaustedFailure |
//! | message too large | RESOURCE_EXHAUSTED | none |
//! | no leader, unknown outcome | UNAVAILABLE | none |
//! | the client's time is over | DEADLINE_EXCEEDED | none |
//! | a bug or damage here | INTERNAL | none |
//!
//! A field that is not built is UNIMPLEMENTED and not INVALID_ARGUMENT: the request is a right one,
//! another version of this server will take it, and SDKs repeat neither.

use piton_core::error::Rejection;
use piton_proto::enums::{NamespaceState, ResourceExhaustedCause, ResourceExhaustedScope};
use piton_proto::errordetails as detail;
use piton_shard::{MetaError, ShardError};
use prost::Message;
use prost_types::Any;
use tonic::codegen::http;
use tonic::{Code, Status};

use super::error::ApiError;

/// What `grpc-status-details-bin` carries: `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        if matches!(error, ApiError::Shard(ShardError::Internal(_))) {
            tracing::error!(%message, "a request failed by a fault of this node");
        }
        let (code, detail) = code_and_detail(error);
        let Some(detail) = detail else { return Self::new(code, message) };
        let details =
            RpcStatus { code: code.into(), message: message.clone(), details: vec![detail] };
        Self::with_details(code, message, details.encode_to_vec().into())
    }
}

fn code_and_detail(error: ApiError) -> (Code, Option<Any>) {
    match error {
        ApiError::Invalid(_) => (Code::InvalidArgument, None),
        ApiError::FieldNotBuilt { .. } | ApiError::MethodNotBuilt { .. } => {
            (Code::Unimplemented, None)
        }
        ApiError::NamespaceState { namespace, state } => {
            let allowed_states = vec![NamespaceState::Registered.into()];
            let failure = detail::NamespaceInvalidStateFailure {
                namespace,
                state: state.into(),
                allowed_states,
            };
            (Code::FailedPrecondition, any("NamespaceInvalidStateFailure", &failure))
        }
        ApiError::PollTimeTooShort => (Code::FailedPrecondition, None),
        ApiError::TooManyRequests { .. } => {
            exhausted(ResourceExhaustedCause::ConcurrentLimit, ResourceExhaustedScope::System)
        }
        ApiError::Stopping => (Code::Unavailable, None),
        ApiError::DeadlineExceeded => (Code::DeadlineExceeded, None),
        ApiError::MessageTooLarge(_) => (Code::ResourceExhausted, None),
        ApiError::ClientVersion { name, version, supported } => {
            let failure = detail::ClientVersionNotSupportedFailure {
                client_version: version,
                client_name: name,
                supported_versions: supported.to_owned(),
            };
            (Code::FailedPrecondition, any("ClientVersionNotSupportedFailure", &failure))
        }
        ApiError::ServerVersion { server, supported } => {
            let failure = detail::ServerVersionNotSupportedFailure {
                server_version: server.to_owned(),
                client_supported_server_versions: supported,
            };
            (Code::FailedPrecondition, any("ServerVersionNotSupportedFailure", &failure))
        }
        ApiError::Shard(error) => of_shard(error),
        ApiError::Meta(error) => of_meta(error),
    }
}

fn of_meta(error: MetaError) -> (Code, Option<Any>) {
    match error {
        MetaError::NamespaceExists { .. } => {
            let failure = detail::NamespaceAlreadyExistsFailure {};
            (Code::AlreadyExists, any("NamespaceAlreadyExistsFailure", &failure))
        }
        MetaError::NamespaceNotFound { name } => namespace_not_found(name),
        MetaError::AttributeExists { .. } => (Code::AlreadyExists, None),
        MetaError::AttributeNotFound { .. } => not_found(),
        MetaError::Invalid(_) => (Code::InvalidArgument, None),
        MetaError::NotLed { .. } | MetaError::Unavailable(_) => (Code::Unavailable, None),
    }
}

fn namespace_not_found(namespace: String) -> (Code, Option<Any>) {
    let failure = detail::NamespaceNotFoundFailure { namespace };
    (Code::NotFound, any("NamespaceNotFoundFailure", &failure))
}

fn of_shard(error: ShardError) -> (Code, Option<Any>) {
    match error {
        ShardError::Rejected(rejection) => of_rejection(rejection),
        ShardError::NamespaceNotFound { name } => namespace_not_found(name),
        // The text says whether it was carried out.
        ShardError::NotLeader { .. }
        | ShardError::Unavailable(_)
        | ShardError::OutcomeUnknown(_) => (Code::Unavailable, None),
        ShardError::Overloaded(_) => {
            exhausted(ResourceExhaustedCause::SystemOverloaded, ResourceExhaustedScope::System)
        }
        ShardError::DeadlineExceeded(_) => (Code::DeadlineExceeded, None),
        ShardError::BadToken(_) => (Code::InvalidArgument, None),
        ShardError::Internal(_) => (Code::Internal, None),
    }
}

fn of_rejection(rejection: Rejection) -> (Code, Option<Any>) {
    match rejection {
        Rejection::InvalidArgument(_) | Rejection::CommandsRefused(_) => {
            (Code::InvalidArgument, None)
        }
        Rejection::NotFound(_)
        | Rejection::WorkflowTaskNotFound
        | Rejection::ActivityNotFound(_)
        | Rejection::AlreadyCompleted => not_found(),
        Rejection::AlreadyStarted { message: _, start_request_id, run_id, first_run_id } => {
            let failure = detail::WorkflowExecutionAlreadyStartedFailure {
                start_request_id: start_request_id.to_string(),
                run_id: run_id.to_string(),
                first_execution_run_id: first_run_id.to_string(),
            };
            (Code::AlreadyExists, any("WorkflowExecutionAlreadyStartedFailure", &failure))
        }
        Rejection::WorkflowNotReady(_) => (
            Code::FailedPrecondition,
            any("WorkflowNotReadyFailure", &detail::WorkflowNotReadyFailure {}),
        ),
        Rejection::FailedPrecondition(_) => (Code::FailedPrecondition, None),
        Rejection::QueryFailed { message: _, failure } => {
            let failure = detail::QueryFailedFailure { failure: failure.map(|f| *f) };
            (Code::InvalidArgument, any("QueryFailedFailure", &failure))
        }
        Rejection::BusyWorkflow(_) => {
            exhausted(ResourceExhaustedCause::BusyWorkflow, ResourceExhaustedScope::Namespace)
        }
    }
}

fn not_found() -> (Code, Option<Any>) {
    (Code::NotFound, any("NotFoundFailure", &detail::NotFoundFailure::default()))
}

fn exhausted(cause: ResourceExhaustedCause, scope: ResourceExhaustedScope) -> (Code, Option<Any>) {
    let failure = detail::ResourceExhaustedFailure { cause: cause.into(), scope: scope.into() };
    (Code::ResourceExhausted, any("ResourceExhaustedFailure", &failure))
}

/// `name` is the message's in package `temporal.api.errordetails.v1`.
fn any(name: &str, message: &impl Message) -> Option<Any> {
    let type_url = format!("type.googleapis.com/temporal.api.errordetails.v1.{name}");
    Some(Any { type_url, value: message.encode_to_vec() })
}

/// The code of an answer whose body has not been sent: an error stands in the headers.
pub(crate) fn code_of<B>(response: &http::Response<B>) -> Code {
    let header = response.headers().get("grpc-status");
    header.map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

/// A refusal as the whole response of a call.
pub(crate) fn response<B: Default>(refusal: ApiError) -> http::Response<B> {
    Status::from(refusal).into_http()
}

/// tonic answers OUT_OF_RANGE to a message over the limit and RESOURCE_EXHAUSTED, in its own words,
/// to one that is over it only when decompressed. SDKs look for the words of gRPC for Go (and then
/// fail the workflow task instead of sending the same message for ever).
pub(crate) fn message_too_large<B>(response: &http::Response<B>) -> Option<ApiError> {
    if !matches!(code_of(response), Code::OutOfRange | Code::ResourceExhausted) {
        return None;
    }
    let status = Status::from_header_map(response.headers())?;
    let text = status.message();
    let ours = text.contains("decoded message length too large")
        || text.contains("exceeded while decompressing message");
    ours.then(|| ApiError::MessageTooLarge(text.to_owned()))
}

/// The code's name as the gRPC specification writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
