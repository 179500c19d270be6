//! What goes wrong in a run, and whether it did so while requests were under way (A10): a fault that
//! hit nobody shows nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use piton_core::id::ShardId;
use piton_raft::log::Faults;
use piton_raft::{Groups, NodeId};
use piton_shard::{Cluster, MetaState, NodeState};
use tokio::time::{Instant, sleep_until};

use crate::chance::Chance;
use crate::life::Life;
use crate::network::{Done, Weather};
use crate::operator::newest_state;
use crate::world::{End, SHARDS, World, in_ms};
use crate::{damage, staged};

/// How long another target is tried for a fault that hit nobody.
const TRIES_MS: u64 = 60_000;

/// How long a fault waits for a cluster that can do without a node.
const SPARE_MS: u64 = 60_000;

/// The most that a node's clock is off, and by how much it surely is for a wrong one: beyond what is
/// relied on, and what the others' are apart.
const OFF_MS_MAX: u64 = 2_500;
const OFF_MS_WRONG: i64 = 500;
/// A clock that is off is noticed within so long once it can be compared, and what is led with it is given away
/// within so long. All of that is waited for this long.
const COMPARED_MS: u64 = 1_500;
const GIVES_AWAY_MS: u64 = 3_000;
const JUDGED_WITHIN_MS: u64 = 20_000;
/// The most that a clock which is set jumps beside what was asked for.
const JUMP_MS_OFF: i64 = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Loss,
    Delay,
    Repeats,
    CutOff,
    CutOut,
    CutIn,
    Kill,
    PowerOfOne,
    PowerOfTwo,
    PowerOfAll,
    SlowDisk,
    FailingDisk,
    /// A node's life begins with a clock that is off, by more or by less than is taken for wrong.
    ClockOff,
    /// Wall clocks jump, far, while their nodes run.
    ClockJump,
    Restart,
    /// A node is away until it needs a snapshot.
    Lagging,
    /// The same, and the snapshot does not arrive whole at first.
    CutSnapshot,
    /// Bits flip in a node's store.
    DecayedStore,
    /// A bit flips in a node's log while it is down.
    DecayedLog,
    /// A bit flips in a snapshot of a node that is down and has lost its store.
    DecayedSnapshot,
    FullDisk,
    /// A node loses power after it has voted, and is asked by another candidate of the same term.
    VoteAgain,
    /// A crash at a point of a commit's way.
    At(&'static str),
}

const ALL: &[Fault] = &[
    Fault::Kill,
    Fault::CutOff,
    Fault::PowerOfAll,
    Fault::At("before append"),
    Fault::Loss,
    Fault::PowerOfOne,
    Fault::At("after append"),
    Fault::CutOut,
    Fault::FailingDisk,
    Fault::At("after sync"),
    Fault::Repeats,
    Fault::PowerOfTwo,
    Fault::At("after replicate"),
    Fault::CutIn,
    Fault::SlowDisk,
    Fault::At("before apply"),
    Fault::Delay,
    Fault::ClockOff,
    Fault::At("before reply"),
    Fault::Restart,
    Fault::ClockJump,
    Fault::Lagging,
    Fault::DecayedStore,
    Fault::VoteAgain,
    Fault::CutSnapshot,
    Fault::FullDisk,
    Fault::DecayedLog,
    Fault::DecayedSnapshot,
];

/// The faults of a run: consecutive seeds go through all of them, and each run has some more.
pub(crate) fn plan(seed: u64, chance: &Chance, count: u64) -> Vec<Fault> {
    let first = ALL[(seed % ALL.len() as u64) as usize];
    let more = (1..count).map(|_| *chance.pick(ALL));
    std::iter::once(first).chain(more).take(count as usize).collect()
}

/// A node to be hit: mostly one that leads, and always where others do not come to the point.
fn target(world: &World, chance: &Chance, fault: Fault) -> NodeId {
    let shard = chance.below(u64::from(SHARDS)) as u32;
    let is_leaders = matches!(fault, Fault::At("after replicate") | Fault::VoteAgain);
    let leader = world.leader_of(shard).filter(|_| is_leaders || chance.percent(70));
    leader.unwrap_or_else(|| *chance.pick(&world.nodes()))
}

