//! The nodes of a run, and how they start, crash and reach each other. Shards, Raft, log and table
//! are the real ones; network, disks and stores are in memory and fail at will.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use piton_core::id::ShardId;
use piton_core::time::{Span, Timestamp};
use piton_raft::log::FaultyDisk;
use piton_raft::{Execution, Group, GroupId, Groups, NodeConfig, NodeId, Tuning};
use piton_shard::{
    Answer, Call, Clock, Cluster, Delivery, HostParts, Ids, META_GROUP, NewNamespace, Peer, PollId,
    Receipt, Serving, ShardConfig, ShardError, ShardHost, ShardMetrics,
};
use piton_store::{KeyRange, MemoryStore, Order, Row, Store};
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep_until};

use crate::chance::Chance;
use crate::life::{Life, LifeDisk, LifeStore, Points};
use crate::network::Network;
use crate::trace::Trace;

pub(crate) const SHARDS: u32 = 2;
pub(crate) const NAMESPACE: &str = "default";
/// Where all clocks begin: some second of 2026.
const WALL_MS: i64 = 1_780_000_000_000;

pub(crate) fn in_ms(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its process is killed: the disk keeps what was written.
    Kill,
    /// The power fails: what was not synced is lost, in part or whole.
    PowerCut,
}

/// All nodes. Clones share them.
#[derive(Clone)]
pub(crate) struct World {
    inner: Arc<Inner>,
}

struct Inner {
    seed: u64,
    network: Network,
    trace: Trace,
    chance: Chance,
    points: Points,
    members: Mutex<BTreeMap<NodeId, Member>>,
    lives: AtomicU64,
    /// Client requests under way, polls not counted.
    in_flight: AtomicU64,
    /// Nodes that crashed of themselves and are to be started again.
    crashed: Mutex<BTreeSet<NodeId>>,
}

/// What of a node outlives its process.
struct Member {
    disk: FaultyDisk,
    store: Arc<MemoryStore>,
    sync_ms_max: Arc<AtomicU64>,
    /// How far its clock is off.
    skew_ms: i64,
    life: Option<Arc<Life>>,
    running: Option<Running>,
}

