//! A new task and a poll that waits for it when it comes to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_proto::enums::EventType;

use crate::client::{Api, start_of};
use crate::metrics::{metrics, sum};
use crate::nodes::{Running, config};
use crate::worker::{await_until, complete, history_of, schedule};

const QUEUE: &str = "waited for";

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
