//! A new task and a poll that waits for it when it comes to be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use piton_core::effect::QueueName;
use piton_proto::enums::EventType;
use piton_raft::NodeId;
use piton_shard::{QueueType, ShardConfig, TaskQueueView};
use tokio::task::JoinHandle;

use crate::client::{Api, start_of};
use crate::members::{Members, shard_config};
use crate::members_client::key;
use crate::metrics::{metrics, sum};
use crate::nodes::{Running, config};
use crate::worker::{ORDER, await_until, complete, history_of, insist, schedule};

const QUEUE: &str = "waited for";
const AT_ONCE: Duration = Duration::from_secs(5);

/// Waits until this many polls wait.
async fn await_polls(running: &Running, polls: usize) -> BTreeMap<String, f64> {
    await_until("the polls wait", || async {
        let now = metrics(running.node.http_address()).await;
        let waiting = sum(&now, "piton_task_queue_polls", &[r#"task_queue="waited for""#]);
        (waiting == polls as f64).then_some(now)
    })
    .await
}

/// A worker that waits for a task takes it by the commit that makes it. So a workflow with one
/// activity costs four: its start, each answer of a workflow task, and the activity's result.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_waited_for_is_taken_by_the_commit_that_makes_it() {
    let running = Running::start(config(None)).await;
    let api = running.api();
    let poll_workflow_task = |api: &Arc<dyn Api>| {
        let api = Arc::clone(api);
        tokio::spawn(async move { api.poll_workflow_task(QUEUE).await })
    };
    let first = poll_workflow_task(&api);
    let activity = tokio::spawn({
        let api = Arc::clone(&api);
        async move { api.poll_activity_task(QUEUE).await }
    });
    let before = await_polls(&running, 2).await;

    api.start(start_of("w", "simple", QUEUE)).await.unwrap();
    let task = first.await.unwrap().unwrap();
    assert_eq!(task.history.unwrap().events.len(), 3, "its start and the task");
    let second = poll_workflow_task(&api);
    await_polls(&running, 2).await;
    api.complete_workflow_task(&task.task_token, vec![schedule("a", QUEUE)]).await.unwrap();
    let attempt = activity.await.unwrap().unwrap();
    api.complete_activity_task(&attempt.task_token).await.unwrap();
    let task = second.await.unwrap().unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();

    let after = await_polls(&running, 0).await;
    let transitions = |of| sum(of, "piton_transitions_total", &[]);
    assert_eq!(transitions(&after) - transitions(&before), 4.0, "{after:#?}");
    let history = history_of(api.as_ref(), "w").await;
    let kinds: Vec<_> = history.iter().map(|event| event.event_type()).collect();
    assert_eq!(
        kinds,
        [
            EventType::WorkflowExecutionStarted,
            EventType::WorkflowTaskScheduled,
            EventType::WorkflowTaskStarted,
            EventType::WorkflowTaskCompleted,
            EventType::ActivityTaskScheduled,
            EventType::ActivityTaskStarted,
            EventType::ActivityTaskCompleted,
            EventType::WorkflowTaskScheduled,
            EventType::WorkflowTaskStarted,
            EventType::WorkflowTaskCompleted,
            EventType::WorkflowExecutionCompleted,
        ]
    );
}

/// Workflows of a shard that the first node leads, and a queue that the second one owns.
struct Apart {
    members: Members,
    queue: String,
    /// In the order in which they are started.
    workflow_ids: Vec<String>,
}

impl Apart {
    async fn start(seed: u64, config: ShardConfig, workflows: usize) -> Self {
        let members = Members::start_with(seed, config).await;
        let (cluster, namespace) = members.cluster_of(NodeId(1));
        let shard_of = |id: &str| cluster.shard_of(&key(&namespace, id));
        let ids = (0..).map(|number| format!("w-{number}"));
        let workflow_ids = ids.filter(|id| shard_of(id) == shard_of("w-0")).take(workflows);
        let workflow_ids: Vec<_> = workflow_ids.collect();
        // A queue lies where the workflow of its name does.
        let mut queues = (0..).map(|number| format!("queue-{number}"));
        let queue = queues.find(|queue| shard_of(queue) != shard_of("w-0")).unwrap();
        members.lead("w-0", NodeId(1)).await;
        members.lead(&queue, NodeId(2)).await;
        Self { members, queue, workflow_ids }
    }

    fn begin(&self, number: usize) -> JoinHandle<()> {
        let (api, id) = (self.members.client_of(NodeId(1)), &self.workflow_ids[number]);
        let start = start_of(id, ORDER, &self.queue);
        tokio::spawn(async move {
            insist("it starts", || api.start(start.clone())).await.unwrap();
        })
    }

    /// Waits for the queue as its owner sees it.
    async fn await_queue(&self, what: &str, is_so: impl Fn(&TaskQueueView) -> bool) {
        let (cluster, namespace) = self.members.cluster_of(NodeId(2));
        await_until(what, async || {
            let name = QueueName::normal(&self.queue);
            let view = cluster.describe_task_queue(&namespace, name, QueueType::Workflow).await;
            view.is_ok_and(|view| is_so(&view)).then_some(())
        })
        .await;
    }

    fn poll(&self) -> JoinHandle<String> {
        let (api, queue) = (self.members.client_of(NodeId(2)), self.queue.clone());
        tokio::spawn(async move {
            let task = api.poll_workflow_task(&queue).await.unwrap();
            task.workflow_execution.unwrap().workflow_id
        })
    }
}

/// A queue that another node owns hears of a task while the commit that makes it is under way, and its
/// poll gets the task when that is done: once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_task_for_another_nodes_queue_is_offered_beside_the_commit_that_makes_it() {
    let apart = Apart::start(24, shard_config(), 1).await;
    apart.members.hold_syncs(true);
    let started = apart.begin(0);
    apart.await_queue("the queue hears of its task", |queue| queue.backlog_count == 1).await;
    let polled = apart.poll();
    apart.await_queue("the poll meets it", |queue| queue.backlog_count == 0).await;
    assert!(!started.is_finished() && !polled.is_finished(), "nothing is committed yet");

    apart.members.hold_syncs(false);
    started.await.unwrap();
    assert_eq!(polled.await.unwrap(), apart.workflow_ids[0]);
    apart.await_queue("it is offered once", |queue| queue.backlog_count == 0).await;
    apart.members.stop().await;
}