struct Running {
    cluster: Cluster,
    groups: Groups,
    serving: Serving,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: u64, trace: Trace, chance: &Chance) -> Self {
        let member = |node: u64| {
            let member = Member {
                disk: FaultyDisk::new(chance.next()),
                store: Arc::new(MemoryStore::new()),
                sync_ms_max: Arc::new(AtomicU64::new(2)),
                skew_ms: 0,
                life: None,
                running: None,
            };
            (NodeId(node), member)
        };
        let network = Network::start(trace.clone(), chance.fork());
        let inner = Inner {
            seed,
            network: network.clone(),
            trace,
            chance: chance.fork(),
            points: Points::default(),
            members: Mutex::new((1..=nodes).map(member).collect()),
            lives: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            crashed: Mutex::new(BTreeSet::new()),
        };
        let world = Self { inner: Arc::new(inner) };
        let points = world.inner.points.clone();
        piton_raft::sim::set_hook(Box::new(move |node, _, point| points.reached(node, point)));
        world
    }

    pub(crate) fn network(&self) -> &Network {
        &self.inner.network
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.inner.trace
    }

    pub(crate) fn points(&self) -> &Points {
        &self.inner.points
    }

    pub(crate) fn in_flight(&self) -> &AtomicU64 {
        &self.inner.in_flight
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.inner.members.lock().keys().copied().collect()
    }

    /// Nodes that run, with their view of the cluster.
    pub(crate) fn running(&self) -> Vec<(Arc<Life>, Cluster, Groups)> {
        let members = self.inner.members.lock();
        let running = |member: &Member| {
            let (life, running) = (member.life.clone()?, member.running.as_ref()?);
            life.is_alive().then(|| (life, running.cluster.clone(), running.groups.clone()))
        };
        members.values().filter_map(running).collect()
    }

    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.running().iter().any(|(life, ..)| life.node == node)
    }

    /// The node that leads a shard and serves, if one does.
    pub(crate) fn leader_of(&self, shard: u32) -> Option<NodeId> {
        self.running().iter().find_map(|(life, _, groups)| {
            let leadership = *groups.group(GroupId(shard + 1))?.leadership().borrow();
            leadership.serving.then_some(life.node)
        })
    }

    pub(crate) fn set_skew(&self, node: NodeId, skew_ms: i64) {
        self.change(node, |member| member.skew_ms = skew_ms);
    }

    pub(crate) fn set_sync_ms_max(&self, node: NodeId, longest: u64) {
        self.change(node, |member| member.sync_ms_max.store(longest, Ordering::Relaxed));
    }

    pub(crate) fn disk(&self, node: NodeId) -> FaultyDisk {
        self.inner.members.lock()[&node].disk.clone()
    }

    fn change(&self, node: NodeId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.inner.members.lock().get_mut(&node) {
            change(member);
        }
    }

    /// Starts a node that does not run, on what it has on its disk.
    ///
    /// # Errors
    /// When it does not come up, although nothing crashed it meanwhile.
    pub(crate) async fn start(&self, node: NodeId) -> anyhow::Result<()> {
        let inner = &self.inner;
        let number = inner.lives.fetch_add(1, Ordering::Relaxed);
        let life = Life::new(node, number);
        inner.trace.note(format_args!("node {node} starts life {number}"));
        let (disk, store, wall_ms) = {
            let mut members = inner.members.lock();
            let member = members.get_mut(&node).expect("a node of this run");
            if member.life.as_ref().is_some_and(|life| life.is_alive()) {
                return Ok(());
            }
            member.life = Some(Arc::clone(&life));
            let disk = LifeDisk {
                disk: member.disk.clone(),
                life: Arc::clone(&life),
                points: inner.points.clone(),
                chance: inner.chance.fork(),
                sync_ms_max: Arc::clone(&member.sync_ms_max),
            };
            let store = LifeStore { store: Arc::clone(&member.store), life: Arc::clone(&life) };
            (disk, store, WALL_MS + inner.trace.now_ms() as i64 + member.skew_ms)
        };
        let started = self.bring_up(&life, disk, store, wall_ms).await;
        match started {
            Ok(running) if life.is_alive() => {
                self.change(node, |member| member.running = Some(running));
                self.watch_log(life);
                Ok(())
            }
            Ok(running) => {
                lay_down(running).await;
                Ok(())
            }
            Err(error) if life.is_alive() => Err(error),
            // It was crashed while it started.
            Err(_) => Ok(()),
        }
    }

    async fn bring_up(
        &self,
        life: &Arc<Life>,
        disk: LifeDisk,
        store: LifeStore,
        wall_ms: i64,
    ) -> anyhow::Result<Running> {
        let seed = self.inner.seed ^ (life.number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let config = NodeConfig {
            node: life.node,
            dir: PathBuf::from("/node"),
            disk: Arc::new(disk),
            transport: self.inner.network.transport(life),
            tuning: Tuning {
                execution: Execution::Inline { seed },
                snapshot_log_bytes_min: 64 << 10,
                // Short, so that entries are committed whose proposer has given them up.
                propose_timeout: Duration::from_millis(800),
                ..Tuning::default()
            },
        };
        let groups = Groups::open(config)?;
        let served = self.serve(life, &groups, store, wall_ms, seed).await;
        match served {
            Ok((cluster, serving)) => Ok(Running { cluster, groups, serving }),
            Err(error) => {
                groups.shutdown().await;
                Err(error)
            }
        }
    }

    async fn serve(
        &self,
        life: &Arc<Life>,
        groups: &Groups,
        store: LifeStore,
        wall_ms: i64,
        seed: u64,
    ) -> anyhow::Result<(Cluster, Serving)> {
        let parts = HostParts {
            node: life.node,
            members: self.nodes().into_iter().collect(),
            config: ShardConfig {
                shards: SHARDS,
                checkpoint_interval: Duration::from_millis(200),
                // In every third run no workflow stays in memory.
                idle: Duration::from_secs(if self.inner.seed.is_multiple_of(3) { 0 } else { 2 }),
                ..ShardConfig::default()
            },
            groups: groups.clone(),
            store: Arc::new(store),
            clock: Clock::starting_at(Timestamp(wall_ms)),
            ids: Ids::seeded(seed),
            metrics: ShardMetrics::register(&mut Registry::default()),
        };
        let host = ShardHost::start(parts).await?;
        let peer = LifePeer { life: Arc::clone(life), world: self.clone() };
        let cluster = Cluster::new(host, Arc::new(peer));
        let serving = cluster.serve().await?;
        Ok((cluster, serving))
    }

    /// A node whose log or store has failed stops, as the binary does, and is started again.
    fn watch_log(&self, life: Arc<Life>) {
        let running = self.running();
        let Some((_, cluster, groups)) =
            running.into_iter().find(|(other, ..)| Arc::ptr_eq(other, &life))
        else {
            return;
        };
        let (mut log, mut store) = (groups.failed(), cluster.host().failed());
        let world = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = life.over() => return,
                _ = log.wait_for(Option::is_some) => {}
                _ = store.wait_for(Option::is_some) => {}
            }
            world.crash(life.node, End::Kill);
        });
    }

    /// Ends a node's process at once: from here on nothing of it reaches anybody.
    pub(crate) fn crash(&self, node: NodeId, end: End) {
        let (life, running) = {
            let mut members = self.inner.members.lock();
            let Some(member) = members.get_mut(&node) else { return };
            let Some(life) = member.life.clone() else { return };
            if !life.end() {
                return;
            }
            member.disk = match end {
                End::Kill => member.disk.kill(),
                End::PowerCut => member.disk.cut_power(),
            };
            member.store.crash();
            (life, member.running.take())
        };
        self.inner.network.remove(node);
        self.inner.trace.note(format_args!("node {node} ends life {} by {end:?}", life.number));
        self.inner.crashed.lock().insert(node);
        if let Some(running) = running {
            tokio::spawn(lay_down(running));
        }
    }

    /// Stops a node in order, as for maintenance.
    pub(crate) async fn stop(&self, node: NodeId) {
        let mut running = None;
        self.change(node, |member| running = member.running.take());
        if let Some(running) = running {
            lay_down(running).await;
        }
        self.crash(node, End::Kill);
    }

    /// Nodes that have crashed and were not started since.
    pub(crate) fn take_crashed(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.inner.crashed.lock())
    }

    /// Every running node knows a leader of every group, and leaders serve.
    pub(crate) fn is_ready(&self) -> bool {
        let running = self.running();
        running.len() == self.nodes().len()
            && running.iter().all(|(_, cluster, groups)| {
                let meta = groups.group(META_GROUP);
                let leader = meta.and_then(|group| group.leadership().borrow().leader);
                leader.is_some() && cluster.is_ready()
            })
    }

    /// Registers the namespace; true once every node knows it.
    pub(crate) async fn bootstrap(&self) -> bool {
        for (_, cluster, _) in self.running() {
            let meta = cluster.meta();
            if meta.bootstrap_routes(SHARDS).await.is_err() || meta.namespace(NAMESPACE).is_some() {
                continue;
            }
            let new = NewNamespace {
                name: NAMESPACE.to_owned(),
                retention: Span::from_secs(86_400),
                created: cluster.host().clock().now(),
                ..NewNamespace::default()
            };
            // Refused where it has been registered meanwhile.
            let _ = meta.register_namespace(new).await;
        }
        let knows = |cluster: &Cluster| {
            let meta = cluster.meta();
            meta.namespace(NAMESPACE).is_some() && meta.shards() == SHARDS as usize
        };
        self.running().iter().all(|(_, cluster, _)| knows(cluster))
    }

    /// For each node and group: applied and last index.
    pub(crate) fn places(&self) -> Vec<Vec<(u64, u64)>> {
        let place = |group: &Group| {
            let metrics = group.metrics();
            (metrics.applied_index, metrics.last_index)
        };
        let of = |groups: &Groups| {
            let ids = (0..=SHARDS).map(GroupId);
            ids.filter_map(|id| groups.group(id)).map(|group| place(&group)).collect()
        };
        self.running().iter().map(|(.., groups)| of(groups)).collect()
    }

    /// Stops all nodes in order, and answers the rows in each one's store.
    pub(crate) async fn rows_at_the_end(&self) -> Vec<(NodeId, Vec<Row>)> {
        let mut rows = Vec::new();
        for node in self.nodes() {
            let mut running = None;
            self.change(node, |member| running = member.running.take());
            if let Some(running) = running {
                lay_down(running).await;
            }
        }
        let members = self.inner.members.lock();
        for (node, member) in members.iter() {
            let found = member.store.scan(KeyRange::all(), Order::Ascending, usize::MAX);
            rows.push((*node, found.unwrap_or_default()));
        }
        rows
    }
}

