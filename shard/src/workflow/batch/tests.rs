use std::time::Duration;

use piton_core::effect::QueueName;
use piton_core::id::{Position, RequestId};
use piton_core::limits::Limits;
use piton_core::proto::command::{
    Command, ScheduleActivityTaskCommandAttributes, command::Attributes,
};
use piton_core::proto::common::{ActivityType, SearchAttributes, WorkflowType};
use piton_core::proto::enums::CommandType;
use piton_core::proto::taskqueue::TaskQueue;
use piton_core::proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, StartWorkflowExecutionRequest,
};
use piton_core::request::{
    Drawn, RunRequest, SearchAttributeCheck, Signal, StartRequest, TerminateRequest,
};
use piton_core::run::{Reply, decide_start};
use piton_core::time::Span;
use piton_raft::Tuning;
use piton_raft::log::FaultyDisk;
use tokio::time::Instant;

use super::*;
use crate::entity::tests::{leading_shard, leading_shard_on};
use crate::entity::{batch, expire};
use crate::message::{QueueKey, QueueType, TaskToken, WorkflowCall, WorkflowTaskToken};
use crate::meta::{Namespace, NamespaceState};
use crate::route::cluster::{Cluster, Poll};
use crate::rows::retention;

struct AllKnown;

impl SearchAttributeCheck for AllKnown {
    fn check(&self, _: &mut SearchAttributes) -> Result<(), String> {
        Ok(())
    }
}

/// A new run with its first events.
pub(crate) fn begun(key: &WorkflowKey, run_id: &str) -> RunState {
    let start = StartWorkflowExecutionRequest {
        workflow_id: key.workflow_id.to_string(),
        workflow_type: Some(WorkflowType { name: "Order".into() }),
        request_id: run_id.into(),
        ..StartWorkflowExecutionRequest::default()
    };
    let request = StartRequest { start: Box::new(start), signal: None, parent: None };
    let decided = drawn(run_id, |drawn| decide_start(key, None, request, drawn));
    decided.expect("a first start is accepted").successor.expect("a start begins a run")
}

/// The run, terminated.
pub(crate) fn ended(run: RunState) -> RunState {
    let run_id = run.run_id.clone();
    let request = RunRequest::Terminate(TerminateRequest::default());
    let decided = drawn(run_id.as_str(), |drawn| run.decide(request, drawn));
    decided.expect("it is open").run.expect("it is changed")
}

fn drawn<T>(run_id: &str, with: impl FnOnce(&Drawn<'_>) -> T) -> T {
    with(&Drawn {
        now: Timestamp::from_millis(1_000),
        term: 1,
        number: 1,
        run_id: run_id.into(),
        limits: &Limits::default(),
        namespace_name: "default",
        namespaces: &[],
        search_attributes: &AllKnown,
    })
}

/// As a reset will: one run is changed, another begun beside it, and a third becomes the current one.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_comes_to_several_runs_is_one_transition() {
    let shard = leading_shard().await;
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "order".into() };
    let handle = Arc::new(WorkflowHandle::new(10, Timestamp::MIN));
    let mut hosted = Hosted::new(Arc::clone(&shard), handle, key.clone());
    let [one, two, three] = ["one", "two", "three"].map(|run_id| begun(&key, run_id));
    let mut batch = Batch::default();
    let decided = Decided {
        run: Some(one),
        others: vec![two],
        successor: Some(three),
        reply: Ok(Reply::Done),
    };
    hosted.accept(decided, &mut batch);
    batch::commit(&mut hosted, batch).await.expect("it is committed");

    let current = shard.rows.current(&key).expect("it reads").expect("there is a run");
    assert_eq!((current.position, current.run.run_id), (Position(1), "three".into()));
    for run_id in ["one", "two", "three"] {
        let run = shard.rows.load_run(&key, &run_id.into()).expect("it reads");
        assert!(run.is_some_and(|run| run.next_event_id == EventId(3)), "run {run_id}");
    }
}

