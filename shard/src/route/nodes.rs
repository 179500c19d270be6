//! What nodes ask of each other as nodes: how each of them is, who leads the meta group, that a leadership
//! be handed over. Whoever is asked looks for itself whether that does harm: who asks knows less of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use piton_core::id::ShardId;
use piton_raft::{Group, Members, NodeId};
use tokio::time::Instant;

use crate::error::{MetaError, ShardError};
use crate::message::{NodeAnswer, NodeCall, NodeHealth, NodeStatus, ReplicaStatus};
use crate::meta::META_GROUP;
use crate::release::feature_level;
use crate::route::cluster::Cluster;
use crate::route::leaders::Leader;
use crate::route::sightings::{SILENT, Sighting};

/// Who is to lead must have been heard of within this time.
const HEARD: Duration = Duration::from_secs(1);
/// Who is to lead may have so many entries to catch up with: some 0.1 s.
pub(crate) const BEHIND_MAX: u64 = 200;
/// How long a leader may take to commit what it had when it was asked for its members.
const COMMIT_WAIT: Duration = Duration::from_secs(1);
/// How often it looks.
const COMMIT_LOOK: Duration = Duration::from_millis(10);

impl Cluster {
    /// Answers what another node, or this one, asks of this node.
    ///
    /// # Errors
    /// See [`MetaError`].
    pub async fn answer_node(&self, from: NodeId, call: NodeCall) -> Result<NodeAnswer, MetaError> {
        match call {
            NodeCall::Meta(call) => self.meta().answer(call).await.map(NodeAnswer::Version),
            NodeCall::Status(status) => {
                self.believe(from, *status)?;
                Ok(NodeAnswer::Status(Box::new(self.status())))
            }
            NodeCall::Lead { shard, to } => {
                self.check_member(from)?;
                self.hand_over_to(shard, to).await?;
                Ok(NodeAnswer::Done)
            }
            NodeCall::Replica { shard } => {
                self.leading_replica(shard).await.map(|said| NodeAnswer::Replica(Box::new(said)))
            }
        }
    }

