//! A whole node, from its configuration to its listeners: the only place that wires the crates
//! together. Starts in the order in which things may be refused: a wrong configuration, a taken
//! port, a directory in use, and only then the state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use piton_core::time::Span;
use piton_proto::enums::IndexedValueType;
use piton_raft::{Disk, NodeId};
use piton_shard::{Clock, Meta, MetaError, Namespace, NewNamespace, NodeRecord, Room};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Config, ConfigError, shards_default};
use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::disk_watch::DiskWatch;
use crate::frontend::{self, Facts, Frontend};
use crate::identity::{Identity, IdentityError};
use crate::membership::{self, JoinError, Origin, Welcome};
use crate::process_metrics;
use crate::storage::{Devices, Opening, Storage, StorageError};
use crate::storage_metrics::StorageSizes;
use crate::telemetry::{self, Metrics, Ready, Refresh};

/// The official server's namespace for workflows of its own; tools expect it in lists.
const SYSTEM_NAMESPACE: &str = "temporal-system";

/// How often a node whose store failed looks whether there is room for another.
const ROOM_CHECK: Duration = Duration::from_millis(200);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "cannot listen on {address} for {what}: the port is taken; stop what listens there, or choose another with {flag}"
    )]
    PortTaken { what: &'static str, address: SocketAddr, flag: &'static str },
    #[error("listen on {address} for {what}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Directory(#[from] DataDirectoryError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("set up namespaces and limits")]
    Setup(#[from] MetaError),
    #[error(
        "this cluster was first started with {kept} shards, so it cannot be started with {asked}; \
         leave out --shards, or choose another directory with --data-dir"
    )]
    Shards { kept: u32, asked: u32 },
    #[error(
        "the search attribute `{name}` of namespace `{namespace}` is of type {kept}, so it cannot \
         be added as {asked}"
    )]
    SearchAttribute { name: String, namespace: String, kept: &'static str, asked: String },
}

/// A running node.
pub struct Node {
    grpc: SocketAddr,
    http: SocketAddr,
    stop: watch::Sender<bool>,
    ready: Ready,
    storage: Storage,
    files_gone: watch::Receiver<Option<String>>,
    room: Room,
    api: JoinHandle<()>,
    pages: JoinHandle<()>,
    config: Config,
    devices: Devices,
    rebuilds: Counter,
    // ORDER: dropped last, when nothing writes there any more.
    directory: DataDirectory,
}

/// Why a node cannot go on as it is, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing can be made durable any more: the node must end, and at once.
    Log(String),
    /// The store has to be rebuilt; nothing is lost with it. See [`Node::rebuild_store`].
    Store(String),
    /// The files are gone, so that nothing would be found again: the node must end.
    Directory(String),
    /// A part of the workflows is not served any more: the node must end and start anew.
    Group(String),
}