/// A leader whose copy of the meta state lags would record the default for how long the run is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_not_closed_where_its_namespace_is_not_known_yet() {
    let shard = leading_shard().await;
    let close = async |namespace: &str| {
        let key = WorkflowKey { namespace: namespace.into(), workflow_id: "order".into() };
        let handle = Arc::new(WorkflowHandle::new(10, Timestamp::MIN));
        let mut hosted = Hosted::new(Arc::clone(&shard), handle, key.clone());
        let mut batch = Batch::default();
        let run = ended(begun(&key, "run"));
        let successor = Some(run);
        let decided = Decided { run: None, others: Vec::new(), successor, reply: Ok(Reply::Done) };
        hosted.accept(decided, &mut batch);
        batch::commit(&mut hosted, batch).await.map(|()| key)
    };
    let refused = close("unknown").await.expect_err("nobody knows how long it is kept");
    assert!(matches!(refused, ShardError::Unavailable(_)), "{refused}");

    let (name, retention) = ("known".to_owned(), Span::from_secs(7));
    let new = crate::message::NewNamespace { name, retention, ..Default::default() };
    let namespace = shard.cluster.meta().register_namespace(new).await.expect("it is new");
    let key = close(namespace.id.as_str()).await.expect("it is committed");
    let closed_at = Timestamp::from_millis(1_000);
    let kept = |until| retention::expired(&shard.rows, until, 10).expect("it reads").len();
    let just_before = Timestamp::from_nanos((closed_at + retention).as_nanos() - 1);
    assert_eq!(kept(just_before), 0);
    assert_eq!(kept(closed_at + retention + Span::from_millis(1)), 1, "{key:?}");
}

/// A request id may outlive its workflow, whose position is 0 then and stays so.
#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_begins_anew_behind_the_last_request_id_of_the_one_before() {
    let shard = leading_shard().await;
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "order".into() };
    let handle = Arc::new(WorkflowHandle::new(10, Timestamp::MIN));
    let mut hosted = Hosted::new(Arc::clone(&shard), handle, key.clone());
    let (run_id, at, kind) = ("gone".into(), Timestamp::from_millis(1), RequestKind::Signal);
    let row = RequestRow { run_id, event_id: EventId(3), at, kind };
    let mut writes = Vec::new();
    for id in ["one", "two"] {
        let keep = Span::from_millis(1);
        writes.extend(
            rows::request_writes(1, &key.clone().into(), &RequestId::from(id), &row, keep)
                .expect("small"),
        );
    }
    writes.push(rows::current_delete(&key));
    batch::propose(&mut hosted, writes).await.expect("it is committed");
    hosted.position = Position(0);

    let expired = retention::expired(&shard.rows, Timestamp::MAX, 10).expect("it reads");
    assert_eq!(expired.len(), 2);
    for row in &expired {
        expire::expire(&mut hosted, row).await.expect("it is committed");
    }
    assert_eq!(retention::expired(&shard.rows, Timestamp::MAX, 10).expect("it reads"), []);
    let mut batch = Batch::default();
    let successor = Some(begun(&key, "new"));
    hosted.accept(
        Decided { run: None, others: Vec::new(), successor, reply: Ok(Reply::Done) },
        &mut batch,
    );
    batch::commit(&mut hosted, batch).await.expect("it is committed");
    let current = shard.rows.current(&key).expect("it reads").expect("there is a run");
    assert_eq!((current.position, current.run.run_id), (Position(1), "new".into()));
}

const QUEUE: &str = "queue";
/// Longer than anything here takes but what is held up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Many times the pause after which a ticket is presented again.
const A_WHILE: Duration = Duration::from_millis(300);

fn queue() -> TaskQueue {
    TaskQueue { name: QUEUE.into(), ..TaskQueue::default() }
}

fn poll() -> Poll {
    Poll {
        queue: QueueName::normal(QUEUE),
        identity: "worker".into(),
        worker_instance_key: String::new(),
        worker_version: None,
        deadline: Instant::now() + PATIENCE,
    }
}

fn schedule_activity() -> Command {
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: "once".into(),
        activity_type: Some(ActivityType { name: "step".into() }),
        task_queue: Some(queue()),
        start_to_close_timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..ScheduleActivityTaskCommandAttributes::default()
    };
    Command {
        command_type: CommandType::ScheduleActivityTask.into(),
        attributes: Some(Attributes::ScheduleActivityTaskCommandAttributes(attributes)),
        ..Command::default()
    }
}

