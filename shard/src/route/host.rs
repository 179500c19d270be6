//! All shards on this node: their groups, their tables, and the leaders of those it leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use piton_core::id::ShardId;
use piton_core::placement;
use piton_core::time::Span;
use piton_raft::{Group, GroupId, Groups, Leadership, NodeId, RaftError, Replica};
use piton_store::{Store, Table, with_causes};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::ids::Ids;
use crate::message::Peer;
use crate::meta::state::{MetaReplica, MetaState};
use crate::meta::{META_GROUP, Meta};
use crate::metrics::ShardMetrics;
use crate::read_threads::ReadThreads;
use crate::release::feature_level;
use crate::replica::ShardReplica;
use crate::replica::checkpoint::{CheckpointConfig, Checkpoints};
use crate::route::leaders::{Leader, Leaders};
use crate::route::polls::Polls;
use crate::route::shard_leader::ShardLeader;
use crate::route::sightings::Sightings;
use crate::rows::WorkflowRows;

/// What a host is made of; the composition root brings it.
pub struct HostParts {
    pub node: NodeId,
    /// Who founds a new cluster: this node, or in tests several at once. `None`: what this node has goes
    /// on, and what it is to have besides comes from others.
    pub founders: Option<BTreeSet<NodeId>>,
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
    store: Arc<dyn Store>,
    /// One for each shard of the cluster, by its number.
    places: Vec<ShardPlace>,
    leaders: Arc<Leaders>,
    sightings: Sightings,
    /// It is about to stop: it hands over what it leads, and is given nothing more.
    stops_leading: AtomicBool,
    /// Whether this node's clock is near those of the others, so that timers may fire here (D12).
    trusts_clock: watch::Sender<bool>,
    /// By how much it is ahead of most others'.
    clock_ahead: Mutex<Option<Span>>,
    /// Counts up when a leadership is taken up or laid down here, or a placement carried out.
    duties: watch::Sender<u64>,
    meta: Meta,
    ids: Ids,
    polls: Polls,
    checkpoints: Checkpoints,
    reads: ReadThreads,
    metrics: ShardMetrics,
    peer: Arc<dyn Peer>,
}

/// What this node has of a shard.
#[derive(Default)]
struct ShardPlace {
    replica: RwLock<Option<Arc<LocalReplica>>>,
    serving: RwLock<Option<Arc<dyn ShardLeader>>>,
    /// It is led here, without a majority being heard of.
    is_alone: AtomicBool,
    /// This node is its only voter, as far as was looked.
    is_sole_voter: AtomicBool,
    /// The version of the placement that was carried out last from here.
    placed: AtomicU64,
}

/// A replica of a shard on this node.
pub(crate) struct LocalReplica {
    pub(crate) group: Group,
    pub(crate) rows: WorkflowRows,
}

/// The Raft group of a shard; group 0 is the meta group.
pub(crate) fn group_of(shard: ShardId) -> GroupId {
    GroupId(shard.0 + 1)
}

fn failed(what: &str) -> impl Fn(&dyn std::error::Error) -> ShardError + use<> {
    let what = what.to_owned();
    move |error| ShardError::Internal(format!("{what}: {}", with_causes(error)))
}

