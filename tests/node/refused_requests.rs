//! What is refused, over gRPC: code, detail and the text that SDKs look for.

use std::time::Duration;

use piton_proto::common::WorkflowExecution;
use piton_proto::enums::{
    QueryResultType, ResourceExhaustedCause, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
};
use piton_proto::errordetails::{
    NamespaceInvalidStateFailure, NamespaceNotFoundFailure, QueryFailedFailure,
    ResourceExhaustedFailure, WorkflowExecutionAlreadyStartedFailure,
};
use piton_proto::failure::Failure;
use piton_proto::query::WorkflowQuery;
use piton_proto::workflowservice::{
    DeprecateNamespaceRequest, DescribeNamespaceRequest, DescribeWorkflowExecutionRequest,
    ExecuteMultiOperationRequest, GetSystemInfoRequest, GetWorkflowExecutionHistoryRequest,
    ListWorkflowExecutionsRequest, PollActivityTaskQueueRequest, QueryWorkflowRequest,
    RecordActivityTaskHeartbeatRequest, RegisterNamespaceRequest,
    RequestCancelWorkflowExecutionRequest, RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest, RespondActivityTaskCompletedRequest,
    RespondQueryTaskCompletedRequest, RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest, StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest, UpdateWorkflowExecutionRequest,
};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::client::{Api, NAMESPACE, execution, signal_of, soon, start_of, task_queue, within};
use crate::nodes::{Running, config};
use crate::refusal::{check_refused, detail_of};
use crate::worker::{complete, schedule};

const DAY: Duration = Duration::from_secs(86_400);

fn describe(workflow_id: &str, run_id: &str) -> Request<DescribeWorkflowExecutionRequest> {
    let execution =
        WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned() };
    soon(DescribeWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution),
    })
}

fn query(workflow_id: &str) -> QueryWorkflowRequest {
    let query = WorkflowQuery { query_type: "state".to_owned(), ..WorkflowQuery::default() };
    QueryWorkflowRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution(workflow_id)),
        query: Some(query),
        ..QueryWorkflowRequest::default()
    }
}

fn terminate(workflow_id: &str) -> TerminateWorkflowExecutionRequest {
    TerminateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(execution(workflow_id)),
        ..TerminateWorkflowExecutionRequest::default()
    }
}

