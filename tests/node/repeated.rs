//! Requests that come twice, and queries that take their time: what a client or a worker may rely
//! on beyond one call.

use std::time::Duration;

use piton_proto::command::Command;
use piton_proto::enums::{EventType, QueryResultType, TaskQueueKind};
use piton_proto::query::WorkflowQuery;
use piton_proto::taskqueue::{StickyExecutionAttributes, TaskQueue};
use piton_proto::workflowservice::{
    PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse, QueryWorkflowRequest,
    RespondQueryTaskCompletedRequest, RespondWorkflowTaskCompletedRequest, ShutdownWorkerRequest,
    SignalWithStartWorkflowExecutionRequest,
};
use tonic::{Response, Status};

use crate::client::{IDENTITY, NAMESPACE, Service, execution, payloads, signal_of, soon, start_of};
use crate::nodes::{Running, config};
use crate::worker::{complete, history_of, schedule};

const STICKY_WAIT: Duration = Duration::from_millis(300);
/// Shorter than the time of a poll that waits.
const AT_ONCE: Duration = Duration::from_secs(8);

fn sticky_queue(name: &str, normal: &str) -> TaskQueue {
    TaskQueue {
        name: name.to_owned(),
        kind: TaskQueueKind::Sticky.into(),
        normal_name: normal.to_owned(),
    }
}

async fn poll(service: &Service, queue: TaskQueue) -> PollWorkflowTaskQueueResponse {
    let request = PollWorkflowTaskQueueRequest {
        namespace: NAMESPACE.to_owned(),
        task_queue: Some(queue),
        identity: IDENTITY.to_owned(),
        worker_instance_key: "worker-1".to_owned(),
        ..PollWorkflowTaskQueueRequest::default()
    };
    let answer = service.clone().poll_workflow_task_queue(soon(request)).await;
    answer.unwrap().into_inner()
}

/// Answers a task; from now on the worker is asked on its sticky queue.
async fn complete_sticky(service: &Service, token: &[u8], commands: Vec<Command>) {
    complete_sticky_with(service, token, commands, STICKY_WAIT).await;
}

/// The same without a command, and with this time to take the next task.
async fn complete_sticky_within(service: &Service, token: &[u8], wait: Duration) {
    complete_sticky_with(service, token, Vec::new(), wait).await;
}

async fn complete_sticky_with(
    service: &Service,
    token: &[u8],
    commands: Vec<Command>,
    wait: Duration,
) {
    let answer = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: token.to_vec().into(),
        commands,
        sticky_attributes: Some(StickyExecutionAttributes {
            worker_task_queue: Some(sticky_queue("sticky", "q")),
            schedule_to_start_timeout: prost_types::Duration::try_from(wait).ok(),
        }),
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    service.clone().respond_workflow_task_completed(soon(answer)).await.unwrap();
}

type Answered<T> = tokio::task::JoinHandle<Result<Response<T>, Status>>;

fn ask(
    service: &Service,
    query: &str,
) -> Answered<piton_proto::workflowservice::QueryWorkflowResponse> {
    let request = QueryWorkflowRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution("asked")),
        query: Some(WorkflowQuery { query_type: query.to_owned(), ..WorkflowQuery::default() }),
        ..QueryWorkflowRequest::default()
    };
    let mut service = service.clone();
    tokio::spawn(async move { service.query_workflow(soon(request)).await })
}

async fn answer(service: &Service, task: &PollWorkflowTaskQueueResponse, text: &str) {
    let answer = RespondQueryTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token.clone(),
        completed_type: QueryResultType::Answered.into(),
        query_result: Some(payloads(text)),
        ..RespondQueryTaskCompletedRequest::default()
    };
    service.clone().respond_query_task_completed(soon(answer)).await.unwrap();
}

fn query_of(task: &PollWorkflowTaskQueueResponse) -> &str {
    task.query.as_ref().map_or("", |query| query.query_type.as_str())
}