fn is_busy(world: &World) -> bool {
    world.in_flight().load(Ordering::Relaxed) > 0
}

/// Waits until requests are under way.
async fn await_busy(world: &World) {
    let end = in_ms(2_000);
    while !is_busy(world) && Instant::now() < end {
        sleep_until(in_ms(1)).await;
    }
}

/// Waits until every shard can do without any one of its nodes: while the cluster has two, say, because one of
/// three leaves and the next has not come, nothing is decided that a node which is away could lack.
async fn await_spare(world: &World) {
    let end = in_ms(SPARE_MS);
    let can_spare = || {
        let state = newest_state(world);
        state.is_some_and(|state| {
            let mut placed = state.placements();
            placed.all(|placed| placed.voters.iter().filter(|node| world.is_up(**node)).count() > 2)
        })
    };
    while !can_spare() && Instant::now() < end {
        sleep_until(in_ms(50)).await;
    }
}

/// Lets one fault happen and ends it, with another target each time until it has hit while requests
/// were under way. Answers whether it has: a node may not come to a point in the time given.
///
/// # Errors
/// When a node does not start again.
pub(crate) async fn inflict(world: &World, chance: &Chance, fault: Fault) -> anyhow::Result<bool> {
    let mut end = in_ms(TRIES_MS);
    loop {
        if matches!(fault, Fault::Lagging | Fault::CutSnapshot) {
            let waited_from = Instant::now();
            await_spare(world).await;
            end += waited_from.elapsed();
        }
        await_busy(world).await;
        let hands = world.hands().lock().await;
        let node = target(world, chance, fault);
        world.trace().note(format_args!("fault {fault:?} at node {node}"));
        let was_busy = is_busy(world);
        let began_ms = world.trace().now_ms();
        let has_hit = happen(world, chance, fault, node).await? && was_busy;
        world.network().heal_all();
        world.points().disarm_all();
        sleep_until(in_ms(chance.between(100, 1_500))).await;
        restart(world).await?;
        drop(hands);
        world.witness().trouble(began_ms, world.trace().now_ms());
        sleep_until(in_ms(chance.between(200, 2_000))).await;
        if has_hit || Instant::now() >= end {
            return Ok(has_hit);
        }
    }
}

/// Lets a fault happen at a node. Answers whether it did anything.
async fn happen(
    world: &World,
    chance: &Chance,
    fault: Fault,
    node: NodeId,
) -> anyhow::Result<bool> {
    let before = world.network().done();
    let has_hit = match fault {
        Fault::Loss | Fault::Delay | Fault::Repeats => {
            world.network().set_weather(weather(fault));
            sleep_until(in_ms(chance.between(1_000, 3_000))).await;
            is_weather_felt(fault, before, world.network().done())
        }
        Fault::CutOff | Fault::CutOut | Fault::CutIn => {
            cut(world, fault, node);
            sleep_until(in_ms(chance.between(1_000, 4_000))).await;
            world.network().done().cut > before.cut
        }
        Fault::Kill => end_some(world, chance, &[node], End::Kill).await,
        Fault::PowerOfOne => end_some(world, chance, &[node], End::PowerCut).await,
        Fault::PowerOfTwo => {
            let nodes = world.nodes();
            let other = nodes.iter().copied().find(|other| *other != node).unwrap_or(node);
            end_some(world, chance, &[node, other], End::PowerCut).await
        }
        Fault::PowerOfAll => end_some(world, chance, &world.nodes(), End::PowerCut).await,
        Fault::SlowDisk => {
            // All but one, which may lead: then entries are committed long after they are proposed.
            let slow: Vec<_> = world.nodes().into_iter().filter(|other| *other != node).collect();
            for node in &slow {
                world.set_sync_ms_max(*node, chance.between(200, 2_500));
            }
            sleep_until(in_ms(4_000)).await;
            if chance.percent(60) {
                // What is committed has not reached this one's disk yet.
                world.crash(*chance.pick(&slow), End::PowerCut);
            }
            for node in slow {
                world.set_sync_ms_max(node, 2);
            }
            true
        }
        Fault::FailingDisk => {
            let fail_at_sync = Some(chance.between(1, 6));
            let disk = world.disk(node);
            disk.set_faults(Faults { fail_at_sync, ..Faults::default() });
            let is_down = await_down(world, node).await;
            disk.set_faults(Faults::default());
            is_down
        }
        Fault::ClockOff => live_with_clock_off(world, chance, node).await?,
        Fault::ClockJump => jump_clocks(world, chance, node).await,
        Fault::Restart => {
            world.stop(node).await;
            true
        }
        Fault::Lagging => staged::lag(world, chance, node).await?,
        Fault::CutSnapshot => staged::cut_snapshot(world, chance, node).await?,
        Fault::VoteAgain => staged::ask_again_for_a_vote(world, chance, node).await?,
        Fault::DecayedStore => damage::decay_store(world, chance, node).await,
        Fault::DecayedLog => damage::decay_log(world, chance, node).await?,
        Fault::DecayedSnapshot => damage::decay_snapshot(world, chance, node).await?,
        Fault::FullDisk => damage::fill_disk(world, chance, node).await,
        Fault::At(point) => {
            let end = *chance.pick(&[End::Kill, End::PowerCut]);
            let crashed = world.clone();
            let crash = move || crashed.crash(node, end);
            world.points().arm(point, node, chance.between(1, 12), crash);
            await_down(world, node).await
        }
    };
    Ok(has_hit)
}