fn complete_with(token: &[u8]) -> Request<RespondWorkflowTaskCompletedRequest> {
    soon(RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: token.to_vec().into(),
        commands: vec![complete()],
        ..RespondWorkflowTaskCompletedRequest::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_that_are_not_there_are_not_found() {
    let running = Running::start(config(None)).await;
    let mut service = running.client.service();
    let (code, detail) = (Code::NotFound, "NotFoundFailure");
    let unknown = "workflow not found for ID: nowhere";
    check_refused(
        "describe",
        service.describe_workflow_execution(describe("nowhere", "")).await,
        code,
        detail,
        unknown,
    );
    let signal = service.signal_workflow_execution(soon(signal_of("nowhere", "s"))).await;
    check_refused("signal", signal, code, detail, unknown);
    let asked = service.query_workflow(soon(query("nowhere"))).await;
    check_refused("query", asked, code, detail, unknown);
    let history = GetWorkflowExecutionHistoryRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution("nowhere")),
        ..GetWorkflowExecutionHistoryRequest::default()
    };
    let history = service.get_workflow_execution_history(soon(history)).await;
    check_refused("history", history, code, detail, "not found");
    let terminated = service.terminate_workflow_execution(soon(terminate("nowhere"))).await;
    check_refused("terminate", terminated, code, detail, unknown);
    let cancel = RequestCancelWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(execution("nowhere")),
        ..RequestCancelWorkflowExecutionRequest::default()
    };
    let cancelled = service.request_cancel_workflow_execution(soon(cancel)).await;
    check_refused("cancel", cancelled, code, detail, unknown);

    running.client.start(start_of("here", "simple", "q")).await.unwrap();
    let other_run = describe("here", "0190c4f0-6a3e-7e35-9b1f-3f0f5a1c2d4e");
    let other_run = service.describe_workflow_execution(other_run).await;
    check_refused(
        "another run",
        other_run,
        code,
        detail,
        "workflow execution not found for workflow ID",
    );
    let no_run = service.describe_workflow_execution(describe("here", "first")).await;
    check_refused("no run id", no_run, Code::InvalidArgument, "", "Invalid RunId.");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_stale_malformed_or_of_another_kind_are_refused() {
    let running = Running::start(config(None)).await;
    let (api, mut service) = (running.api(), running.client.service());
    api.start(start_of("tokens", "simple", "q")).await.unwrap();
    let first = api.poll_workflow_task("q").await.unwrap();
    let commands = vec![schedule("a", "q")];
    api.complete_workflow_task(&first.task_token, commands).await.unwrap();
    let activity = api.poll_activity_task("q").await.unwrap();
    let of_activity = |token: &[u8]| RespondActivityTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: token.to_vec().into(),
        ..RespondActivityTaskCompletedRequest::default()
    };
    // Malformed, missing, of another kind.
    for (token, text) in [
        (&b"nonsense"[..], "Error deserializing task token."),
        (&[], "Task token not set on request."),
        (&activity.task_token, "it is for another kind of task"),
    ] {
        let answer = service.respond_workflow_task_completed(complete_with(token)).await;
        check_refused(text, answer, Code::InvalidArgument, "", text);
    }
    let crossed = soon(of_activity(&first.task_token));
    let crossed = service.respond_activity_task_completed(crossed).await;
    check_refused("crossed", crossed, Code::InvalidArgument, "", "another kind of task");
    // A cancellation that nobody asked for.
    let cancelled = RespondActivityTaskCanceledRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: activity.task_token.clone(),
        ..RespondActivityTaskCanceledRequest::default()
    };
    let cancelled = service.respond_activity_task_canceled(soon(cancelled)).await;
    check_refused("not cancelled", cancelled, Code::InvalidArgument, "", "");
    // Answered before.
    api.complete_activity_task(&activity.task_token).await.unwrap();
    let again = soon(of_activity(&activity.task_token));
    let again = service.respond_activity_task_completed(again).await;
    check_refused("answered before", again, Code::NotFound, "NotFoundFailure", "");
    let heartbeat = RecordActivityTaskHeartbeatRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: activity.task_token.clone(),
        ..RecordActivityTaskHeartbeatRequest::default()
    };
    let heartbeat = service.record_activity_task_heartbeat(soon(heartbeat)).await;
    check_refused("late heartbeat", heartbeat, Code::NotFound, "NotFoundFailure", "");
    let by_id = RespondActivityTaskCompletedByIdRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_id: "tokens".to_owned(),
        activity_id: "unknown".to_owned(),
        ..RespondActivityTaskCompletedByIdRequest::default()
    };
    let by_id = service.respond_activity_task_completed_by_id(soon(by_id)).await;
    check_refused("unknown activity", by_id, Code::NotFound, "NotFoundFailure", "");
    // The answer that was accepted last, again: the same reply, and nothing happens (D5).
    api.complete_workflow_task(&first.task_token, vec![complete()]).await.unwrap();
    // The token of a task that has failed, while the next one is out.
    let failed = api.poll_workflow_task("q").await.unwrap();
    let answer = RespondWorkflowTaskFailedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: failed.task_token.clone(),
        ..RespondWorkflowTaskFailedRequest::default()
    };
    service.respond_workflow_task_failed(soon(answer)).await.unwrap();
    let last = api.poll_workflow_task("q").await.unwrap();
    assert_eq!(last.attempt, 2);
    let stale = service.respond_workflow_task_completed(complete_with(&failed.task_token)).await;
    let text = "Workflow task not found.";
    check_refused("an earlier task", stale, Code::NotFound, "NotFoundFailure", text);
    api.complete_workflow_task(&last.task_token, vec![complete()]).await.unwrap();
    // The run is closed.
    let late = service.signal_workflow_execution(soon(signal_of("tokens", "late"))).await;
    let text = "workflow execution already completed";
    check_refused("closed", late, Code::NotFound, "NotFoundFailure", text);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_that_are_unknown_taken_or_deprecated_are_refused() {
    let running = Running::start(config(None)).await;
    let mut service = running.client.service();
    let mut start = start_of("w", "simple", "q");
    start.namespace = "nowhere".to_owned();
    let unknown = service.start_workflow_execution(soon(start.clone())).await;
    let detail = "NamespaceNotFoundFailure";
    let status = check_refused("unknown", unknown, Code::NotFound, detail, "nowhere");
    assert_eq!(detail_of::<NamespaceNotFoundFailure>(&status).namespace, "nowhere");
    let named = DescribeNamespaceRequest { namespace: "nowhere".into(), ..Default::default() };
    let unknown = service.describe_namespace(soon(named)).await;
    check_refused("describe", unknown, Code::NotFound, detail, "nowhere");
    start.namespace.clear();
    let unnamed = service.start_workflow_execution(soon(start)).await;
    check_refused("no name", unnamed, Code::InvalidArgument, "", "");

    let retention = prost_types::Duration { seconds: 86_400, nanos: 0 };
    let register = |name: &str| RegisterNamespaceRequest {
        namespace: name.to_owned(),
        workflow_execution_retention_period: Some(retention),
        ..RegisterNamespaceRequest::default()
    };
    let taken = service.register_namespace(soon(register(NAMESPACE))).await;
    let detail = "NamespaceAlreadyExistsFailure";
    check_refused("taken", taken, Code::AlreadyExists, detail, "");

    service.register_namespace(soon(register("old"))).await.unwrap();
    let deprecate = DeprecateNamespaceRequest { namespace: "old".into(), ..Default::default() };
    service.deprecate_namespace(soon(deprecate)).await.unwrap();
    let mut start = start_of("w", "simple", "q");
    start.namespace = "old".to_owned();
    let refused = service.start_workflow_execution(soon(start)).await;
    let detail = "NamespaceInvalidStateFailure";
    let status = check_refused("deprecated", refused, Code::FailedPrecondition, detail, "");
    assert_eq!(detail_of::<NamespaceInvalidStateFailure>(&status).namespace, "old");
    running.stop().await;
}

