//! The nodes of a run, and how they start, crash and reach each other. Shards, Raft, log and table
//! are the real ones; network, disks and stores are in memory and fail at will.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::time::{Span, Timestamp};
use piton_raft::log::FaultyDisk;
use piton_raft::{GroupId, Groups, NodeId};
use piton_shard::{Cluster, ClusterSettings, META_GROUP, NewNamespace, WallTime};
use piton_store::MemoryStore;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::bring_up::{Devices, Running, lay_down, watched};
use crate::chance::Chance;
use crate::life::{Life, LifeDisk, LifeStore, Points};
use crate::network::Network;
use crate::trace::Trace;
use crate::witness::Witness;

pub(crate) const SHARDS: u32 = 2;
/// The meta group and those of the shards.
pub(crate) const GROUPS: [GroupId; SHARDS as usize + 1] = [META_GROUP, GroupId(1), GroupId(2)];
pub(crate) const NAMESPACE: &str = "default";
/// Where all clocks begin: some second of 2026.
pub(crate) const WALL_MS: i64 = 1_780_000_000_000;
/// Clocks of nodes are off by so much all the time: less than is taken for wrong.
const SKEW_MS_MAX: i64 = 100;

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
    /// Held by who hurts nodes and by who takes one away: none is taken away while it is hurt.
    hands: tokio::sync::Mutex<()>,
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
    /// Who founds the cluster with it, as long as that is not done.
    founders: Option<BTreeSet<NodeId>>,
    /// It was taken away for good, and what it held is gone.
    is_gone: bool,
    life: Option<Arc<Life>>,
    running: Option<Running>,
}

impl World {
    /// A world with the founders of a cluster.
    pub(crate) fn new(seed: u64, founders: u64, trace: Trace, chance: &Chance) -> Self {
        let network = Network::start(trace.clone(), chance.fork());
        let inner = Inner {
            seed,
            network: network.clone(),
            trace,
            chance: chance.fork(),
            points: Points::default(),
            witness: Witness::default(),
            members: Mutex::default(),
            lives: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            crashed: Mutex::default(),
            hands: tokio::sync::Mutex::default(),
        };
        let world = Self { inner: Arc::new(inner) };
        let founders: BTreeSet<NodeId> = (1..=founders).map(NodeId).collect();
        for node in &founders {
            world.add(*node, Some(founders.clone()));
        }
        let (points, network) = (world.inner.points.clone(), network.clone());
        network.tell_of_parts(move |node| points.reached(node, "snapshot part"));
        let points = world.inner.points.clone();
        piton_raft::sim::set_hook(Box::new(move |node, _, point| points.reached(node, point)));
        world
    }

    fn add(&self, node: NodeId, founders: Option<BTreeSet<NodeId>>) {
        let chance = &self.inner.chance;
        let skew_ms = chance.below(2 * SKEW_MS_MAX as u64) as i64 - SKEW_MS_MAX;
        let wall_off_ms = Arc::new(AtomicI64::new(skew_ms));
        let member = Member {
            disk: FaultyDisk::new(chance.next()),
            store: Arc::new(MemoryStore::new()),
            sync_ms_max: Arc::new(AtomicU64::new(2)),
            proven: Arc::default(),
            wall: wall_time(self.inner.trace.clone(), Arc::clone(&wall_off_ms)),
            wall_off_ms,
            founders,
            is_gone: false,
            life: None,
            running: None,
        };
        self.inner.members.lock().insert(node, member);
    }

    /// One more node, under an id that none had before. It has nothing, and does not run.
    pub(crate) fn add_node(&self) -> NodeId {
        let last = self.inner.members.lock().keys().last().map_or(0, |node| node.0);
        let node = NodeId(last + 1);
        self.add(node, None);
        node
    }

    /// Takes a node away for good, with all that it held, while nobody else hurts any.
    pub(crate) fn take_away(&self, node: NodeId, _: &tokio::sync::MutexGuard<'_, ()>) {
        self.crash(node, End::Kill);
        self.change(node, |member| member.is_gone = true);
        self.inner.crashed.lock().remove(&node);
        self.inner.trace.note(format_args!("node {node} is taken away"));
    }

    /// Held while nodes are hurt.
    pub(crate) fn hands(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.hands
    }

    pub(crate) fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// The time of a clock that is right.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(WALL_MS + self.inner.trace.now_ms() as i64)
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

