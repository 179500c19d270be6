//! What readers see of a workflow task that a worker holds (docs/design.md, "The held workflow
//! task"): a worker that lost its cache reads the history without a page token and needs it up to
//! the Started event that it was given.

use piton_proto::enums::EventType;
use piton_proto::history::HistoryEvent;
use piton_proto::workflowservice::{
    GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryReverseRequest,
    PollWorkflowTaskQueueResponse, RespondWorkflowTaskFailedRequest,
};
use tonic::metadata::MetadataValue;

use crate::client::{NAMESPACE, Service, execution, signal_of, soon, start_of};
use crate::nodes::{Running, config};

/// Reads the whole history in pages of `size`, as the client of that name.
async fn read(service: &Service, client: &'static str, size: i32) -> Vec<HistoryEvent> {
    let (mut events, mut token) = (Vec::new(), prost::bytes::Bytes::new());
    loop {
        let mut request = soon(GetWorkflowExecutionHistoryRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution("held")),
            maximum_page_size: size,
            next_page_token: token,
            ..GetWorkflowExecutionHistoryRequest::default()
        });
        request.metadata_mut().insert("client-name", MetadataValue::from_static(client));
        let page = service.clone().get_workflow_execution_history(request).await.unwrap();
        let page = page.into_inner();
        events.extend(page.history.unwrap_or_default().events);
        token = page.next_page_token;
        if token.is_empty() {
            return events;
        }
    }
}

async fn read_reverse(service: &Service) -> Vec<HistoryEvent> {
    let request = GetWorkflowExecutionHistoryReverseRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution("held")),
        ..GetWorkflowExecutionHistoryReverseRequest::default()
    };
    let page = service.clone().get_workflow_execution_history_reverse(soon(request)).await;
    page.unwrap().into_inner().history.unwrap_or_default().events
}

fn handed_out(task: &PollWorkflowTaskQueueResponse) -> Vec<HistoryEvent> {
    task.history.clone().unwrap_or_default().events
}

fn types(events: &[HistoryEvent]) -> Vec<EventType> {
    events.iter().map(HistoryEvent::event_type).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_task_is_read_up_to_its_started_event() {
    use EventType::{
        WorkflowExecutionSignaled, WorkflowExecutionStarted, WorkflowTaskFailed,
        WorkflowTaskScheduled, WorkflowTaskStarted,
    };
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("held", "order", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    let first = [WorkflowExecutionStarted, WorkflowTaskScheduled, WorkflowTaskStarted];

    // A first attempt: the same for everybody, in any pages, newest first too.
    for client in ["temporal-go", "temporal-cli"] {
        for size in [0, 1] {
            let events = read(&service, client, size).await;
            assert_eq!(types(&events), first, "{client}, pages of {size}");
            assert_eq!(events, handed_out(&task), "byte for byte what the worker was given");
        }
    }
    let mut newest_first = handed_out(&task);
    newest_first.reverse();
    assert_eq!(read_reverse(&service).await, newest_first);

    // Its failure is not followed by a Scheduled event; a signal brings the next, transient attempt.
    let failed = RespondWorkflowTaskFailedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token.clone(),
        ..RespondWorkflowTaskFailedRequest::default()
    };
    service.clone().respond_workflow_task_failed(soon(failed)).await.unwrap();
    let transient = api.poll_workflow_task("q").await.unwrap();
    assert_eq!(transient.attempt, 2);
    let committed = [&first[..], &[WorkflowTaskFailed]].concat();
    let all = [&committed[..], &[WorkflowTaskScheduled, WorkflowTaskStarted]].concat();
    assert_eq!(types(&read(&service, "temporal-go", 1).await), all);
    assert_eq!(read(&service, "temporal-go", 0).await, handed_out(&transient));
    // People are shown history only.
    assert_eq!(types(&read(&service, "temporal-cli", 0).await), committed);
    assert_eq!(read_reverse(&service).await.len(), committed.len());

    // What is written with the answer is what was shown.
    let shown = read(&service, "temporal-go", 0).await;
    api.signal(signal_of("held", "s")).await.unwrap();
    api.complete_workflow_task(&transient.task_token, Vec::new()).await.unwrap();
    let written = read(&service, "temporal-cli", 0).await;
    assert_eq!(written[..shown.len()], shown[..]);
    assert!(types(&written).contains(&WorkflowExecutionSignaled));
    running.stop().await;
}
