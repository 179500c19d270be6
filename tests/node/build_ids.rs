//! What workers say of their builds: SDKs read it back from the events, and people search by it.

use piton_proto::common::{WorkerVersionCapabilities, WorkerVersionStamp};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::workflowservice::{
    DescribeWorkflowExecutionRequest, GetSystemInfoRequest, PollActivityTaskQueueRequest,
    PollWorkflowTaskQueueRequest, RespondWorkflowTaskCompletedRequest,
};
use tonic::Request;

use crate::client::{Api, NAMESPACE, execution, soon, start_of, task_queue};
use crate::nodes::{Running, config};
use crate::worker::{complete, history_of, schedule};

fn capabilities(build_id: &str) -> Option<WorkerVersionCapabilities> {
    let build_id = build_id.to_owned();
    Some(WorkerVersionCapabilities { build_id, ..WorkerVersionCapabilities::default() })
}

fn stamp(build_id: &str) -> Option<WorkerVersionStamp> {
    Some(WorkerVersionStamp { build_id: build_id.to_owned(), use_versioning: false })
}

#[allow(deprecated, reason = "workers still send it")]
fn poll(build_id: &str) -> Request<PollWorkflowTaskQueueRequest> {
    soon(PollWorkflowTaskQueueRequest {
        namespace: NAMESPACE.to_owned(),
        task_queue: Some(task_queue("q")),
        worker_version_capabilities: capabilities(build_id),
        ..PollWorkflowTaskQueueRequest::default()
    })
}

/// The builds that Started and Completed events of tasks name.
#[allow(deprecated, reason = "events still have it")]
fn builds(events: &[HistoryEvent]) -> Vec<Option<String>> {
    let stamp = |event: &HistoryEvent| match event.attributes.as_ref()? {
        Event::WorkflowTaskStartedEventAttributes(a) => Some(a.worker_version.clone()),
        Event::WorkflowTaskCompletedEventAttributes(a) => Some(a.worker_version.clone()),
        Event::ActivityTaskStartedEventAttributes(a) => Some(a.worker_version.clone()),
        _ => None,
    };
    events.iter().filter_map(stamp).map(|stamp| stamp.map(|stamp| stamp.build_id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[allow(deprecated, reason = "workers still send it")]
async fn what_workers_say_of_their_builds_is_kept() {
    let running = Running::start(config(None)).await;
    let (client, mut service) = (&running.client, running.client.service());
    let info = service.get_system_info(soon(GetSystemInfoRequest {})).await.unwrap().into_inner();
    // Workers built on the Rust core say nothing without it.
    assert!(info.capabilities.unwrap().build_id_based_versioning);

    client.start(start_of("w", "simple", "q")).await.unwrap();
    let task = service.poll_workflow_task_queue(poll("b1")).await.unwrap().into_inner();
    let mut answer = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        commands: vec![schedule("a", "q")],
        worker_version_stamp: stamp("b1"),
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    service.respond_workflow_task_completed(soon(answer.clone())).await.unwrap();
    let poll_activity = PollActivityTaskQueueRequest {
        namespace: NAMESPACE.to_owned(),
        task_queue: Some(task_queue("q")),
        worker_version_capabilities: capabilities("b2"),
        ..PollActivityTaskQueueRequest::default()
    };
    let activity = service.poll_activity_task_queue(soon(poll_activity)).await.unwrap();
    client.complete_activity_task(&activity.into_inner().task_token).await.unwrap();
    let task = service.poll_workflow_task_queue(poll("b3")).await.unwrap().into_inner();
    answer.task_token = task.task_token;
    (answer.commands, answer.worker_version_stamp) = (vec![complete()], stamp("b3"));
    service.respond_workflow_task_completed(soon(answer)).await.unwrap();

    let builds = builds(&history_of(client, "w").await);
    assert_eq!(builds.iter().flatten().collect::<Vec<_>>(), ["b1", "b1", "b2", "b3", "b3"]);
    let request = DescribeWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution("w")),
    };
    let described = service.describe_workflow_execution(soon(request)).await.unwrap().into_inner();
    let info = described.workflow_execution_info.unwrap();
    assert_eq!(info.most_recent_worker_version_stamp, stamp("b3"));
    let attributes = info.search_attributes.unwrap().indexed_fields;
    let expected = br#"["unversioned","unversioned:b1","unversioned:b3"]"#;
    assert_eq!(&attributes["BuildIds"].data[..], expected);
    running.stop().await;
}