impl ShardHost {
    /// Starts the replicas that this node has: of the meta group and of shards. Leads nothing until
    /// [`crate::Cluster::serve`].
    ///
    /// # Errors
    /// When the log or the store cannot be used.
    pub fn start(parts: HostParts) -> BoxFuture<'static, Result<Arc<Self>, ShardError>> {
        Box::pin(async move {
            let HostParts { node, founders, config, groups, store, clock, ids, metrics, peer } =
                parts;
            let checkpoints = start_checkpoints(&config, &groups, &metrics)?;
            let table = Table::open(Arc::clone(&store), META_GROUP.0);
            let table = table.map_err(|e| failed("open the meta group's state")(&e))?;
            checkpoints.add(table.clone());
            let (replica, view) =
                MetaReplica::open(table).map_err(|e| failed("open the meta state")(&e))?;
            check_level(&view.borrow())?;
            let started =
                start_group(&groups, META_GROUP, founders.as_ref(), Box::new(replica)).await;
            let meta_group = started.map_err(|e| failed("start the meta group")(&e))?;
            let host = Arc::new(Self {
                node,
                reads: ReadThreads::new(config.lookups_max, config.scans_max),
                places: (0..config.shards).map(|_| ShardPlace::default()).collect(),
                leaders: Arc::new(Leaders::new(config.shards)),
                sightings: Sightings::default(),
                stops_leading: AtomicBool::new(false),
                trusts_clock: watch::Sender::new(true),
                clock_ahead: Mutex::default(),
                duties: watch::Sender::new(0),
                config: Arc::new(config),
                clock,
                groups,
                store,
                meta: Meta::new(node, meta_group, view, ids.clone(), Arc::clone(&peer)),
                polls: Polls::new(&ids),
                ids,
                checkpoints,
                metrics,
                peer,
            });
            for shard in host.shard_ids() {
                if founders.is_some() || host.groups.holds(group_of(shard)) {
                    host.open(shard, founders.as_ref()).await?;
                }
            }
            Ok(host)
        })
    }

    /// Starts this node's replica of a shard, unless it runs. One that holds nothing yet waits to be
    /// filled, unless it is founded here.
    ///
    /// # Errors
    /// When the log or the store cannot be used.
    pub(crate) async fn open(
        &self,
        shard: ShardId,
        founders: Option<&BTreeSet<NodeId>>,
    ) -> Result<(), ShardError> {
        let group = group_of(shard);
        if self.replica(shard).is_some() || self.groups.halted().borrow().contains_key(&group) {
            return Ok(());
        }
        let table = Table::open(Arc::clone(&self.store), group.0);
        let table = table.map_err(|e| failed("open a shard's state")(&e))?;
        let rows = WorkflowRows::new(table.clone());
        let replica =
            ShardReplica::open(rows.clone()).map_err(|e| failed("open a shard's state")(&e))?;
        let replica = Box::new(replica.slowed_by(self.checkpoints.clone()));
        self.checkpoints.add(table);
        let started = start_group(&self.groups, group, founders, replica).await;
        let group = match started {
            Ok(group) => group,
            Err(error) => {
                self.checkpoints.remove(group);
                // The node goes on without it, and says so.
                let is_halted = matches!(error, RaftError::Halted { .. });
                return if is_halted {
                    Ok(())
                } else {
                    Err(failed("start a shard's group")(&error))
                };
            }
        };
        self.follow_leadership(shard, &group);
        *self.places[shard.0 as usize].replica.write() =
            Some(Arc::new(LocalReplica { group, rows }));
        Ok(())
    }

    /// Stops this node's replica of a shard, which is no member of it any more, and forgets what it
    /// held, but for its vote.
    ///
    /// # Errors
    /// When log, store or snapshots cannot be used. Then it may be closed again.
    pub(crate) async fn close(&self, shard: ShardId) -> Result<(), ShardError> {
        let group = group_of(shard);
        let closed = self.places[shard.0 as usize].replica.write().take();
        self.groups.stop(group).await;
        let rows = match closed {
            // ORDER: the same table, so that no checkpoint of it comes behind its end.
            Some(replica) => replica.rows.clone(),
            None => {
                let table = Table::open(Arc::clone(&self.store), group.0);
                WorkflowRows::new(table.map_err(|e| failed("open a shard's state")(&e))?)
            }
        };
        let replica = ShardReplica::open(rows);
        let replica = replica.map_err(|e| failed("open a shard's state")(&e))?;
        let forgotten = self.groups.forget(group, Box::new(replica)).await;
        forgotten.map_err(|e| failed("forget a shard")(&e))?;
        self.checkpoints.remove(group);
        Ok(())
    }

    fn follow_leadership(&self, shard: ShardId, group: &Group) {
        let (mut leadership, leaders) = (group.leadership(), Arc::downgrade(&self.leaders));
        tokio::spawn(async move {
            loop {
                let Leadership { term, leader, .. } = *leadership.borrow_and_update();
                let Some(leaders) = leaders.upgrade() else { return };
                leaders.hear(shard, Leader { term, leader });
                drop(leaders);
                if leadership.changed().await.is_err() {
                    break;
                }
            }
            if let Some(leaders) = leaders.upgrade() {
                leaders.forget(shard);
            }
        });
    }

    /// From now on this node says of itself that it is about to stop.
    pub(crate) fn stop_leading(&self) {
        self.stops_leading.store(true, Ordering::Relaxed);
        // Told to the others at once.
        self.duties.send_modify(|count| *count += 1);
    }

    /// Whether this node's clock is near those of the others, as far as it is known. True: that is another
    /// answer than before.
    pub fn trust_clock(&self, trusts: bool) -> bool {
        let is_new =
            self.trusts_clock.send_if_modified(|now| std::mem::replace(now, trusts) != trusts);
        if is_new {
            self.duties.send_modify(|count| *count += 1);
        }
        is_new
    }

    /// By how much this node's clock is ahead of most others', as far as it could be compared.
    pub fn set_clock_ahead(&self, ahead: Option<Span>) {
        *self.clock_ahead.lock() = ahead;
    }

    pub(crate) fn clock_ahead(&self) -> Option<Span> {
        *self.clock_ahead.lock()
    }

    /// Groups that this node cannot go on with, each with the reason; the meta group is `None`.
    pub fn stopped(&self) -> BTreeMap<Option<ShardId>, String> {
        let halted = self.groups.halted();
        let halted = halted.borrow();
        let shard = |group: &GroupId| group.0.checked_sub(1).map(ShardId);
        halted.iter().map(|(group, why)| (shard(group), why.clone())).collect()
    }

    pub(crate) fn trusts_clock(&self) -> watch::Receiver<bool> {
        self.trusts_clock.subscribe()
    }

    /// Whether this node is to be given nothing to lead.
    pub(crate) fn leads_nothing(&self) -> bool {
        self.stops_leading.load(Ordering::Relaxed) || !*self.trusts_clock.borrow()
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

    /// All shards of the cluster.
    pub(crate) fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.places.len() as u32).map(ShardId)
    }

    pub(crate) fn has(&self, shard: ShardId) -> bool {
        (shard.0 as usize) < self.places.len()
    }

    pub(crate) fn shard_of_slot(&self, slot: placement::Slot) -> ShardId {
        placement::initial_shard(slot, self.places.len() as u32)
    }

    pub(crate) fn sightings(&self) -> &Sightings {
        &self.sightings
    }

    /// Whether this node can make nothing durable any more, and so is about to end.
    pub(crate) fn log_has_failed(&self) -> bool {
        self.groups.failed().borrow().is_some()
    }

    /// Changes when a leadership is taken up or laid down here, or a placement carried out.
    pub(crate) fn duties(&self) -> watch::Receiver<u64> {
        self.duties.subscribe()
    }

    pub(crate) fn leaders(&self) -> &Leaders {
        &self.leaders
    }

    /// This node's replica of a shard, if it has one.
    pub(crate) fn replica(&self, shard: ShardId) -> Option<Arc<LocalReplica>> {
        self.places[shard.0 as usize].replica.read().clone()
    }

    /// The leader of a shard, if it is this node.
    pub(crate) fn serving(&self, shard: ShardId) -> Option<Arc<dyn ShardLeader>> {
        self.places[shard.0 as usize].serving.read().clone()
    }

    /// The same, unless it is cut off from the majority, without which it can decide nothing.
    pub(crate) fn deciding(&self, shard: ShardId) -> Option<Arc<dyn ShardLeader>> {
        self.serving(shard).filter(|_| !self.is_alone(shard))
    }

    pub(crate) fn is_alone(&self, shard: ShardId) -> bool {
        self.places[shard.0 as usize].is_alone.load(Ordering::Relaxed)
    }

    pub(crate) fn is_sole_voter(&self, shard: ShardId) -> bool {
        self.places[shard.0 as usize].is_sole_voter.load(Ordering::Relaxed)
    }

    pub(crate) fn set_sole_voter(&self, shard: ShardId, is_sole: bool) {
        self.places[shard.0 as usize].is_sole_voter.store(is_sole, Ordering::Relaxed);
    }

    /// A shard that is led here has lost its majority, or found it again. Those who wait for its leader
    /// see it as a change.
    pub(crate) fn set_alone(&self, shard: ShardId, is_alone: bool) {
        let was_alone = self.places[shard.0 as usize].is_alone.swap(is_alone, Ordering::Relaxed);
        let Some(replica) = self.replica(shard).filter(|_| was_alone != is_alone) else { return };
        let now = *replica.group.leadership().borrow();
        if now.leader == Some(self.node) {
            tracing::info!(%shard, term = now.term, is_alone, "a leader's majority");
            let leader = Some(self.node).filter(|_| !is_alone);
            self.leaders.hear(shard, Leader { term: now.term, leader });
        }
        self.duties.send_modify(|count| *count += 1);
    }

    /// The version of the shard's placement that this node, as its leader, has carried out last; 0: none.
    pub(crate) fn placed(&self, shard: ShardId) -> u64 {
        self.places[shard.0 as usize].placed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_placed(&self, shard: ShardId, version: u64) {
        let before = self.places[shard.0 as usize].placed.swap(version, Ordering::Relaxed);
        if before != version {
            self.duties.send_modify(|count| *count += 1);
        }
    }

    pub(crate) fn set_serving(&self, shard: ShardId, leader: Option<Arc<dyn ShardLeader>>) {
        let voters = self.replica(shard).map(|replica| replica.group.members().voters);
        let is_sole = voters == Some(vec![BTreeSet::from([self.node])]);
        self.set_sole_voter(shard, is_sole && leader.is_some());
        *self.places[shard.0 as usize].serving.write() = leader;
        self.duties.send_modify(|count| *count += 1);
    }
}