impl Node {
    /// Starts a node on the real disk; when this returns, it serves.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        Self::start_on(config, Devices::default()).await
    }

    /// The same on devices of the caller's; for tests in which they fail.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start_on(config: Config, devices: Devices) -> Result<Self, NodeError> {
        config.check()?;
        let listeners = Listeners::bind(&config).await?;
        let directory = if config.data.ephemeral {
            DataDirectory::ephemeral()?
        } else {
            DataDirectory::open(&config.data.directory)?
        };
        Self::start_in(config, devices, Counter::default(), listeners, directory).await
    }

    async fn start_in(
        config: Config,
        devices: Devices,
        rebuilds: Counter,
        Listeners { grpc, http }: Listeners,
        directory: DataDirectory,
    ) -> Result<Self, NodeError> {
        let disk = Arc::clone(&devices.disk);
        let addresses = (local(&grpc, config.listen.grpc()), local(&http, config.listen.http()));
        let mut config = config;
        choose_peer_port(&mut config)?;
        let Identified { mut identity, record, known } =
            identify(disk.as_ref(), &directory, &config, addresses).await?;
        let (kept, is_founding) = (identity.shards, identity.is_founding);
        let room = Room::default();
        let opening = Opening {
            config: &config,
            directory: directory.path(),
            identity: &identity,
            record: &record,
            known: &known,
            room: &room,
            rebuilds: &rebuilds,
        };
        let (storage, mut registry) = Storage::open(&opening, devices.clone()).await?;
        let noted = identity.note_log(disk.as_ref(), directory.path()).map_err(NodeError::from);
        let set_up = match noted {
            Ok(()) if is_founding || storage.is_alone(&known) => {
                set_up(&storage, &config, kept).await
            }
            // What the cluster is to have was said to its first node.
            Ok(()) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = set_up {
            storage.close().await;
            return Err(error);
        }

        let ready = Ready::default();
        let (stop, stopping) = watch::channel(false);
        let disk_watch = DiskWatch::new(
            directory.path().to_owned(),
            disk,
            Arc::clone(&devices.measure_space),
            config.data.free_bytes_min,
            room.clone(),
            ready.clone(),
            &mut registry,
        );
        let refresh = register_figures(&storage, directory.path(), &mut registry);
        let metrics = Metrics::new(registry);
        let (address, cluster_id) = (addresses.0.to_string(), identity.cluster_id);
        let facts = Facts { cluster_id, address, shards: kept };
        let frontend =
            Frontend::new(storage.cluster.clone(), storage.clock, facts, stopping.clone());
        let pages = serve_pages(http, metrics.clone(), ready.clone(), refresh, stopping.clone());
        let api = serve_api(grpc, frontend, &config, &metrics, stopping);
        ready.set(true);
        let files_gone = disk_watch.start(stop.subscribe());
        Ok(Self {
            grpc: addresses.0,
            http: addresses.1,
            stop,
            ready,
            storage,
            files_gone,
            room,
            api,
            pages,
            config,
            devices,
            rebuilds,
            directory,
        })
    }

    /// Where SDKs connect.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// Shards of which this node has a replica.
    pub fn replicas(&self) -> usize {
        self.storage.cluster.status().shards.len()
    }

    /// Where other nodes connect.
    pub fn peer_address(&self) -> SocketAddr {
        self.storage.peer_address()
    }

    pub fn data_directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn is_ephemeral(&self) -> bool {
        self.directory.is_ephemeral()
    }

    /// The names of all namespaces but the server's own.
    pub fn namespaces(&self) -> Vec<String> {
        let all = self.storage.cluster.meta().namespaces();
        let names = all.iter().map(|namespace| namespace.name.to_string());
        names.filter(|name| name != SYSTEM_NAMESPACE).collect()
    }

    /// Returns when this node cannot go on as it is.
    pub async fn failed(&self) -> Failure {
        async fn reason(mut failed: watch::Receiver<Option<String>>) -> String {
            let reason = failed.wait_for(Option::is_some).await;
            let reason = reason.ok().and_then(|reason| reason.clone());
            reason.unwrap_or_else(|| "a storage thread has ended".to_owned())
        }
        let [engine, checkpoints] = self.storage.store_failed();
        tokio::select! {
            biased;
            reason = reason(self.files_gone.clone()) => Failure::Directory(reason),
            reason = reason(self.storage.log_failed()) => Failure::Log(reason),
            reason = reason(engine) => self.store_failure(reason).await,
            reason = reason(checkpoints) => self.store_failure(reason).await,
            // ORDER: last. A log or a store that fails takes groups along, and says more.
            reason = reason(self.storage.group_failed()) => Failure::Group(reason),
        }
    }

    /// A store that failed is rebuilt when there is room for another: on a full disk that one would
    /// fail, too.
    async fn store_failure(&self, reason: String) -> Failure {
        let mut looks = tokio::time::interval(ROOM_CHECK);
        while self.room.is_measured_short() {
            looks.tick().await;
        }
        Failure::Store(reason)
    }

    /// Stops, discards the store, and starts again in the same place: the store is rebuilt from
    /// snapshots and the log.
    ///
    /// # Errors
    /// See [`NodeError`]; the node has stopped then.
    pub async fn rebuild_store(self) -> Result<Self, NodeError> {
        let mut config = self.config.clone();
        (config.listen.port, config.listen.http_port) = (self.grpc.port(), self.http.port());
        config.peer.port = self.storage.peer_address().port();
        let (devices, rebuilds) = (self.devices.clone(), self.rebuilds.clone());
        let directory = self.lay_down().await;
        Storage::discard_store(directory.path()).await?;
        rebuilds.inc();
        let listeners = Listeners::bind(&config).await?;
        Self::start_in(config, devices, rebuilds, listeners, directory).await
    }

    /// Stops: new requests are refused, waiting polls answered empty, the others finished, and
    /// then the state is laid down.
    pub async fn stop(self) {
        // ORDER: the directory goes last, when nothing writes there any more.
        drop(self.lay_down().await);
    }

    async fn lay_down(self) -> DataDirectory {
        self.ready.set(false);
        // ORDER: while requests are still taken, so that they find the next leader from here.
        self.storage.hand_over().await;
        self.stop.send_replace(true);
        // What is not answered in time is cut off; its client asks again elsewhere.
        let stop_max = self.config.admission.stop_max();
        for mut task in [self.api, self.pages] {
            if tokio::time::timeout(stop_max, &mut task).await.is_err() {
                task.abort();
                // Waits for the abort to take effect; an abort is what was asked for.
                let _ = task.await;
            }
        }
        self.storage.close().await;
        self.directory
    }
}

