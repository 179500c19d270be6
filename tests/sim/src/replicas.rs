//! The auditor's rule A9: replicas that have applied the same hold the same rows, those who are to hold
//! a shard do, and nobody else has anything of it.

use std::collections::{BTreeMap, BTreeSet};

use piton_raft::{Group, GroupId, NodeId};
use piton_shard::META_GROUP;
use piton_store::{KeyRange, Order, Row, Store, marks};
use piton_tests::audit::Broken;
use tokio::time::{Instant, sleep_until};

use crate::world::{GROUPS, World, in_ms};

/// How long replicas may take to be where they belong: one that is not counted any more is kept for a
/// while, and what is moved is moved one after the other.
const SETTLED_MS: u64 = 120_000;
/// A shard that was worked on has more rows than this.
const ROWS_MIN: usize = 50;

/// By node and group: applied and last index.
type Places = BTreeMap<GroupId, BTreeMap<NodeId, (u64, u64)>>;

fn places(world: &World) -> Places {
    let place = |group: &Group| {
        let metrics = group.metrics();
        (metrics.applied_index, metrics.last_index)
    };
    let mut places = Places::new();
    for (life, _, groups) in world.running() {
        for group in GROUPS.into_iter().filter_map(|id| groups.group(id)) {
            places.entry(group.id()).or_default().insert(life.node, place(&group));
        }
    }
    places
}

/// Who is to hold each group; `None` while nodes do not agree on it.
fn holders(world: &World) -> Option<BTreeMap<GroupId, BTreeSet<NodeId>>> {
    let said = world.running().into_iter().map(|(_, cluster, _)| {
        let state = cluster.meta().state();
        let placed = state.placements().map(|p| (GroupId(p.shard.0 + 1), p.voters.clone()));
        let mut holders: BTreeMap<_, BTreeSet<NodeId>> = placed.collect();
        let members = state.nodes().filter(|node| node.state.is_member());
        holders.insert(META_GROUP, members.map(|node| node.id).collect());
        holders
    });
    let said: Vec<_> = said.collect();
    said.windows(2).all(|pair| pair[0] == pair[1]).then(|| said.into_iter().next()).flatten()
}

fn is_settled(world: &World) -> bool {
    let (places, holders) = (places(world), holders(world));
    holders.is_some_and(|holders| {
        holders.len() == GROUPS.len()
            && holders.iter().all(|(group, holders)| {
                let Some(places) = places.get(group) else { return false };
                let mut each = places.values();
                let Some(first) = each.next() else { return false };
                places.keys().eq(holders.iter())
                    && first.0 == first.1
                    && each.all(|place| place == first)
            })
    })
}

/// Looks once nothing is under way any more, and ends the run's nodes.
pub(crate) async fn check(world: &World, broken: &mut Vec<Broken>) {
    let end = in_ms(SETTLED_MS);
    while !is_settled(world) {
        if Instant::now() >= end {
            let (places, holders) = (places(world), holders(world));
            let text = format!("A9: replicas do not settle: {places:?}, to be {holders:?}");
            broken.push(Broken::new(text));
            return;
        }
        sleep_until(in_ms(50)).await;
    }
    let holders = holders(world).unwrap_or_default();
    let nodes = world.nodes();
    for node in &nodes {
        world.lay_down(*node).await;
    }
    for group in GROUPS {
        let held = |node: &NodeId| (*node, rows(world, *node, group));
        let (inside, outside): (Vec<_>, Vec<_>) =
            nodes.iter().map(held).partition(|(node, _)| holders[&group].contains(node));
        for (node, (_, rows)) in outside {
            if !rows.is_empty() {
                let text = format!("A9: node {node} has {} rows of group {group}", rows.len());
                broken.push(Broken::new(text));
            }
        }
        compare(group, &inside, broken);
    }
}

type Rows = (String, Vec<Row>);

/// A node's rows of a group, and up to where they go.
fn rows(world: &World, node: NodeId, group: GroupId) -> Rows {
    let store = world.store(node);
    let marks = marks(store.as_ref()).unwrap_or_default();
    let mark = marks.into_iter().find(|(of, _)| *of == group.0).map(|(_, mark)| mark);
    let all = store.scan(KeyRange::all(), Order::Ascending, usize::MAX);
    let mut all = all.unwrap_or_default();
    all.retain(|row| row.key.starts_with(&group.0.to_be_bytes()));
    (format!("{mark:?}"), all)
}

fn compare(group: GroupId, held: &[(NodeId, Rows)], broken: &mut Vec<Broken>) {
    let Some((first, (mark, expected))) = held.first() else {
        return broken.push(Broken::new(format!("A9: nobody holds group {group}")));
    };
    if group != META_GROUP && expected.len() < ROWS_MIN {
        let text = format!("A9: node {first} has only {} rows of group {group}", expected.len());
        broken.push(Broken::new(text));
    }
    for (node, (other_mark, rows)) in &held[1..] {
        let differs = expected.iter().zip(rows).find(|(one, other)| one != other);
        let what = match differs {
            Some((one, other)) => format!("{one:?} {other:?}"),
            None if expected.len() != rows.len() => format!("{} {}", expected.len(), rows.len()),
            None if mark != other_mark => format!("{mark} {other_mark}"),
            None => continue,
        };
        let text = format!("A9: nodes {first} and {node} differ in group {group}: {what}");
        broken.push(Broken::new(text));
    }
}