/// A node starts with a clock that is off. One that is off by much, of a node that reaches the others,
/// comes to lead nothing (D12). Then it starts with one that is right.
async fn live_with_clock_off(world: &World, chance: &Chance, node: NodeId) -> anyhow::Result<bool> {
    let right_ms = world.wall_off_ms(node);
    let off_ms = chance.between(50, *chance.pick(&[300, 600, OFF_MS_MAX])) as i64;
    let off_ms = if chance.percent(50) { off_ms } else { -off_ms };
    world.set_wall(node, right_ms + off_ms);
    if !end_some(world, chance, &[node], End::Kill).await {
        world.set_wall(node, right_ms);
        return Ok(false);
    }
    restart(world).await?;
    // By then it has compared its clock, and tried to lead what it led before.
    sleep_until(in_ms(chance.between(2_000, 5_000))).await;
    if off_ms.abs() > OFF_MS_WRONG {
        match judge_clock(world, node).await {
            Some(true) => world.witness().count("wrong clocks noticed"),
            Some(false) => {
                let text = format!(
                    "D12: node {node} goes on leading a shard with a clock that is off by {off_ms} ms"
                );
                world.witness().broke(text);
            }
            None => {}
        }
    }
    world.set_wall(node, right_ms);
    Ok(end_some(world, chance, &[node], End::Kill).await)
}

/// Whether a node whose clock is off comes to lead nothing that another one could lead. It may be elected, and
/// gives that away. `None`: there were not two others for long enough to compare its clock with, and of two
/// clocks nobody knows which is off.
async fn judge_clock(world: &World, node: NodeId) -> Option<bool> {
    let end = in_ms(JUDGED_WITHIN_MS);
    let (mut compared, mut leads) = (None, None);
    while Instant::now() < end {
        let now = Instant::now();
        let state = newest_state(world).filter(|_| world.is_up(node));
        let state = state.filter(|state| {
            let others = state.nodes().filter(|other| {
                other.id != node && other.state.is_member() && world.is_up(other.id)
            });
            others.count() >= 2
        });
        let Some(state) = state else {
            (compared, leads) = (None, None);
            sleep_until(in_ms(20)).await;
            continue;
        };
        let from = *compared.get_or_insert(now);
        if now - from >= Duration::from_millis(COMPARED_MS) && leads_wrongly(world, &state, node) {
            let from = *leads.get_or_insert(now);
            if now - from >= Duration::from_millis(GIVES_AWAY_MS) {
                return Some(false);
            }
        } else {
            leads = None;
            if now - from >= Duration::from_millis(COMPARED_MS + 2 * GIVES_AWAY_MS) {
                return Some(true);
            }
        }
        sleep_until(in_ms(20)).await;
    }
    None
}

