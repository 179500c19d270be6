//! Each limit of `piton_core::limits`, lowered, against a running node: what is over it is refused or
//! ended as the official server does, and what is at it is not.

use piton_proto::command::command::Attributes;
use piton_proto::command::{
    Command, RecordMarkerCommandAttributes,
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
    UpsertWorkflowSearchAttributesCommandAttributes,
};
use piton_proto::common::{Link, Memo, Payload, SearchAttributes};
use piton_proto::enums::{CommandType, EventType, WorkflowTaskFailedCause};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::sdk::UserMetadata;
use piton_proto::workflowservice::{
    ListWorkflowExecutionsRequest, RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest, RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCompletedByIdRequest, RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest, RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse, StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
};
use tonic::{Code, Response, Status};

use crate::client::{Api, GrpcClient, NAMESPACE, execution, payloads, signal_of, soon, start_of};
use crate::nodes::{Running, config};
use crate::refusal::check_refused;
use crate::worker::{command, complete, history_of, schedule, start_child};

async fn start_limited(limits: &[(&str, u64)]) -> Running {
    let mut config = config(None);
    config.limits = limits.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    config.namespaces.search_attributes =
        (0..6).map(|number| (format!("Key{number}"), "Keyword".to_owned())).collect();
    Running::start(config).await
}

/// Starts a workflow with a queue of its own name, and takes its first task.
async fn task_of(client: &GrpcClient, workflow_id: &str) -> Vec<u8> {
    client.start(start_of(workflow_id, "simple", workflow_id)).await.unwrap();
    client.poll_workflow_task(workflow_id).await.unwrap().task_token.to_vec()
}

async fn answer(
    client: &GrpcClient,
    token: &[u8],
    commands: Vec<Command>,
) -> Result<Response<RespondWorkflowTaskCompletedResponse>, Status> {
    let answer = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: token.to_vec().into(),
        commands,
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    client.service().respond_workflow_task_completed(soon(answer)).await
}

/// The causes of a history's failed workflow tasks.
fn failed_tasks(events: &[HistoryEvent]) -> Vec<WorkflowTaskFailedCause> {
    let cause = |event: &HistoryEvent| match event.attributes.as_ref()? {
        Event::WorkflowTaskFailedEventAttributes(failed) => Some(failed.cause()),
        _ => None,
    };
    events.iter().filter_map(cause).collect()
}

/// Why the server ended a run.
fn terminated_for(events: &[HistoryEvent]) -> String {
    match events.last().and_then(|event| event.attributes.clone()) {
        Some(Event::WorkflowExecutionTerminatedEventAttributes(terminated)) => terminated.reason,
        other => panic!("it was not terminated: {other:?}"),
    }
}

