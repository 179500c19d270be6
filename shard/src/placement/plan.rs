//! What to move next: a pure function of what is recorded and what is seen. One step at a time, so that
//! each is decided on what the last one came to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use piton_core::id::ShardId;
use piton_raft::NodeId;

use crate::message::{ClusterSettings, NodeState, Placement};
use crate::meta::MetaState;
use crate::route::nodes::BEHIND_MAX;
use crate::route::sightings::SILENT;

/// What is seen of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// How long ago each node was last heard of.
    pub(crate) silent_for: BTreeMap<NodeId, Duration>,
    /// What leaders say of their shards. One without a leader is not in it.
    pub(crate) shards: BTreeMap<ShardId, SeenShard>,
    /// Who votes in the meta group.
    pub(crate) meta_voters: BTreeSet<NodeId>,
    /// Nodes that say that they have replicas of shards.
    pub(crate) holding: BTreeSet<NodeId>,
    /// Nodes that are about to stop.
    pub(crate) stopping: BTreeSet<NodeId>,
    /// Nodes that have much in their logs to apply yet.
    pub(crate) applying: BTreeSet<NodeId>,
    /// Replicas that have stopped, and catch up with nothing any more.
    pub(crate) halted: BTreeSet<(NodeId, ShardId)>,
    /// How long a shard has not been held as it was placed.
    pub(crate) unfinished_for: BTreeMap<ShardId, Duration>,
    /// Shards whose leadership somebody was asked to hand over just now.
    pub(crate) asked_to_move: BTreeSet<ShardId>,
}

impl Seen {
    fn is_silent(&self, node: NodeId) -> bool {
        self.silent_for.get(&node).is_some_and(|time| *time >= SILENT)
    }

    fn is_heard(&self, node: NodeId) -> bool {
        self.silent_for.get(&node).is_some_and(|time| *time < HEARD)
    }

    /// Whether a node is busy with what it missed, of this shard or that: what it leads has to wait for it.
    fn catches_up(&self, node: NodeId) -> bool {
        let is_behind = |(shard, seen): (&ShardId, &SeenShard)| {
            let votes = seen.voters.contains(&node) && !self.halted.contains(&(node, *shard));
            votes && seen.behind.get(&node).is_some_and(|behind| *behind > BEHIND_MAX)
        };
        self.applying.contains(&node) || self.shards.iter().any(is_behind)
    }

    /// Whether a majority of these is there.
    fn can_decide(&self, voters: &BTreeSet<NodeId>) -> bool {
        let there = voters.iter().filter(|node| !self.is_silent(**node)).count();
        there > voters.len() / 2
    }

    /// Whether a change takes so long that the others no longer wait for it.
    pub(crate) fn is_overdue(&self, shard: ShardId) -> bool {
        self.unfinished_for.get(&shard).is_some_and(|time| *time >= OVERDUE_AFTER)
    }

    /// Whether somebody is to take this node's place since it is down.
    fn is_given_up(&self, node: NodeId, settings: &ClusterSettings) -> bool {
        let is_down = |time: &Duration| *time >= settings.down_after;
        settings.replaces_down && self.silent_for.get(&node).is_some_and(is_down)
    }
}

/// A shard as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenShard {
    pub(crate) leader: NodeId,
    /// Who votes; during a change, who voted before or will.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Who is filled, to become a voter or after it was one.
    pub(crate) learners: BTreeSet<NodeId>,
    pub(crate) is_changing: bool,
    /// The version of the placement that its leader has carried out last.
    pub(crate) placed: u64,
    /// Entries that each other voter has not acknowledged.
    pub(crate) behind: BTreeMap<NodeId, u64>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Record that a shard is to be held by these nodes.
    Place { shard: ShardId, expected: u64, voters: BTreeSet<NodeId> },
    /// Hand the leadership of a shard over.
    Lead { shard: ShardId, from: NodeId, to: NodeId },
    /// A node that was to leave holds nothing any more.
    Remove { node: NodeId },
}

/// A node that was heard of so lately may be given a leadership.
const HEARD: Duration = Duration::from_secs(2);

/// Other changes wait for one that is under way for so long.
const OVERDUE_AFTER: Duration = Duration::from_secs(300);

