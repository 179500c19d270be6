//! What operators do to a cluster while it works and is hurt: nodes join, are drained, leave, are lost
//! and replaced; replicas and leaderships are moved; the rebalancer is held. Each is asked for until it
//! has come about: if it never does, that is a finding.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use piton_core::id::ShardId;
use piton_node::operator::{
    ClusterReport, OperatorAnswer, OperatorCall, OperatorRefusal, operate, write_id,
};
use piton_raft::NodeId;
use piton_shard::{Cluster, MetaState, NodeState};
use tokio::time::{Instant, sleep_until};

use crate::bring_up::record;
use crate::chance::Chance;
use crate::world::{End, SHARDS, World, in_ms};

/// How long a change may take to come about under faults; without, it takes seconds.
const PATIENCE_MS: u64 = 180_000;
/// How long an operator waits for an answer.
const ANSWER_MS: u64 = 10_000;
const LOOK_MS: u64 = 100;
/// A cluster grows to so many nodes, and shrinks to no less than those that a shard needs.
const NODES_MAX: usize = 6;
const NODES_MIN: usize = 3;
/// Entries that a replica may lack of one that is whole, while work goes on.
const BEHIND_MAX: u64 = 50;

/// What is asked of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// One more node joins.
    Join,
    /// A node leaves, and its machine comes back empty, as another one.
    Leave,
    /// A node's disk is lost; another node takes its place.
    Lose,
    /// A node leads nothing for a while.
    Drain,
    /// A replica is moved to a node that has none of its shard.
    Move,
    /// A leadership is handed over.
    Transfer,
    /// A node joins while the rebalancer is held, and is given its share when it is not any more.
    Pause,
}

const ALL: &[Change] = &[
    Change::Join,
    Change::Leave,
    Change::Move,
    Change::Lose,
    Change::Pause,
    Change::Drain,
    Change::Transfer,
];

/// The changes of a run: consecutive seeds go through all of them, and each run has one more.
pub(crate) fn plan(seed: u64, chance: &Chance) -> Vec<Change> {
    vec![ALL[(seed % ALL.len() as u64) as usize], *chance.pick(ALL)]
}

/// Brings changes about, one after the other.
///
/// # Errors
/// When one does not come about.
pub(crate) async fn work(world: World, chance: Chance, plan: Vec<Change>) -> Result<()> {
    for change in plan {
        world.trace().note(format_args!("change {change:?}"));
        sleep_until(in_ms(chance.between(100, 2_000))).await;
        match change {
            Change::Join => join_or_leave(&world, &chance).await?,
            Change::Leave => leave(&world, &chance).await?,
            Change::Lose => lose(&world, &chance).await?,
            Change::Drain => drain(&world, &chance).await?,
            Change::Move => move_replica(&world, &chance).await?,
            Change::Transfer => transfer(&world, &chance).await?,
            Change::Pause => pause(&world, &chance).await?,
        }
    }
    Ok(())
}

/// Waits until it has come about.
async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) -> Result<()> {
    let end = in_ms(PATIENCE_MS);
    while !look().await {
        ensure!(Instant::now() < end, "A6: {what} does not come about");
        sleep_until(in_ms(LOOK_MS)).await;
    }
    Ok(())
}

/// Asks one node, if it lives long enough to answer.
async fn at_some_node<T>(
    world: &World,
    chance: &Chance,
    ask: impl AsyncFnOnce(Cluster) -> T,
) -> Option<T> {
    let running = world.running();
    let drawn = chance.below(running.len() as u64) as usize;
    let (life, cluster, _) = running.into_iter().nth(drawn)?;
    let end = in_ms(ANSWER_MS);
    tokio::select! {
        biased;
        () = life.over() => None,
        answer = ask(cluster) => Some(answer),
        () = sleep_until(end) => None,
    }
}

/// Asks until it is recorded; a refusal ends it.
async fn record_it(world: &World, chance: &Chance, call: OperatorCall) -> Result<bool> {
    let end = in_ms(PATIENCE_MS);
    loop {
        let asked = call.clone();
        let answer = at_some_node(world, chance, async |cluster| {
            operate(&cluster, "simulated", asked).await
        });
        match answer.await {
            Some(OperatorAnswer::Recorded) => return Ok(true),
            Some(OperatorAnswer::Refused(
                OperatorRefusal::Refused(_) | OperatorRefusal::NotFound(_),
            )) => return Ok(false),
            _ => {}
        }
        ensure!(Instant::now() < end, "A6: {call:?} is not taken");
        sleep_until(in_ms(LOOK_MS)).await;
    }
}

