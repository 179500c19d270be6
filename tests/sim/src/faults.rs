//! What goes wrong in a run, and whether it did so while requests were under way (A10): a fault that
//! hit nobody shows nothing.

use std::sync::atomic::Ordering;

use anyhow::Context;
use piton_raft::NodeId;
use piton_raft::log::Faults;
use tokio::time::sleep_until;

use crate::chance::Chance;
use crate::network::{Done, Weather};
use crate::world::{End, SHARDS, World, in_ms};

/// The most that a node's clock is off.
pub(crate) const SKEW_MS_MAX: i64 = 5_000;

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
    ClockJump,
    Restart,
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
    Fault::ClockJump,
    Fault::At("before reply"),
    Fault::Restart,
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
    let is_leaders = fault == Fault::At("after replicate");
    let leader = world.leader_of(shard).filter(|_| is_leaders || chance.percent(70));
    leader.unwrap_or_else(|| *chance.pick(&world.nodes()))
}

fn is_busy(world: &World) -> bool {
    world.in_flight().load(Ordering::Relaxed) > 0
}

/// Waits until requests are under way.
async fn await_busy(world: &World) {
    let end = in_ms(2_000);
    while !is_busy(world) && tokio::time::Instant::now() < end {
        sleep_until(in_ms(1)).await;
    }
}

/// Lets one fault happen and ends it. Answers whether it hit while requests were under way.
///
/// # Errors
/// When a node does not start again.
pub(crate) async fn inflict(world: &World, chance: &Chance, fault: Fault) -> anyhow::Result<bool> {
    await_busy(world).await;
    let node = target(world, chance, fault);
    world.trace().note(format_args!("fault {fault:?} at node {node}"));
    let was_busy = is_busy(world);
    let before = world.network().done();
    let hit = match fault {
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
            for node in slow {
                world.set_sync_ms_max(node, 2);
            }
            true
        }
        Fault::FailingDisk => {
            let fail_at_sync = Some(chance.between(1, 6));
            world.disk(node).set_faults(Faults { fail_at_sync, ..Faults::default() });
            await_down(world, node).await
        }
        Fault::ClockJump => {
            let skew = chance.below(2 * SKEW_MS_MAX as u64) as i64 - SKEW_MS_MAX;
            world.set_skew(node, skew / 2);
            end_some(world, chance, &[node], End::Kill).await
        }
        Fault::Restart => {
            world.stop(node).await;
            true
        }
        Fault::At(point) => {
            let end = *chance.pick(&[End::Kill, End::PowerCut]);
            let crashed = world.clone();
            let crash = move || crashed.crash(node, end);
            world.points().arm(point, node, chance.between(1, 12), crash);
            await_down(world, node).await
        }
    };
    world.network().heal_all();
    world.points().disarm_all();
    sleep_until(in_ms(chance.between(100, 1_500))).await;
    restart(world).await?;
    sleep_until(in_ms(chance.between(200, 2_000))).await;
    Ok(hit && was_busy)
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

fn cut(world: &World, fault: Fault, node: NodeId) {
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

async fn await_down(world: &World, node: NodeId) -> bool {
    let end = in_ms(4_000);
    while world.is_up(node) && tokio::time::Instant::now() < end {
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
