//! Wires the log, the store, Raft and the shards of one node together, from its data directory up,
//! and takes them apart again in the other order. The composition root's lower half.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_raft::log::{LogError, RealDisk};
use piton_raft::{Disk, GroupId, Groups, Misfit, NodeConfig, RaftError, Transport, Tuning};
use piton_shard::{
    Clock, Cluster, HostParts, Ids, NodeRecord, Room, Serving, ShardConfig, ShardError, ShardHost,
    ShardMetrics, WirePeer, feature_level,
};
use piton_store::{Opened, Store, StoreError, Watched, with_causes};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clock_watch::ClockWatch;
use crate::config::Config;
use crate::disk_watch::{self, MeasureSpace};
use crate::identity::{Identity, IdentityError, KeptIdentity};
use crate::log_metrics::LogCollector;
use crate::membership::{self, Answers, Door, JoinError, Membership, NetCarrier, Unwanted};
use crate::peer::{self, PeerError, PeerNet};
use crate::raft_runtime::RaftRuntime;
use crate::storage_metrics::{DamageCollector, SnapshotCollector};
use crate::store_upkeep::StoreUpkeep;
use crate::telemetry::{Metrics, Ready};

/// Where the store lies in the data directory; the log and the snapshots are named by Raft.
pub(crate) const STORE_DIRECTORY: &str = "store";
/// Bytes of proposals under way, over all groups.
const PROPOSED_BYTES_MAX: usize = 64 << 20;
/// How long a node that stops may take to hand over what it leads.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);
/// How often a node that starts looks whether its shards are led.
const READY_CHECK: Duration = Duration::from_millis(2);
/// Of several nodes, one that starts may have to wait for others, and says so this often.
const WAITING_SAID: Duration = Duration::from_secs(30);
/// A node alone that is not ready by then will not be.
const READY_TIME_MAX: Duration = Duration::from_secs(30);

