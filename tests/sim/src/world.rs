//! The nodes of a run, and how they start, crash and reach each other. Shards, Raft, log and table
//! are the real ones; network, disks and stores are in memory and fail at will.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::time::{Span, Timestamp};
use piton_raft::log::{FaultyDisk, LogConfig};
use piton_raft::{Execution, Group, GroupId, Groups, NodeConfig, NodeId, Tuning};
use piton_shard::{
    Clock, Cluster, HostParts, Ids, META_GROUP, NewNamespace, Serving, ShardConfig, ShardHost,
    ShardMetrics, WallTime, WirePeer,
};
use piton_store::{KeyRange, MemoryStore, Order, Row, Store, Watched};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::life::{Life, LifeDisk, LifeStore, Points};
use crate::network::Network;
use crate::peer::LifePeer;
use crate::trace::Trace;
use crate::witness::Witness;

pub(crate) const SHARDS: u32 = 2;
pub(crate) const NAMESPACE: &str = "default";
/// Where all clocks begin: some second of 2026.
pub(crate) const WALL_MS: i64 = 1_780_000_000_000;

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
    witness: Witness,
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
    proven: Arc<AtomicU64>,
    /// How far its wall clock is off.
    wall_off_ms: Arc<AtomicI64>,
    wall: &'static WallTime,
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
            let wall_off_ms = Arc::new(AtomicI64::new(0));
            let member = Member {
                disk: FaultyDisk::new(chance.next()),
                store: Arc::new(MemoryStore::new()),
                sync_ms_max: Arc::new(AtomicU64::new(2)),
                proven: Arc::default(),
                wall: wall_time(trace.clone(), Arc::clone(&wall_off_ms)),
                wall_off_ms,
                life: None,
                running: None,
            };
            (NodeId(node), member)
        };
        let network = Network::start(trace.clone(), chance.fork());
        let members = (1..=nodes).map(member).collect();
        let inner = Inner {
            seed,
            network: network.clone(),
            trace,
            chance: chance.fork(),
            points: Points::default(),
            witness: Witness::default(),
            members: Mutex::new(members),
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

    pub(crate) fn witness(&self) -> &Witness {
        &self.inner.witness
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

    /// Sets a node's wall clock. One that runs does not follow; its next life begins with it.
    pub(crate) fn set_wall(&self, node: NodeId, off_ms: i64) {
        self.change(node, |member| member.wall_off_ms.store(off_ms, Ordering::Relaxed));
    }

    pub(crate) fn wall_off_ms(&self, node: NodeId) -> i64 {
        self.inner.members.lock()[&node].wall_off_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn set_sync_ms_max(&self, node: NodeId, longest: u64) {
        self.change(node, |member| member.sync_ms_max.store(longest, Ordering::Relaxed));
    }

    pub(crate) fn disk(&self, node: NodeId) -> FaultyDisk {
        self.inner.members.lock()[&node].disk.clone()
    }

    /// How many bytes of the newest segment of a node's log are surely durable.
    pub(crate) fn proven_bytes(&self, node: NodeId) -> u64 {
        self.inner.members.lock()[&node].proven.load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, node: NodeId) -> Arc<MemoryStore> {
        Arc::clone(&self.inner.members.lock()[&node].store)
    }

    /// Throws a node's store away, as the binary does with one that has failed.
    pub(crate) fn discard_store(&self, node: NodeId) {
        self.inner.trace.note(format_args!("node {node} discards its store"));
        self.inner.witness.store_discarded();
        self.change(node, |member| member.store = Arc::new(MemoryStore::new()));
    }

    fn change(&self, node: NodeId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.inner.members.lock().get_mut(&node) {
            change(member);
        }
    }

    /// Starts a node that does not run, on what it has on its disk. A store that turns out to be
    /// damaged is discarded, and the node started again.
    ///
    /// # Errors
    /// When it does not come up, although nothing crashed it meanwhile.
    pub(crate) async fn start(&self, node: NodeId) -> anyhow::Result<()> {
        let failure = watch::Sender::new(false);
        match self.start_once(node, failure.clone()).await {
            Err(_) if *failure.borrow() => {
                self.discard_store(node);
                self.start_once(node, watch::Sender::new(false)).await
            }
            started => started,
        }
    }

    async fn start_once(&self, node: NodeId, failure: watch::Sender<bool>) -> anyhow::Result<()> {
        let inner = &self.inner;
        let number = inner.lives.fetch_add(1, Ordering::Relaxed);
        let life = Life::new(node, number);
        inner.trace.note(format_args!("node {node} starts life {number}"));
        let (devices, wall) = {
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
                proven: Arc::clone(&member.proven),
            };
            let store = LifeStore { store: Arc::clone(&member.store), life: Arc::clone(&life) };
            inner.witness.clock_taken(member.wall_off_ms.load(Ordering::Relaxed));
            (Devices { disk, store: watched(store, failure.clone()) }, member.wall)
        };
        let started = self.bring_up(&life, devices, wall).await;
        match started {
            Ok(running) if life.is_alive() => {
                self.watch(&life, &running, failure.subscribe());
                self.change(node, |member| member.running = Some(running));
                Ok(())
            }
            Ok(running) => {
                lay_down(running).await;
                Ok(())
            }
            Err(error) if life.end() => Err(error),
            // It was crashed while it started.
            Err(_) => Ok(()),
        }
    }

    async fn bring_up(
        &self,
        life: &Arc<Life>,
        devices: Devices,
        wall: &'static WallTime,
    ) -> anyhow::Result<Running> {
        let Devices { disk, store } = devices;
        let seed = self.inner.seed ^ (life.number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let config = NodeConfig {
            node: life.node,
            dir: PathBuf::from("/node"),
            disk: Arc::new(disk),
            transport: self.inner.network.transport(life),
            states: piton_store::marks(store.as_ref())?
                .into_iter()
                .map(|(group, mark)| (GroupId(group), mark))
                .collect(),
            tuning: tuning(self.inner.seed, seed),
        };
        let groups = Groups::open(config)?;
        let clock = Clock::start_on(wall);
        let served = self.serve(life, &groups, store, clock, seed).await;
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
        store: Arc<dyn Store>,
        clock: Clock,
        seed: u64,
    ) -> anyhow::Result<(Cluster, Serving)> {
        let parts = HostParts {
            node: life.node,
            founders: Some(self.nodes().into_iter().collect()),
            config: ShardConfig {
                shards: SHARDS,
                checkpoint_interval: Duration::from_millis(200),
                // In every third run no workflow stays in memory.
                idle: Duration::from_secs(if self.inner.seed.is_multiple_of(3) { 0 } else { 2 }),
                ..ShardConfig::default()
            },
            groups: groups.clone(),
            store,
            clock,
            ids: Ids::seeded(seed),
            metrics: ShardMetrics::register(&mut Registry::default()),
            peer: Arc::new(WirePeer(LifePeer { life: Arc::clone(life), world: self.clone() })),
        };
        let host = ShardHost::start(parts).await?;
        let cluster = Cluster::new(host);
        let serving = cluster.serve().await?;
        Ok((cluster, serving))
    }

    /// Looks after a node that runs: who leads its groups, and whether it can go on. One whose log,
    /// store or group has failed stops, as the binary does, and is started again.
    fn watch(&self, life: &Arc<Life>, running: &Running, mut engine: watch::Receiver<bool>) {
        let Running { cluster, groups, .. } = running;
        for group in (0..=SHARDS).map(GroupId).filter_map(|id| groups.group(id)) {
            let (id, world) = (group.id(), self.clone());
            let mut leadership = group.leadership();
            tokio::spawn(async move {
                loop {
                    let seen = *leadership.borrow_and_update();
                    world.witness().leads(id, seen.term, seen.leader);
                    if leadership.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
        let (mut log, mut group) = (groups.failed(), groups.group_failed());
        let mut checkpoints = cluster.host().failed();
        let (life, world) = (Arc::clone(life), self.clone());
        tokio::spawn(async move {
            let store_failed = tokio::select! {
                biased;
                () = life.over() => return,
                _ = log.wait_for(Option::is_some) => false,
                _ = engine.wait_for(|failed| *failed) => true,
                _ = checkpoints.wait_for(Option::is_some) => true,
                // ORDER: last. A log or a store that fails takes groups along.
                _ = group.wait_for(Option::is_some) => false,
            };
            world.crash(life.node, End::Kill);
            if store_failed {
                world.discard_store(life.node);
            }
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

/// What a node keeps its data on in one life.
struct Devices {
    disk: LifeDisk,
    store: Arc<dyn Store>,
}

/// A store that tells when nothing but another one in its place helps.
fn watched(store: LifeStore, failure: watch::Sender<bool>) -> Arc<dyn Store> {
    let life = Arc::clone(&store.life);
    let listener = move |_: &piton_store::StoreError| {
        if life.is_alive() {
            failure.send_replace(true);
        }
    };
    Arc::new(Watched::over(Arc::new(store), Box::new(listener)))
}

/// Wall time of a node whose clock can be set. A run has a handful of them, and ends its process.
fn wall_time(trace: Trace, off_ms: Arc<AtomicI64>) -> &'static WallTime {
    let wall = move || {
        Timestamp::from_millis(WALL_MS + trace.now_ms() as i64 + off_ms.load(Ordering::Relaxed))
    };
    Box::leak(Box::new(wall))
}

/// In every second run logs are short: segments are sealed, freed and rewritten, old entries are
/// read from the disk, and snapshots are taken all the time.
fn tuning(run_seed: u64, seed: u64) -> Tuning {
    let tuning = Tuning {
        execution: Execution::Inline { seed },
        snapshot_log_bytes_min: 64 << 10,
        // Short, so that entries are committed whose proposer has given them up.
        propose_timeout: Duration::from_millis(800),
        // So little that a follower that was away needs a snapshot.
        log_held_bytes_max: 0,
        ..Tuning::default()
    };
    if run_seed.is_multiple_of(2) {
        return tuning;
    }
    Tuning {
        snapshot_log_bytes_min: 8 << 10,
        snapshot_check: Duration::from_millis(200),
        snapshot_frame_bytes: 4 << 10,
        entries_kept_behind_snapshot: (run_seed / 2 % 2) * 20,
        log_held_bytes_max: 8 << 10,
        log: LogConfig {
            segment_bytes: 64 << 10,
            preallocate_bytes: 8 << 10,
            cache_bytes_max: 16 << 10,
            ..LogConfig::default()
        },
        ..tuning
    }
}
