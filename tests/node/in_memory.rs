//! What of a workflow lives in its actor alone: what it must not leave memory with, what it leaves
//! behind when it does, and who sees what it has not committed (D5a, D6).

use std::sync::Arc;
use std::time::Duration;

use piton_proto::enums::{EventType, QueryResultType, WorkflowExecutionStatus};
use piton_proto::history::HistoryEvent;
use piton_proto::query::WorkflowQuery;
use piton_proto::workflowservice::{
    GetWorkflowExecutionHistoryRequest, ListWorkflowExecutionsRequest,
    PollWorkflowTaskQueueResponse, QueryWorkflowRequest, QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
};
use piton_raft::log::FaultyDisk;
use tokio::task::JoinHandle;
use tonic::{Response, Status};

use crate::client::{NAMESPACE, Refused, Service, execution, payloads, signal_of, soon, start_of};
use crate::metrics::{metrics, sum};
use crate::nodes::{Running, config};
use crate::worker::{await_until, complete, history_of, start_timer};

const LONG_IDLE_MS: u64 = 600_000;
/// More than a first life of a workflow draws numbers.
const QUERIES: usize = 8;

/// A node whose actors all leave memory as soon as they may.
async fn restless() -> Running {
    let mut config = config(None);
    config.shards.idle_ms = 0;
    Running::start(config).await
}

fn signals(events: &[HistoryEvent]) -> usize {
    let is_signal = |e: &&HistoryEvent| e.event_type() == EventType::WorkflowExecutionSignaled;
    events.iter().filter(is_signal).count()
}

async fn wait_for_events(service: &Service, token: Vec<u8>) -> (Vec<HistoryEvent>, Vec<u8>) {
    let request = GetWorkflowExecutionHistoryRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution("read")),
        next_page_token: token.into(),
        wait_new_event: true,
        ..GetWorkflowExecutionHistoryRequest::default()
    };
    let page = service.clone().get_workflow_execution_history(soon(request)).await;
    let page = page.unwrap().into_inner();
    (page.history.unwrap_or_default().events, page.next_page_token.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_workflow_leaves_memory_although_others_stay_long() {
    let mut config = config(None);
    config.shards.idle_ms = LONG_IDLE_MS;
    let running = Running::start(config).await;
    let (api, address) = (running.api(), running.node.http_address());
    api.start(start_of("stays", "simple", "elsewhere")).await.unwrap();
    api.start(start_of("closes", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    let left = await_until("one actor is left", || async {
        (sum(&metrics(address).await, "piton_actors", &[]) == 1.0).then_some(())
    });
    tokio::time::timeout(Duration::from_secs(20), left).await.expect("it stays in memory");
    running.stop().await;
}

fn ask(service: &Service) -> JoinHandle<Result<Response<QueryWorkflowResponse>, Status>> {
    let request = QueryWorkflowRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution("asked")),
        query: Some(WorkflowQuery { query_type: "state".to_owned(), ..Default::default() }),
        ..QueryWorkflowRequest::default()
    };
    let mut service = service.clone();
    tokio::spawn(async move { service.query_workflow(soon(request)).await })
}

async fn answer_query(service: &Service, task: PollWorkflowTaskQueueResponse) -> bool {
    let answer = RespondQueryTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        completed_type: QueryResultType::Answered.into(),
        query_result: Some(payloads("well")),
        ..RespondQueryTaskCompletedRequest::default()
    };
    service.clone().respond_query_task_completed(soon(answer)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_with_a_waiting_query_stays_in_memory() {
    let running = restless().await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
    let asked = ask(&service);
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(answer_query(&service, task).await);
    let answered = asked.await.unwrap().unwrap().into_inner();
    assert_eq!(answered.query_result, Some(payloads("well")));
    running.stop().await;
}

/// Queries are numbered anew in each term: an answer to one of the last must not be taken for an
/// answer to another that has its number.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_query_of_an_earlier_life_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(config(Some(directory.path()))).await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
    let asked = ask(&service);
    let of_earlier_life = api.poll_workflow_task("q").await.unwrap();
    running.stop().await;
    assert!(asked.await.unwrap().is_err(), "nobody has answered it");

    let running = Running::start(config(Some(directory.path()))).await;
    let (api, service) = (running.api(), running.client.service());
    // One of them has its number.
    let (mut asked, mut tasks) = (Vec::new(), Vec::new());
    for _ in 0..QUERIES {
        asked.push(ask(&service));
        tasks.push(api.poll_workflow_task("q").await.unwrap());
    }
    assert!(!answer_query(&service, of_earlier_life).await, "it was taken for another");
    for (asked, task) in asked.into_iter().zip(tasks) {
        assert!(answer_query(&service, task).await);
        asked.await.unwrap().unwrap();
    }
    running.stop().await;
}

/// The worker's answer comes twice, the second time to another life of the actor in the same term,
/// which has a query of its own by then.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_again_is_not_taken_for_another_query() {
    let running = restless().await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("asked", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, Vec::new()).await.unwrap();
    let first = ask(&service);
    let of_first = api.poll_workflow_task("q").await.unwrap();
    assert!(answer_query(&service, of_first.clone()).await);
    first.await.unwrap().unwrap();
    await_until("the actor leaves", async || {
        let actors = sum(&metrics(running.node.http_address()).await, "piton_actors", &[]);
        (actors == 0.0).then_some(())
    })
    .await;

    let second = ask(&service);
    let of_second = api.poll_workflow_task("q").await.unwrap();
    assert!(!answer_query(&service, of_first).await, "it was taken for another");
    assert!(answer_query(&service, of_second).await);
    second.await.unwrap().unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_with_a_waiting_reader_stays_in_memory() {
    let running = restless().await;
    let (api, service) = (running.api(), running.client.service());
    api.start(start_of("read", "simple", "q")).await.unwrap();
    let (events, token) = wait_for_events(&service, Vec::new()).await;
    assert_eq!(events.len(), 2);
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { wait_for_events(&service, token).await.0 }
    });
    // Its reader has been told to wait once the workflow is in memory again.
    let address = running.node.http_address();
    await_until("the reader waits", || async {
        (sum(&metrics(address).await, "piton_actors", &[]) == 1.0).then_some(())
    })
    .await;
    api.signal(signal_of("read", "more")).await.unwrap();
    assert_eq!(signals(&waiting.await.unwrap()), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_waits_for_a_worker_is_offered_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(config(Some(directory.path()))).await;
    // The queue lies where the workflow does: no other shard's start brings it up.
    running.api().start(start_of("waits", "simple", "waits")).await.unwrap();
    running.stop().await;

    let running = Running::start(config(Some(directory.path()))).await;
    let task = running.api().poll_workflow_task("waits").await.unwrap();
    assert!(!task.task_token.is_empty(), "it was not offered");
    running.stop().await;
}