/// Whether a node leads a shard that another one could lead.
fn leads_wrongly(world: &World, state: &MetaState, node: NodeId) -> bool {
    let may_lead = |other: &NodeId| {
        let is_asked = state.node(*other).is_some_and(|other| other.state == NodeState::Up);
        *other != node && world.is_up(*other) && is_asked
    };
    let could_be_led = |shard| {
        let placement = state.placement(ShardId(shard));
        placement.is_some_and(|placement| placement.voters.iter().any(may_lead))
    };
    (0..SHARDS).any(|shard| world.leader_of(shard) == Some(node) && could_be_led(shard))
}

/// Sets the wall clock of one node, or of all, forward or back by up to an hour, and later back.
async fn jump_clocks(world: &World, chance: &Chance, node: NodeId) -> bool {
    let nodes = if chance.percent(50) { vec![node] } else { world.nodes() };
    let before: Vec<_> = nodes.iter().map(|node| (*node, world.wall_off_ms(*node))).collect();
    let jump_ms = chance.between(600, *chance.pick(&[5_000, 3_600_000])) as i64;
    let jump_ms = if chance.percent(50) { jump_ms } else { -jump_ms };
    for (node, off_ms) in &before {
        world.set_wall(*node, off_ms + jump_ms);
    }
    let jumped = |(life, cluster, _): (Arc<Life>, Cluster, Groups)| {
        let ahead_ms = cluster.host().clock().wall_is_ahead().as_millis();
        nodes.contains(&life.node) && (ahead_ms - jump_ms).abs() <= JUMP_MS_OFF
    };
    let has_hit = world.running().into_iter().any(jumped);
    sleep_until(in_ms(chance.between(1_000, 3_000))).await;
    for (node, off_ms) in before {
        world.set_wall(node, off_ms);
    }
    sleep_until(in_ms(chance.between(200, 1_000))).await;
    has_hit
}

fn weather(fault: Fault) -> Weather {
    let calm = Weather::default();
    match fault {
        Fault::Loss => Weather { lost_percent: 10, ..calm },
        Fault::Delay => Weather { delay_ms_max: 300, ..calm },
        _ => Weather { repeated_percent: 40, delay_ms_max: 20, ..calm },
    }
}

fn is_weather_felt(fault: Fault, before: Done, after: Done) -> bool {
    match fault {
        Fault::Loss => after.lost > before.lost,
        Fault::Delay => after.delayed > before.delayed,
        _ => after.repeated > before.repeated,
    }
}

pub(crate) fn cut(world: &World, fault: Fault, node: NodeId) {
    for other in world.nodes().into_iter().filter(|other| *other != node) {
        if fault != Fault::CutIn {
            world.network().cut(node, other);
        }
        if fault != Fault::CutOut {
            world.network().cut(other, node);
        }
    }
}

/// True if one of them ran.
async fn end_some(world: &World, chance: &Chance, nodes: &[NodeId], end: End) -> bool {
    let mut hit = false;
    for node in nodes {
        hit |= world.is_up(*node);
        world.crash(*node, end);
        sleep_until(in_ms(chance.below(30))).await;
    }
    hit
}

pub(crate) async fn await_down(world: &World, node: NodeId) -> bool {
    let end = in_ms(4_000);
    while world.is_up(node) && Instant::now() < end {
        sleep_until(in_ms(5)).await;
    }
    !world.is_up(node)
}

/// Starts whatever has crashed, as a supervisor does.
pub(crate) async fn restart(world: &World) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        let crashed = world.take_crashed();
        if crashed.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(tries < 20, "A6: nodes {crashed:?} do not stay up");
        tries += 1;
        for node in crashed {
            let started = world.start(node).await;
            started.with_context(|| format!("A6: node {node} does not start again"))?;
        }
    }
}
