//! The duty of the meta group's leader: it looks what is missing, and records the next step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use piton_core::id::ShardId;
use piton_raft::{ChangeError, Group, Removed};
use tokio::time::{Instant, timeout};

use crate::error::MetaError;
use crate::message::{NodeCall, NodeState, ReplicaStatus};
use crate::meta::{META_GROUP, MetaState};
use crate::placement::plan::{Seen, SeenShard, Step, meta_members, next_step, unfinished};
use crate::placement::steward::bring_about;
use crate::route::cluster::Cluster;
use crate::route::nodes::BEHIND_MAX;

/// How often the leader looks.
const EVERY: Duration = Duration::from_millis(500);
/// What a node said is believed for so long: it says it anew each second.
const FRESH: Duration = Duration::from_secs(3);
/// How long a node may take to hand a leadership over.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the meta group may take to change its members: the shards do not wait for it any longer.
const META_PATIENCE: Duration = Duration::from_secs(5);
/// A leadership that was asked for in vain is asked for again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Keeps, while this node leads the meta group, until it is dropped.
pub(super) async fn run(cluster: Cluster) {
    let Some(group) = cluster.host().groups().group(META_GROUP) else { return };
    let mut leadership = group.leadership();
    loop {
        if leadership.wait_for(|now| now.serving).await.is_err() {
            return;
        }
        let mut keeper = Keeper {
            cluster: cluster.clone(),
            group: group.clone(),
            since: Instant::now(),
            unfinished: BTreeMap::new(),
            asked: BTreeMap::new(),
        };
        while leadership.borrow_and_update().serving {
            if let Err(error) = keeper.keep().await {
                tracing::debug!(error, "a step of the placement has to wait");
            }
            let _ = timeout(EVERY, leadership.changed()).await;
        }
        cluster.host().metrics().placements_overdue(0);
    }
}

/// One term of the meta group's leader.
struct Keeper {
    cluster: Cluster,
    group: Group,
    since: Instant,
    /// Placements that are not carried out: their version, since when, and whether that was said.
    unfinished: BTreeMap<ShardId, (u64, Instant, bool)>,
    /// When a shard's leadership was last asked to be handed over.
    asked: BTreeMap<ShardId, Instant>,
}

impl Keeper {
    async fn keep(&mut self) -> Result<(), String> {
        let state = self.cluster.meta().state();
        if state.nodes().next().is_none() {
            return Ok(());
        }
        let mut seen = see(&self.cluster, &state, &self.group, self.since);
        self.note_unfinished(&state, &mut seen);
        self.asked.retain(|_, asked| asked.elapsed() < ASK_AGAIN);
        seen.asked_to_move = self.asked.keys().copied().collect();
        // A change of its members that does not come to an end must not keep the shards where they are.
        let kept = timeout(META_PATIENCE, keep_meta_group(&state, &seen, &self.group)).await;
        if !matches!(kept, Ok(Ok(()))) {
            tracing::debug!(?kept, "the meta group does not have its members yet");
        }
        let Some(step) = next_step(&state, &seen) else { return Ok(()) };
        if let Step::Lead { shard, .. } = step {
            self.asked.insert(shard, Instant::now());
        }
        take(&self.cluster, step).await
    }

    /// Since when which placement has not been carried out. One that takes too long is said once.
    fn note_unfinished(&mut self, state: &MetaState, seen: &mut Seen) {
        let now: BTreeMap<ShardId, u64> = unfinished(state, seen).collect();
        self.unfinished.retain(|shard, (version, ..)| now.get(shard) == Some(version));
        for (shard, version) in now {
            let begun = self.unfinished.entry(shard).or_insert((version, Instant::now(), false));
            seen.unfinished_for.insert(shard, begun.1.elapsed());
            if seen.is_overdue(shard) && !std::mem::replace(&mut begun.2, true) {
                let placed = state.placement(shard).map(|placement| &placement.voters);
                let held = seen.shards.get(&shard).map(|seen| &seen.voters);
                tracing::warn!(%shard, ?placed, ?held, "a shard is not held as recorded for long");
            }
        }
        let overdue = self.unfinished.keys().filter(|shard| seen.is_overdue(**shard)).count();
        self.cluster.host().metrics().placements_overdue(overdue);
    }
}