/// The placements that are not carried out yet.
pub(crate) fn unfinished(state: &MetaState, seen: &Seen) -> impl Iterator<Item = (ShardId, u64)> {
    let unfinished = state.placements().filter(|placement| !is_carried_out(seen, placement));
    unfinished.map(|placement| (placement.shard, placement.version))
}

// INVARIANT: its leader says so of this very version. Of a shard that was moved and put back at once the
// members are as placed while its leader still carries out what was recorded in between.
fn is_carried_out(seen: &Seen, placement: &Placement) -> bool {
    seen.shards.get(&placement.shard).is_some_and(|seen| {
        let is_settled = seen.learners.is_empty() && !seen.is_changing;
        seen.placed == placement.version && seen.voters == placement.voters && is_settled
    })
}

/// What to do next; `None`: all is as it is to be, or has to be waited for.
pub(crate) fn next_step(state: &MetaState, seen: &Seen) -> Option<Step> {
    state.nodes().next()?;
    let plan = Plan::new(state, seen);
    plan.record_what_is()
        .or_else(|| plan.vacate())
        .or_else(|| plan.remove())
        .or_else(|| plan.resize())
        .or_else(|| plan.spread_replicas())
        .or_else(|| plan.spread_leaders())
}

struct Plan<'a> {
    state: &'a MetaState,
    seen: &'a Seen,
    /// Nodes that may be given replicas, with how many they are to hold.
    loads: BTreeMap<NodeId, usize>,
    /// A change that was recorded is not carried out yet, and may well be soon.
    is_under_way: bool,
}

impl<'a> Plan<'a> {
    fn new(state: &'a MetaState, seen: &'a Seen) -> Self {
        let takes = state.nodes().filter(|n| n.state.takes_replicas() && !seen.is_silent(n.id));
        let mut loads: BTreeMap<NodeId, usize> = takes.map(|node| (node.id, 0)).collect();
        for node in state.placements().flat_map(|placement| &placement.voters) {
            if let Some(load) = loads.get_mut(node) {
                *load += 1;
            }
        }
        let mut plan = Self { state, seen, loads, is_under_way: false };
        plan.is_under_way = state.placements().any(|placement| {
            let is_stuck = placement.voters.iter().any(|node| plan.is_lost(*node))
                || seen.is_overdue(placement.shard);
            !is_stuck && !is_carried_out(seen, placement)
        });
        plan
    }

    /// Somebody has to take this node's place.
    fn is_lost(&self, node: NodeId) -> bool {
        self.leaves(node) || self.seen.is_given_up(node, self.state.settings())
    }

    fn leaves(&self, node: NodeId) -> bool {
        let state = self.state.node(node).map(|node| node.state);
        !matches!(state, Some(NodeState::Up | NodeState::Draining))
    }

    /// A shard that was placed by nobody is where it is.
    fn record_what_is(&self) -> Option<Step> {
        let unplaced = self.seen.shards.iter().find(|(shard, seen)| {
            let are_known = seen.voters.iter().all(|node| self.state.node(*node).is_some());
            self.state.placement(**shard).is_none() && !seen.is_changing && are_known
        });
        let (shard, seen) = unplaced?;
        Some(Step::Place { shard: *shard, expected: 0, voters: seen.voters.clone() })
    }

    /// Moves replicas away from nodes that leave, and from those that are given up.
    fn vacate(&self) -> Option<Step> {
        for placement in self.state.placements() {
            let Some(lost) = placement.voters.iter().copied().find(|node| self.is_lost(*node))
            else {
                continue;
            };
            if self.is_under_way {
                return None;
            }
            let mut voters = placement.voters.clone();
            voters.remove(&lost);
            match self.best_addition(&voters) {
                Some(node) => _ = voters.insert(node),
                // Nobody takes its place. One that is merely silent may come back.
                None if !self.leaves(lost) || voters.is_empty() => continue,
                None => {}
            }
            if let Some(step) = self.place(placement, voters) {
                return Some(step);
            }
        }
        None
    }

    /// Records these voters, where the change cannot leave the shard without a majority: neither those
    /// of before nor the new ones may be short of nodes that are heard.
    fn place(&self, placement: &Placement, voters: BTreeSet<NodeId>) -> Option<Step> {
        let is_sound = self.seen.can_decide(&placement.voters) && self.seen.can_decide(&voters);
        let (shard, expected) = (placement.shard, placement.version);
        let is_new = voters != placement.voters;
        (is_new && is_sound).then_some(Step::Place { shard, expected, voters })
    }

