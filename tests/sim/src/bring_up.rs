//! How a node of the simulation comes up and is laid down: what `piton_node` does with sockets and
//! directories, on what one life of a node may touch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_node::ClockWatch;
use piton_raft::log::LogConfig;
use piton_raft::{Execution, GroupId, Groups, NodeConfig, NodeId, Tuning};
use piton_shard::{
    Clock, Cluster, HostParts, Ids, MetaError, NodeRecord, NodeState, Serving, ShardConfig,
    ShardHost, ShardMetrics, WallTime, WirePeer, feature_level,
};
use piton_store::{Store, Watched};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::life::{Life, LifeDisk, LifeStore};
use crate::peer::LifePeer;
use crate::world::{End, GROUPS, SHARDS, World, in_ms};

/// A node that runs.
pub(crate) struct Running {
    pub(crate) cluster: Cluster,
    pub(crate) groups: Groups,
    serving: Serving,
    clock_watch: ClockWatch,
}

/// What a node keeps its data on in one life, and what it is told.
pub(crate) struct Devices {
    pub(crate) disk: LifeDisk,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) wall: &'static WallTime,
    /// Who founds the cluster, as long as it is not there.
    pub(crate) founders: Option<BTreeSet<NodeId>>,
}

impl World {
    pub(crate) async fn bring_up(
        &self,
        life: &Arc<Life>,
        devices: Devices,
    ) -> anyhow::Result<Running> {
        let seed = self.seed() ^ (life.number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let config = NodeConfig {
            node: life.node,
            dir: PathBuf::from("/node"),
            disk: Arc::new(devices.disk.clone()),
            transport: self.network().transport(life),
            states: piton_store::marks(devices.store.as_ref())?
                .into_iter()
                .map(|(group, mark)| (GroupId(group), mark))
                .collect(),
            tuning: tuning(self.seed(), seed),
        };
        let groups = Groups::open(config)?;
        let served = self.serve(life, &groups, devices, seed).await;
        match served {
            Ok((cluster, serving)) => {
                let offset_of = self.offsets_from(life, cluster.host().clock());
                let clock_watch = ClockWatch::start(&cluster, offset_of, &mut Registry::default());
                tokio::spawn(say_where(self.clone(), Arc::clone(life), cluster.clone()));
                Ok(Running { cluster, groups, serving, clock_watch })
            }
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
        devices: Devices,
        seed: u64,
    ) -> anyhow::Result<(Cluster, Serving)> {
        let parts = HostParts {
            node: life.node,
            founders: devices.founders,
            config: ShardConfig {
                shards: SHARDS,
                checkpoint_interval: Duration::from_millis(200),
                // In every third run no workflow stays in memory.
                idle: Duration::from_secs(if self.seed().is_multiple_of(3) { 0 } else { 2 }),
                ..ShardConfig::default()
            },
            groups: groups.clone(),
            store: devices.store,
            clock: Clock::start_on(devices.wall),
            ids: Ids::seeded(seed),
            metrics: ShardMetrics::register(&mut Registry::default()),
            peer: Arc::new(WirePeer(LifePeer { life: Arc::clone(life), world: self.clone() })),
        };
        let host = ShardHost::start(parts).await?;
        let cluster = Cluster::new(host);
        ClockWatch::begin(&cluster);
        let serving = cluster.serve().await?;
        Ok((cluster, serving))
    }

    /// Answers, in one life of a node, by how much the others' clocks are ahead of its own, or were when they
    /// were last reached.
    fn offsets_from(
        &self,
        life: &Arc<Life>,
        clock: Clock,
    ) -> impl Fn(NodeId) -> Option<i64> + Send + Sync + 'static {
        let (world, this) = (self.clone(), life.node);
        let known: Mutex<BTreeMap<NodeId, i64>> = Mutex::default();
        move |node| {
            let network = world.network();
            let is_reached = !network.is_cut(this, node) && !network.is_cut(node, this);
            let there = world.running().into_iter().find(|(life, ..)| life.node == node);
            let mut known = known.lock();
            if let Some((_, there, _)) = there.filter(|_| is_reached) {
                known.insert(node, (there.host().clock().now() - clock.now()).as_nanos());
            }
            known.get(&node).copied()
        }
    }

    /// Looks after a node that runs: who leads its groups, and whether it can go on. One whose log,
    /// store or group has failed stops, as the binary does, and is started again.
    pub(crate) fn watch(
        &self,
        life: &Arc<Life>,
        running: &Running,
        mut engine: watch::Receiver<bool>,
    ) {
        let Running { cluster, groups, .. } = running;
        for group in GROUPS {
            tokio::spawn(follow(self.clone(), Arc::clone(life), groups.clone(), group));
        }
        let (mut log, mut group) = (groups.failed(), groups.group_failed());
        let (mut checkpoints, mut halted) = (cluster.host().failed(), groups.halted());
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
                _ = halted.wait_for(|halted| !halted.is_empty()) => false,
            };
            world.crash(life.node, End::Kill);
            if store_failed {
                world.discard_store(life.node);
            }
        });
    }
}

