//! Brings about on this node what the meta group has recorded: which replicas it has, and who belongs to
//! the shards that it leads.

use std::collections::BTreeSet;
use std::time::Duration;

use piton_core::id::ShardId;
use piton_raft::{ChangeError, Group, NodeId, Removed};
use tokio::time::{Instant, timeout};

use crate::error::ShardError;
use crate::message::{NodeAnswer, NodeCall, NodeState, Placement};
use crate::meta::MetaState;
use crate::placement::serving::Serving;
use crate::placement::surplus::Surplus;
use crate::route::cluster::Cluster;

/// How often to look where nothing changes, and while something is under way.
const EVERY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(100);
/// How long a leader may take to say who belongs to its shard.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a node that drains tries to hand over before it looks after its other duties, and how often.
const GIVE_WAY_MAX: Duration = Duration::from_secs(1);
const GIVE_WAY_EVERY: Duration = Duration::from_secs(5);

/// A node's steward.
pub(super) struct Steward {
    cluster: Cluster,
    serving: Serving,
    surplus: Surplus,
    /// Replicas that were to be closed and are not forgotten yet.
    closing: BTreeSet<ShardId>,
    /// When it last handed over, while it drains or leaves.
    gave_way: Option<Instant>,
}

impl Steward {
    pub(super) fn new(cluster: Cluster, serving: Serving) -> Self {
        Self {
            cluster,
            serving,
            surplus: Surplus::default(),
            closing: BTreeSet::new(),
            gave_way: None,
        }
    }

    /// Works, until it is dropped.
    pub(super) async fn run(mut self) {
        let mut states = self.cluster.meta().watch();
        let mut duties = self.cluster.host().duties();
        loop {
            let state = states.borrow_and_update().clone();
            duties.borrow_and_update();
            self.give_way(&state).await;
            let is_done = self.look_after_replicas(&state).await & self.look_after_members().await;
            let pause = if is_done { EVERY } else { SOON };
            let news = async {
                tokio::select! {
                    _ = states.changed() => {}
                    _ = duties.changed() => {}
                }
            };
            let _ = timeout(pause, news).await;
        }
    }

    /// A node that is to lead nothing hands over what others can lead, all at once.
    // Not again and again: a leadership that does not pass to whom it is given costs an election.
    async fn give_way(&mut self, state: &MetaState) {
        let this = state.node(self.cluster.host().node()).map(|node| node.state);
        if this.is_none_or(|state| state == NodeState::Up) {
            self.gave_way = None;
        } else if self.gave_way.is_none_or(|gave| gave.elapsed() >= GIVE_WAY_EVERY) {
            self.gave_way = Some(Instant::now());
            self.cluster.hand_over_what_is_led(GIVE_WAY_MAX).await;
        }
    }

    /// Opens the replicas that this node is to have, and closes those that it is not to have any more.
    async fn look_after_replicas(&mut self, state: &MetaState) -> bool {
        let host = self.cluster.host().clone();
        let mut is_done = true;
        for placement in state.placements() {
            let shard = placement.shard;
            let is_here = host.replica(shard).is_some();
            let result = if placement.voters.contains(&host.node()) {
                self.surplus.forget(shard);
                self.closing.remove(&shard);
                if is_here { Ok(()) } else { self.open(shard).await }
            } else if self.closing.contains(&shard) || is_here && self.is_surplus(shard).await {
                self.close(shard).await
            } else {
                Ok(())
            };
            if let Err(error) = result {
                tracing::warn!(%shard, %error, "a replica is not as it is to be yet");
                is_done = false;
            }
        }
        is_done
    }

    async fn open(&self, shard: ShardId) -> Result<(), ShardError> {
        self.cluster.host().open(shard, None).await?;
        tracing::info!(%shard, "has a replica here from now on");
        self.serving.take_up(shard).await
    }

    async fn close(&mut self, shard: ShardId) -> Result<(), ShardError> {
        self.closing.insert(shard);
        self.serving.lay_down(shard).await;
        self.cluster.host().close(shard).await?;
        self.closing.remove(&shard);
        self.surplus.forget(shard);
        tracing::info!(%shard, "has no replica here any more");
        Ok(())
    }

