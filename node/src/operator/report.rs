//! The cluster as one node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use piton_core::id::ShardId;
use piton_raft::NodeId;
use piton_shard::{Cluster, NodeRecord, NodeState, NodeStatus, ReplicaStatus, Sighting};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A node is a number of 64 bits, which JSON's readers would round: it is written in hexadecimal.
pub fn write_id(node: NodeId) -> String {
    format!("{:016x}", node.0)
}

/// What a node says of itself is believed for so long: it says it anew each second.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// The meta group's name among those of shards.
const META: &str = "meta";

/// All that a node knows of its cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    pub cluster: String,
    /// The node that says so.
    pub told_by: String,
    /// The feature level: what every node may write.
    pub level: u32,
    /// Replicas that each shard is to have, where there are enough nodes.
    pub replicas: u32,
    pub is_rebalancing_paused: bool,
    pub nodes: Vec<NodeReport>,
    /// The group that records nodes, placements and namespaces.
    pub meta: ShardReport,
    pub shards: Vec<ShardReport>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub id: String,
    /// up, draining, leaving or removed.
    pub state: String,
    /// heard, silent, or down: silent for as long as the cluster's settings say.
    pub health: String,
    /// How long ago it was last heard of; `None`: not since the node that is asked started.
    pub silent_ms: Option<u64>,
    pub peer: String,
    pub api: String,
    pub http: String,
    pub zone: String,
    pub release: Option<String>,
    /// The highest feature level that it knows.
    pub level: u32,
    /// By how much its clock is ahead of most others'; `None`: it could not be compared.
    pub clock_ahead_ms: Option<i64>,
    /// Groups that it cannot go on with, and why.
    pub stopped: BTreeMap<String, String>,
    /// Shards that it leads, and of which it has a replica.
    pub leads: u32,
    pub holds: u32,
    pub leads_meta: bool,
}

/// A shard, as its leader sees it; without one, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    pub name: String,
    pub leader: Option<String>,
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// Entries since the last snapshot are replayed at a start.
    pub snapshot_index: u64,
    pub members: Vec<MemberReport>,
    /// Where it is to be; empty where that is not recorded yet.
    pub placed: Vec<String>,
    /// Members are being changed.
    pub is_changing: bool,
}

/// A replica of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    pub node: String,
    pub role: ReplicaRole,
    /// Entries that it has not acknowledged; `None`: nobody knows.
    pub behind: Option<u64>,
}

/// What a replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaRole {
    Leader,
    Voter,
    /// It is being filled.
    Learner,
}

impl ShardReport {
    /// Whether it is led, held where it is to be, and every replica has all but what is on its way.
    pub fn is_whole(&self, behind_max: u64) -> bool {
        let voters = self.members.iter().filter(|member| member.role != ReplicaRole::Learner);
        let held: BTreeSet<&str> = voters.map(|member| member.node.as_str()).collect();
        let placed: BTreeSet<&str> = self.placed.iter().map(String::as_str).collect();
        // Nodes that have no vote in the meta group have a copy of it all the same (D2).
        let has_all_votes = held.len() == self.members.len() || self.name == META;
        let is_current = |member: &MemberReport| member.behind.is_some_and(|b| b <= behind_max);
        self.leader.is_some()
            && !self.is_changing
            && held == placed
            && has_all_votes
            && self.members.iter().all(is_current)
    }
}

impl ClusterReport {
    /// The node of that id, as reports write it.
    pub fn node(&self, id: &str) -> Option<&NodeReport> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// How many replicas a shard is to have, where it was given fewer so far: as many as are set and as there
    /// are nodes for, and always an odd number.
    pub fn lacks_replicas(&self, shard: &ShardReport) -> Option<usize> {
        let takers = self.nodes.iter().filter(|node| node.state == NodeState::Up.name()).count();
        let possible = takers.min(self.replicas as usize);
        let wanted = if possible.is_multiple_of(2) { possible.saturating_sub(1) } else { possible };
        (shard.name != META && shard.placed.len() < wanted).then_some(wanted)
    }

    /// What this node knows.
    pub(crate) fn of(cluster: &Cluster, cluster_id: &str) -> Self {
        let state = cluster.meta().state();
        let sightings = cluster.sightings();
        let now = Instant::now();
        let nodes = state.nodes().map(|node| NodeReport {
            health: cluster.health(node.id).name().to_owned(),
            ..node_report(node, sightings.get(&node.id), now)
        });
        let mut nodes: Vec<NodeReport> = nodes.collect();
        let shards = state.routes().iter().map(|route| {
            let placement = state.placement(route.shard);
            let placed = placement.map(|placement| placement.voters.clone()).unwrap_or_default();
            let said = leader_of(&sightings, |status| status.shards.get(&route.shard));
            shard_report(route.shard.to_string(), said, placed)
        });
        let shards: Vec<ShardReport> = shards.collect();
        let meta = leader_of(&sightings, |status| Some(&status.meta));
        // It is placed nowhere: it is where its leader says.
        let held = meta.map(|(_, said)| said.voters.clone()).unwrap_or_default();
        let meta = shard_report(META.to_owned(), meta, held);
        for node in &mut nodes {
            let led = shards.iter().filter(|shard| shard.leader.as_ref() == Some(&node.id));
            node.leads = led.count() as u32;
            node.leads_meta = meta.leader.as_ref() == Some(&node.id);
        }
        let settings = state.settings();
        Self {
            cluster: cluster_id.to_owned(),
            told_by: write_id(cluster.host().node()),
            level: settings.level,
            replicas: settings.replicas,
            is_rebalancing_paused: settings.is_rebalancing_paused,
            nodes,
            meta,
            shards,
        }
    }
}

