//! Looks at everything after a run: the histories and the index (A1 to A8, in [`piton_tests::audit`]),
//! and what shows at the nodes themselves. Each finding begins with the rule that is broken. Beyond what
//! is checked there of them:
//!
//! - A4 an attempt is given to one worker;
//! - A6 nothing waits once the faults are over;
//! - A7 the index shows at once what was acknowledged;
//! - A8 a read shows what was read before;
//! - A9 replicas that have applied the same hold the same rows, and no store is ahead of its log;
//! - A11 a term has one leader.
//!
//! A10, that each fault hit while requests were under way, is seen by who inflicts them.

use std::collections::BTreeSet;

use piton_proto::common::WorkflowExecution;
use piton_shard::QueueType;
use piton_tests::audit::{self, Asked, Broken, Ending, Histories, Listed, Run, named_in};
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::ledger::Ledger;
use crate::worker::QUEUE;
use crate::world::{World, in_ms};
use crate::{replicas, timers};

/// Everything that is broken.
pub(crate) async fn audit(world: &World, client: &Client, ledger: &Ledger) -> Vec<Broken> {
    let mut broken = ledger.broken();
    let end = in_ms(60_000);
    let (histories, listed, counted) = loop {
        match read_all(client, ledger).await {
            Ok(read) => break read,
            Err(text) if Instant::now() >= end => {
                broken.push(Broken::new(text));
                return broken;
            }
            Err(_) => sleep_until(in_ms(200)).await,
        }
    };
    audit::check_histories(&histories, &mut broken);
    timers::check(&histories, world, &mut broken);
    timers::check_seen(ledger, &mut broken);
    if world.points().count_all("state is ahead") > 0 {
        broken.push(Broken::new("A9: a node started with a store that was ahead of its log"));
    }
    audit::check_index(&histories, &listed, counted, &mut broken);
    audit::check_ledger(&histories, &ledger.entries(), &mut broken);
    audit::check_queries(&histories, &ledger.seen(), &mut broken);
    check_backlog(client, &mut broken).await;
    for (run, events) in &histories {
        world.trace().note(format_args!("{run:?} {events:?}"));
    }
    let asked = ledger.entries();
    let done = asked.iter().filter(|entry| matches!(entry.ending, Ending::Done(_))).count();
    let unknown = asked.iter().filter(|entry| entry.ending == Ending::Unknown).count();
    println!(
        "   {} runs, {} requests ({done} acknowledged, {unknown} of unknown outcome), {} queries",
        histories.len(),
        asked.len(),
        ledger.seen().len(),
    );
    let (points, witness) = (world.points(), world.witness());
    println!(
        "   {} snapshots taken, {} installed, {} stores rebuilt, {} terms, {} replicas closed, {:?}",
        points.count_all("snapshot taken"),
        points.count_all("snapshot installed"),
        witness.stores_discarded(),
        witness.terms(),
        points.count_all("log has forgotten"),
        witness.counts(),
    );
    replicas::check(world, &mut broken).await;
    broken
}

/// All histories that can be found from the index, the acknowledgements and each other.
async fn read_all(client: &Client, ledger: &Ledger) -> Result<(Histories, Listed, u64), String> {
    let (rows, counted) = client.list().await.map_err(|e| format!("A6: the list: {e:?}"))?;
    let mut listed = Listed::new();
    let mut to_read: BTreeSet<Run> = BTreeSet::new();
    for row in rows {
        let status = row.status();
        let execution = row.execution.clone().unwrap_or_default();
        let run = (execution.workflow_id, execution.run_id);
        if listed.contains_key(&run) {
            let times = format!("{:?} to {:?}", row.start_time, row.close_time);
            return Err(format!("A7: the list shows {run:?} twice, once as {status:?}, {times}"));
        }
        listed.insert(run.clone(), status);
        to_read.insert(run);
    }
    for entry in ledger.entries() {
        if let (Asked::Start(_) | Asked::StartOrUse(_), Ending::Done(run_id)) =
            (&entry.asked, &entry.ending)
        {
            to_read.insert((entry.workflow_id.clone(), run_id.clone()));
        }
    }
    let mut histories = Histories::new();
    while let Some(run) = to_read.pop_first() {
        if histories.contains_key(&run) {
            continue;
        }
        let (workflow_id, run_id) = run.clone();
        let execution = WorkflowExecution { workflow_id: workflow_id.clone(), run_id };
        let events = client.history(&execution).await;
        let events = events.map_err(|e| format!("A6: the history of {run:?}: {e:?}"))?;
        to_read.extend(named_in(&workflow_id, &events));
        histories.insert(run, events);
    }
    Ok((histories, listed, counted))
}

async fn check_backlog(client: &Client, broken: &mut Vec<Broken>) {
    for kind in [QueueType::Workflow, QueueType::Activity] {
        let mut left = u64::MAX;
        for _ in 0..60 {
            let view = client.on_cluster(async |cluster, namespace| {
                let queue = piton_core::effect::QueueName::normal(QUEUE);
                cluster.describe_task_queue(&namespace, queue, kind).await
            });
            if let Ok(view) = view.await {
                left = view.backlog_count;
            }
            if left == 0 {
                break;
            }
            sleep_until(in_ms(1_000)).await;
        }
        if left > 0 {
            broken.push(Broken::new(format!("A6: {left} tasks of {kind:?} still wait")));
        }
    }
}
