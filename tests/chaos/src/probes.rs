//! Probes: for each shard a workflow that nobody works on, signalled many times a second through all
//! nodes in turn. How long a shard takes no writes after a fault is read off their answers.

use std::time::Duration;

use anyhow::{Context, Result};
use piton_proto::workflowservice::{
    DescribeNamespaceRequest, SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
};
use piton_tests::audit::{Asked, Ending};
use piton_tests::orders::{Plan, task_queue};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::{Client, Failure, NAMESPACE, What};
use crate::figures::Placement;
use crate::journal::Probe;
use crate::orders::{PATIENCE, current, terminate};

const EVERY: Duration = Duration::from_millis(100);
/// A signal that hangs in a node that is hurt must not keep others from being sent elsewhere.
const AT_ONCE: usize = 24;
const CALL_MAX: Duration = Duration::from_secs(4);
/// Then comes the next workflow: a run takes no more than so many, and long histories cost time.
const SIGNALS_MAX: usize = 1_500;
pub(crate) const QUEUE: &str = "probes";

/// The id of the default namespace, by which workflows are placed.
pub(crate) async fn namespace_id(client: &Client) -> Result<String> {
    let request =
        DescribeNamespaceRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
    let what = What { call: "describe-namespace", workflow: "", text: "" };
    let send = async |client: &Client| {
        let sent = client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
            service.describe_namespace(request).await
        });
        sent.await
    };
    let (answer, _) = client
        .insist(PATIENCE, send)
        .await
        .map_err(|refused| anyhow::anyhow!("describe the namespace: {}", refused.failure))?;
    Ok(answer.namespace_info.context("no namespace info")?.id)
}

/// An id that falls to this shard.
fn id_on(shard: u32, placement: &Placement, round: usize) -> String {
    let mut ids = (0_u32..).map(|number| format!("probe-{shard}-{round}-{number}"));
    ids.find(|id| placement.shard_of(id) == shard).unwrap_or_default()
}

/// Probes one shard until it is told to stop.
pub(crate) async fn probe(
    client: Client,
    shard: u32,
    placement: Placement,
    stop: watch::Receiver<bool>,
) {
    let mut round = 0;
    while !*stop.borrow() {
        let id = id_on(shard, &placement, round);
        round += 1;
        if start(&client, &id).await {
            signal_all(&client, shard, &id, &stop).await;
        }
        terminate(&client, &id).await;
    }
}

async fn start(client: &Client, id: &str) -> bool {
    let name = client.journal.name("start");
    let plan = Plan { signals: 1, ..Plan::default() };
    let request = StartWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_id: id.to_owned(),
        workflow_type: Some(plan.workflow_type()),
        task_queue: task_queue(QUEUE),
        identity: name.clone(),
        request_id: name.clone(),
        ..StartWorkflowExecutionRequest::default()
    };
    let what = What { call: "start", workflow: id, text: &name };
    let send = async |client: &Client| {
        let sent = client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
            service.start_workflow_execution(request).await
        });
        sent.await
    };
    let started = client.insist(PATIENCE, send).await;
    let is_there = started.is_ok();
    let ending = match started {
        Ok((answer, _)) => Ending::Done(answer.run_id),
        Err(_) => Ending::Unknown,
    };
    client.journal.enter(id, Asked::Start(name), ending, true);
    is_there
}

async fn signal_all(client: &Client, shard: u32, id: &str, stop: &watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sending = JoinSet::new();
    for number in 0..SIGNALS_MAX {
        ticks.tick().await;
        if *stop.borrow() {
            break;
        }
        while sending.try_join_next().is_some() {}
        if sending.len() < AT_ONCE {
            sending.spawn_local(signal_once(client.at(number), shard, id.to_owned()));
        }
    }
    // Each is entered when it ends.
    while sending.join_next().await.is_some() {}
}

async fn signal_once(client: Client, shard: u32, id: String) {
    let name = client.journal.name("probe");
    let request = SignalWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(current(&id)),
        signal_name: name.clone(),
        request_id: name.clone(),
        ..SignalWorkflowExecutionRequest::default()
    };
    let what = What { call: "probe", workflow: &id, text: &name };
    let from_us = client.journal.now_us();
    let sent = client.call(what, CALL_MAX, request, async |mut service, request| {
        service.signal_workflow_execution(request).await
    });
    let ending = match sent.await {
        Ok(_) => {
            let to_us = client.journal.now_us();
            client.journal.probed(Probe { shard, from_us, to_us });
            Ending::Done(String::new())
        }
        Err(Failure::Refused(_, text)) => Ending::Refused(text),
        Err(Failure::Unknown(..)) => Ending::Unknown,
    };
    client.journal.enter(&id, Asked::Signal(name), ending, false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_an_id() {
        let placement = Placement { namespace_id: "a-namespace".to_owned(), shards: 16 };
        for shard in 0..16 {
            assert_eq!(placement.shard_of(&id_on(shard, &placement, 3)), shard);
        }
    }
}