/// A worker that thinks longer than its sticky queue may let a query wait loses it to the normal queue,
/// and so it does the queries behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_sticky_worker_loses_its_queries_to_the_normal_queue() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    complete_sticky(&service, &task.task_token, Vec::new()).await;

    let slow = ask(&service, "slow");
    let slow_task = poll(&service, sticky_queue("sticky", "q")).await;
    assert_eq!(query_of(&slow_task), "slow");
    // No task was started for it, and there is no history beside the worker's own.
    assert_eq!((slow_task.started_event_id, slow_task.attempt), (0, 1));
    assert!(slow_task.previous_started_event_id > 0);
    assert!(slow_task.history.as_ref().is_some_and(|history| history.events.is_empty()));

    // The worker is busy: both queries leave the sticky queue after their wait.
    let left = ask(&service, "left");
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let task = api.poll_workflow_task("q").await.unwrap();
        assert!(task.history.as_ref().is_some_and(|history| history.events.len() == 4));
        tasks.push(task);
    }
    tasks.sort_by(|one, other| query_of(one).cmp(query_of(other)));
    let (left_task, slow_task) = (&tasks[0], &tasks[1]);
    assert_eq!((query_of(left_task), query_of(slow_task)), ("left", "slow"));
    // What comes after it does not try the sticky queue again.
    let third = ask(&service, "third");
    let third_task = api.poll_workflow_task("q").await.unwrap();
    assert_eq!(query_of(&third_task), "third");
    for (task, asked, text) in
        [(&third_task, third, "3"), (left_task, left, "2"), (slow_task, slow, "1")]
    {
        answer(&service, task, text).await;
        let response = asked.await.unwrap().unwrap().into_inner();
        assert_eq!(response.query_result, Some(payloads(text)));
    }
    running.stop().await;
}