/// Changes of namespaces are decided on a state, and anew when another one came first: many at once all come through.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_namespaces_at_once_are_all_registered() {
    let running = Running::start(config(None)).await;
    let mut registrations = tokio::task::JoinSet::new();
    for number in 0..100 {
        let mut service = running.client.service();
        let request = RegisterNamespaceRequest {
            namespace: format!("namespace-{number}"),
            workflow_execution_retention_period: prost_types::Duration::try_from(DAY).ok(),
            ..RegisterNamespaceRequest::default()
        };
        registrations.spawn(async move { service.register_namespace(soon(request)).await });
    }
    for registered in registrations.join_all().await {
        registered.unwrap();
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_are_refused_by_the_id_policies() {
    let running = Running::start(config(None)).await;
    let (api, mut service) = (running.api(), running.client.service());
    let run_id = api.start(start_of("taken", "simple", "q")).await.unwrap();
    let mut start = start_of("taken", "simple", "q");
    start.request_id = "another".to_owned();
    let detail = "WorkflowExecutionAlreadyStartedFailure";
    let refused = service.start_workflow_execution(soon(start.clone())).await;
    let text = "Workflow execution is already running";
    let status = check_refused("open", refused, Code::AlreadyExists, detail, text);
    let failure: WorkflowExecutionAlreadyStartedFailure = detail_of(&status);
    assert_eq!(failure.run_id, run_id);
    assert_eq!(failure.first_execution_run_id, run_id);
    assert_eq!(failure.start_request_id, "start-taken");

    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    for policy in [
        WorkflowIdReusePolicy::RejectDuplicate,
        // It completed well.
        WorkflowIdReusePolicy::AllowDuplicateFailedOnly,
    ] {
        start.workflow_id_reuse_policy = policy.into();
        let refused = service.start_workflow_execution(soon(start.clone())).await;
        let text = "Workflow execution already finished";
        let status = check_refused("closed", refused, Code::AlreadyExists, detail, text);
        assert_eq!(detail_of::<WorkflowExecutionAlreadyStartedFailure>(&status).run_id, run_id);
    }
    start.workflow_id_reuse_policy = WorkflowIdReusePolicy::RejectDuplicate.into();
    start.workflow_id_conflict_policy = WorkflowIdConflictPolicy::TerminateExisting.into();
    let refused = service.start_workflow_execution(soon(start)).await;
    let text = "Invalid WorkflowIDReusePolicy";
    check_refused("policies", refused, Code::InvalidArgument, "", text);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_cannot_be_answered_say_why() {
    let mut config = config(None);
    config.limits.insert("buffered_queries_max".to_owned(), 1);
    let running = Running::start(config).await;
    let (api, service) = (running.api(), running.client.service());
    // It ended before its code ever ran.
    api.start(start_of("ended", "simple", "ended")).await.unwrap();
    service.clone().terminate_workflow_execution(soon(terminate("ended"))).await.unwrap();
    let early = service.clone().query_workflow(soon(query("ended"))).await;
    let detail = "WorkflowNotReadyFailure";
    check_refused("too early", early, Code::FailedPrecondition, detail, "");

    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
    // The worker answers with a failure.
    let asked = tokio::spawn({
        let mut service = service.clone();
        async move { service.query_workflow(soon(query("asked"))).await }
    });
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(task.query.is_some());
    let failure = Failure { message: "no such state".to_owned(), ..Failure::default() };
    let answer = RespondQueryTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token.clone(),
        completed_type: QueryResultType::Failed.into(),
        error_message: "no such state".to_owned(),
        failure: Some(failure.clone()),
        ..RespondQueryTaskCompletedRequest::default()
    };
    service.clone().respond_query_task_completed(soon(answer.clone())).await.unwrap();
    let (code, detail) = (Code::InvalidArgument, "QueryFailedFailure");
    let status = check_refused("failed", asked.await.unwrap(), code, detail, "no such state");
    assert_eq!(detail_of::<QueryFailedFailure>(&status).failure, Some(failure));
    let again = service.clone().respond_query_task_completed(soon(answer)).await;
    check_refused("answered before", again, Code::NotFound, "NotFoundFailure", "");

    // Nobody answers in the time that the client gives.
    let hurried = within(Duration::from_millis(300), query("asked"));
    let status = service.clone().query_workflow(hurried).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");

    // While a task is out, queries wait for it; here there is room for one.
    api.signal(signal_of("asked", "wake")).await.unwrap();
    let _task = api.poll_workflow_task("q").await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let mut service = service.clone();
        waiting.spawn(async move { service.query_workflow(soon(query("asked"))).await });
    }
    let refused = waiting.join_next().await.unwrap().unwrap();
    let (code, detail) = (Code::ResourceExhausted, "ResourceExhaustedFailure");
    let status = check_refused("full", refused, code, detail, "query buffer is full");
    let failure: ResourceExhaustedFailure = detail_of(&status);
    assert_eq!(failure.cause(), ResourceExhaustedCause::BusyWorkflow);
    drop(waiting);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused() {
    let running = Running::start(config(None)).await;
    let service = running.client.service();
    let base = start_of("w", "simple", "q");
    let with = |change: fn(&mut StartWorkflowExecutionRequest)| {
        let mut start = base.clone();
        change(&mut start);
        start
    };
    for (start, text) in [
        (with(|s| s.workflow_id.clear()), "WorkflowId is not set on request."),
        (with(|s| s.workflow_type = None), "WorkflowType is not set on request."),
        (with(|s| s.task_queue = None), "taskQueue is not set"),
        (
            with(|s| s.task_queue.as_mut().unwrap().name = "/_sys/q/1".to_owned()),
            "cannot start with reserved prefix /_sys/",
        ),
        (
            with(|s| {
                s.workflow_run_timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 })
            }),
            "An invalid WorkflowRunTimeoutSeconds is set on request. cause: negative duration",
        ),
        (
            with(|s| s.retry_policy.get_or_insert_default().backoff_coefficient = 0.5),
            "BackoffCoefficient cannot be less than 1 on retry policy.",
        ),
        (
            with(|s| s.priority.get_or_insert_default().priority_key = -1),
            "priority key can't be negative",
        ),
    ] {
        let refused = service.clone().start_workflow_execution(soon(start)).await;
        check_refused(text, refused, Code::InvalidArgument, "", text);
    }
    for (filter, text) in [
        ("WorkflowId =", "invalid query: malformed SQL query: syntax error at position 13"),
        ("NoSuchAttribute = 'x'", "invalid query: invalid search attribute: NoSuchAttribute"),
        (
            "WorkflowId = 'a' ORDER BY StartTime",
            "invalid query: operation is not supported: 'ORDER BY' clause",
        ),
        (
            "ExecutionDuration >= 2e9",
            "invalid query: invalid expression: unexpected value type float64 for search \
             attribute ExecutionDuration",
        ),
    ] {
        let list = ListWorkflowExecutionsRequest {
            namespace: NAMESPACE.to_owned(),
            query: filter.to_owned(),
            ..ListWorkflowExecutionsRequest::default()
        };
        let refused = service.clone().list_workflow_executions(soon(list)).await;
        check_refused(filter, refused, Code::InvalidArgument, "", text);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_built_is_unimplemented_by_name() {
    let running = Running::start(config(None)).await;
    let service = running.client.service();
    let update =
        UpdateWorkflowExecutionRequest { namespace: NAMESPACE.into(), ..Default::default() };
    let refused = service.clone().update_workflow_execution(soon(update)).await;
    check_refused("update", refused, Code::Unimplemented, "", "UpdateWorkflowExecution");
    let several =
        ExecuteMultiOperationRequest { namespace: NAMESPACE.into(), ..Default::default() };
    let refused = service.clone().execute_multi_operation(soon(several)).await;
    check_refused("several", refused, Code::Unimplemented, "", "ExecuteMultiOperation");
    let mut start = start_of("w", "simple", "q");
    start.cron_schedule = "* * * * *".to_owned();
    let refused = service.clone().start_workflow_execution(soon(start)).await;
    check_refused("cron", refused, Code::Unimplemented, "", "cron_schedule");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_servers_of_versions_that_do_not_fit_are_refused() {
    let running = Running::start(config(None)).await;
    let with = |pairs: &[(&'static str, &str)]| {
        let mut request = soon(GetSystemInfoRequest {});
        for (name, value) in pairs {
            let value = MetadataValue::try_from(*value).unwrap();
            request.metadata_mut().insert(*name, value);
        }
        request
    };
    let service = running.client.service();
    let old = with(&[("client-name", "temporal-go"), ("client-version", "2.0.0")]);
    let refused = service.clone().get_system_info(old).await;
    let (code, detail) = (Code::FailedPrecondition, "ClientVersionNotSupportedFailure");
    check_refused("client", refused, code, detail, "");
    let other = with(&[("supported-server-versions", ">=99.0.0")]);
    let refused = service.clone().get_system_info(other).await;
    check_refused("server", refused, code, "ServerVersionNotSupportedFailure", "");
    let unknown = with(&[("client-name", "mine"), ("client-version", "nonsense")]);
    service.clone().get_system_info(unknown).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_full_refuses_with_a_cause() {
    let mut config = config(None);
    config.admission.held_requests_max = 1;
    let running = Running::start(config).await;
    let api = running.api();
    let mut polls = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (mut service, task_queue) = (running.client.service(), Some(task_queue("q")));
        let namespace = NAMESPACE.to_owned();
        let poll = PollActivityTaskQueueRequest { namespace, task_queue, ..Default::default() };
        polls.spawn(async move { service.poll_activity_task_queue(soon(poll)).await });
    }
    // There is room for one, whichever came first.
    let refused = polls.join_next().await.unwrap().unwrap();
    let (code, detail) = (Code::ResourceExhausted, "ResourceExhaustedFailure");
    let status = check_refused("full", refused, code, detail, "");
    let failure: ResourceExhaustedFailure = detail_of(&status);
    assert_eq!(failure.cause(), ResourceExhaustedCause::ConcurrentLimit);
    // Others are not hurt.
    api.start(start_of("w", "simple", "other")).await.unwrap();
    drop(polls);
    running.stop().await;
}