async fn lay_down(running: Running) {
    let Running { cluster, groups, serving } = running;
    serving.stop().await;
    cluster.host().stop_checkpoints();
    groups.shutdown().await;
}

/// A node's way to the shards of others.
struct LifePeer {
    life: Arc<Life>,
    world: World,
}

impl LifePeer {
    fn reach(&self, node: NodeId) -> Option<(Arc<Life>, Cluster)> {
        let running = self.world.running();
        let found = running.into_iter().find(|(life, ..)| life.node == node);
        found.filter(|_| self.life.is_alive()).map(|(life, cluster, _)| (life, cluster))
    }
}

#[async_trait]
impl Peer for LifePeer {
    async fn call(&self, node: NodeId, shard: ShardId, call: Call) -> Result<Answer, ShardError> {
        let unreachable = || ShardError::Unavailable(format!("node {node} cannot be reached"));
        let network = self.world.network();
        let way = network.way(self.life.node, node);
        sleep_until(way.at).await;
        let (there, cluster) = self.reach(node).filter(|_| way.arrives).ok_or_else(unreachable)?;
        let again = call.clone();
        let answer = tokio::select! {
            biased;
            // A connection that breaks tells nothing about what became of the call.
            () = there.over() => return Err(unreachable()),
            () = self.life.over() => return Err(unreachable()),
            answer = cluster.answer_peer(shard, call) => answer,
        };
        // What was carried out may come again. What was refused may not: done later, it would do what
        // its sender knows not to have been done, which nothing in the API guards against.
        if let Some(again_at) = way.again_at.filter(|_| answer.is_ok()) {
            let there = Arc::clone(&there);
            tokio::spawn(async move {
                sleep_until(again_at).await;
                if there.is_alive() {
                    // Nobody waits for the second answer.
                    let _ = cluster.answer_peer(shard, again).await;
                }
            });
        }
        let back = network.way(node, self.life.node);
        sleep_until(back.at).await;
        if !back.arrives || !self.life.is_alive() || !there.is_alive() {
            return Err(unreachable());
        }
        answer
    }

    async fn deliver(&self, node: NodeId, poll: PollId, delivery: Delivery) -> Receipt {
        let network = self.world.network();
        let way = network.way(self.life.node, node);
        sleep_until(way.at).await;
        let Some((there, cluster)) = self.reach(node).filter(|_| way.arrives) else {
            return Receipt::Unreachable;
        };
        let receipt = cluster.accept_delivery(poll, delivery);
        let back = network.way(node, self.life.node);
        sleep_until(back.at).await;
        if back.arrives && there.is_alive() && self.life.is_alive() {
            receipt
        } else {
            Receipt::Unreachable
        }
    }
}