/// Queries that wait for a workflow task are answered although the run ends without another.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_outlives_the_run_that_is_terminated_under_it() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
    api.signal(signal_of("asked", "more")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(!task.task_token.is_empty());
    let asked = ask(&service, "state");
    let terminate = piton_proto::workflowservice::TerminateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(execution("asked")),
        ..Default::default()
    };
    service.clone().terminate_workflow_execution(soon(terminate)).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    assert_eq!(query_of(&task), "state");
    answer(&service, &task, "ended").await;
    let response = asked.await.unwrap().unwrap().into_inner();
    assert_eq!(response.query_result, Some(payloads("ended")));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_with_start_that_is_repeated_signals_once() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    let request = |request_id: &str| {
        let start = start_of("signalled", "simple", "q");
        SignalWithStartWorkflowExecutionRequest {
            namespace: start.namespace,
            workflow_id: start.workflow_id,
            workflow_type: start.workflow_type,
            task_queue: start.task_queue,
            request_id: request_id.to_owned(),
            signal_name: request_id.to_owned(),
            ..SignalWithStartWorkflowExecutionRequest::default()
        }
    };
    let send = async |request_id: &str| {
        let mut service = service.clone();
        let answer = service.signal_with_start_workflow_execution(soon(request(request_id))).await;
        let answer = answer.unwrap().into_inner();
        (answer.run_id, answer.started)
    };
    let (run_id, started) = send("creates").await;
    assert!(started);
    assert_eq!(send("creates").await, (run_id.clone(), true));
    assert_eq!(send("signals").await, (run_id.clone(), false));
    assert_eq!(send("signals").await, (run_id.clone(), false));
    // The first one is still known after others have come.
    assert_eq!(send("creates").await, (run_id, true));
    let events = history_of(api.as_ref(), "signalled").await;
    let signals = events.iter().filter(|e| e.event_type() == EventType::WorkflowExecutionSignaled);
    assert_eq!(signals.count(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eager_start_that_is_repeated_gets_its_task_again() {
    let running = Running::start(config(None)).await;
    let (api, mut service) = (running.api(), running.client.service());
    let mut start = start_of("eager", "simple", "q");
    start.request_eager_execution = true;
    let first = service.start_workflow_execution(soon(start.clone())).await.unwrap().into_inner();
    let task = first.eager_workflow_task.unwrap();
    let again = service.start_workflow_execution(soon(start.clone())).await.unwrap().into_inner();
    assert!(again.started && again.run_id == first.run_id);
    assert_eq!(again.eager_workflow_task.unwrap().task_token, task.task_token);
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    let late = service.start_workflow_execution(soon(start)).await.unwrap().into_inner();
    assert!(late.started && late.eager_workflow_task.is_none());
    running.stop().await;
}

/// Not every worker says which normal queue goes with its sticky one.
#[tokio::test(flavor = "multi_thread")]
async fn a_sticky_queue_is_known_by_its_name_alone() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    complete_sticky(&service, &task.task_token, Vec::new()).await;
    let polled = tokio::spawn({
        let service = service.clone();
        async move { poll(&service, sticky_queue("sticky", "")).await }
    });
    api.signal(signal_of("asked", "more")).await.unwrap();
    let task = polled.await.unwrap();
    assert!(task.previous_started_event_id > 0, "the task went elsewhere");
    complete_sticky(&service, &task.task_token, Vec::new()).await;

    let polled = tokio::spawn({
        let service = service.clone();
        async move { poll(&service, sticky_queue("sticky", "q")).await }
    });
    let shutdown = ShutdownWorkerRequest {
        namespace: NAMESPACE.to_owned(),
        sticky_task_queue: "sticky".to_owned(),
        worker_instance_key: "worker-1".to_owned(),
        ..ShutdownWorkerRequest::default()
    };
    // Until the poll is there, there is nothing to be answered.
    while !polled.is_finished() {
        service.clone().shutdown_worker(soon(shutdown.clone())).await.unwrap();
    }
    assert!(polled.await.unwrap().task_token.is_empty());
    // The queue has no poller: what comes next goes to the normal queue at once.
    api.signal(signal_of("asked", "last")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(!task.task_token.is_empty());
    running.stop().await;
}

/// What waits in a worker's sticky queue when it shuts down does not wait for its timeout there.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_for_a_worker_that_shuts_down_goes_to_another_at_once() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("left", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    // Longer than this test's patience: no timeout helps.
    complete_sticky_within(&service, &task.task_token, 10 * AT_ONCE).await;
    let polled = tokio::spawn({
        let service = service.clone();
        async move { poll(&service, sticky_queue("sticky", "q")).await }
    });
    api.signal(signal_of("left", "more")).await.unwrap();
    let task = polled.await.unwrap();
    complete_sticky_within(&service, &task.task_token, 10 * AT_ONCE).await;
    // It goes where its worker has just been.
    api.signal(signal_of("left", "last")).await.unwrap();
    let shutdown = ShutdownWorkerRequest {
        namespace: NAMESPACE.to_owned(),
        sticky_task_queue: "sticky".to_owned(),
        worker_instance_key: "worker-1".to_owned(),
        ..ShutdownWorkerRequest::default()
    };
    service.clone().shutdown_worker(soon(shutdown)).await.unwrap();
    let task = tokio::time::timeout(AT_ONCE, api.poll_workflow_task("q")).await;
    let task = task.expect("it waits in a queue that nobody polls").unwrap();
    assert_eq!(task.attempt, 1, "it timed out there");
    assert!(!task.task_token.is_empty());
    // An answer of that worker which is late names its queue once more.
    complete_sticky_within(&service, &task.task_token, 10 * AT_ONCE).await;
    api.signal(signal_of("left", "after")).await.unwrap();
    let task = tokio::time::timeout(AT_ONCE, api.poll_workflow_task("q")).await;
    let task = task.expect("it waits in the queue of a worker that has shut down").unwrap();
    assert!(!task.task_token.is_empty());
    let events = history_of(api.as_ref(), "left").await;
    let timeouts = events.iter().filter(|e| e.event_type() == EventType::WorkflowTaskTimedOut);
    assert_eq!(timeouts.count(), 0);
    running.stop().await;
}

/// A worker that shuts down waits for all of its polls, also for one that the order has overtaken.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_comes_after_its_worker_has_shut_down_is_answered_empty() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("left", "simple", "q")).await.unwrap();
    let shutdown = ShutdownWorkerRequest {
        namespace: NAMESPACE.to_owned(),
        sticky_task_queue: "sticky".to_owned(),
        task_queue: "q".to_owned(),
        worker_instance_key: "worker-1".to_owned(),
        ..ShutdownWorkerRequest::default()
    };
    service.clone().shutdown_worker(soon(shutdown)).await.unwrap();
    let normal = TaskQueue { name: "q".to_owned(), ..TaskQueue::default() };
    for queue in [sticky_queue("sticky", "q"), normal] {
        let polled = tokio::time::timeout(AT_ONCE, poll(&service, queue.clone())).await;
        let task = polled.unwrap_or_else(|_| panic!("its poll of {} waits", queue.name));
        assert!(task.task_token.is_empty(), "it got the task");
    }
    // Which another worker gets.
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(!task.task_token.is_empty());
    running.stop().await;
}

/// A worker that did not get the reply sends its answer once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_task_answer_that_is_repeated_gets_the_same_reply() {
    let running = Running::start(config(None)).await;
    let (api, mut service) = (running.api(), running.client.service());
    api.start(start_of("answered", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    let answer = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        commands: vec![schedule("once", "elsewhere")],
        force_create_new_workflow_task: true,
        return_new_workflow_task: true,
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    let first = service.respond_workflow_task_completed(soon(answer.clone())).await.unwrap();
    let again = service.respond_workflow_task_completed(soon(answer)).await.unwrap();
    let (first, again) = (first.into_inner(), again.into_inner());
    assert!(first.workflow_task.is_some());
    assert_eq!(again, first);
    let events = history_of(api.as_ref(), "answered").await;
    let scheduled = events.iter().filter(|e| e.event_type() == EventType::ActivityTaskScheduled);
    assert_eq!(scheduled.count(), 1);
    running.stop().await;
}