    fn remove(&self) -> Option<Step> {
        let leaving = self.state.nodes().filter(|node| node.state == NodeState::Leaving);
        let holds = |node: NodeId| {
            let is_placed = self.state.placements().any(|p| p.voters.contains(&node));
            let mut shards = self.seen.shards.values();
            let votes = self.seen.meta_voters.contains(&node);
            let says_so = self.seen.holding.contains(&node) && !self.seen.is_silent(node);
            is_placed
                || votes
                || says_so
                || shards.any(|s| s.voters.contains(&node) || s.learners.contains(&node))
        };
        let all_seen = self.state.routes().iter().all(|r| self.seen.shards.contains_key(&r.shard));
        let mut leaving = leaving.map(|node| node.id).filter(|node| all_seen && !holds(*node));
        leaving.next().map(|node| Step::Remove { node })
    }

    /// Gives shards as many replicas as they are to have. Never an even number if one more is to be
    /// had: it outlives no more losses than one less, and needs more nodes to agree.
    fn resize(&self) -> Option<Step> {
        if self.is_under_way {
            return None;
        }
        let wanted = self.state.settings().replicas as usize;
        for placement in self.state.placements() {
            let mut voters = placement.voters.clone();
            let others = self.loads.keys().filter(|node| !voters.contains(node)).count();
            let target = odd_at_most(wanted.min(voters.len() + others));
            while voters.len() < target {
                voters.insert(self.best_addition(&voters)?);
            }
            while voters.len() > wanted {
                voters.remove(&self.best_removal(&voters)?);
            }
            if let Some(step) = self.place(placement, voters) {
                return Some(step);
            }
        }
        None
    }

    /// Moves one replica from a node that holds most to one that holds least, or into a zone that its
    /// shard is not in yet. Not while a node is silent: its shards have no replica to spare.
    fn spread_replicas(&self) -> Option<Step> {
        let mut members = self.state.nodes().filter(|node| node.state.is_member());
        let is_paused = self.state.settings().is_rebalancing_paused;
        if self.is_under_way || is_paused || members.any(|node| self.seen.is_silent(node.id)) {
            return None;
        }
        // What is overdue is where it was to be by now, as far as is known: nothing is moved on from there.
        // Nor is the only replica there is, where a shard is to have more: it gets them as soon as there are
        // nodes for them, and moved before that, all rests on a node that has just come.
        let replicas = self.state.settings().replicas;
        let is_lone = |placement: &Placement| placement.voters.len() == 1 && replicas > 1;
        let placements = self.state.placements();
        for placement in placements.filter(|p| !self.seen.is_overdue(p.shard) && !is_lone(p)) {
            for from in &placement.voters {
                let mut others = placement.voters.clone();
                others.remove(from);
                let Some(to) = self.best_addition(&others).filter(|to| to != from) else {
                    continue;
                };
                if placement.voters.contains(&to) || !self.is_better(&others, to, *from) {
                    continue;
                }
                others.insert(to);
                if let Some(step) = self.place(placement, others) {
                    return Some(step);
                }
            }
        }
        None
    }

    /// Whether a replica beside these is worth being moved.
    fn is_better(&self, others: &BTreeSet<NodeId>, to: NodeId, from: NodeId) -> bool {
        let zones = |node| self.shared_zones(others, node);
        if zones(to) != zones(from) {
            return zones(to) < zones(from);
        }
        // One who takes no more is left where it is, until it leaves.
        let load = |node: NodeId| self.loads.get(&node).copied();
        matches!((load(to), load(from)), (Some(to), Some(from)) if to + 2 <= from)
    }