/// A release older than the cluster's feature level could not read what the others write.
fn check_level(state: &MetaState) -> Result<(), ShardError> {
    let (level, known) = (state.settings().level, feature_level());
    if level <= known {
        return Ok(());
    }
    Err(ShardError::Internal(format!(
        "this cluster is at feature level {level}, and this release knows levels up to \
         {known}: start a newer release"
    )))
}

async fn start_group(
    groups: &Groups,
    id: GroupId,
    founders: Option<&BTreeSet<NodeId>>,
    replica: Box<dyn Replica>,
) -> Result<Group, RaftError> {
    match founders {
        Some(founders) => groups.bootstrap_with(id, founders, replica).await,
        None => groups.start(id, replica).await,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::entity::tests::leading_shard;
    use crate::message::ClusterSettings;
    use crate::meta::state::MetaChange;

    /// Goal: once a shard has moved away, its leader is believed, whatever term this node's own replica was
    /// in when it was closed.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_is_heard_of_where_a_replica_was_closed_in_a_higher_term() {
        let shard = leading_shard().await;
        let host = shard.cluster.host();
        let mut leaders = host.leaders().watch(ShardId(0));
        let other = Leader { term: 0, leader: Some(NodeId(99)) };
        host.leaders().hear(ShardId(0), other);
        assert_ne!(host.leaders().leader(ShardId(0)), other.leader, "its own term is higher");
        host.close(ShardId(0)).await.expect("it is closed");
        let forgotten = leaders.wait_for(|now| now.term == 0);
        timeout(Duration::from_secs(10), forgotten).await.expect("in time").expect("it is there");
        host.leaders().hear(ShardId(0), other);
        assert_eq!(host.leaders().leader(ShardId(0)), other.leader);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replica_that_cannot_be_opened_leaves_nothing_behind() {
        let shard = leading_shard().await;
        let host = shard.cluster.host();
        let before = host.checkpoints.tables();
        // Its group runs, and is not started a second time.
        host.places[0].replica.write().take().expect("it was founded here");
        for _ in 0..3 {
            host.open(ShardId(0), None).await.expect_err("it runs already");
        }
        assert!(host.checkpoints.tables() <= before, "each attempt has left a table");
    }

    #[test]
    fn a_release_below_the_feature_level_does_not_start() {
        let at = |level| {
            let mut state = MetaState::default();
            let settings = ClusterSettings { level, ..ClusterSettings::default() };
            state.put(MetaChange::Settings(settings));
            check_level(&state)
        };
        at(feature_level()).expect("it knows it");
        let refused = at(feature_level() + 1).expect_err("it does not").to_string();
        assert!(refused.contains("start a newer release"), "{refused}");
    }
}