/// Whether a poll waits for an activity in the queue, within this time.
async fn sees_poll(shard: &ShardRuntime, within: Duration) -> bool {
    let queue = QueueKey {
        namespace: "namespace".into(),
        queue: QueueName::normal(QUEUE),
        kind: QueueType::Activity,
    };
    let waits = async {
        while !shard.queues.depths().iter().any(|q| q.queue == queue && q.polls > 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(within, waits).await.is_ok()
}

/// Starts the workflow `late`, and takes its first task.
async fn first_task(shard: &Arc<ShardRuntime>) -> (Cluster, Namespace, WorkflowTaskToken) {
    let cluster = shard.cluster.clone();
    cluster.host().set_serving(shard.id, Some(Arc::clone(shard) as _));
    let namespace = Namespace {
        id: "namespace".into(),
        name: "namespace".into(),
        state: NamespaceState::Registered,
        description: String::new(),
        owner: String::new(),
        data: BTreeMap::new(),
        retention: Span::from_secs(1),
        created: Timestamp::MIN,
    };
    let start = StartWorkflowExecutionRequest {
        workflow_id: "late".into(),
        workflow_type: Some(WorkflowType { name: "Order".into() }),
        task_queue: Some(queue()),
        request_id: "start".into(),
        ..StartWorkflowExecutionRequest::default()
    };
    let start = StartRequest { start: Box::new(start), signal: None, parent: None };
    cluster.start_workflow(&namespace, start).await.expect("it starts");
    let task = cluster.poll_workflow_task(&namespace, poll()).await.expect("a task");
    let Ok(TaskToken::Workflow(token)) = TaskToken::decode(&task.task_token) else {
        panic!("it is the token of a workflow task")
    };
    (cluster, namespace, token)
}

/// An activity is scheduled and given to a poll by one commit, whose leader gives it up before it
/// comes to be. By then the rows say nothing of the activity, and nobody but that poll may have it.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_activity_is_committed_late_comes_to_its_poll() {
    let disk = FaultyDisk::new(1);
    let tuning = Tuning { propose_timeout: Duration::from_millis(200), ..Tuning::default() };
    let shard = leading_shard_on(disk.clone(), tuning).await;
    let (cluster, namespace, token) = first_task(&shard).await;
    let polled = tokio::spawn({
        let (cluster, namespace) = (cluster.clone(), namespace.clone());
        async move { cluster.poll_activity_task(&namespace, poll()).await }
    });
    assert!(sees_poll(&shard, PATIENCE).await, "no poll came");

    disk.hold_syncs(true);
    let answer = RespondWorkflowTaskCompletedRequest {
        commands: vec![schedule_activity()],
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    let refused = cluster.complete_workflow_task(token, answer).await.expect_err("nobody knows");
    assert!(refused.is_retriable(), "{refused}");
    assert!(!sees_poll(&shard, A_WHILE).await, "it goes on, and its attempt may be recorded yet");
    disk.hold_syncs(false);

    let task = tokio::time::timeout(PATIENCE / 2, polled).await.expect("it got nothing");
    let task = task.expect("it ends").expect("a task");
    assert_eq!((task.activity_id.as_str(), task.attempt), ("once", 1));
}

/// A request that needs no commit brings up an actor while nobody knows yet what became of the last one:
/// it has rows from before, and what that commit owes is done all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_unknown_commit_owes_is_done_though_an_actor_has_older_rows() {
    let disk = FaultyDisk::new(2);
    let tuning = Tuning { propose_timeout: Duration::from_millis(200), ..Tuning::default() };
    let shard = leading_shard_on(disk.clone(), tuning).await;
    let (cluster, namespace, token) = first_task(&shard).await;
    let key = WorkflowKey { namespace: namespace.id.clone(), workflow_id: "late".into() };
    let answer = RespondWorkflowTaskCompletedRequest::default();
    cluster.complete_workflow_task(token.clone(), answer).await.expect("it waits for signals");

    disk.hold_syncs(true);
    let run = |request| WorkflowCall::Run { key: key.clone(), run_id: None, request };
    let signal = run(RunRequest::Signal(Signal { name: "go".into(), ..Signal::default() }));
    let refused = cluster.call(signal).await.expect_err("nobody knows");
    assert!(refused.is_retriable(), "{refused}");
    let (run_id, task) = (token.run_id.clone(), OfferedTask::Query(77));
    let no_poller = WorkflowCall::NoPoller { key: key.clone(), run_id, task };
    cluster.call(no_poller).await.expect("an actor hears that a query of nobody found no poll");
    disk.hold_syncs(false);

    let polled = tokio::time::timeout(PATIENCE / 2, cluster.poll_workflow_task(&namespace, poll()));
    let task = polled.await.expect("it is offered to nobody").expect("a task");
    assert_eq!(task.workflow_execution.expect("it is of a run").workflow_id, "late");
}