/// Sees who leads a group, and when a replica of it comes to a node that runs.
async fn follow(world: World, life: Arc<Life>, groups: Groups, id: GroupId) {
    let mut was_there = groups.group(id).is_some();
    while life.is_alive() {
        let Some(group) = groups.group(id) else {
            was_there = false;
            sleep_until(in_ms(20)).await;
            continue;
        };
        if !was_there {
            world.witness().count("replicas opened");
        }
        was_there = true;
        let mut leadership = group.leadership();
        // ORDER: not held meanwhile, or the group would not go.
        drop(group);
        loop {
            let seen = *leadership.borrow_and_update();
            world.witness().leads(id, seen.term, seen.leader);
            if leadership.changed().await.is_err() {
                break;
            }
        }
        sleep_until(in_ms(20)).await;
    }
}

/// What a node says of itself when it asks to be let in, and in each of its lives.
pub(crate) fn record(world: &World, node: NodeId) -> NodeRecord {
    // In every third run nodes lie in three zones.
    let zone = if world.seed() % 3 == 1 { format!("zone-{}", node.0 % 3) } else { String::new() };
    NodeRecord {
        id: node,
        peer_address: format!("node-{node}:7234"),
        api_address: format!("node-{node}:7233"),
        http_address: format!("node-{node}:8233"),
        zone,
        state: NodeState::Up,
        level: feature_level(),
        joined: world.now(),
    }
}

async fn say_where(world: World, life: Arc<Life>, cluster: Cluster) {
    while life.is_alive() {
        match cluster.meta().put_node(record(&world, life.node)).await {
            // One that was removed is stopped by who looks after it.
            Ok(()) | Err(MetaError::Invalid(_)) => return,
            Err(_) => sleep_until(in_ms(500)).await,
        }
    }
}

pub(crate) async fn lay_down(running: Running) {
    let Running { cluster, groups, serving, clock_watch } = running;
    drop(clock_watch);
    serving.stop().await;
    cluster.host().stop_checkpoints();
    groups.shutdown().await;
}

/// A store that tells when nothing but another one in its place helps.
pub(crate) fn watched(store: LifeStore, failure: watch::Sender<bool>) -> Arc<dyn Store> {
    let life = Arc::clone(&store.life);
    let listener = move |_: &piton_store::StoreError| {
        if life.is_alive() {
            failure.send_replace(true);
        }
    };
    Arc::new(Watched::over(Arc::new(store), Box::new(listener)))
}

/// In every second run logs are short: segments are sealed, freed and rewritten, old entries are
/// read from the disk, and snapshots are taken all the time.
fn tuning(run_seed: u64, seed: u64) -> Tuning {
    let tuning = Tuning {
        execution: Execution::Inline { seed },
        snapshot_log_bytes_min: 64 << 10,
        // So little that a snapshot takes several, and can be cut off between two of them.
        snapshot_frame_bytes: 4 << 10,
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