/// Why the node's state cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("open the store")]
    Store(#[from] StoreError),
    #[error("open the log")]
    Log(#[source] RaftError),
    #[error(
        "something that was acknowledged is gone: {0}; put the data directory back as it was; if that \
         cannot be, `piton data accept-loss` says what is lost for good"
    )]
    Misfit(Box<Misfit>),
    #[error(
        "the log is damaged: put it back as it was; if that cannot be, `piton data accept-loss` says \
         what is lost for good"
    )]
    LogDamaged(#[source] RaftError),
    #[error(
        "the store in {} is of node {found:016x}, but the data directory is of node {node:016x}: put \
         there what belongs there; without a store, it is rebuilt from the log",
        path.display()
    )]
    OtherNode { path: PathBuf, node: u64, found: u64 },
    #[error("start the shards")]
    Shards(#[from] ShardError),
    #[error("start the network between nodes")]
    Peers(#[from] PeerError),
    #[error("start Raft's threads")]
    Runtime(#[source] std::io::Error),
    #[error("not all shards were led after {} s", READY_TIME_MAX.as_secs())]
    NotReady,
    #[error("the log failed while the node started: {0}")]
    LogFailed(String),
    #[error("the store failed while the node started: {0}")]
    StoreFailed(String),
    #[error("a part of what the node holds failed while it started: {0}")]
    GroupFailed(String),
    #[error("the cluster has no place for this node: {0}")]
    Unwanted(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("a storage thread ended early")]
    Thread(#[from] tokio::task::JoinError),
}

impl From<RaftError> for StorageError {
    fn from(error: RaftError) -> Self {
        match error {
            RaftError::Misfit(misfit) => Self::Misfit(misfit),
            RaftError::OpenLog {
                source: LogError::Corrupt { .. } | LogError::Missing { .. },
                ..
            } => Self::LogDamaged(error),
            error => Self::Log(error),
        }
    }
}

/// Puts something between a node and its store.
pub type WrapStore = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;

/// What a node runs on.
#[derive(Clone)]
pub struct Devices {
    /// Where log and snapshots lie.
    pub disk: Arc<dyn Disk>,
    /// What every store that is opened is wrapped in.
    pub wrap_store: WrapStore,
    /// Called by threads that have nothing to do; see [`Tuning::on_idle`].
    pub on_idle: fn(),
    /// Tells the time from the node's start on.
    pub clock: fn() -> Clock,
    /// How much room there is.
    pub measure_space: MeasureSpace,
}

impl Default for Devices {
    /// The real disk, the store as it is, and idle threads that rest.
    fn default() -> Self {
        Self {
            disk: Arc::new(RealDisk),
            wrap_store: Arc::new(|store| store),
            on_idle: || {},
            clock: Clock::start,
            measure_space: Arc::new(disk_watch::measure),
        }
    }
}

/// Whose state is opened, and where.
#[derive(Clone, Copy)]
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a Config,
    pub(crate) directory: &'a Path,
    pub(crate) identity: &'a KeptIdentity,
    /// What this node says of itself to the others.
    pub(crate) record: &'a NodeRecord,
    /// Where others connect.
    pub(crate) listener: &'a std::net::TcpListener,
    pub(crate) ready: &'a Ready,
    pub(crate) room: &'a Room,
    /// How often the store was discarded, to be rebuilt.
    pub(crate) rebuilds: &'a Counter,
}

/// A node's state, led and ready for requests.
pub(crate) struct Storage {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    serving: Serving,
    membership: Membership,
    clock_watch: ClockWatch,
    upkeep: Option<StoreUpkeep>,
    store_failed: watch::Receiver<Option<String>>,
    on: Ground,
}

impl Storage {
    /// Opens everything in `directory` and takes up the duties of the shards led here. A store that
    /// turns out to be damaged while it is read is discarded and rebuilt (D13).
    ///
    /// With it comes what is measured of it.
    ///
    /// # Errors
    /// When something there cannot be used. Nothing is thrown away but a store that can be rebuilt.
    pub(crate) async fn open(
        opening: &Opening<'_>,
        devices: Devices,
    ) -> Result<(Self, Registry), StorageError> {
        let (failure, failed) = watch::channel(None);
        match Self::open_once(opening, devices.clone(), failure).await {
            Err(error) if failed.borrow().is_some() => {
                let reason = with_causes(&error);
                tracing::error!(reason, "the store is damaged and is rebuilt from the log");
                Self::discard_store(opening.directory).await?;
                opening.rebuilds.inc();
                let (failure, _) = watch::channel(None);
                Self::open_once(opening, devices, failure).await
            }
            opened => opened,
        }
    }

    async fn open_once(
        opening: &Opening<'_>,
        devices: Devices,
        failure: watch::Sender<Option<String>>,
    ) -> Result<(Self, Registry), StorageError> {
        let mut registry = Metrics::registry();
        opening.ready.set(Err("opening the log and the store"));
        let help = "How often the store was discarded, and rebuilt from snapshots and the log";
        registry.register("store_rebuilds", help, opening.rebuilds.clone());
        let Devices { disk, wrap_store, on_idle, clock, .. } = devices;
        let store_failed = failure.subscribe();
        let store = open_store(opening.config, opening.directory, opening.rebuilds).await?;
        let store = watched(wrap_store(store), failure);
        let on = Ground::open(opening, disk, on_idle, clock(), store, &mut registry).await?;
        let (cluster, serving) = match serve(on.parts(opening, &mut registry)).await {
            Ok(serving) => serving,
            Err(error) => {
                on.close().await;
                return Err(error.into());
            }
        };
        let Opening { config, identity, record, .. } = *opening;
        let Identity { cluster_id, shards, .. } = identity.now();
        let (of, this) = (cluster.clone(), record.clone());
        on.net.answer_with(Arc::new(Answers { cluster: of, cluster_id, shards, record: this }));
        let door =
            (!config.cluster.join.is_empty()).then(|| Door::new(config, &identity.now(), record));
        let door = match door.transpose() {
            Ok(door) => door,
            Err(error) => {
                serving.stop().await;
                on.close().await;
                return Err(error.into());
            }
        };
        let unwanted = on.unwanted.clone();
        let membership =
            Membership::start(&cluster, &on.net, record.clone(), identity, door, &unwanted);
        let net = Arc::clone(&on.net);
        let clock_watch =
            ClockWatch::start(&cluster, move |node| net.clock_offset(node), &mut registry);
        let upkeep = StoreUpkeep::start(Arc::clone(&on.store));
        let upkeep = upkeep.inspect_err(|error| tracing::warn!(%error, "no space is given back"));
        let upkeep = upkeep.ok();
        let clock = on.clock;
        let storage =
            Self { cluster, clock, serving, membership, clock_watch, upkeep, store_failed, on };
        if let Err(error) = storage.wait_until_ready(opening).await {
            storage.close().await;
            return Err(error);
        }
        Ok((storage, registry))
    }

    /// Whether this node has all that there is, so that nothing will come from others.
    pub(crate) fn is_alone(&self, identity: &KeptIdentity) -> bool {
        let state = self.cluster.meta().state();
        let this = self.cluster.host().node();
        identity.now().peers().is_empty()
            && !state.nodes().any(|node| node.state.is_member() && node.id != this)
    }

    async fn wait_until_ready(&self, opening: &Opening<'_>) -> Result<(), StorageError> {
        let ready = async {
            if self.is_alone(opening.identity) {
                opening.ready.set(Err("waiting for the shards to be led"));
                let led = tokio::time::timeout(READY_TIME_MAX, self.wait_until_led()).await;
                led.map_err(|_| StorageError::NotReady)
            } else {
                self.wait_until_current(opening.ready).await;
                Ok(())
            }
        };
        let [mut store_failed, _] = self.store_failed();
        let (mut log_failed, mut group_failed) = (self.log_failed(), self.group_failed());
        let mut unwanted = self.unwanted();
        let text = |reason: Result<watch::Ref<'_, Option<String>>, _>| {
            reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
        };
        tokio::select! {
            biased;
            reason = log_failed.wait_for(Option::is_some) => {
                Err(StorageError::LogFailed(text(reason)))
            }
            reason = store_failed.wait_for(Option::is_some) => {
                Err(StorageError::StoreFailed(text(reason)))
            }
            reason = unwanted.wait_for(Option::is_some) => {
                Err(StorageError::Unwanted(text(reason)))
            }
            // ORDER: after the log and the store, which take groups along, and say more.
            reason = group_failed.wait_for(Option::is_some) => {
                Err(StorageError::GroupFailed(text(reason)))
            }
            ready = ready => ready,
        }
    }

    /// Returns once this node leads all shards there are.
    async fn wait_until_led(&self) {
        let mut look = tokio::time::interval(READY_CHECK);
        while !self.cluster.is_ready() {
            look.tick().await;
        }
    }

    /// Returns once this node knows all that the cluster had decided when it was asked. What it holds it
    /// has opened by then; calls for what is led nowhere wait for a leader or are refused.
    async fn wait_until_current(&self, ready: &Ready) {
        ready.set(Err("waiting for a majority of the meta group"));
        let mut says = tokio::time::interval(WAITING_SAID);
        says.tick().await;
        loop {
            let refresh = self.cluster.meta().refresh();
            tokio::select! {
                refreshed = refresh => match refreshed {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%error, "is not current yet"),
                },
                _ = says.tick() => tracing::warn!(
                    "waits for a majority of the meta group, without which nothing is decided"
                ),
            }
            tokio::time::sleep(READY_CHECK).await;
        }
    }

    /// Becomes `Some(reason)` when nothing can be made durable any more.
    pub(crate) fn log_failed(&self) -> watch::Receiver<Option<String>> {
        self.on.groups.failed()
    }

    /// Becomes `Some(reason)` when a part of the workflows is not served here any more.
    pub(crate) fn group_failed(&self) -> watch::Receiver<Option<String>> {
        self.on.groups.group_failed()
    }

    /// Becomes `Some(reason)` when the cluster has no place for this node any more.
    pub(crate) fn unwanted(&self) -> watch::Receiver<Option<String>> {
        self.on.unwanted.subscribe()
    }

    /// Become `Some(reason)` when the store has to be rebuilt.
    pub(crate) fn store_failed(&self) -> [watch::Receiver<Option<String>>; 2] {
        [self.store_failed.clone(), self.cluster.host().failed()]
    }

    /// Discards the store of a directory that no node has open.
    pub(crate) async fn discard_store(directory: &Path) -> Result<(), StorageError> {
        let store = directory.join(STORE_DIRECTORY);
        let discarded = tokio::task::spawn_blocking(move || piton_store::discard(&store));
        Ok(discarded.await??)
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Hands over what this node leads, as far as others can lead it.
    pub(crate) async fn hand_over(&self) {
        let led = self.cluster.hand_over_all(HAND_OVER_MAX).await;
        if led > 0 {
            tracing::info!(led, "leads some groups still, which no other node can lead now");
        }
    }

    /// Lays everything down. What was acknowledged is durable whether this is called or not.
    pub(crate) async fn close(self) {
        self.membership.stop().await;
        drop(self.clock_watch);
        // ORDER: actors stop before their groups, so that none proposes to a group that is gone;
        // the last checkpoint comes between, while the log still says what is synced.
        self.serving.stop().await;
        let host = Arc::clone(self.cluster.host());
        let upkeep = self.upkeep;
        let stop = move || {
            if let Some(upkeep) = upkeep {
                upkeep.stop();
            }
            host.stop_checkpoints();
        };
        if tokio::task::spawn_blocking(stop).await.is_err() {
            tracing::warn!("the last checkpoint was not written; the log has it all");
        }
        self.on.close().await;
    }

    /// Where other nodes reach this one.
    pub(crate) fn peer_address(&self) -> SocketAddr {
        self.on.net.address()
    }
}

/// What shards stand on: the store, the network and the groups.
struct Ground {
    clock: Clock,
    groups: Groups,
    net: Arc<PeerNet>,
    /// Whom the network tells of lost peers.
    told_of_lost: Arc<Mutex<Option<Groups>>>,
    store: Arc<dyn Store>,
    unwanted: Unwanted,
    // ORDER: last. What runs on it has stopped by then.
    _raft: RaftRuntime,
}

impl Ground {
    async fn open(
        opening: &Opening<'_>,
        disk: Arc<dyn Disk>,
        on_idle: fn(),
        clock: Clock,
        store: Arc<dyn Store>,
        registry: &mut Registry,
    ) -> Result<Self, StorageError> {
        let (told_of_lost, unwanted) = (Arc::default(), Unwanted::default());
        let raft = RaftRuntime::start(on_idle).map_err(StorageError::Runtime)?;
        let net = start_net(opening, &raft, clock, (&told_of_lost, &unwanted), registry);
        let net = match net {
            Ok(net) => Arc::new(net),
            Err(error) => {
                close_store(store).await;
                return Err(error.into());
            }
        };
        let ways = Ways { runtime: raft.handle(), transport: net.transport() };
        let groups = match open_groups(opening, disk, on_idle, &store, ways).await {
            Ok(groups) => groups,
            Err(error) => {
                net.stop().await;
                close_store(store).await;
                return Err(error);
            }
        };
        *told_of_lost.lock() = Some(groups.clone());
        let on = Self { clock, groups, net, told_of_lost, store, unwanted, _raft: raft };
        // ORDER: before anything is promised to anyone, which is lost if the log vanishes.
        if let Err(error) = opening.identity.note_log() {
            on.close().await;
            return Err(error.into());
        }
        Ok(on)
    }

    fn parts(&self, opening: &Opening<'_>, registry: &mut Registry) -> HostParts {
        registry.register_collector(Box::new(LogCollector(self.groups.log().clone())));
        let snapshots = Arc::clone(self.groups.snapshot_stats());
        registry.register_collector(Box::new(SnapshotCollector(snapshots)));
        let damage = Arc::clone(self.groups.damage_stats());
        registry.register_collector(Box::new(DamageCollector(damage)));
        let identity = opening.identity.now();
        let (node, room) = (identity.node(), opening.room.clone());
        HostParts {
            node,
            founders: identity.is_founding.then(|| BTreeSet::from([node])),
            config: ShardConfig { room, ..shard_config(opening.config, identity.shards) },
            groups: self.groups.clone(),
            store: Arc::clone(&self.store),
            clock: self.clock,
            ids: Ids::random(),
            metrics: ShardMetrics::register(registry),
            peer: Arc::new(WirePeer(NetCarrier(Arc::clone(&self.net)))),
        }
    }

    async fn close(self) {
        self.told_of_lost.lock().take();
        self.groups.shutdown().await;
        self.net.stop().await;
        close_store(self.store).await;
    }
}

/// Tells the first error of a store.
fn watched(store: Arc<dyn Store>, failure: watch::Sender<Option<String>>) -> Arc<dyn Store> {
    let tell = move |error: &StoreError| {
        let reason = with_causes(error);
        failure.send_if_modified(|first| first.is_none().then(|| *first = Some(reason)).is_some());
    };
    Arc::new(Watched::over(store, Box::new(tell)))
}

/// How groups get to other nodes.
struct Ways {
    runtime: Handle,
    transport: Arc<dyn Transport>,
}

fn start_net(
    opening: &Opening<'_>,
    raft: &RaftRuntime,
    clock: Clock,
    (told_of_lost, unwanted): (&Arc<Mutex<Option<Groups>>>, &Unwanted),
    registry: &mut Registry,
) -> Result<PeerNet, PeerError> {
    let (told, unwanted) = (Arc::clone(told_of_lost), unwanted.clone());
    let identity = opening.identity.now();
    let parts = peer::Parts {
        node: identity.node(),
        cluster: identity.cluster_id,
        feature_level: feature_level(),
        config: opening.config.peer.clone(),
        // Another attempt to open the store takes it over.
        listener: opening.listener.try_clone().map_err(PeerError::Register)?,
        timing: peer::Timing::default(),
        raft: raft.handle(),
        main: Handle::current(),
        peer_lost: Arc::new(move |node| {
            if let Some(groups) = told.lock().as_ref() {
                groups.peer_lost(node);
            }
        }),
        unwanted: Arc::new(move |why| membership::say_unwanted(&unwanted, why.to_owned())),
        // The clock by which timers fire, which is not the system's any more once that has been set.
        unix_nanos: Arc::new(move || u64::try_from(clock.now().as_nanos()).unwrap_or(0)),
    };
    PeerNet::start(parts, registry)
}

async fn serve(parts: HostParts) -> Result<(Cluster, Serving), ShardError> {
    let host = ShardHost::start(parts).await?;
    let cluster = Cluster::new(Arc::clone(&host));
    ClockWatch::begin(&cluster);
    match cluster.serve().await {
        Ok(serving) => Ok((cluster, serving)),
        Err(error) => {
            // The error is what is told; a thread that ended early adds nothing to it.
            let _ = tokio::task::spawn_blocking(move || host.stop_checkpoints()).await;
            Err(error)
        }
    }
}

/// Frees the store's files for the next node, in this process or another.
async fn close_store(store: Arc<dyn Store>) {
    // A panic in it is logged by the store.
    let _ = tokio::task::spawn_blocking(move || store.close()).await;
}

fn shard_config(config: &Config, shards: u32) -> ShardConfig {
    ShardConfig {
        shards,
        idle: Duration::from_millis(config.shards.idle_ms),
        in_memory_max: usize::try_from(config.shards.in_memory_max).unwrap_or(usize::MAX),
        table_bytes: usize::try_from(config.data.table_bytes).unwrap_or(usize::MAX),
        ..ShardConfig::default()
    }
}

async fn open_store(
    config: &Config,
    directory: &Path,
    rebuilds: &Counter,
) -> Result<Arc<dyn Store>, StorageError> {
    let directory = directory.join(STORE_DIRECTORY);
    let (engine, cache_bytes) = (config.data.store.into(), config.data.store_cache_bytes);
    let open = move || piton_store::open_or_rebuild(engine, &directory, cache_bytes);
    let (store, opened) = tokio::task::spawn_blocking(open).await??;
    if let Opened::Discarded { reason } = opened {
        rebuilds.inc();
        tracing::info!(reason, "the store is rebuilt from snapshots and the log");
    }
    Ok(store)
}

async fn open_groups(
    &Opening { config, directory, identity, .. }: &Opening<'_>,
    disk: Arc<dyn Disk>,
    on_idle: fn(),
    store: &Arc<dyn Store>,
    Ways { runtime, transport }: Ways,
) -> Result<Groups, StorageError> {
    let Identity { shards, .. } = identity.now();
    let node = identity.now().node();
    let (asked, path) = (Arc::clone(store), directory.join(STORE_DIRECTORY));
    let states = move || match piton_store::owner(asked.as_ref())? {
        Some(found) if found != node.0 => {
            Err(StorageError::OtherNode { path, node: node.0, found })
        }
        owner => {
            if owner.is_none() {
                piton_store::set_owner(asked.as_ref(), node.0)?;
            }
            Ok(piton_store::marks(asked.as_ref())?)
        }
    };
    let states = tokio::task::spawn_blocking(states).await??;
    let config = NodeConfig {
        node,
        dir: directory.to_owned(),
        disk,
        transport,
        states: states.into_iter().map(|(group, mark)| (GroupId(group), mark)).collect(),
        tuning: Tuning {
            snapshot_log_bytes_min: config.data.snapshot_log_bytes,
            // All groups together may have that much under way: the log's queue holds it.
            proposed_bytes_max: (PROPOSED_BYTES_MAX / (shards as usize + 1)).max(1 << 20),
            refill: config.cluster.refill,
            on_idle,
            runtime: Some(runtime),
            ..Tuning::default()
        },
    };
    Ok(tokio::task::spawn_blocking(move || Groups::open(config)).await??)
}