    /// Whether the shard's leader has said for long enough that this node is no member of it, and still
    /// says so when it is asked.
    async fn is_surplus(&mut self, shard: ShardId) -> bool {
        let node = self.cluster.host().node();
        let sightings = self.cluster.sightings();
        let said = sightings.values().filter_map(|seen| {
            let said = seen.status.shards.get(&shard).filter(|said| said.serves)?;
            Some((said.term, seen.status.node, seen.heard, said.is_without(node)))
        });
        let newest = said.max_by_key(|(term, ..)| *term);
        let told = newest.map(|(_, _, heard, is_out)| (heard, is_out));
        if !self.surplus.note(shard, told, Instant::now()) {
            return false;
        }
        let Some((_, leader, ..)) = newest else { return false };
        let asked = self.cluster.ask_node(leader, NodeCall::Replica { shard });
        match timeout(PATIENCE, asked).await {
            Ok(Ok(NodeAnswer::Replica(said))) => said.is_without(node),
            answer => {
                tracing::debug!(%shard, %leader, ?answer, "a replica here is perhaps one too many");
                false
            }
        }
    }

    /// Makes the members of the shards that are led here those that they are to have.
    async fn look_after_members(&self) -> bool {
        let host = self.cluster.host();
        let led: Vec<ShardId> =
            host.shard_ids().filter(|shard| host.serving(*shard).is_some()).collect();
        let differs = |state: &MetaState, shard: &ShardId| {
            let group = host.replica(*shard).map(|replica| replica.group.clone())?;
            let placement = state.placement(*shard)?.clone();
            (!is_as_placed(&group, &placement)).then_some((group, placement))
        };
        let state = self.cluster.meta().state();
        for shard in &led {
            let here = host.replica(*shard).zip(state.placement(*shard));
            if let Some((_, placement)) = here.filter(|(r, p)| is_as_placed(&r.group, p)) {
                host.set_placed(*shard, placement.version);
            }
        }
        if led.iter().all(|shard| differs(&state, shard).is_none()) {
            return true;
        }
        // What was recorded before must not be brought back by a leader that has not heard of the rest.
        if self.cluster.meta().refresh().await.is_err() {
            return false;
        }
        let state = self.cluster.meta().state();
        let mut is_done = true;
        for (group, placement) in led.iter().filter_map(|shard| differs(&state, shard)) {
            let shard = placement.shard;
            if !self.has_been_opened(shard, &group, &placement.voters) {
                is_done = false;
                continue;
            }
            match bring_about(&group, &placement.voters, Removed::Leaves).await {
                Ok(()) => {
                    tracing::info!(%shard, voters = ?placement.voters, "has its voters");
                    host.set_placed(shard, placement.version);
                }
                Err(error) => {
                    tracing::debug!(%shard, %error, "does not have its voters yet");
                    is_done = false;
                }
            }
        }
        is_done
    }
}

impl Steward {
    /// Whether those who are to be filled have said that they have a replica, which would otherwise be
    /// sent for nothing. A node that is silent is filled when it comes back.
    fn has_been_opened(&self, shard: ShardId, group: &Group, voters: &BTreeSet<NodeId>) -> bool {
        let sightings = self.cluster.sightings();
        let members = group.members();
        voters.iter().all(|node| {
            let is_member = members.is_voter(*node) || members.learners.contains(node);
            let said = sightings.get(node).map(|seen| &seen.status.shards);
            is_member || said.is_some_and(|shards| shards.contains_key(&shard))
        })
    }
}

fn is_as_placed(group: &Group, placement: &Placement) -> bool {
    let members = group.members();
    members.voters == [placement.voters.clone()] && members.learners.is_empty()
}

/// Makes these nodes the voters of a group that is led here: fills those that are new first.
pub(super) async fn bring_about(
    group: &Group,
    voters: &BTreeSet<NodeId>,
    removed: Removed,
) -> Result<(), ChangeError> {
    for node in voters {
        group.add_learner(*node).await?;
    }
    group.set_voters(voters.clone(), removed).await?;
    if removed == Removed::Leaves {
        for node in group.members().learners {
            group.remove_learner(node).await?;
        }
    }
    Ok(())
}
