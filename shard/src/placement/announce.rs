//! Tells the other nodes what this one holds and leads.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use piton_raft::NodeId;
use tokio::time::{Instant, sleep_until, timeout};

use crate::message::{NodeAnswer, NodeCall, NodeHealth};
use crate::meta::META_GROUP;
use crate::route::cluster::Cluster;

/// How often a node speaks of itself where nothing changes.
const EVERY: Duration = Duration::from_secs(1);
/// How long it waits to be heard.
const PATIENCE: Duration = Duration::from_secs(1);

/// Announces, until it is dropped.
pub(super) async fn run(cluster: Cluster) {
    let host = cluster.host();
    let (mut duties, mut halted) = (host.duties(), host.groups().halted());
    let Some(meta) = host.groups().group(META_GROUP) else { return };
    let mut meta = meta.leadership();
    let mut down = BTreeSet::new();
    loop {
        look_who_is_down(&cluster, &mut down);
        host.metrics().groups_stopped(halted.borrow_and_update().len());
        duties.borrow_and_update();
        meta.borrow_and_update();
        let next = Instant::now() + EVERY;
        let told = async {
            announce(&cluster).await;
            sleep_until(next).await;
        };
        // What is new is told at once, also while somebody who is silent is waited for: those who ask for
        // a shard's leader wait for it.
        tokio::select! {
            () = told => {}
            _ = duties.changed() => {}
            _ = halted.changed() => {}
            // One that has stopped changes no more.
            Ok(()) = meta.changed() => {}
        }
    }
}

/// Says of each other node once that it is down.
fn look_who_is_down(cluster: &Cluster, down: &mut BTreeSet<NodeId>) {
    let state = cluster.meta().state();
    let members = state.nodes().filter(|node| node.state.is_member());
    let is_down = |node: &NodeId| cluster.health(*node) == NodeHealth::Down;
    let now: BTreeSet<NodeId> = members.map(|node| node.id).filter(is_down).collect();
    for node in now.difference(down) {
        tracing::warn!(%node, "a node is down");
    }
    for node in down.difference(&now) {
        tracing::info!(%node, "a node is not down any more");
    }
    cluster.host().metrics().nodes_down(now.len());
    *down = now;
}

async fn announce(cluster: &Cluster) {
    let state = cluster.meta().state();
    let this = cluster.host().node();
    if state.nodes().next().is_none() {
        return;
    }
    let status = cluster.status();
    cluster.hear(status.clone());
    let others = state.nodes().filter(|node| node.state.is_member() && node.id != this);
    let told = others.map(|node| {
        let call = NodeCall::Status(Box::new(status.clone()));
        // Who does not hear it hears the next one.
        timeout(PATIENCE, cluster.host().peer().node(node.id, call))
    });
    for answer in join_all(told).await {
        if let Ok(Ok(NodeAnswer::Status(status))) = answer {
            cluster.hear(*status);
        }
    }
}