fn node_report(node: &NodeRecord, seen: Option<&Sighting>, now: Instant) -> NodeReport {
    let silent = seen.map(|seen| now.saturating_duration_since(seen.heard));
    let status = seen.map(|seen| &seen.status);
    let stopped = status.iter().flat_map(|status| &status.stopped);
    let name = |shard: &Option<ShardId>| shard.map_or_else(|| META.to_owned(), |s| s.to_string());
    NodeReport {
        id: write_id(node.id),
        state: node.state.name().to_owned(),
        health: String::new(),
        silent_ms: silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        peer: node.peer_address.clone(),
        api: node.api_address.clone(),
        http: node.http_address.clone(),
        zone: node.zone.clone(),
        release: status.map(|status| status.release.clone()),
        level: node.level,
        clock_ahead_ms: status.and_then(|status| Some(status.clock_ahead?.as_millis())),
        stopped: stopped.map(|(shard, why)| (name(shard), why.clone())).collect(),
        leads: 0,
        holds: status.map_or(0, |status| status.shards.len() as u32),
        leads_meta: false,
    }
}

/// The node that leads a shard, as far as it was heard.
pub(crate) fn leading(cluster: &Cluster, shard: ShardId) -> Option<NodeId> {
    let sightings = cluster.sightings();
    leader_of(&sightings, |status| status.shards.get(&shard)).map(|(node, _)| node)
}

/// What the leader of the newest term says of a group.
fn leader_of<'a>(
    sightings: &'a BTreeMap<NodeId, Sighting>,
    of: impl Fn(&'a NodeStatus) -> Option<&'a ReplicaStatus>,
) -> Option<(NodeId, &'a ReplicaStatus)> {
    // One that was silenced by its end leads nothing, and would be told of until another one leads.
    let heard = sightings.values().filter(|seen| seen.heard.elapsed() < BELIEVED_FOR);
    let said = heard.filter_map(|seen| Some((seen.status.node, of(&seen.status)?)));
    let (node, newest) = said.max_by_key(|(_, said)| (said.term, said.serves))?;
    newest.serves.then_some((node, newest))
}

fn shard_report(
    name: String,
    said: Option<(NodeId, &ReplicaStatus)>,
    placed: BTreeSet<NodeId>,
) -> ShardReport {
    let leader = said.map(|(node, _)| node);
    let said = said.map(|(_, said)| said.clone()).unwrap_or_default();
    let member = |node: &NodeId, role| {
        let is_leader = leader == Some(*node);
        MemberReport {
            node: write_id(*node),
            role: if is_leader { ReplicaRole::Leader } else { role },
            behind: if is_leader { Some(0) } else { said.behind.get(node).copied() },
        }
    };
    let voters = said.voters.iter().map(|node| member(node, ReplicaRole::Voter));
    let learners = said.learners.iter().map(|node| member(node, ReplicaRole::Learner));
    ShardReport {
        name,
        leader: leader.map(write_id),
        term: said.term,
        committed_index: said.committed_index,
        applied_index: said.applied_index,
        snapshot_index: said.snapshot_index,
        members: voters.chain(learners).collect(),
        placed: placed.into_iter().map(write_id).collect(),
        is_changing: said.is_changing,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use piton_core::time::Timestamp;

    use super::*;

    fn leads(node: u64, term: u64) -> Sighting {
        let replica = ReplicaStatus { term, serves: true, ..ReplicaStatus::default() };
        let status = NodeStatus {
            node: NodeId(node),
            release: String::new(),
            level: 1,
            meta_version: 0,
            clock: Timestamp::default(),
            meta: replica,
            shards: BTreeMap::new(),
            leads_nothing: false,
            clock_ahead: None,
            stopped: BTreeMap::new(),
        };
        Sighting { status: Arc::new(status), heard: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_silenced_by_its_end_leads_nothing_after_a_while() {
        let mut sightings = BTreeMap::from([(NodeId(1), leads(1, 3))]);
        let leader = |sightings: &BTreeMap<NodeId, Sighting>| {
            leader_of(sightings, |status| Some(&status.meta)).map(|(node, _)| node)
        };
        tokio::time::advance(BELIEVED_FOR - Duration::from_millis(1)).await;
        assert_eq!(leader(&sightings), Some(NodeId(1)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(leader(&sightings), None);
        // Of two that say so, the newer term's is right.
        sightings.insert(NodeId(2), leads(2, 5));
        sightings.insert(NodeId(3), leads(3, 4));
        assert_eq!(leader(&sightings), Some(NodeId(2)));
    }
}