    /// Nodes that have begun to run, and were not taken away.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        let members = self.inner.members.lock();
        let here = members.iter().filter(|(_, member)| member.life.is_some() && !member.is_gone);
        here.map(|(node, _)| *node).collect()
    }

    /// Those that found the cluster.
    pub(crate) fn nodes_to_found(&self) -> Vec<NodeId> {
        let members = self.inner.members.lock();
        let founders = members.iter().filter(|(_, member)| member.founders.is_some());
        founders.map(|(node, _)| *node).collect()
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

    /// Sets a node's wall clock. One that runs follows by 10 ms in a second; its next life begins with it.
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
        let devices = {
            let mut members = inner.members.lock();
            let member = members.get_mut(&node).expect("a node of this run");
            if member.is_gone || member.life.as_ref().is_some_and(|life| life.is_alive()) {
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
            Devices {
                disk,
                store: watched(store, failure.clone()),
                wall: member.wall,
                founders: member.founders.clone(),
            }
        };
        let started = self.bring_up(&life, devices).await;
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
        self.tell_of_loss(node);
        self.inner.trace.note(format_args!("node {node} ends life {} by {end:?}", life.number));
        self.inner.crashed.lock().insert(node);
        if let Some(running) = running {
            tokio::spawn(lay_down(running));
        }
    }

    /// Connections to a process that has ended break, and new ones are refused: most of the others see
    /// that soon.
    fn tell_of_loss(&self, node: NodeId) {
        for (life, _, groups) in self.running() {
            let network = &self.inner.network;
            let is_cut = network.is_cut(life.node, node) || network.is_cut(node, life.node);
            if is_cut || !self.inner.chance.percent(70) {
                continue;
            }
            let at = in_ms(self.inner.chance.between(1, 50));
            let world = self.clone();
            tokio::spawn(async move {
                sleep_until(at).await;
                if life.is_alive() && !world.is_up(node) {
                    groups.peer_lost(node);
                }
            });
        }
    }

    /// Stops a node in order, as for maintenance: it hands over what it leads.
    pub(crate) async fn stop(&self, node: NodeId) {
        let running = self.running().into_iter().find(|(life, ..)| life.node == node);
        if let Some((life, cluster, _)) = running {
            let handed = cluster.hand_over_all(Duration::from_secs(10));
            tokio::select! {
                biased;
                () = life.over() => {}
                _ = handed => {}
            }
        }
        self.lay_down(node).await;
        self.crash(node, End::Kill);
    }

    pub(crate) async fn lay_down(&self, node: NodeId) {
        let mut running = None;
        self.change(node, |member| running = member.running.take());
        if let Some(running) = running {
            lay_down(running).await;
        }
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

    /// Who leads, in the eyes of each node.
    pub(crate) fn eyes(&self) -> String {
        let eyes = self.running().into_iter().map(|(life, cluster, groups)| {
            let group = |id| Some((id, *groups.group(id)?.leadership().borrow()));
            let leaders: Vec<_> = GROUPS.into_iter().filter_map(group).collect();
            format!("node {}, ready {}: {leaders:?}", life.node, cluster.is_ready())
        });
        eyes.collect::<Vec<_>>().join("\n      ")
    }

    /// Says how many replicas shards are to have and registers the namespace; true once every node
    /// knows it. From then on nobody founds anything any more.
    pub(crate) async fn bootstrap(&self, replicas: u32) -> bool {
        for (_, cluster, _) in self.running() {
            let meta = cluster.meta();
            let settings = ClusterSettings {
                replicas,
                // In every second run a node that is away for long is replaced.
                down_after: Duration::from_secs(if (self.seed() / 8).is_multiple_of(2) {
                    15
                } else {
                    600
                }),
                ..ClusterSettings::clone(meta.state().settings())
            };
            if **meta.state().settings() != settings && meta.set_cluster(settings).await.is_err() {
                continue;
            }
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
        let is_there = self.running().iter().all(|(_, cluster, _)| knows(cluster));
        if is_there {
            for member in self.inner.members.lock().values_mut() {
                member.founders = None;
            }
        }
        is_there
    }
}

/// Wall time of a node whose clock can be set. A run has a handful of them, and ends its process.
fn wall_time(trace: Trace, off_ms: Arc<AtomicI64>) -> &'static WallTime {
    let wall = move || {
        Timestamp::from_millis(WALL_MS + trace.now_ms() as i64 + off_ms.load(Ordering::Relaxed))
    };
    Box::leak(Box::new(wall))
}
