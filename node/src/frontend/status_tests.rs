//! Every refusal with its code and its detail, as clients see them.

use piton_core::id::{RequestId, RunId, ShardId};
use piton_proto::failure::Failure;

use super::*;

fn rejected(rejection: Rejection) -> ApiError {
    ApiError::Shard(ShardError::Rejected(rejection))
}

/// The code, and the name of the only detail or nothing.
fn seen(error: ApiError) -> (Code, String) {
    let text = error.to_string();
    let status = Status::from(error);
    assert_eq!(status.message(), text);
    if status.details().is_empty() {
        return (status.code(), String::new());
    }
    let details = RpcStatus::decode(status.details()).unwrap();
    assert_eq!(details.code, i32::from(status.code()));
    assert_eq!(details.message, text);
    let [detail] = &details.details[..] else { panic!("clients read one detail") };
    let name = detail.type_url.strip_prefix("type.googleapis.com/temporal.api.errordetails.v1.");
    (status.code(), name.unwrap().to_owned())
}

fn check(table: impl IntoIterator<Item = (ApiError, Code, &'static str)>) {
    for (error, code, detail) in table {
        assert_eq!(seen(error.clone()), (code, detail.to_owned()), "{error:?}");
    }
}

#[test]
fn every_rejection_has_its_code_and_detail() {
    let text = || "text".to_owned();
    let already_started = Rejection::AlreadyStarted {
        message: "Workflow execution is already running.".to_owned(),
        start_request_id: RequestId::from("request"),
        run_id: RunId::from("run"),
        first_run_id: RunId::from("first"),
    };
    let query_failed = Rejection::QueryFailed { message: text(), failure: None };
    check([
        (rejected(Rejection::invalid("text")), Code::InvalidArgument, ""),
        (rejected(Rejection::CommandsRefused(text())), Code::InvalidArgument, ""),
        (rejected(Rejection::NotFound(text())), Code::NotFound, "NotFoundFailure"),
        (rejected(Rejection::WorkflowTaskNotFound), Code::NotFound, "NotFoundFailure"),
        (rejected(Rejection::ActivityNotFound(text())), Code::NotFound, "NotFoundFailure"),
        (rejected(Rejection::AlreadyCompleted), Code::NotFound, "NotFoundFailure"),
        (rejected(already_started), Code::AlreadyExists, "WorkflowExecutionAlreadyStartedFailure"),
        (
            rejected(Rejection::WorkflowNotReady(text())),
            Code::FailedPrecondition,
            "WorkflowNotReadyFailure",
        ),
        (rejected(Rejection::FailedPrecondition(text())), Code::FailedPrecondition, ""),
        (rejected(query_failed), Code::InvalidArgument, "QueryFailedFailure"),
        (
            rejected(Rejection::BusyWorkflow(text())),
            Code::ResourceExhausted,
            "ResourceExhaustedFailure",
        ),
    ]);
}

#[test]
fn every_other_refusal_has_its_code_and_detail() {
    let text = || "text".to_owned();
    let namespace_state =
        ApiError::NamespaceState { namespace: text(), state: NamespaceState::Deprecated };
    let client = ApiError::ClientVersion { name: text(), version: text(), supported: "<2" };
    let server = ApiError::ServerVersion { server: "1.31.0", supported: text() };
    check([
        (ApiError::Invalid(text()), Code::InvalidArgument, ""),
        (ApiError::FieldNotBuilt { field: "cron_schedule" }, Code::Unimplemented, ""),
        (ApiError::MethodNotBuilt { method: text() }, Code::Unimplemented, ""),
        (namespace_state, Code::FailedPrecondition, "NamespaceInvalidStateFailure"),
        (ApiError::PollTimeTooShort, Code::FailedPrecondition, ""),
        (
            ApiError::TooManyRequests { kind: "short", requests: 1 },
            Code::ResourceExhausted,
            "ResourceExhaustedFailure",
        ),
        (ApiError::Stopping, Code::Unavailable, ""),
        (ApiError::DeadlineExceeded, Code::DeadlineExceeded, ""),
        (ApiError::MessageTooLarge(text()), Code::ResourceExhausted, ""),
        (client, Code::FailedPrecondition, "ClientVersionNotSupportedFailure"),
        (server, Code::FailedPrecondition, "ServerVersionNotSupportedFailure"),
        (
            ShardError::NamespaceNotFound { name: text() }.into(),
            Code::NotFound,
            "NamespaceNotFoundFailure",
        ),
        (ShardError::Unavailable(text()).into(), Code::Unavailable, ""),
        (ShardError::OutcomeUnknown(text()).into(), Code::Unavailable, ""),
        (ShardError::NotLeader { shard: ShardId(1), leader: None }.into(), Code::Unavailable, ""),
        (
            ShardError::Overloaded(text()).into(),
            Code::ResourceExhausted,
            "ResourceExhaustedFailure",
        ),
        (ShardError::DeadlineExceeded(text()).into(), Code::DeadlineExceeded, ""),
        (ShardError::BadToken(text()).into(), Code::InvalidArgument, ""),
        (ShardError::Internal(text()).into(), Code::Internal, ""),
        (
            MetaError::NamespaceExists { name: text() }.into(),
            Code::AlreadyExists,
            "NamespaceAlreadyExistsFailure",
        ),
        (
            MetaError::NamespaceNotFound { name: text() }.into(),
            Code::NotFound,
            "NamespaceNotFoundFailure",
        ),
        (MetaError::AttributeExists { name: text() }.into(), Code::AlreadyExists, ""),
        (MetaError::AttributeNotFound { name: text() }.into(), Code::NotFound, "NotFoundFailure"),
        (MetaError::Invalid(text()).into(), Code::InvalidArgument, ""),
        (MetaError::NotLed { leader: None }.into(), Code::Unavailable, ""),
        (MetaError::Unavailable(text()).into(), Code::Unavailable, ""),
    ]);
}

fn detail<M: Message + Default>(error: ApiError) -> M {
    let status = Status::from(error);
    let details = RpcStatus::decode(status.details()).unwrap();
    M::decode(details.details[0].value.as_slice()).unwrap()
}

#[test]
fn details_carry_what_sdks_read() {
    let started: detail::WorkflowExecutionAlreadyStartedFailure =
        detail(rejected(Rejection::AlreadyStarted {
            message: String::new(),
            start_request_id: RequestId::from("request"),
            run_id: RunId::from("run"),
            first_run_id: RunId::from("first"),
        }));
    assert_eq!(
        (started.start_request_id, started.run_id, started.first_execution_run_id),
        ("request".to_owned(), "run".to_owned(), "first".to_owned())
    );
    let failure = Failure { message: "why".to_owned(), ..Failure::default() };
    let query: detail::QueryFailedFailure = detail(rejected(Rejection::QueryFailed {
        message: String::new(),
        failure: Some(Box::new(failure.clone())),
    }));
    assert_eq!(query.failure, Some(failure));
    let busy: detail::ResourceExhaustedFailure =
        detail(rejected(Rejection::BusyWorkflow(String::new())));
    assert_eq!(busy.cause(), ResourceExhaustedCause::BusyWorkflow);
    let namespace: detail::NamespaceNotFoundFailure =
        detail(MetaError::NamespaceNotFound { name: "n".into() }.into());
    assert_eq!(namespace.namespace, "n");
}

#[test]
fn a_field_that_is_not_built_is_named() {
    let status = Status::from(ApiError::FieldNotBuilt { field: "cron_schedule" });
    assert_eq!(status.message(), "cron_schedule is not implemented by this server");
}