/// A worker holds a task, a signal waits for it to end, and the node goes: the task is offered
/// again, and shows the signal.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_a_lost_task_is_seen_with_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(config(Some(directory.path()))).await;
    let api = running.api();
    api.start(start_of("held", "simple", "q")).await.unwrap();
    let held = api.poll_workflow_task("q").await.unwrap();
    api.signal(signal_of("held", "waits")).await.unwrap();
    assert_eq!(signals(&history_of(api.as_ref(), "held").await), 0, "it waits for the task");
    running.stop().await;

    let running = Running::start(config(Some(directory.path()))).await;
    let api = running.api();
    let refused = api.complete_workflow_task(&held.task_token, vec![complete()]).await;
    assert!(refused.is_err(), "the task was lost with the node");
    let task = api.poll_workflow_task("q").await.unwrap();
    assert_eq!(signals(&task.history.unwrap().events), 1);
    running.stop().await;
}

/// A node on a disk that can be made to wait, with a workflow that is signalled and read.
struct Slow {
    running: Running,
    disk: FaultyDisk,
    _directory: tempfile::TempDir,
}

impl Slow {
    async fn start() -> Slow {
        let disk = FaultyDisk::new(1);
        let directory = tempfile::tempdir().unwrap();
        let config = config(Some(directory.path()));
        let running = Running::start_on(config, Arc::new(disk.clone())).await.unwrap();
        running.api().start(start_of("read", "simple", "q")).await.unwrap();
        Slow { running, disk, _directory: directory }
    }

    /// Sends a signal, which waits for the disk or behind one that does.
    async fn signal(&self, name: &str, calls_under_way: usize) -> JoinHandle<Result<(), Refused>> {
        let (api, signal) = (self.running.api(), signal_of("read", name));
        let sent = tokio::spawn(async move { api.signal(signal).await });
        self.await_calls(calls_under_way).await;
        sent
    }