    /// What this node says of itself.
    pub fn status(&self) -> NodeStatus {
        let host = self.host();
        let replica = |shard| {
            let status = status_of(&host.replica(shard)?.group);
            let serves = status.serves && !host.is_alone(shard);
            let placed = if serves { host.placed(shard) } else { 0 };
            Some((shard, ReplicaStatus { serves, placed, ..status }))
        };
        let meta = host.groups().group(META_GROUP);
        NodeStatus {
            node: host.node(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            level: feature_level(),
            meta_version: self.meta().state().version,
            clock: host.clock().now(),
            meta: meta.map_or_else(ReplicaStatus::default, |meta| status_of(&meta)),
            shards: host.shard_ids().filter_map(replica).collect(),
            leads_nothing: host.leads_nothing(),
            clock_ahead: host.clock_ahead(),
            stopped: host.stopped(),
        }
    }

    /// Asks a node something that is not about its shards, this one among them.
    ///
    /// # Errors
    /// What it answers; see [`MetaError`].
    pub async fn ask_node(&self, node: NodeId, call: NodeCall) -> Result<NodeAnswer, MetaError> {
        let this = self.host().node();
        if node == this {
            return self.answer_node(this, call).await;
        }
        self.host().peer().node(node, call).await
    }

    /// Takes a snapshot of this node's replica of a shard, and says up to which index it holds.
    ///
    /// # Errors
    /// When there is none, or it cannot be taken.
    pub async fn snapshot(&self, shard: ShardId) -> Result<u64, ShardError> {
        let replica = self.host().replica(shard);
        let replica = replica
            .ok_or_else(|| ShardError::Unavailable(format!("this node has no shard {shard}")))?;
        let taken = replica.group.snapshot_now().await;
        taken.map_err(|error| ShardError::Unavailable(error.to_string()))
    }

    /// Who is no node of the cluster, or speaks of another one, is not believed.
    fn believe(&self, from: NodeId, status: NodeStatus) -> Result<(), MetaError> {
        if status.node != from {
            let text = format!("Node {from} says how node {} is.", status.node);
            return Err(MetaError::Invalid(text));
        }
        self.check_member(from)?;
        self.hear(status);
        Ok(())
    }

    fn check_member(&self, node: NodeId) -> Result<(), MetaError> {
        if self.members().contains(&node) {
            return Ok(());
        }
        let text = format!("Node {node} is none of this cluster, as far as is known here.");
        Err(MetaError::Invalid(text))
    }

    pub(crate) fn members(&self) -> BTreeSet<NodeId> {
        let state = self.meta().state();
        state.nodes().filter(|node| node.state.is_member()).map(|node| node.id).collect()
    }

    /// A node has said how it is: with it comes who leads.
    pub(crate) fn hear(&self, status: NodeStatus) {
        for (shard, replica) in status.shards.iter().filter(|(_, replica)| replica.serves) {
            let now = Leader { term: replica.term, leader: Some(status.node) };
            self.host().leaders().hear(*shard, now);
        }
        self.host().sightings().hear(status, &self.members());
    }

    /// What the nodes of the cluster said of themselves last.
    pub fn sightings(&self) -> BTreeMap<NodeId, Sighting> {
        self.host().sightings().all()
    }

    /// How a node is, as far as it can be heard from here.
    pub fn health(&self, node: NodeId) -> NodeHealth {
        if node == self.host().node() {
            return NodeHealth::Heard;
        }
        let silent_for = self.host().sightings().last_heard(node).elapsed();
        health_after(silent_for, self.meta().state().settings().down_after)
    }

    /// Whether waiting for a leader is of no use: this node is about to end, or hears of less than a majority
    /// of the cluster, so that it will not hear of a new leader either.
    pub(crate) fn is_in_vain(&self, began: Instant) -> bool {
        let host = self.host();
        if host.log_has_failed() {
            return true;
        }
        if began.elapsed() < host.config().cut_off_wait {
            return false;
        }
        let members = self.members();
        let (this, limit) = (host.node(), host.config().cut_off_after);
        let is_heard =
            |node: &NodeId| *node == this || host.sightings().last_heard(*node).elapsed() < limit;
        let heard = members.iter().filter(|node| is_heard(node)).count();
        !members.is_empty() && heard <= members.len() / 2
    }

    fn group_of(&self, shard: ShardId) -> Result<Group, MetaError> {
        let host = self.host();
        let replica = host.has(shard).then(|| host.replica(shard)).flatten();
        let replica = replica.ok_or(MetaError::NotLed { leader: None })?;
        Ok(replica.group.clone())
    }

    /// Hands the leadership of a shard to another of its voters, if that one can take it up at once.
    ///
    /// # Errors
    /// [`MetaError::NotLed`] where this node does not lead the shard, [`MetaError::Invalid`] where the
    /// other one cannot, [`MetaError::Unavailable`] where it did not.
    // INVARIANT: nobody is made the leader who is silent or far behind: the shard would stand still until
    // it has caught up, or until the next election. What others have seen of it may be seconds old.
    pub async fn hand_over_to(&self, shard: ShardId, to: NodeId) -> Result<(), MetaError> {
        let group = self.group_of(shard)?;
        let leader = group.leadership().borrow().leader;
        if leader == Some(to) {
            return Ok(());
        }
        if leader != Some(self.host().node()) {
            return Err(MetaError::NotLed { leader });
        }
        let refused = |why: &str| {
            MetaError::Invalid(format!("Shard {shard} is not handed over to node {to}: {why}."))
        };
        behind_of_successor(&group, to).map_err(refused)?;
        // It may have been heard by the connection that has just ended with its process.
        if !group.is_connected(to) {
            return Err(refused("there is no connection to it"));
        }
        let others = self.successors(&group).into_iter().filter(|other| *other != to);
        let successors: Vec<NodeId> = [to].into_iter().chain(others).collect();
        let leader = group.transfer_leader(&successors).await;
        if leader == Some(to) {
            return Ok(());
        }
        let leads = leader.map_or("nobody".to_owned(), |leader| format!("node {leader}"));
        let text = format!("node {to} has not taken over shard {shard}; {leads} leads it now");
        Err(MetaError::Unavailable(text))
    }

    /// How this node sees a shard that it leads. The members are those of a committed entry.
    async fn leading_replica(&self, shard: ShardId) -> Result<ReplicaStatus, MetaError> {
        let group = self.group_of(shard)?;
        let before = status_of(&group);
        // ORDER: what it has in its log, the members among it, is committed before they are told. A change
        // that comes to nothing would give back its vote to a replica that has been closed by then.
        let until = Instant::now() + COMMIT_WAIT;
        loop {
            let now = status_of(&group);
            if !now.serves || now.term != before.term {
                return Err(MetaError::NotLed { leader: now.leader });
            }
            if now.committed_index >= before.last_index {
                let unavailable = |error| MetaError::Unavailable(format!("{error}"));
                group.read_index().await.map_err(unavailable)?;
                let after = status_of(&group);
                let members = |said: &ReplicaStatus| {
                    (said.voters.clone(), said.learners.clone(), said.is_changing)
                };
                if after.term == before.term && members(&after) == members(&before) {
                    return Ok(after);
                }
                let text = format!("the members of shard {shard} are changing");
                return Err(MetaError::Unavailable(text));
            }
            if Instant::now() >= until {
                let text = format!("shard {shard} cannot commit at the moment");
                return Err(MetaError::Unavailable(text));
            }
            tokio::time::sleep(COMMIT_LOOK).await;
        }
    }
}

/// A replica as this node sees it.
pub(crate) fn status_of(group: &Group) -> ReplicaStatus {
    // ORDER: the members before the metrics, so that the entry that made them is not behind the last one.
    let Members { voters, learners } = group.members();
    let metrics = group.metrics();
    let leadership = *group.leadership().borrow();
    let all: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
    let others = all.iter().chain(&learners).copied();
    let behind = |node| Some((node, group.lag(node)?.entries));
    let behind: BTreeMap<NodeId, u64> =
        if metrics.is_leader { others.filter_map(behind).collect() } else { BTreeMap::new() };
    ReplicaStatus {
        term: leadership.term,
        leader: leadership.leader,
        serves: leadership.serving,
        is_changing: voters.len() > 1,
        placed: 0,
        voters: all,
        learners,
        last_index: metrics.last_index,
        committed_index: metrics.committed_index,
        applied_index: metrics.applied_index,
        snapshot_index: metrics.snapshot_index,
        behind,
    }
}

/// By how many entries a voter is behind that can take up the leadership at once.
///
/// # Errors
/// Why it cannot, in words.
pub(crate) fn behind_of_successor(group: &Group, to: NodeId) -> Result<u64, &'static str> {
    if !group.members().is_voter(to) {
        return Err("it is no voter of it");
    }
    if group.last_heard(to).is_none_or(|ago| ago >= HEARD) {
        return Err("it is silent");
    }
    let behind = group.lag(to).map(|lag| lag.entries).filter(|behind| *behind <= BEHIND_MAX);
    behind.ok_or("it is far behind")
}

fn health_after(silent_for: Duration, down_after: Duration) -> NodeHealth {
    if silent_for < SILENT {
        NodeHealth::Heard
    } else if silent_for < down_after {
        NodeHealth::Silent
    } else {
        NodeHealth::Down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_silent_for_as_long_as_the_settings_say_is_down() {
        let health =
            |seconds| health_after(Duration::from_secs(seconds), Duration::from_secs(600)).name();
        assert_eq!([0, 4, 5, 599, 600].map(health), ["heard", "heard", "silent", "silent", "down"]);
    }
}