async fn report(world: &World, chance: &Chance) -> Option<Box<ClusterReport>> {
    let asked = at_some_node(world, chance, async |cluster| {
        operate(&cluster, "simulated", OperatorCall::Report).await
    });
    match asked.await {
        Some(OperatorAnswer::Report(report)) => Some(report),
        _ => None,
    }
}

/// The newest of what nodes know of the cluster.
pub(crate) fn newest_state(world: &World) -> Option<Arc<MetaState>> {
    let states = world.running().into_iter().map(|(_, cluster, _)| cluster.meta().state());
    states.max_by_key(|state| state.version)
}

fn state_of(world: &World, node: NodeId) -> Option<NodeState> {
    newest_state(world)?.node(node).map(|node| node.state)
}

/// Waits until all shards, and the meta group, are held as they are to be.
pub(crate) async fn until_whole(world: &World, chance: &Chance) -> Result<()> {
    until("a whole cluster", async || is_whole(world, chance).await).await
}

/// The same, as one node sees it now.
pub(crate) async fn is_whole(world: &World, chance: &Chance) -> bool {
    let Some(report) = report(world, chance).await else { return false };
    let mut groups = report.shards.iter().chain([&report.meta]);
    let is_full = |placed: &[String]| placed.len() >= NODES_MIN;
    report.shards.len() == SHARDS as usize
        && groups.all(|group| group.is_whole(BEHIND_MAX) && is_full(&group.placed))
}

/// Has one more node let in, and starts it.
///
/// # Errors
/// When the cluster does not let it in, or it does not become current.
pub(crate) async fn join(world: &World, chance: &Chance) -> Result<NodeId> {
    let node = world.add_node();
    until("a node that is let in", async || {
        let let_in = at_some_node(world, chance, async |cluster| {
            cluster.meta().put_node(record(world, node)).await
        });
        matches!(let_in.await, Some(Ok(())))
    })
    .await?;
    world.start(node).await?;
    until("a node that has joined and is current", async || {
        let running = world.running();
        let here = running.into_iter().find(|(life, ..)| life.node == node);
        let Some((life, cluster, _)) = here else { return false };
        tokio::select! {
            biased;
            () = life.over() => false,
            seen = cluster.meta().refresh() => seen.is_ok(),
        }
    })
    .await?;
    world.witness().count("nodes joined");
    Ok(node)
}

async fn join_or_leave(world: &World, chance: &Chance) -> Result<()> {
    if world.nodes().len() >= NODES_MAX {
        return leave(world, chance).await;
    }
    join(world, chance).await.map(drop)
}

async fn leave(world: &World, chance: &Chance) -> Result<()> {
    until_whole(world, chance).await?;
    let node = *chance.pick(&world.nodes());
    let leaving = OperatorCall::SetState { node, state: NodeState::Leaving };
    ensure!(record_it(world, chance, leaving).await?, "A6: node {node} may not leave");
    if chance.percent(50) {
        let point = *chance.pick(&[
            "log has forgotten",
            "forgotten state cleared",
            "forgotten snapshots removed",
        ]);
        let crashed = world.clone();
        let end = *chance.pick(&[End::Kill, End::PowerCut]);
        world.points().arm(point, node, 1, move || crashed.crash(node, end));
    }
    until_removed(world, node).await?;
    world.take_away(node, &world.hands().lock().await);
    world.witness().count("nodes left");
    if world.nodes().len() < NODES_MIN || chance.percent(60) {
        join(world, chance).await?;
    }
    Ok(())
}

async fn until_removed(world: &World, node: NodeId) -> Result<()> {
    until(&format!("the removal of node {node}"), async || {
        state_of(world, node) == Some(NodeState::Removed)
    })
    .await
}

/// The disk is gone at once, with the process. What takes its place is told of it before or after.
async fn lose(world: &World, chance: &Chance) -> Result<()> {
    let mut lost = None;
    until("a whole cluster", async || {
        // Held while it is looked: what else is hurt is whole again by then.
        let hands = world.hands().lock().await;
        if is_whole(world, chance).await {
            let node = *chance.pick(&world.nodes());
            world.take_away(node, &hands);
            lost = Some(node);
        }
        lost.is_some()
    })
    .await?;
    let node = lost.context("a node was lost")?;
    let joins_first = chance.percent(50);
    if joins_first {
        join(world, chance).await?;
    }
    let leaving = OperatorCall::SetState { node, state: NodeState::Leaving };
    ensure!(record_it(world, chance, leaving).await?, "A6: lost node {node} may not leave");
    if !joins_first {
        join(world, chance).await?;
    }
    until_removed(world, node).await?;
    world.witness().count("nodes replaced");
    Ok(())
}

