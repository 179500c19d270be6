//! A storm of timers: many that come due in the same second (T21).

use std::time::Duration;

use piton_proto::workflowservice::StartWorkflowExecutionRequest;
use piton_tests::audit::{Asked, Ending};
use piton_tests::orders::{Plan, task_queue};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, NAMESPACE, What};
use crate::load::queue_name;
use crate::orders::PATIENCE;

/// What the ids of its workflows begin with.
pub(crate) const NAME: &str = "storm";
/// All of them may wait for one workflow task, which takes no more.
const TIMERS_OF_ONE: u64 = 50;
const CALL_MAX: Duration = Duration::from_secs(5);

/// Starts workflows with so many timers in all, which come due then; it may take until then.
pub(crate) async fn brew(client: &Client, timers: u64, due: Instant) {
    let mut starting = JoinSet::new();
    for number in 0..timers.div_ceil(TIMERS_OF_ONE) {
        starting.spawn_local(start(client.at(number as usize), number, due));
    }
    starting.join_all().await;
}

async fn start(client: Client, number: u64, due: Instant) {
    let name = client.journal.name("start");
    let id = client.journal.name(NAME);
    let what = What { call: "start", workflow: &id, text: &name };
    let send = async |client: &Client| {
        let left = due.saturating_duration_since(Instant::now());
        let timer_ms = left.as_millis() as u64;
        let plan = Plan { timers: TIMERS_OF_ONE, timer_ms, ..Plan::default() };
        let request = StartWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_id: id.clone(),
            workflow_type: Some(plan.workflow_type()),
            task_queue: task_queue(&queue_name(number)),
            identity: name.clone(),
            request_id: name.clone(),
            ..StartWorkflowExecutionRequest::default()
        };
        let sent = client.call(what, CALL_MAX, request, async |mut service, request| {
            service.start_workflow_execution(request).await
        });
        Ok(sent.await?.run_id)
    };
    let started = client.insist(PATIENCE, send).await;
    let (ending, is_retried) = match started {
        Ok((run_id, is_retried)) => (Ending::Done(run_id), is_retried),
        Err(_) => (Ending::Unknown, true),
    };
    client.journal.enter(&id, Asked::Start(name), ending, is_retried);
}
