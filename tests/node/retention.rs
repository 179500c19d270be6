//! What is closed is deleted when its retention is over, as fast as it comes.

use piton_proto::workflowservice::{
    CountWorkflowExecutionsRequest, TerminateWorkflowExecutionRequest,
};

use crate::client::{NAMESPACE, execution, soon, start_of};
use crate::nodes::{Running, config};
use crate::worker::await_until;

/// With the request ids of their starts, more than are deleted at once within anybody's patience.
const RUNS: usize = 450;

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_batch_of_what_expired_is_deleted_without_a_pause() {
    let mut config = config(None);
    config.shards.count = Some(1);
    let limits = ["retention_ms_default", "request_id_ms_min"].map(|name| (name.to_owned(), 1));
    config.limits = limits.into();
    let running = Running::start(config).await;
    let (api, service) = (running.api(), running.client.service());
    for number in 0..RUNS {
        let id = format!("short-{number}");
        api.start(start_of(&id, "simple", "nobody")).await.unwrap();
        let terminate = TerminateWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_execution: Some(execution(&id)),
            ..TerminateWorkflowExecutionRequest::default()
        };
        service.clone().terminate_workflow_execution(soon(terminate)).await.unwrap();
    }
    await_until("all runs are deleted", async || {
        let count = CountWorkflowExecutionsRequest {
            namespace: NAMESPACE.to_owned(),
            ..CountWorkflowExecutionsRequest::default()
        };
        let counted = service.clone().count_workflow_executions(soon(count)).await.unwrap();
        (counted.into_inner().count == 0).then_some(())
    })
    .await;
    running.stop().await;
}