fn of_bytes(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn payload(bytes: usize) -> Payload {
    Payload { data: vec![b'x'; bytes].into(), ..Payload::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_over_the_limit_are_refused_or_fail_what_they_are_of() {
    let running = start_limited(&[("blob_bytes_max", 1_000)]).await;
    let (client, service) = (&running.client, running.client.service());
    let text = "Blob data size exceeds limit.";
    let mut start = start_of("at-limit", "simple", "q");
    // Two tags and lengths stand around the data.
    start.input = Some(payloads(&of_bytes(994)));
    client.start(start.clone()).await.unwrap();
    (start.workflow_id, start.request_id) = ("over".to_owned(), "over".to_owned());
    start.input = Some(payloads(&of_bytes(1_000)));
    let refused = service.clone().start_workflow_execution(soon(start)).await;
    check_refused("input", refused, Code::InvalidArgument, "", text);
    let mut signal = signal_of("at-limit", "large");
    signal.input = Some(payloads(&of_bytes(1_000)));
    let refused = service.clone().signal_workflow_execution(soon(signal)).await;
    check_refused("signal", refused, Code::InvalidArgument, "", text);
    let terminate = TerminateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(execution("at-limit")),
        details: Some(payloads(&of_bytes(1_000))),
        ..TerminateWorkflowExecutionRequest::default()
    };
    let refused = service.clone().terminate_workflow_execution(soon(terminate)).await;
    check_refused("details", refused, Code::InvalidArgument, "", text);

    // A result that is too large fails its activity; heartbeat details do so, too.
    for id in ["result", "heartbeat"] {
        let token = task_of(client, id).await;
        client.complete_workflow_task(&token, vec![schedule("a", id)]).await.unwrap();
        let task_token = client.poll_activity_task(id).await.unwrap().task_token;
        let (namespace, large) = (NAMESPACE.to_owned(), Some(payloads(&of_bytes(1_000))));
        if id == "result" {
            let (result, task_token) = (large, task_token);
            let answer = RespondActivityTaskCompletedRequest {
                namespace,
                task_token,
                result,
                ..RespondActivityTaskCompletedRequest::default()
            };
            service.clone().respond_activity_task_completed(soon(answer)).await.unwrap();
        } else {
            let (details, task_token) = (large, task_token);
            let heartbeat = RecordActivityTaskHeartbeatRequest {
                namespace,
                task_token,
                details,
                ..RecordActivityTaskHeartbeatRequest::default()
            };
            let told = service.clone().record_activity_task_heartbeat(soon(heartbeat)).await;
            assert!(told.unwrap().into_inner().cancel_requested, "the activity is over");
        }
        let events = history_of(client, id).await;
        let failed = events.iter().any(|e| e.event_type() == EventType::ActivityTaskFailed);
        assert!(failed, "{id}: {events:#?}");
    }

    // A command with too large a payload would be sent again for ever, so it ends the run.
    let token = task_of(client, "marker").await;
    let marker = RecordMarkerCommandAttributes {
        marker_name: "m".to_owned(),
        details: [("d".to_owned(), payloads(&of_bytes(1_000)))].into(),
        ..RecordMarkerCommandAttributes::default()
    };
    let attributes = Attributes::RecordMarkerCommandAttributes(marker);
    let commands = vec![command(CommandType::RecordMarker, attributes)];
    let refused = answer(client, &token, commands).await;
    check_refused("marker", refused, Code::InvalidArgument, "", "exceeds size limit");
    let reason = terminated_for(&history_of(client, "marker").await);
    assert!(reason.contains("exceeds size limit"), "{reason}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_memos_links_and_metadata_over_their_limits_are_refused() {
    let running = start_limited(&[
        ("id_bytes_max", 50),
        ("memo_bytes_max", 200),
        ("user_metadata_summary_bytes_max", 20),
        ("user_metadata_details_bytes_max", 40),
    ])
    .await;
    let (client, service) = (&running.client, running.client.service());
    let base = start_of("w", "simple", "q");
    let memo = |bytes| Memo { fields: [("m".to_owned(), payload(bytes))].into() };
    let metadata = |summary: usize, details: usize| UserMetadata {
        summary: Some(payload(summary)),
        details: Some(payload(details)),
    };
    let with = |change: &dyn Fn(&mut StartWorkflowExecutionRequest)| {
        let mut start = base.clone();
        change(&mut start);
        start
    };
    for (start, text) in [
        (with(&|s| s.workflow_id = of_bytes(51)), "WorkflowId length exceeds limit."),
        (with(&|s| s.request_id = of_bytes(51)), "RequestId length exceeds limit."),
        (with(&|s| s.identity = of_bytes(51)), "Identity length exceeds limit."),
        (
            with(&|s| s.workflow_type.as_mut().unwrap().name = of_bytes(51)),
            "WorkflowType length exceeds limit.",
        ),
        (
            with(&|s| s.task_queue.as_mut().unwrap().name = of_bytes(51)),
            "TaskQueue length exceeds limit.",
        ),
        (with(&|s| s.memo = Some(memo(300))), "Memo size exceeds limit."),
        (with(&|s| s.user_metadata = Some(metadata(30, 1))), "user metadata summary size"),
        (with(&|s| s.user_metadata = Some(metadata(1, 60))), "user metadata details size"),
        (with(&|s| s.links = vec![Link::default(); 11]), "cannot attach more than 10 links"),
    ] {
        let refused = service.clone().start_workflow_execution(soon(start)).await;
        check_refused(text, refused, Code::InvalidArgument, "", text);
    }
    let start = with(&|s| {
        (s.workflow_id, s.request_id) = (of_bytes(50), of_bytes(50));
        (s.memo, s.user_metadata) = (Some(memo(150)), Some(metadata(10, 30)));
    });
    client.start(start).await.unwrap();
    let mut signal = signal_of(&of_bytes(50), &of_bytes(51));
    signal.request_id.clear();
    let refused = service.clone().signal_workflow_execution(soon(signal)).await;
    let text = "SignalName length exceeds limit.";
    check_refused("signal", refused, Code::InvalidArgument, "", text);
    let token = task_of(client, "by-command").await;
    let refused = answer(client, &token, vec![schedule(&of_bytes(51), "q")]).await;
    let text = "BadScheduleActivityAttributes: activityId exceeds length limit.";
    check_refused("activity id", refused, Code::InvalidArgument, "", text);
    let causes = failed_tasks(&history_of(client, "by-command").await);
    assert_eq!(causes, [WorkflowTaskFailedCause::BadScheduleActivityAttributes]);
    running.stop().await;
}

/// Each of the four calls that an activity's worker makes checks who makes it.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_those_who_answer_activities_are_limited() {
    macro_rules! by_id {
        ($request:ident, $identity:expr) => {
            soon($request {
                namespace: NAMESPACE.to_owned(),
                workflow_id: "w".to_owned(),
                activity_id: "a".to_owned(),
                identity: $identity.to_owned(),
                ..$request::default()
            })
        };
    }
    let running = start_limited(&[("id_bytes_max", 50)]).await;
    let (client, mut service) = (&running.client, running.client.service());
    let token = task_of(client, "w").await;
    answer(client, &token, vec![schedule("a", "q")]).await.unwrap();
    let task = client.poll_activity_task("q").await.unwrap();
    assert!(!task.task_token.is_empty());
    let (long, text) = (of_bytes(51), "Identity length exceeds limit.");
    let code = Code::InvalidArgument;
    let heartbeat = by_id!(RecordActivityTaskHeartbeatByIdRequest, long);
    check_refused(
        "heartbeat",
        service.record_activity_task_heartbeat_by_id(heartbeat).await,
        code,
        "",
        text,
    );
    let completed = by_id!(RespondActivityTaskCompletedByIdRequest, long);
    let refused = service.respond_activity_task_completed_by_id(completed).await;
    check_refused("completed", refused, code, "", text);
    let failed = by_id!(RespondActivityTaskFailedByIdRequest, long);
    let refused = service.respond_activity_task_failed_by_id(failed).await;
    check_refused("failed", refused, code, "", text);
    let canceled = by_id!(RespondActivityTaskCanceledByIdRequest, long);
    let refused = service.respond_activity_task_canceled_by_id(canceled).await;
    check_refused("canceled", refused, code, "", text);
    // None of them came to the workflow.
    let completed = by_id!(RespondActivityTaskCompletedByIdRequest, of_bytes(50));
    service.respond_activity_task_completed_by_id(completed).await.unwrap();
    running.stop().await;
}

fn signal_external(target: &str) -> Command {
    let attributes = SignalExternalWorkflowExecutionCommandAttributes {
        execution: Some(execution(target)),
        signal_name: "s".to_owned(),
        ..SignalExternalWorkflowExecutionCommandAttributes::default()
    };
    let attributes = Attributes::SignalExternalWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::SignalExternalWorkflowExecution, attributes)
}

fn cancel_external(target: &str) -> Command {
    let attributes = RequestCancelExternalWorkflowExecutionCommandAttributes {
        workflow_id: target.to_owned(),
        ..RequestCancelExternalWorkflowExecutionCommandAttributes::default()
    };
    let attributes =
        Attributes::RequestCancelExternalWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::RequestCancelExternalWorkflowExecution, attributes)
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_pending_things_fail_the_workflow_task_that_asks_for_them() {
    let running = start_limited(&[
        ("pending_activities_max", 2),
        ("pending_children_max", 2),
        ("pending_external_signals_max", 2),
        ("pending_external_cancels_max", 2),
    ])
    .await;
    let client = &running.client;
    type Make = fn(usize) -> Command;
    let cases: [(&str, Make, WorkflowTaskFailedCause); 4] = [
        (
            "PendingActivitiesLimitExceeded",
            |number| schedule(&format!("a-{number}"), "unpolled"),
            WorkflowTaskFailedCause::PendingActivitiesLimitExceeded,
        ),
        (
            "PendingChildWorkflowsLimitExceeded",
            |number| start_child(&format!("child-{number}"), "unpolled"),
            WorkflowTaskFailedCause::PendingChildWorkflowsLimitExceeded,
        ),
        (
            "PendingSignalsLimitExceeded",
            |number| signal_external(&format!("target-{number}")),
            WorkflowTaskFailedCause::PendingSignalsLimitExceeded,
        ),
        (
            "PendingRequestCancelLimitExceeded",
            |number| cancel_external(&format!("target-{number}")),
            WorkflowTaskFailedCause::PendingRequestCancelLimitExceeded,
        ),
    ];
    for (text, make, cause) in cases {
        let token = task_of(client, text).await;
        let refused = answer(client, &token, (0..3).map(make).collect()).await;
        check_refused(text, refused, Code::InvalidArgument, "", text);
        let events = history_of(client, text).await;
        assert_eq!(failed_tasks(&events), [cause], "{events:#?}");
        // As many as are allowed are taken.
        let token = client.poll_workflow_task(text).await.unwrap().task_token;
        client.complete_workflow_task(&token, (0..2).map(make).collect()).await.unwrap();
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_takes_so_many_signals_and_no_more() {
    let running = start_limited(&[("signals_max", 3)]).await;
    let (client, service) = (&running.client, running.client.service());
    client.start(start_of("w", "simple", "q")).await.unwrap();
    for number in 0..3 {
        client.signal(signal_of("w", &format!("s-{number}"))).await.unwrap();
    }
    let text = "exceeded workflow execution limit for signal events";
    let refused = service.clone().signal_workflow_execution(soon(signal_of("w", "more"))).await;
    check_refused("signals", refused, Code::InvalidArgument, "", text);
    // A repetition is not a fourth one.
    client.signal(signal_of("w", "s-0")).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_buffered_events_fail_the_task_that_they_wait_for() {
    for by_bytes in [false, true] {
        let limit = if by_bytes { ("buffered_bytes_max", 500) } else { ("buffered_events_max", 3) };
        let running = start_limited(&[limit]).await;
        let client = &running.client;
        let token = task_of(client, "w").await;
        let signal = |number: usize| {
            let mut signal = signal_of("w", &format!("s-{number}"));
            signal.input = by_bytes.then(|| payloads(&of_bytes(150)));
            signal
        };
        for number in 0..4 {
            client.signal(signal(number)).await.unwrap();
        }
        let events = history_of(client, "w").await;
        assert_eq!(failed_tasks(&events), [WorkflowTaskFailedCause::ForceCloseCommand]);
        let signalled = events
            .iter()
            .filter(|event| event.event_type() == EventType::WorkflowExecutionSignaled);
        assert!(signalled.count() >= 3, "{events:#?}");
        let late = answer(client, &token, vec![complete()]).await;
        check_refused("late", late, Code::NotFound, "NotFoundFailure", "Workflow task not found.");
        // The next task has seen them all.
        let token = client.poll_workflow_task("w").await.unwrap().task_token;
        client.complete_workflow_task(&token, vec![complete()]).await.unwrap();
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_history_is_too_long_is_terminated() {
    for (by_bytes, reason) in [
        (false, "Workflow history count exceeds limit."),
        (true, "Workflow history size exceeds limit."),
    ] {
        let limit =
            if by_bytes { ("history_bytes_max", 5_000) } else { ("history_events_max", 10) };
        let running = start_limited(&[limit]).await;
        let client = &running.client;
        client.start(start_of("w", "simple", "q")).await.unwrap();
        let mut accepted = 0;
        for number in 0..50 {
            let mut signal = signal_of("w", &format!("s-{number}"));
            signal.input = by_bytes.then(|| payloads(&of_bytes(1_000)));
            match client.signal(signal).await {
                Ok(()) => accepted += 1,
                Err(refused) => {
                    assert_eq!(refused.code, Code::NotFound, "{refused}");
                    break;
                }
            }
        }
        assert!((3..50).contains(&accepted), "{accepted} signals were accepted");
        assert_eq!(terminated_for(&history_of(client, "w").await), reason);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_attributes_are_limited_in_number_and_size() {
    let running = start_limited(&[
        ("search_attributes_max", 4),
        ("search_attribute_bytes_max", 30),
        ("search_attributes_bytes_max", 100),
    ])
    .await;
    let (client, service) = (&running.client, running.client.service());
    let of = |count: usize, bytes: usize| {
        let value = Payload {
            metadata: [("encoding".to_owned(), b"json/plain".to_vec().into())].into(),
            data: format!("\"{}\"", of_bytes(bytes)).into_bytes().into(),
            ..Payload::default()
        };
        let field = |number| (format!("Key{number}"), value.clone());
        SearchAttributes { indexed_fields: (0..count).map(field).collect() }
    };
    let unknown = SearchAttributes { indexed_fields: [("NoSuch".to_owned(), payload(1))].into() };
    for (attributes, text) in [
        (of(5, 1), "number of search attributes 5 exceeds limit 4"),
        (of(1, 29), "exceeds size limit 30"),
        (of(4, 25), "total size of search attributes"),
        (unknown, "Namespace default has no mapping defined for search attribute NoSuch"),
    ] {
        let mut start = start_of("w", "simple", "q");
        start.search_attributes = Some(attributes);
        let refused = service.clone().start_workflow_execution(soon(start)).await;
        check_refused(text, refused, Code::InvalidArgument, "", text);
    }
    // By a workflow: the task fails, and what the run has already counts.
    let mut start = start_of("w", "simple", "w");
    start.search_attributes = Some(of(4, 1));
    client.start(start).await.unwrap();
    let token = client.poll_workflow_task("w").await.unwrap().task_token;
    let mut more = of(6, 1);
    more.indexed_fields.retain(|name, _| name == "Key5");
    let upsert = UpsertWorkflowSearchAttributesCommandAttributes { search_attributes: Some(more) };
    let attributes = Attributes::UpsertWorkflowSearchAttributesCommandAttributes(upsert);
    let commands = vec![command(CommandType::UpsertWorkflowSearchAttributes, attributes)];
    let refused = answer(client, &token, commands).await;
    check_refused("upsert", refused, Code::InvalidArgument, "", "BadSearchAttributes");
    let causes = failed_tasks(&history_of(client, "w").await);
    assert_eq!(causes, [WorkflowTaskFailedCause::BadSearchAttributes]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_no_longer_than_their_limits_and_join_to_the_whole() {
    let running = start_limited(&[("history_page_events_max", 4), ("list_page_max", 3)]).await;
    let (client, service) = (&running.client, running.client.service());
    for number in 0..8 {
        client.start(start_of(&format!("w-{number}"), "simple", "q")).await.unwrap();
    }
    for number in 0..10 {
        client.signal(signal_of("w-0", &format!("s-{number}"))).await.unwrap();
    }
    let (page, token) = client.history_page(&execution("w-0"), Vec::new()).await.unwrap();
    assert!((1..=5).contains(&page.len()) && !token.is_empty(), "{} events", page.len());
    assert_eq!(history_of(client, "w-0").await.len(), 12);

    let mut found = Vec::new();
    let mut list = ListWorkflowExecutionsRequest {
        namespace: NAMESPACE.to_owned(),
        page_size: 1_000,
        ..ListWorkflowExecutionsRequest::default()
    };
    loop {
        let page = service.clone().list_workflow_executions(soon(list.clone())).await;
        let page = page.unwrap().into_inner();
        assert!(page.executions.len() <= 3);
        found.extend(page.executions.into_iter().map(|e| e.execution.unwrap().workflow_id));
        if page.next_page_token.is_empty() {
            break;
        }
        list.next_page_token = page.next_page_token;
    }
    found.sort();
    let all: Vec<_> = (0..8).map(|number| format!("w-{number}")).collect();
    assert_eq!(found, all);
    running.stop().await;
}