/// Who a node is, and what it was told of the others.
struct Identified {
    identity: Identity,
    record: NodeRecord,
    known: Vec<(NodeId, String)>,
}

/// Whose the directory is, and whether it may be opened. An empty one becomes that of a new cluster, or
/// of a node that joins one.
async fn identify(
    disk: &dyn Disk,
    directory: &DataDirectory,
    config: &Config,
    (api, http): (SocketAddr, SocketAddr),
) -> Result<Identified, NodeError> {
    let asked = config.shards.count;
    let kept = Identity::of(disk, directory.path())?;
    let record = |node| {
        let joined = Clock::start().now();
        membership::record(config, node, config.peer.listen(), api, http, joined)
    };
    let mut known = Vec::new();
    let identity = match (membership::origin(config, kept.as_ref())?, kept) {
        (None, Some(kept)) => kept,
        (Some(Origin::Joiner), _) => {
            let node = Identity::draw_node();
            let Welcome { cluster_id, shards, peers } =
                membership::join(config, &record(node)).await?;
            known = peers;
            let identity = Identity::member(node, cluster_id, shards);
            identity.keep(directory.path())?;
            identity
        }
        (_, _) => {
            let identity = Identity::founder(asked.unwrap_or_else(shards_default));
            identity.keep(directory.path())?;
            identity
        }
    };
    // ORDER: before the store, of which nothing may be thrown away for a log that is missing.
    identity.check_log(disk, directory.path())?;
    // ORDER: before anything is opened. A shard that is led with another number of them would
    // take up slots that are not its own.
    let kept = identity.shards;
    if let Some(asked) = asked.filter(|&asked| asked != kept) {
        return Err(NodeError::Shards { kept, asked });
    }
    let record = record(identity.node());
    Ok(Identified { identity, record, known })
}

/// Where any free port will do, one is chosen now: others are told of it before it is listened on.
fn choose_peer_port(config: &mut Config) -> Result<(), NodeError> {
    if config.peer.port == 0 {
        let address = config.peer.listen();
        let listen = |source| NodeError::Listen { what: "other nodes", address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen)?;
        config.peer.port = listener.local_addr().map_err(listen)?.port();
    }
    Ok(())
}

/// The ports of a node, taken.
struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, NodeError> {
        Ok(Self {
            grpc: listen("gRPC", config.listen.grpc(), "--port").await?,
            http: listen("HTTP", config.listen.http(), "--http-port").await?,
        })
    }
}

async fn listen(
    what: &'static str,
    address: SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => NodeError::PortTaken { what, address, flag },
        _ => NodeError::Listen { what, address, source },
    })
}

/// The address with the port that the system chose where 0 was asked for.
fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

fn serve_api(
    listener: TcpListener,
    frontend: Frontend,
    config: &Config,
    metrics: &Metrics,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let (admission, rpc) = (config.admission.clone(), metrics.rpc.clone());
    tokio::spawn(async move {
        let served = frontend::serve(listener, frontend, &admission, rpc, told(stopping)).await;
        if let Err(error) = served {
            tracing::error!(%error, cause = ?std::error::Error::source(&error), "the API ended");
        }
    })
}