/// Every node has a replica of the meta group, and up to five vote.
async fn keep_meta_group(state: &MetaState, seen: &Seen, group: &Group) -> Result<(), ChangeError> {
    let now = group.members();
    let vote: BTreeSet<_> = now.voters.iter().flatten().copied().collect();
    let (voters, learners) = meta_members(state, seen, &vote);
    // One node that cannot be taken in keeps no other one out.
    let mut kept = Ok(());
    for node in &learners {
        kept = kept.and(group.add_learner(*node).await);
    }
    if now.voters != [voters.clone()] {
        kept = kept.and(bring_about(group, &voters, Removed::Learns).await);
    }
    for node in group.members().learners.difference(&learners) {
        kept = kept.and(group.remove_learner(*node).await);
    }
    kept
}

/// What the nodes have said, as the plan wants to know it.
fn see(cluster: &Cluster, state: &MetaState, group: &Group, since: Instant) -> Seen {
    let sightings = cluster.sightings();
    let mut seen = Seen::default();
    for node in state.nodes().filter(|node| node.state.is_member()) {
        // A new leader gives everybody the time to be heard.
        let heard = sightings.get(&node.id).map_or(since, |sighting| sighting.heard.max(since));
        seen.silent_for.insert(node.id, heard.elapsed());
    }
    let said = |shard| {
        let fresh = sightings.values().filter(|seen| seen.heard.elapsed() < FRESH);
        let said = fresh.filter_map(|seen| {
            let said: &ReplicaStatus = seen.status.shards.get(&shard)?;
            said.serves.then_some((said.term, seen.status.node, said))
        });
        said.max_by_key(|(term, ..)| *term)
    };
    for shard in cluster.host().shard_ids() {
        let Some((_, leader, said)) = said(shard) else { continue };
        let shard_seen = SeenShard {
            leader,
            voters: said.voters.clone(),
            learners: said.learners.clone(),
            is_changing: said.is_changing,
            placed: said.placed,
            behind: said.behind.clone(),
        };
        seen.shards.insert(shard, shard_seen);
    }
    seen.meta_voters = group.members().voters.into_iter().flatten().collect();
    let stopping = sightings.values().filter(|sighting| sighting.status.leads_nothing);
    seen.stopping = stopping.map(|sighting| sighting.status.node).collect();
    let applying = sightings.values().filter(|sighting| {
        let mut shards = sighting.status.shards.values();
        shards.any(|shard| shard.last_index.saturating_sub(shard.applied_index) > BEHIND_MAX)
    });
    seen.applying = applying.map(|sighting| sighting.status.node).collect();
    let halted = sightings.values().flat_map(|sighting| {
        let stopped = sighting.status.stopped.keys().flatten();
        stopped.map(|shard| (sighting.status.node, *shard))
    });
    seen.halted = halted.collect();
    let holding = sightings.values().filter(|sighting| !sighting.status.shards.is_empty());
    seen.holding = holding.map(|sighting| sighting.status.node).collect();
    seen
}

async fn take(cluster: &Cluster, step: Step) -> Result<(), String> {
    tracing::info!(?step, "next step of the placement");
    let text = |error: MetaError| error.to_string();
    match step {
        Step::Place { shard, expected, voters } => {
            cluster.meta().place(shard, expected, voters).await.map_err(text)
        }
        Step::Remove { node } => {
            cluster.meta().set_node_state(node, NodeState::Removed).await.map_err(text)
        }
        Step::Lead { shard, from, to } => {
            let asked = cluster.ask_node(from, NodeCall::Lead { shard, to });
            let answered = timeout(PATIENCE, asked).await;
            answered.map_err(|_| format!("node {from} does not answer"))?.map(drop).map_err(text)
        }
    }
}
