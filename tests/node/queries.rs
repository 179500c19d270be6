//! Queries: when they can be answered, by which worker, and what becomes of those whose worker or caller
//! has gone. What the official server does was looked up by running 1.32.1.

use std::time::{Duration, Instant};

use piton_proto::command::command::Attributes;
use piton_proto::command::{Command, ContinueAsNewWorkflowExecutionCommandAttributes};
use piton_proto::enums::{CommandType, QueryResultType, TaskQueueKind};
use piton_proto::errordetails::QueryFailedFailure;
use piton_proto::query::{WorkflowQuery, WorkflowQueryResult};
use piton_proto::taskqueue::{StickyExecutionAttributes, TaskQueue};
use piton_proto::workflowservice::{
    PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse, QueryWorkflowRequest,
    QueryWorkflowResponse, RespondQueryTaskCompletedRequest, RespondWorkflowTaskCompletedRequest,
};
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};

use crate::client::{
    Api, GrpcClient, IDENTITY, NAMESPACE, execution, payloads, signal_of, soon, start_of, within,
};
use crate::metrics::{metrics, sum};
use crate::nodes::{Running, config};
use crate::refusal::{check_refused, detail_of};
use crate::worker::{await_until, command, complete};

const WORKER_QUEUE: &str = "worker's own";

type Asked = JoinHandle<Result<Response<QueryWorkflowResponse>, Status>>;

fn ask(client: &GrpcClient, workflow_id: &str) -> Asked {
    let request = QueryWorkflowRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution(workflow_id)),
        query: Some(WorkflowQuery { query_type: "state".to_owned(), ..Default::default() }),
        ..QueryWorkflowRequest::default()
    };
    let mut service = client.service();
    tokio::spawn(async move { service.query_workflow(soon(request)).await })
}

async fn answer(
    client: &GrpcClient,
    task: &PollWorkflowTaskQueueResponse,
    text: &str,
) -> Result<(), Status> {
    let answer = RespondQueryTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token.clone(),
        completed_type: QueryResultType::Answered.into(),
        query_result: Some(payloads(text)),
        ..RespondQueryTaskCompletedRequest::default()
    };
    client.service().respond_query_task_completed(soon(answer)).await.map(drop)
}

async fn check_answer(asked: Asked, text: &str) {
    let answered = asked.await.unwrap().unwrap().into_inner();
    assert_eq!(answered.query_result, Some(payloads(text)));
}

fn sticky_queue(of: &str) -> TaskQueue {
    TaskQueue {
        name: WORKER_QUEUE.to_owned(),
        kind: TaskQueueKind::Sticky.into(),
        normal_name: of.to_owned(),
    }
}

async fn poll_sticky(client: &GrpcClient, of: &str) -> PollWorkflowTaskQueueResponse {
    let request = PollWorkflowTaskQueueRequest {
        namespace: NAMESPACE.to_owned(),
        task_queue: Some(sticky_queue(of)),
        identity: IDENTITY.to_owned(),
        ..PollWorkflowTaskQueueRequest::default()
    };
    let poll = within(Duration::from_secs(10), request);
    client.service().poll_workflow_task_queue(poll).await.unwrap().into_inner()
}

/// Starts a workflow and answers its first task; its worker keeps it, for `wait` on its own queue.
async fn start_sticky(client: &GrpcClient, id: &str, wait: Duration, commands: Vec<Command>) {
    client.start(start_of(id, "simple", id)).await.unwrap();
    let task = client.poll_workflow_task(id).await.unwrap();
    let answer = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        commands,
        sticky_attributes: Some(StickyExecutionAttributes {
            worker_task_queue: Some(sticky_queue(id)),
            schedule_to_start_timeout: prost_types::Duration::try_from(wait).ok(),
        }),
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    client.service().respond_workflow_task_completed(soon(answer)).await.unwrap();
}

/// Starts a workflow that continues as a run whose first workflow task comes after `delay`.
async fn start_delayed(client: &GrpcClient, id: &str, delay: Duration) {
    client.start(start_of(id, "simple", id)).await.unwrap();
    let task = client.poll_workflow_task(id).await.unwrap();
    let attributes = ContinueAsNewWorkflowExecutionCommandAttributes {
        workflow_type: task.workflow_type,
        backoff_start_interval: prost_types::Duration::try_from(delay).ok(),
        ..ContinueAsNewWorkflowExecutionCommandAttributes::default()
    };
    let attributes = Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(attributes);
    let commands = vec![command(CommandType::ContinueAsNewWorkflowExecution, attributes)];
    client.complete_workflow_task(&task.task_token, commands).await.unwrap();
}

/// Before any workflow task was scheduled: one that will come in the caller's time takes the query along,
/// for another one nobody waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_does_not_wait_for_a_first_task_that_comes_too_late() {
    let running = Running::start(config(None)).await;
    let client = &running.client;
    start_delayed(client, "late", Duration::from_secs(300)).await;
    let began = Instant::now();
    let (code, detail) = (Code::FailedPrecondition, "WorkflowNotReadyFailure");
    let text = "Workflow task is not scheduled yet.";
    check_refused("late", ask(client, "late").await.unwrap(), code, detail, text);
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for {:?}", began.elapsed());

    start_delayed(client, "soon", Duration::from_secs(2)).await;
    let asked = ask(client, "soon");
    let task = client.poll_workflow_task("soon").await.unwrap();
    let queries = task.queries.keys().cloned().collect::<Vec<_>>();
    assert_eq!(queries.len(), 1, "the query comes along");
    let result = WorkflowQueryResult {
        result_type: QueryResultType::Answered.into(),
        answer: Some(payloads("well")),
        ..WorkflowQueryResult::default()
    };
    let answer = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        query_results: queries.into_iter().map(|id| (id, result.clone())).collect(),
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    client.service().respond_workflow_task_completed(soon(answer)).await.unwrap();
    check_answer(asked, "well").await;
    running.stop().await;
}