/// Registers what is measured from outside, and says how that which is not counted as it changes is
/// brought up to date.
fn register_figures(storage: &Storage, directory: &Path, registry: &mut Registry) -> Refresh {
    process_metrics::register(registry);
    let (cluster, sizes) = (storage.cluster.clone(), StorageSizes::register(directory, registry));
    Arc::new(move || {
        cluster.refresh_metrics();
        sizes.look();
    })
}

fn serve_pages(
    listener: TcpListener,
    metrics: Metrics,
    ready: Ready,
    refresh: Refresh,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let served = telemetry::serve_http(listener, metrics, ready, refresh, told(stopping)).await;
        if let Err(error) = served {
            tracing::error!(%error, "the HTTP port ended");
        }
    })
}

/// Completes when the node is told to stop.
async fn told(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means that the node is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Makes what a first start is told to make; does nothing that is done already.
async fn set_up(storage: &Storage, config: &Config, shards: u32) -> Result<(), NodeError> {
    let meta = storage.cluster.meta();
    let routes = meta.bootstrap_routes(shards).await?.len() as u32;
    if routes != shards {
        return Err(NodeError::Shards { kept: routes, asked: shards });
    }
    if !config.limits.is_empty() {
        meta.set_limits(&config.limits).await?;
    }
    // The server's own, which clients of the official server expect to be there.
    register(storage, SYSTEM_NAMESPACE).await?;
    for name in &config.namespaces.names {
        let namespace = register(storage, name).await?;
        add_search_attributes(meta, &namespace, &config.namespaces.search_attributes).await?;
    }
    Ok(())
}

/// The namespace of that name, which is made if there is none.
async fn register(storage: &Storage, name: &str) -> Result<Arc<Namespace>, NodeError> {
    let meta = storage.cluster.meta();
    if let Some(namespace) = meta.namespace(name) {
        return Ok(namespace);
    }
    let retention = Span::of_limit_ms(meta.limits().retention_ms_default);
    let created = storage.clock.now();
    let name = name.to_owned();
    let new = NewNamespace { name, retention, created, ..NewNamespace::default() };
    Ok(meta.register_namespace(new).await?)
}

async fn add_search_attributes(
    meta: &Meta,
    namespace: &Namespace,
    wanted: &BTreeMap<String, String>,
) -> Result<(), NodeError> {
    let known = meta.search_attributes(&namespace.id);
    let mut missing = BTreeMap::new();
    for (name, asked) in wanted {
        let Some(kind) = search_attribute_type(asked) else { continue };
        match known.get(name) {
            Some(&kept) if kept == kind => {}
            Some(&kept) => {
                return Err(NodeError::SearchAttribute {
                    name: name.clone(),
                    namespace: namespace.name.to_string(),
                    kept: search_attribute_name(kept),
                    asked: asked.clone(),
                });
            }
            None => {
                missing.insert(name.clone(), kind);
            }
        }
    }
    if !missing.is_empty() {
        meta.add_search_attributes(&namespace.id, missing).await?;
    }
    Ok(())
}

fn search_attribute_name(kind: IndexedValueType) -> &'static str {
    let all = crate::config::SEARCH_ATTRIBUTE_TYPES.iter();
    let named = all.copied().find(|name| search_attribute_type(name) == Some(kind));
    named.unwrap_or("another server's")
}

fn search_attribute_type(name: &str) -> Option<IndexedValueType> {
    match name {
        "Text" => Some(IndexedValueType::Text),
        "Keyword" => Some(IndexedValueType::Keyword),
        "Int" => Some(IndexedValueType::Int),
        "Double" => Some(IndexedValueType::Double),
        "Bool" => Some(IndexedValueType::Bool),
        "Datetime" => Some(IndexedValueType::Datetime),
        "KeywordList" => Some(IndexedValueType::KeywordList),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SEARCH_ATTRIBUTE_TYPES;

    #[test]
    fn every_type_that_the_configuration_takes_is_one_of_the_api() {
        for name in SEARCH_ATTRIBUTE_TYPES {
            let kind = search_attribute_type(name).expect(name);
            assert_eq!(search_attribute_name(kind), *name);
        }
    }
}
