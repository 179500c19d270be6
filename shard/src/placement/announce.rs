//! Tells the other nodes what this one holds and leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use piton_raft::{Group, Members, NodeId};
use tokio::time::timeout;

use crate::message::{FEATURE_LEVEL, NodeCall, NodeStatus, ReplicaStatus};
use crate::meta::META_GROUP;
use crate::route::cluster::Cluster;

/// How often a node speaks of itself where nothing changes.
const EVERY: Duration = Duration::from_secs(1);
/// How long it waits to be heard.
const PATIENCE: Duration = Duration::from_secs(1);

impl Cluster {
    /// What this node says of itself.
    pub fn status(&self) -> NodeStatus {
        let host = self.host();
        let replicas = host.shard_ids().filter_map(|shard| Some((shard, host.replica(shard)?)));
        let meta = host.groups().group(META_GROUP);
        NodeStatus {
            node: host.node(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            level: FEATURE_LEVEL,
            meta_version: self.meta().state().version,
            clock: host.clock().now(),
            meta: meta.map_or_else(ReplicaStatus::default, |meta| status_of(&meta)),
            shards: replicas.map(|(shard, replica)| (shard, status_of(&replica.group))).collect(),
        }
    }
}

/// A replica as this node sees it.
pub(super) fn status_of(group: &Group) -> ReplicaStatus {
    let metrics = group.metrics();
    let leadership = *group.leadership().borrow();
    let Members { voters, learners } = group.members();
    let all: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
    let others = all.iter().chain(&learners).copied();
    let behind = |node| Some((node, group.lag(node)?.entries));
    let behind: BTreeMap<NodeId, u64> =
        if metrics.is_leader { others.filter_map(behind).collect() } else { BTreeMap::new() };
    ReplicaStatus {
        term: leadership.term,
        leader: leadership.leader,
        serves: leadership.serving,
        is_changing: voters.len() > 1,
        voters: all,
        learners,
        last_index: metrics.last_index,
        committed_index: metrics.committed_index,
        applied_index: metrics.applied_index,
        snapshot_index: metrics.snapshot_index,
        behind,
    }
}

/// Announces, until it is dropped.
pub(super) async fn run(cluster: Cluster) {
    let mut duties = cluster.host().duties();
    loop {
        duties.borrow_and_update();
        announce(&cluster).await;
        // What is new is told at once: those who ask for a shard's leader wait for it.
        let _ = timeout(EVERY, duties.changed()).await;
    }
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
    join_all(told).await;
}
