//! The duty of the meta group's leader: it looks what is missing, and records the next step.

use std::collections::BTreeSet;
use std::time::Duration;

use piton_raft::{ChangeError, Group, Removed};
use tokio::time::{Instant, timeout};

use crate::error::MetaError;
use crate::message::{NodeCall, NodeState, ReplicaStatus};
use crate::meta::{META_GROUP, MetaState};
use crate::placement::plan::{Seen, SeenShard, Step, meta_members, next_step};
use crate::placement::steward::bring_about;
use crate::route::cluster::Cluster;

/// How often the leader looks.
const EVERY: Duration = Duration::from_millis(500);
/// What a node said is believed for so long: it says it anew each second.
const FRESH: Duration = Duration::from_secs(3);
/// How long a node may take to hand a leadership over.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps, while this node leads the meta group, until it is dropped.
pub(super) async fn run(cluster: Cluster) {
    let Some(group) = cluster.host().groups().group(META_GROUP) else { return };
    let mut leadership = group.leadership();
    loop {
        if leadership.wait_for(|now| now.serving).await.is_err() {
            return;
        }
        let since = Instant::now();
        while leadership.borrow_and_update().serving {
            if let Err(error) = keep(&cluster, &group, since).await {
                tracing::debug!(error, "a step of the placement has to wait");
            }
            let _ = timeout(EVERY, leadership.changed()).await;
        }
    }
}

async fn keep(cluster: &Cluster, group: &Group, since: Instant) -> Result<(), String> {
    let state = cluster.meta().state();
    if state.nodes().next().is_none() {
        return Ok(());
    }
    let seen = see(cluster, &state, group, since);
    let text = |error: ChangeError| error.to_string();
    keep_meta_group(&state, &seen, group).await.map_err(text)?;
    match next_step(&state, &seen) {
        Some(step) => take(cluster, step).await,
        None => Ok(()),
    }
}

/// Every node has a replica of the meta group, and up to five vote.
async fn keep_meta_group(state: &MetaState, seen: &Seen, group: &Group) -> Result<(), ChangeError> {
    let now = group.members();
    let vote: BTreeSet<_> = now.voters.iter().flatten().copied().collect();
    let (voters, learners) = meta_members(state, seen, &vote);
    for node in &learners {
        group.add_learner(*node).await?;
    }
    if now.voters != [voters.clone()] {
        bring_about(group, &voters, Removed::Learns).await?;
    }
    for node in group.members().learners.difference(&learners) {
        group.remove_learner(*node).await?;
    }
    Ok(())
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
            behind: said.behind.clone(),
        };
        seen.shards.insert(shard, shard_seen);
    }
    seen.meta_voters = group.members().voters.into_iter().flatten().collect();
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