async fn drain(world: &World, chance: &Chance) -> Result<()> {
    until_whole(world, chance).await?;
    let led = world.leader_of(chance.below(u64::from(SHARDS)) as u32);
    let node = led.unwrap_or_else(|| *chance.pick(&world.nodes()));
    let set = |state| OperatorCall::SetState { node, state };
    if !record_it(world, chance, set(NodeState::Draining)).await? {
        return Ok(());
    }
    until(&format!("node {node}, which drains, without a leadership"), async || {
        (0..SHARDS).all(|shard| world.leader_of(shard).is_some_and(|leader| leader != node))
    })
    .await?;
    sleep_until(in_ms(chance.between(100, 3_000))).await;
    record_it(world, chance, set(NodeState::Up)).await?;
    world.witness().count("nodes drained");
    Ok(())
}

async fn transfer(world: &World, chance: &Chance) -> Result<()> {
    for _ in 0..3 {
        let shard = ShardId(chance.below(u64::from(SHARDS)) as u32);
        let voters =
            newest_state(world).and_then(|state| Some(state.placement(shard)?.voters.clone()));
        let leader = world.leader_of(shard.0);
        let others: Vec<NodeId> =
            voters.into_iter().flatten().filter(|node| Some(*node) != leader).collect();
        if others.is_empty() {
            continue;
        }
        let to = *chance.pick(&others);
        // Who is silent or far behind is refused, rightly.
        if record_it(world, chance, OperatorCall::Transfer { shard, to }).await? {
            world.witness().count("leaderships handed over");
        }
        sleep_until(in_ms(chance.between(50, 1_500))).await;
    }
    Ok(())
}

async fn move_replica(world: &World, chance: &Chance) -> Result<()> {
    let shard = ShardId(chance.below(u64::from(SHARDS)) as u32);
    let voters = |world: &World| {
        let placed =
            newest_state(world).and_then(|state| Some(state.placement(shard)?.voters.clone()));
        placed.unwrap_or_default()
    };
    until_whole(world, chance).await?;
    // Else it would be moved back at once.
    record_it(world, chance, OperatorCall::Rebalance { is_paused: true }).await?;
    let has_room = |world: &World| {
        let held = voters(world);
        world.nodes().into_iter().filter(|node| !held.contains(node)).collect::<Vec<_>>()
    };
    if has_room(world).is_empty() {
        join(world, chance).await?;
    }
    let (held, free) = (voters(world), has_room(world));
    let from = *chance.pick(&held.iter().copied().collect::<Vec<_>>());
    let to = *chance.pick(&free);
    if record_it(world, chance, OperatorCall::Move { shard, from, to }).await? {
        until(&format!("the move of shard {shard} from {from} to {to}"), async || {
            let Some(report) = report(world, chance).await else { return false };
            let name = shard.to_string();
            let shard = report.shards.iter().find(|shard| shard.name == name);
            let is_there = |placed: &[String]| placed.contains(&write_id(to));
            // A node that is given up meanwhile has its place taken.
            shard.is_some_and(|s| s.is_whole(BEHIND_MAX) && is_there(&s.placed))
                || voters(world) != with(&held, from, to)
        })
        .await?;
        world.witness().count("replicas moved");
    }
    record_it(world, chance, OperatorCall::Rebalance { is_paused: false }).await?;
    Ok(())
}

fn with(held: &BTreeSet<NodeId>, from: NodeId, to: NodeId) -> BTreeSet<NodeId> {
    held.iter().copied().filter(|node| *node != from).chain([to]).collect()
}

async fn pause(world: &World, chance: &Chance) -> Result<()> {
    until_whole(world, chance).await?;
    record_it(world, chance, OperatorCall::Rebalance { is_paused: true }).await?;
    if world.nodes().len() < NODES_MAX {
        // What a shard lacks it is given all the same.
        let lacks_some = newest_state(world).is_none_or(|state| {
            let wanted = state.settings().replicas as usize;
            state.placements().any(|placement| placement.voters.len() < wanted)
        });
        let node = join(world, chance).await?;
        let holds = |world: &World| {
            let state = newest_state(world);
            state.is_some_and(|state| state.placements().any(|p| p.voters.contains(&node)))
        };
        sleep_until(in_ms(chance.between(1_000, 4_000))).await;
        let gives_up = (world.seed() / 8).is_multiple_of(2);
        if holds(world) && !lacks_some && !gives_up {
            bail!("A6: replicas are moved to node {node} while the rebalancer is held");
        }
    }
    record_it(world, chance, OperatorCall::Rebalance { is_paused: false }).await?;
    world.witness().count("rebalancer held");
    Ok(())
}
