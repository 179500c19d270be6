//! Faults that take several steps: what has to come together for them hardly ever does by chance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_raft::{Group, GroupId, Groups, NodeId};
use piton_shard::META_GROUP;
use tokio::time::{Instant, sleep_until, timeout};

use crate::chance::Chance;
use crate::faults::{Fault, cut, restart};
use crate::world::{End, GROUPS, SHARDS, World, in_ms};

/// How long a step may take.
const STEP_MS: u64 = 10_000;

/// Waits for a step; false if it does not come.
pub(crate) async fn comes(mut look: impl FnMut() -> bool) -> bool {
    let end = in_ms(STEP_MS);
    while !look() {
        if Instant::now() >= end {
            return false;
        }
        sleep_until(in_ms(5)).await;
    }
    true
}

pub(crate) fn groups_of(world: &World, node: NodeId) -> Vec<Group> {
    let running = world.running();
    let found = running.into_iter().find(|(life, ..)| life.node == node);
    let of = |groups: &Groups| GROUPS.into_iter().filter_map(|id| groups.group(id)).collect();
    found.map_or(Vec::new(), |(.., groups)| of(&groups))
}

/// A node is away while the others take snapshots and purge what it lacks of their logs, so that it
/// needs a snapshot when it is back. In some runs it is crashed while it installs it.
pub(crate) async fn lag(world: &World, chance: &Chance, node: NodeId) -> anyhow::Result<bool> {
    if !fall_behind(world, chance, node).await {
        return Ok(false);
    }
    let before = world.points().count(node, "snapshot adopted");
    if chance.percent(40) {
        let (crashed, end) = (world.clone(), *chance.pick(&[End::Kill, End::PowerCut]));
        let point = *chance.pick(&["snapshot adopted", "snapshot installed"]);
        world.points().arm(point, node, 1, move || crashed.crash(node, end));
    }
    world.network().heal_all();
    restart(world).await?;
    Ok(comes(|| world.points().count(node, "snapshot adopted") > before).await)
}

/// The same, and between two parts of the snapshot the node is cut off, or its process or that of a
/// leader ends.
pub(crate) async fn cut_snapshot(
    world: &World,
    chance: &Chance,
    node: NodeId,
) -> anyhow::Result<bool> {
    if !fall_behind(world, chance, node).await {
        return Ok(false);
    }
    let adopted = move |world: &World| world.points().count(node, "snapshot adopted");
    let before = adopted(world);
    let (of, cut_at) = (world.clone(), Arc::new(Mutex::new(None)));
    let (seen, how) = (Arc::clone(&cut_at), chance.below(3));
    let shard = chance.below(u64::from(SHARDS)) as u32;
    world.points().arm("snapshot part", node, chance.between(1, 5), move || {
        *seen.lock() = Some(adopted(&of));
        match (how, of.leader_of(shard)) {
            (0, Some(leader)) if leader != node => of.crash(leader, End::Kill),
            (1, _) => of.crash(node, End::PowerCut),
            _ => cut(&of, Fault::CutOff, node),
        }
    });
    world.network().heal_all();
    restart(world).await?;
    let was_cut = comes(|| cut_at.lock().is_some()).await;
    sleep_until(in_ms(chance.between(200, 2_500))).await;
    let in_the_middle = *cut_at.lock() == Some(before);
    world.network().heal_all();
    restart(world).await?;
    Ok(was_cut && in_the_middle && comes(|| adopted(world) > before).await)
}

/// Keeps a node away until those who hold shards with it have purged what it lacks. Leaves it cut off,
/// or down.
async fn fall_behind(world: &World, chance: &Chance, node: NodeId) -> bool {
    let places: BTreeMap<GroupId, u64> =
        groups_of(world, node).iter().map(|g| (g.id(), g.metrics().last_index)).collect();
    if places.is_empty() {
        return false;
    }
    let shares_shard = |group: &Group| group.id() != META_GROUP && places.contains_key(&group.id());
    let others = world
        .nodes()
        .into_iter()
        .filter(|other| *other != node && groups_of(world, *other).iter().any(shares_shard));
    let others: Vec<_> = others.collect();
    if chance.percent(50) {
        cut(world, Fault::CutOff, node);
    } else {
        world.crash(node, *chance.pick(&[End::Kill, End::PowerCut]));
    }
    sleep_until(in_ms(chance.between(1_500, 3_000))).await;
    let end = in_ms(STEP_MS);
    loop {
        for group in others.iter().flat_map(|other| groups_of(world, *other)) {
            // A node may crash meanwhile; then another one has the log that counts.
            let _ = timeout(Duration::from_secs(2), group.snapshot_now()).await;
        }
        let has_purged = |group: &Group| {
            let place = places.get(&group.id()).copied().unwrap_or(u64::MAX);
            group.metrics().purged_index > place
        };
        if others.iter().all(|other| groups_of(world, *other).iter().any(has_purged)) {
            return !others.is_empty();
        }
        if Instant::now() >= end {
            return false;
        }
        sleep_until(in_ms(200)).await;
    }
}

/// A node loses power right after it has voted for one candidate, and is then asked by another one of
/// the same term. It may vote once: its vote is on the disk before it is sent.
///
/// The node leads, and its end makes two halves of the others, which do not hear of each other, each
/// look for a leader with its help.
pub(crate) async fn ask_again_for_a_vote(
    world: &World,
    chance: &Chance,
    node: NodeId,
) -> anyhow::Result<bool> {
    let terms: BTreeMap<GroupId, u64> =
        groups_of(world, node).iter().map(|g| (g.id(), g.metrics().term)).collect();
    let mut others: Vec<_> = world.nodes().into_iter().filter(|other| *other != node).collect();
    if chance.percent(50) {
        others.reverse();
    }
    let (one, other) = others.split_at(others.len() / 2);
    for (one, other) in one.iter().flat_map(|one| other.iter().map(move |other| (*one, *other))) {
        world.network().cut(one, other);
        world.network().cut(other, one);
    }
    let crashed = world.clone();
    world.crash(node, End::Kill);
    world.points().arm("after vote", node, 1, move || crashed.crash(node, End::PowerCut));
    // So long that the others look for a leader before the node does it itself.
    sleep_until(in_ms(chance.between(900, 1_300))).await;
    restart(world).await?;
    if !comes(|| !world.is_up(node)).await {
        return Ok(false);
    }
    // What it has sent arrives; whoever won by it is kept from telling.
    sleep_until(in_ms(20)).await;
    let is_newly_led = |group: Group| {
        let (before, now) = (terms.get(&group.id()), group.metrics());
        now.is_leader && before.is_some_and(|before| now.term > *before)
    };
    for side in [one, other] {
        if side.iter().flat_map(|of| groups_of(world, *of)).any(is_newly_led) {
            for of in side {
                world.network().cut(*of, node);
            }
        }
    }
    restart(world).await?;
    sleep_until(in_ms(chance.between(2_500, 4_000))).await;
    Ok(true)
}