    /// Hands over leaderships of nodes that are to lead nothing, then of those that lead most.
    fn spread_leaders(&self) -> Option<Step> {
        let mut led: BTreeMap<NodeId, usize> = self.loads.keys().map(|node| (*node, 0)).collect();
        for seen in self.seen.shards.values() {
            if let Some(led) = led.get_mut(&seen.leader) {
                *led += 1;
            }
        }
        let mut best = None;
        // One that was asked in vain may have its reasons. The others do not wait for it.
        let shards = self.seen.shards.iter();
        for (shard, seen) in shards.filter(|(shard, _)| !self.seen.asked_to_move.contains(shard)) {
            // A node that may not lead leads more than anybody.
            let from = led.get(&seen.leader).copied().unwrap_or(usize::MAX);
            let is_urgent = from == usize::MAX;
            // Who is not heard, or would have to catch up first, only stops the shard.
            let can_lead = |to: &&NodeId| {
                let behind = seen.behind.get(to).copied().unwrap_or(u64::MAX);
                let stops = self.seen.stopping.contains(to);
                **to != seen.leader && !stops && self.seen.is_heard(**to) && behind <= BEHIND_MAX
            };
            let candidates = seen.voters.iter().filter(can_lead).filter_map(|to| {
                let is_busy = self.seen.catches_up(*to);
                let may_lead = !is_busy || is_urgent;
                may_lead.then_some((is_busy, *led.get(to)?, *to))
            });
            let Some((_, count, to)) = candidates.min() else { continue };
            let is_due = is_urgent || !self.state.settings().is_rebalancing_paused;
            if is_due && !seen.is_changing && count + 2 <= from {
                let step = Step::Lead { shard: *shard, from: seen.leader, to };
                if best.as_ref().is_none_or(|(most, _)| *most < from) {
                    best = Some((from, step));
                }
            }
        }
        best.map(|(_, step)| step)
    }

    /// The best node to hold a replica beside these: in a zone of its own, then with the least to hold.
    fn best_addition(&self, beside: &BTreeSet<NodeId>) -> Option<NodeId> {
        let free = self.loads.iter().filter(|(node, _)| !beside.contains(node));
        free.min_by_key(|(node, load)| (self.shared_zones(beside, **node), **load)).map(|(n, _)| *n)
    }

    fn best_removal(&self, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
        let cost = |node: &NodeId| {
            let mut others = voters.clone();
            others.remove(node);
            let state = self.state.node(*node).map(|node| node.state);
            let is_silent = self.seen.is_silent(*node);
            let is_spare = (self.is_lost(*node), is_silent, state != Some(NodeState::Up));
            (is_spare, self.shared_zones(&others, *node), self.loads.get(node).copied())
        };
        voters.iter().max_by_key(|node| cost(node)).copied()
    }

    /// How many of these lie in the node's zone.
    fn shared_zones(&self, others: &BTreeSet<NodeId>, node: NodeId) -> usize {
        let zone = |node: &NodeId| self.state.node(*node).map_or("", |node| node.zone.as_str());
        let own = zone(&node);
        if own.is_empty() { 0 } else { others.iter().filter(|other| zone(other) == own).count() }
    }
}

/// Voters of the meta group: so many, where there are enough nodes.
const META_VOTERS: usize = 5;

/// Who is to vote in the meta group, and who is to have a replica beside: every other node, so that each
/// reads it locally (D2).
pub(crate) fn meta_members(
    state: &MetaState,
    seen: &Seen,
    voters: &BTreeSet<NodeId>,
) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let members = || state.nodes().filter(|node| node.state.is_member());
    // One that leaves has to see where its replicas go.
    let stay = members().filter(|node| node.state != NodeState::Leaving).map(|node| node.id);
    let stay: BTreeSet<NodeId> = stay.collect();
    let plan = Plan::new(state, seen);
    let (kept, given_up): (BTreeSet<_>, BTreeSet<_>) = voters
        .intersection(&stay)
        .copied()
        .partition(|node| !seen.is_given_up(*node, state.settings()));
    let before = voters;
    let mut voters = kept;
    let free = plan.loads.keys().filter(|node| !voters.contains(node)).count();
    let target = odd_at_most(META_VOTERS.min(voters.len() + free + given_up.len()));
    while voters.len() < target {
        let free = plan.loads.keys().filter(|node| !voters.contains(node));
        let best = free.min_by_key(|node| plan.shared_zones(&voters, **node));
        // One that was given up stays where nobody takes its place.
        let next = best.or_else(|| given_up.difference(&voters).next()).copied();
        let Some(next) = next else { break };
        voters.insert(next);
    }
    if !seen.can_decide(before) || !seen.can_decide(&voters) {
        voters.clone_from(before);
    }
    let learners = members().map(|node| node.id).filter(|node| !voters.contains(node)).collect();
    (voters, learners)
}

fn odd_at_most(count: usize) -> usize {
    if count.is_multiple_of(2) { count.saturating_sub(1) } else { count }
}

#[cfg(test)]
mod tests;
