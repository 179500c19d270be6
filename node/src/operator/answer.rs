//! How a node does what an operator asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use piton_core::id::ShardId;
use piton_raft::NodeId;
use piton_shard::{Cluster, ClusterSettings, MetaError, NodeCall, NodeState, Placement};

use crate::operator::call::OPERATOR_ANSWER;
use crate::operator::report::leading;
use crate::operator::{ClusterReport, OperatorAnswer, OperatorCall, OperatorRefusal};

/// Answers an operator, as bytes.
pub(crate) async fn answer(cluster: &Cluster, cluster_id: &str, call: OperatorCall) -> Bytes {
    let answer = operate(cluster, cluster_id, call).await;
    // One that is too large is as one that another release gives.
    OPERATOR_ANSWER.encode(&answer).unwrap_or_default()
}

/// Does what an operator asks, as far as it can be done from here.
pub async fn operate(cluster: &Cluster, cluster_id: &str, call: OperatorCall) -> OperatorAnswer {
    let answered = match call {
        OperatorCall::Report => {
            Ok(OperatorAnswer::Report(Box::new(ClusterReport::of(cluster, cluster_id))))
        }
        OperatorCall::SetState { node, state } => set_state(cluster, node, state).await,
        OperatorCall::Transfer { shard, to } => transfer(cluster, shard, to).await,
        OperatorCall::Move { shard, from, to } => move_replica(cluster, shard, from, to).await,
        OperatorCall::Snapshot { shard } => snapshot(cluster, shard).await,
        OperatorCall::Rebalance { is_paused } => {
            change_settings(cluster, |settings| settings.is_rebalancing_paused = is_paused).await
        }
        OperatorCall::Upgrade { to } => change_settings(cluster, |s| s.level = to).await,
    };
    answered.unwrap_or_else(OperatorAnswer::Refused)
}

type Answered = Result<OperatorAnswer, OperatorRefusal>;

fn refusal(error: MetaError) -> OperatorRefusal {
    match error {
        MetaError::NotLed { .. } | MetaError::Unavailable(_) => {
            OperatorRefusal::Unavailable(error.to_string())
        }
        error => OperatorRefusal::Refused(error.to_string()),
    }
}

fn unknown_node(node: NodeId) -> OperatorRefusal {
    OperatorRefusal::NotFound(format!("no node {node} is in this cluster"))
}

async fn set_state(cluster: &Cluster, node: NodeId, asked: NodeState) -> Answered {
    cluster.meta().refresh().await.map_err(refusal)?;
    let state = cluster.meta().state();
    let now = state.node(node).ok_or_else(|| unknown_node(node))?.state;
    let refuse = |why: String| Err(OperatorRefusal::Refused(why));
    match (now, asked) {
        (NodeState::Removed, _) => {
            return refuse(format!("node {node} was removed, and comes back as another one only"));
        }
        (_, NodeState::Removed) => {
            return refuse("a node is removed once nothing needs it: have it leave".to_owned());
        }
        (now, asked) if now == asked => return Ok(OperatorAnswer::Recorded),
        _ => {}
    }
    let mut others = state.nodes().filter(|other| other.id != node);
    if asked == NodeState::Leaving && !others.any(|other| other.state.takes_replicas()) {
        return refuse(format!("no other node is up that could hold what node {node} holds"));
    }
    cluster.meta().set_node_state(node, asked).await.map_err(refusal)?;
    Ok(OperatorAnswer::Recorded)
}

fn placement(cluster: &Cluster, shard: ShardId) -> Result<Placement, OperatorRefusal> {
    let state = cluster.meta().state();
    if !state.routes().iter().any(|route| route.shard == shard) {
        return Err(OperatorRefusal::NotFound(format!("there is no shard {shard}")));
    }
    let unplaced =
        || OperatorRefusal::Unavailable(format!("it is not recorded yet where shard {shard} is"));
    state.placement(shard).map(|placement| Placement::clone(placement)).ok_or_else(unplaced)
}

async fn transfer(cluster: &Cluster, shard: ShardId, to: NodeId) -> Answered {
    let placement = placement(cluster, shard)?;
    if !placement.voters.contains(&to) {
        let why = format!("node {to} has no vote in shard {shard}");
        return Err(OperatorRefusal::Refused(why));
    }
    let no_leader =
        || OperatorRefusal::Unavailable(format!("shard {shard} has no leader that is heard of"));
    let from = leading(cluster, shard).ok_or_else(no_leader)?;
    if from != to {
        cluster.ask_node(from, NodeCall::Lead { shard, to }).await.map_err(refusal)?;
    }
    Ok(OperatorAnswer::Recorded)
}

async fn move_replica(cluster: &Cluster, shard: ShardId, from: NodeId, to: NodeId) -> Answered {
    cluster.meta().refresh().await.map_err(refusal)?;
    let Placement { version, mut voters, .. } = placement(cluster, shard)?;
    let refuse = |why: String| Err(OperatorRefusal::Refused(why));
    if !voters.remove(&from) {
        return refuse(format!("node {from} holds no replica of shard {shard}"));
    }
    if voters.contains(&to) {
        return refuse(format!("node {to} holds a replica of shard {shard} already"));
    }
    let state = cluster.meta().state();
    let taker = state.node(to).ok_or_else(|| unknown_node(to))?;
    if !taker.state.takes_replicas() {
        return refuse(format!("node {to} is {}, and is given no replicas", taker.state.name()));
    }
    voters.insert(to);
    cluster.meta().place(shard, version, voters).await.map_err(refusal)?;
    Ok(OperatorAnswer::Recorded)
}

async fn snapshot(cluster: &Cluster, asked: Option<ShardId>) -> Answered {
    let here: BTreeSet<ShardId> = cluster.status().shards.into_keys().collect();
    let wanted = match asked {
        Some(shard) if !here.contains(&shard) => {
            let why = format!("this node has no replica of shard {shard}");
            return Err(OperatorRefusal::NotFound(why));
        }
        Some(shard) => BTreeSet::from([shard]),
        None => here,
    };
    let mut taken = BTreeMap::new();
    for shard in wanted {
        let index = cluster.snapshot(shard).await;
        let index = index.map_err(|error| OperatorRefusal::Unavailable(error.to_string()))?;
        taken.insert(shard, index);
    }
    Ok(OperatorAnswer::Snapshots(taken))
}

async fn change_settings(cluster: &Cluster, change: impl FnOnce(&mut ClusterSettings)) -> Answered {
    cluster.meta().refresh().await.map_err(refusal)?;
    let before = Arc::clone(cluster.meta().state().settings());
    let mut after = ClusterSettings::clone(&before);
    change(&mut after);
    if after != *before {
        cluster.meta().set_cluster(after).await.map_err(refusal)?;
    }
    Ok(OperatorAnswer::Recorded)
}
