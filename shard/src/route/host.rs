//! All shards on this node: their groups, their tables, and the leaders of those it leads.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::RwLock;
use piton_core::id::ShardId;
use piton_core::placement;
use piton_raft::{Group, GroupId, Groups, NodeId};
use piton_store::{Store, Table, with_causes};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::ids::Ids;
use crate::message::Peer;
use crate::meta::state::MetaReplica;
use crate::meta::{META_GROUP, Meta};
use crate::metrics::ShardMetrics;
use crate::read_threads::ReadThreads;
use crate::replica::ShardReplica;
use crate::replica::checkpoint::{CheckpointConfig, Checkpoints};
use crate::route::polls::Polls;
use crate::route::shard_leader::ShardLeader;
use crate::rows::WorkflowRows;

/// What a host is made of; the composition root brings it.
pub struct HostParts {
    pub node: NodeId,
    pub members: BTreeSet<NodeId>,
    pub config: ShardConfig,
    pub groups: Groups,
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub ids: Ids,
    pub metrics: ShardMetrics,
    /// The way to the other nodes.
    pub peer: Arc<dyn Peer>,
}

/// All shards on this node.
pub struct ShardHost {
    node: NodeId,
    config: Arc<ShardConfig>,
    clock: Clock,
    groups: Groups,
    shards: Vec<Shard>,
    meta: Meta,
    ids: Ids,
    polls: Polls,
    checkpoints: Checkpoints,
    reads: ReadThreads,
    metrics: ShardMetrics,
    peer: Arc<dyn Peer>,
}

struct Shard {
    group: Group,
    rows: WorkflowRows,
    serving: RwLock<Option<Arc<dyn ShardLeader>>>,
}

/// The Raft group of a shard; group 0 is the meta group.
fn group_of(shard: ShardId) -> GroupId {
    GroupId(shard.0 + 1)
}

impl ShardHost {
    /// Starts the replicas of the meta group and of every shard. Leads nothing until
    /// [`crate::Cluster::serve`].
    ///
    /// # Errors
    /// When the log or the store cannot be used.
    pub async fn start(parts: HostParts) -> Result<Arc<Self>, ShardError> {
        let HostParts { node, members, config, groups, store, clock, ids, metrics, peer } = parts;
        let failed = |what: &str| {
            let what = what.to_owned();
            move |e: &dyn std::error::Error| {
                ShardError::Internal(format!("{what}: {}", with_causes(e)))
            }
        };
        let checkpoints = start_checkpoints(&config, &groups, &metrics)?;
        let open = |id: GroupId| {
            Table::open(Arc::clone(&store), id.0).map_err(|e| failed("open a group's state")(&e))
        };
        let table = open(META_GROUP)?;
        checkpoints.add(table.clone());
        let (replica, view) =
            MetaReplica::open(table).map_err(|e| failed("open the meta state")(&e))?;
        let started = groups.start(META_GROUP, &members, Box::new(replica)).await;
        let meta_group = started.map_err(|e| failed("start the meta group")(&e))?;
        let mut shards = Vec::new();
        for id in (0..config.shards).map(ShardId) {
            let table = open(group_of(id))?;
            checkpoints.add(table.clone());
            let rows = WorkflowRows::new(table);
            let replica =
                ShardReplica::open(rows.clone()).map_err(|e| failed("open a shard's state")(&e))?;
            let replica = replica.slowed_by(checkpoints.clone());
            let started = groups.start(group_of(id), &members, Box::new(replica)).await;
            let group = started.map_err(|e| failed("start a shard's group")(&e))?;
            shards.push(Shard { group, rows, serving: RwLock::new(None) });
        }
        Ok(Arc::new(Self {
            node,
            reads: ReadThreads::new(config.lookups_max, config.scans_max),
            config: Arc::new(config),
            clock,
            groups,
            shards,
            meta: Meta::new(node, meta_group, view, ids.clone(), Arc::clone(&peer)),
            polls: Polls::new(&ids),
            ids,
            checkpoints,
            metrics,
            peer,
        }))
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Writes a last checkpoint of each shard and ends the thread. Blocks.
    pub fn stop_checkpoints(&self) {
        self.checkpoints.stop();
    }

    /// Becomes `Some(reason)` when the store failed: the node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.checkpoints.failed()
    }

    pub(crate) fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    pub(crate) fn config(&self) -> &Arc<ShardConfig> {
        &self.config
    }

    pub(crate) fn peer(&self) -> &Arc<dyn Peer> {
        &self.peer
    }

    pub(crate) fn reads(&self) -> &ReadThreads {
        &self.reads
    }

    pub(crate) fn polls(&self) -> &Polls {
        &self.polls
    }

    pub(crate) fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards.len() as u32).map(ShardId)
    }

    pub(crate) fn has(&self, shard: ShardId) -> bool {
        (shard.0 as usize) < self.shards.len()
    }

    pub(crate) fn shard_of_slot(&self, slot: placement::Slot) -> ShardId {
        placement::initial_shard(slot, self.shards.len() as u32)
    }

    pub(crate) fn group(&self, shard: ShardId) -> &Group {
        &self.shard(shard).group
    }

    pub(crate) fn rows(&self, shard: ShardId) -> WorkflowRows {
        self.shard(shard).rows.clone()
    }

    /// The leader of a shard, if it is this node.
    pub(crate) fn serving(&self, shard: ShardId) -> Option<Arc<dyn ShardLeader>> {
        self.shard(shard).serving.read().clone()
    }

    pub(crate) fn set_serving(&self, shard: ShardId, leader: Option<Arc<dyn ShardLeader>>) {
        *self.shard(shard).serving.write() = leader;
    }

    fn shard(&self, shard: ShardId) -> &Shard {
        &self.shards[shard.0 as usize]
    }
}

fn start_checkpoints(
    config: &ShardConfig,
    groups: &Groups,
    metrics: &ShardMetrics,
) -> Result<Checkpoints, ShardError> {
    let log = groups.log().clone();
    let metrics = metrics.clone();
    let config = CheckpointConfig {
        interval: config.checkpoint_interval,
        table_bytes: config.table_bytes,
        room: config.room.clone(),
    };
    Checkpoints::start(
        groups.execution(),
        config,
        Arc::new(move |group| log.synced_index(group)),
        Arc::new(move |latency, _, _| metrics.checkpointed(latency)),
    )
    .map_err(|e| ShardError::Internal(format!("start the checkpoint thread: {e}")))
}