/// The queue has no room for a task whose commit is under way, and asks for it before there is a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_task_that_was_asked_for_before_its_commit_is_offered_again_after_it() {
    const WINDOW: usize = 4;
    // No shard offers its first tasks again anyway.
    let retention_interval = Duration::from_secs(3_600);
    let config = ShardConfig { matching_window: WINDOW, retention_interval, ..shard_config() };
    let apart = Apart::start(25, config, WINDOW + 1).await;
    for number in 0..WINDOW {
        apart.begin(number).await.unwrap();
    }
    apart.await_queue("it is full", |queue| queue.backlog_count == WINDOW as u64).await;
    apart.members.hold_syncs(true);
    let started = apart.begin(WINDOW);
    apart.await_queue("one does not fit", |queue| !queue.beyond_window.is_empty()).await;
    for number in 0..WINDOW {
        assert_eq!(apart.poll().await.unwrap(), apart.workflow_ids[number]);
    }
    apart.await_queue("it asks for more", |queue| queue.beyond_window.is_empty()).await;
    assert!(!started.is_finished(), "nothing is committed yet");

    apart.members.hold_syncs(false);
    started.await.unwrap();
    let polled = tokio::time::timeout(AT_ONCE, apart.poll()).await;
    assert_eq!(polled.expect("it was not offered again").unwrap(), apart.workflow_ids[WINDOW]);
    apart.members.stop().await;
}