/// The time of the sticky queue is for the answer, not only for the taking.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_its_sticky_worker_died_with_goes_to_another() {
    let running = Running::start(config(None)).await;
    let client = &running.client;
    start_sticky(client, "w", Duration::from_secs(1), Vec::new()).await;
    // A worker that never polled its queue would not be waited for at all. What is asked goes on alone.
    #[expect(
        clippy::async_yields_async,
        reason = "the query's task is awaited after its worker died"
    )]
    let (asked, taken) = tokio::join!(
        async {
            let is_polled = || async {
                let text = metrics(running.node.http_address()).await;
                (sum(&text, "piton_rpcs_in_flight", &[]) >= 1.0).then_some(())
            };
            await_until("the worker polls", is_polled).await;
            ask(client, "w")
        },
        poll_sticky(client, "w"),
    );
    assert!(taken.query.is_some() && taken.history.clone().unwrap_or_default().events.is_empty());
    let other = client.poll_workflow_task("w").await.unwrap();
    assert!(other.query.is_some(), "it did not come to the normal queue");
    assert_eq!(
        other.history.clone().unwrap_or_default().events.len(),
        4,
        "for a worker without it"
    );
    // What the first worker says after all is to a question that nobody asks any more.
    let late = answer(client, &taken, "late").await.map(Response::new);
    check_refused("late", late, Code::NotFound, "NotFoundFailure", "query task not found");
    answer(client, &other, "well").await.unwrap();
    check_answer(asked, "well").await;

    // Nor does the next task go to the worker that did not answer.
    client.signal(signal_of("w", "wake")).await.unwrap();
    let next = client.poll_workflow_task("w").await.unwrap();
    assert!(next.query.is_none() && !next.task_token.is_empty());
    running.stop().await;
}

/// The official server forgets the sticky queue with the last event.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_run_is_queried_on_its_normal_queue() {
    let running = Running::start(config(None)).await;
    let client = &running.client;
    start_sticky(client, "w", Duration::from_secs(300), vec![complete()]).await;
    let asked = ask(client, "w");
    let task = client.poll_workflow_task("w").await.unwrap();
    assert_eq!(task.history.clone().unwrap_or_default().events.len(), 5);
    answer(client, &task, "well").await.unwrap();
    check_answer(asked, "well").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_caller_has_gone_keeps_nothing_in_memory() {
    let mut config = config(None);
    config.shards.idle_ms = 100;
    let running = Running::start(config).await;
    let client = &running.client;
    client.start(start_of("w", "simple", "w")).await.unwrap();
    let task = client.poll_workflow_task("w").await.unwrap();
    client.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
    let await_sum = async |name: &str, count: f64| {
        await_until("the workflow or its query comes or goes", || async {
            let text = metrics(running.node.http_address()).await;
            (sum(&text, name, &[]) == count).then_some(())
        })
        .await;
    };
    await_sum("piton_actors", 0.0).await;
    let asked = ask(client, "w");
    // Not before it waits: a caller that goes while its query is taken in is noticed then.
    await_sum("piton_task_queue_depth", 1.0).await;
    asked.abort();
    await_sum("piton_actors", 0.0).await;
    // Nor does it wait in the queue for a worker.
    client.signal(signal_of("w", "wake")).await.unwrap();
    let task = client.poll_workflow_task("w").await.unwrap();
    assert!(task.query.is_none() && task.queries.is_empty(), "{task:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_refused_to_the_caller() {
    let mut config = config(None);
    config.limits.insert("blob_bytes_max".to_owned(), 1_000);
    let running = Running::start(config).await;
    let client = &running.client;
    client.start(start_of("w", "simple", "w")).await.unwrap();
    let large = payloads(&"x".repeat(1_000));
    let (code, text) = (Code::InvalidArgument, "Blob data size exceeds limit.");

    // Along with a workflow task.
    let mut asked = ask(client, "w");
    let attached = loop {
        let task = client.poll_workflow_task("w").await.unwrap();
        if !task.queries.is_empty() {
            break task;
        }
        // The query came too late for the task, or alone: another one, and another task.
        if task.query.is_some() {
            answer(client, &task, "early").await.unwrap();
            check_answer(asked, "early").await;
            client.signal(signal_of("w", &format!("wake-{:?}", task.task_token))).await.unwrap();
            asked = ask(client, "w");
        } else {
            client.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
        }
    };
    let result = WorkflowQueryResult {
        result_type: QueryResultType::Answered.into(),
        answer: Some(large.clone()),
        ..WorkflowQueryResult::default()
    };
    let completed = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: attached.task_token,
        query_results: attached.queries.into_keys().map(|id| (id, result.clone())).collect(),
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    client.service().respond_workflow_task_completed(soon(completed)).await.unwrap();
    check_refused("attached", asked.await.unwrap(), code, "", text);

    // On its own.
    let asked = ask(client, "w");
    let task = client.poll_workflow_task("w").await.unwrap();
    let answer = RespondQueryTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        completed_type: QueryResultType::Answered.into(),
        query_result: Some(large),
        ..RespondQueryTaskCompletedRequest::default()
    };
    client.service().respond_query_task_completed(soon(answer)).await.unwrap();
    let status = check_refused("alone", asked.await.unwrap(), code, "QueryFailedFailure", text);
    assert_eq!(detail_of::<QueryFailedFailure>(&status).failure, None);
    running.stop().await;
}