    async fn await_calls(&self, count: usize) {
        let address = self.running.node.http_address();
        await_until("the calls are under way", || async {
            let calls = sum(&metrics(address).await, "piton_rpcs_in_flight", &[]);
            (calls == count as f64).then_some(())
        })
        .await;
    }

    async fn signals(&self) -> usize {
        signals(&history_of(self.running.api().as_ref(), "read").await)
    }
}

/// A reader comes while a signal is decided and not yet committed: it waits for the outcome.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_sees_what_is_not_committed() {
    let slow = Slow::start().await;
    for round in 1..=8 {
        slow.disk.hold_syncs(true);
        // The first one is being committed while the second one and the reader wait behind it.
        let first = slow.signal(&format!("{round}-first"), 1).await;
        let second = slow.signal(&format!("{round}-second"), 2).await;
        let api = slow.running.api();
        let read =
            tokio::spawn(async move { api.history_page(&execution("read"), Vec::new()).await });
        slow.await_calls(3).await;
        slow.disk.hold_syncs(false);
        let (events, token) = read.await.unwrap().expect("a history that can be read");
        assert!(token.is_empty(), "the page promises events that are not there");
        let seen = signals(&events);
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert!(seen <= 2 * round, "{seen} signals in round {round}");
    }
    assert_eq!(slow.signals().await, 16);
    slow.running.stop().await;
}

/// The same signal comes several times while another one is committed, so that the actor takes
/// all of them together.
#[tokio::test(flavor = "multi_thread")]
async fn signals_that_are_repeated_together_count_once() {
    let slow = Slow::start().await;
    for round in 1..=8 {
        slow.disk.hold_syncs(true);
        let mut sent = vec![slow.signal(&format!("{round}-other"), 1).await];
        for calls in 2..=5 {
            sent.push(slow.signal(&format!("{round}-same"), calls).await);
        }
        slow.disk.hold_syncs(false);
        for answer in sent {
            answer.await.unwrap().unwrap();
        }
    }
    assert_eq!(slow.signals().await, 16);
    slow.running.stop().await;
}

/// The new life reads the timers that come due soon from their rows, and fires none too early.
#[tokio::test(flavor = "multi_thread")]
async fn a_timer_fires_after_a_restart_and_not_before_its_time() {
    const SPAN: Duration = Duration::from_millis(1_500);
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(config(Some(directory.path()))).await;
    let api = running.api();
    api.start(start_of("sleeps", "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    let began = std::time::Instant::now();
    api.complete_workflow_task(&task.task_token, vec![start_timer("t", SPAN)]).await.unwrap();
    running.stop().await;

    let running = Running::start(config(Some(directory.path()))).await;
    let api = running.api();
    let task = api.poll_workflow_task("q").await.unwrap();
    assert!(!task.task_token.is_empty(), "the timer never fired");
    // The server counts whole milliseconds.
    let elapsed = began.elapsed() + Duration::from_millis(1);
    assert!(elapsed >= SPAN, "it fired after {elapsed:?}");
    running.stop().await;
}

/// What a client was told is in the next list, and a run stands there once.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_listed_at_once_and_once() {
    let running = Running::start(config(None)).await;
    let (api, service) = (running.api(), running.client.service());
    let statuses = async || {
        let request = ListWorkflowExecutionsRequest {
            namespace: NAMESPACE.to_owned(),
            ..ListWorkflowExecutionsRequest::default()
        };
        let listed = service.clone().list_workflow_executions(soon(request)).await.unwrap();
        let runs = listed.into_inner().executions.into_iter();
        runs.map(|run| run.status()).collect::<Vec<_>>()
    };
    for number in 1..=4 {
        api.start(start_of(&format!("listed-{number}"), "simple", "q")).await.unwrap();
        assert_eq!(statuses().await, vec![WorkflowExecutionStatus::Running; number]);
    }
    for number in 1..=4 {
        let task = api.poll_workflow_task("q").await.unwrap();
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
        let expected = [
            vec![WorkflowExecutionStatus::Running; 4 - number],
            vec![WorkflowExecutionStatus::Completed; number],
        ];
        assert_eq!(statuses().await, expected.concat());
    }
    running.stop().await;
}
