//! A whole node, from its configuration to its listeners: the only place that wires the crates
//! together. Starts in the order in which things may be refused: a wrong configuration, a taken
//! port, a directory in use, and only then the state.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use piton_shard::{MetaError, NodeRecord, Room};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Config, ConfigError, shards_default};
use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::disk_watch::DiskWatch;
use crate::frontend::{self, Facts, Frontend};
use crate::identity::{Identity, IdentityError, KeptIdentity};
use crate::membership::{self, Door, JoinError, Origin, Welcome};
use crate::peer::PeerError;
use crate::ports::{Addresses, GRPC, Listeners, listen_for_peers};
use crate::process_metrics;
use crate::refill::{self, RefillError};
use crate::storage::{Devices, Opening, Storage, StorageError};
use crate::storage_metrics::StorageSizes;
use crate::telemetry::{self, Http, Metrics, Ready, Refresh};

mod set_up;
use set_up::set_up;

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
    Peers(#[from] PeerError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("have the other nodes fill this one, whose log is damaged")]
    Refill(#[from] RefillError),
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
    /// A group has stopped, and may go on in a node that starts anew. One that could not, since it met an
    /// entry of a newer release say, is no failure of the node.
    Group(String),
    /// The cluster has no place for this node, since it was removed, say: the node must end.
    Unwanted(String),
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
    pub fn start_on(
        config: Config,
        devices: Devices,
    ) -> BoxFuture<'static, Result<Self, NodeError>> {
        Box::pin(async move {
            config.check()?;
            let listeners = Listeners::bind(&config)?;
            let directory = if config.data.ephemeral {
                DataDirectory::ephemeral()?
            } else {
                DataDirectory::open(&config.data.directory)?
            };
            Self::start_in(config, devices, Counter::default(), listeners, directory).await
        })
    }

    async fn start_in(
        config: Config,
        devices: Devices,
        rebuilds: Counter,
        listeners: Listeners,
        directory: DataDirectory,
    ) -> Result<Self, NodeError> {
        let addresses = listeners.addresses(&config);
        let Listeners { grpc, http } = listeners;
        let (stop, stopping) = watch::channel(false);
        // ORDER: before anything that may take long, or wait for other nodes.
        let shown = Http::default();
        let pages = serve_pages(http, shown.clone(), stopping.clone());
        let room = Room::default();
        let (on, ready) = (&devices, &shown.ready);
        let start = Start {
            config: &config,
            on,
            rebuilds: &rebuilds,
            directory: &directory,
            room: &room,
            addresses,
            ready,
        };
        let ((storage, facts, mut registry), grpc) = match begin_to_listen(start, grpc).await {
            Ok(begun) => begun,
            Err(error) => {
                stop.send_replace(true);
                end_in_time(pages, config.admission.stop_max()).await;
                return Err(error);
            }
        };
        let Http { ready, figures } = shown;
        let disk_watch = DiskWatch::new(
            directory.path().to_owned(),
            Arc::clone(&devices.disk),
            Arc::clone(&devices.measure_space),
            config.data.free_bytes_min,
            room.clone(),
            ready.clone(),
            &mut registry,
        );
        let refresh = register_figures(&storage, directory.path(), &mut registry);
        let metrics = Metrics::new(registry);
        let frontend =
            Frontend::new(storage.cluster.clone(), storage.clock, facts, stopping.clone());
        let api = serve_api(grpc, frontend, &config, &metrics, stopping);
        // Nobody else sets it.
        let _ = figures.set((metrics, refresh));
        let host = Arc::downgrade(storage.cluster.host());
        ready.look(move || host.upgrade().map_or(Ok(()), |host| telemetry::whole(&host.stopped())));
        ready.set(Ok(()));
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
    pub fn failed(&self) -> BoxFuture<'_, Failure> {
        Box::pin(async move {
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
                reason = reason(self.storage.unwanted()) => Failure::Unwanted(reason),
                reason = reason(engine) => self.store_failure(reason).await,
                reason = reason(checkpoints) => self.store_failure(reason).await,
                // ORDER: last. A log or a store that fails takes groups along, and says more.
                reason = reason(self.storage.group_failed()) => Failure::Group(reason),
            }
        })
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
    pub fn rebuild_store(self) -> BoxFuture<'static, Result<Self, NodeError>> {
        Box::pin(async move {
            let mut config = self.config.clone();
            (config.listen.port, config.listen.http_port) = (self.grpc.port(), self.http.port());
            config.peer.port = self.storage.peer_address().port();
            let (devices, rebuilds) = (self.devices.clone(), self.rebuilds.clone());
            let directory = self.lay_down().await;
            Storage::discard_store(directory.path()).await?;
            rebuilds.inc();
            let listeners = Listeners::bind(&config)?;
            Self::start_in(config, devices, rebuilds, listeners, directory).await
        })
    }

    /// Stops: new requests are refused, waiting polls answered empty, the others finished, and
    /// then the state is laid down.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // ORDER: the directory goes last, when nothing writes there any more.
            drop(self.lay_down().await);
        })
    }

    async fn lay_down(self) -> DataDirectory {
        self.ready.set(Err("stopping"));
        // ORDER: while requests are still taken, so that they find the next leader from here.
        self.storage.hand_over().await;
        self.stop.send_replace(true);
        // What is not answered in time is cut off; its client asks again elsewhere.
        let stop_max = self.config.admission.stop_max();
        for task in [self.api, self.pages] {
            end_in_time(task, stop_max).await;
        }
        self.storage.cluster().withdraw_polls().await;
        self.storage.close().await;
        self.directory
    }
}

/// Waits for a task that was told to stop, and cuts it off if that takes too long.
async fn end_in_time(mut task: JoinHandle<()>, stop_max: Duration) {
    if tokio::time::timeout(stop_max, &mut task).await.is_err() {
        task.abort();
        // Waits for the abort to take effect; an abort is what was asked for.
        let _ = task.await;
    }
}

/// What a node's state is brought up with.
#[derive(Clone, Copy)]
struct Start<'a> {
    config: &'a Config,
    on: &'a Devices,
    rebuilds: &'a Counter,
    directory: &'a DataDirectory,
    room: &'a Room,
    addresses: Addresses,
    ready: &'a Ready,
}

type Begun = (Storage, Facts, Registry);

/// Brings a node's state up, as far as it is to be before it is ready. What is damaged and others have,
/// they fill anew.
async fn begin(start: Start<'_>) -> Result<Begun, NodeError> {
    let directory = start.directory.path();
    if refill::is_replaced(start.config, directory).await? {
        return begin_as(Whose::Successors, start).await;
    }
    let begun = begin_as(Whose::Own, start).await;
    if let Err(error) = &begun
        && refill::give_up(start.config, directory, error).await?
    {
        return begin_as(Whose::Successors, start).await;
    }
    begun
}

/// The same, and has clients come in then.
async fn begin_to_listen(
    start: Start<'_>,
    grpc: TcpSocket,
) -> Result<(Begun, TcpListener), NodeError> {
    let begun = begin(start).await?;
    match GRPC.listen(grpc, start.addresses.0) {
        Ok(grpc) => Ok((begun, grpc)),
        Err(error) => {
            begun.0.close().await;
            Err(error)
        }
    }
}

/// Who comes up from a data directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The node whose directory it is.
    Own,
    /// The one that comes in its place, since what it holds is damaged.
    Successors,
}

async fn begin_as(whose: Whose, start: Start<'_>) -> Result<Begun, NodeError> {
    let Start { config, on: devices, rebuilds, directory, room, addresses, ready } = start;
    let Identified { identity, record, listener } =
        identify(whose, devices, directory, config, addresses, ready).await?;
    let opening = Opening {
        config,
        directory: directory.path(),
        identity: &identity,
        record: &record,
        listener: &listener,
        ready,
        room,
        rebuilds,
    };
    let (storage, registry) = Storage::open(&opening, devices.clone()).await?;
    if let Err(error) = finish_founding(&storage, config, &identity).await {
        storage.close().await;
        return Err(error);
    }
    let Identity { cluster_id, shards, .. } = identity.now();
    let facts = Facts { cluster_id, address: addresses.0.to_string(), shards };
    Ok((storage, facts, registry))
}

/// Sets up what the cluster is to have. That was said to its first node, which says it again at each
/// start for as long as it is alone.
async fn finish_founding(
    storage: &Storage,
    config: &Config,
    identity: &KeptIdentity,
) -> Result<(), NodeError> {
    let Identity { is_founding, shards, .. } = identity.now();
    if is_founding || storage.is_alone(identity) {
        set_up(storage, config, shards).await?;
    }
    // ORDER: last. Until then, another start has to go on with it.
    identity.change(|identity| {
        identity.is_founding = false;
        if config.peer.port == 0 {
            identity.peer_port = Some(storage.peer_address().port());
        }
    })?;
    Ok(())
}

/// Who a node is, and where others connect.
struct Identified {
    identity: KeptIdentity,
    record: NodeRecord,
    listener: std::net::TcpListener,
}

/// Whose the directory is, and whether it may be opened. An empty one becomes that of a new cluster, or
/// of a node that joins one.
async fn identify(
    whose: Whose,
    devices: &Devices,
    directory: &DataDirectory,
    config: &Config,
    (api, http): Addresses,
    ready: &Ready,
) -> Result<Identified, NodeError> {
    let (disk, path) = (Arc::clone(&devices.disk), directory.path());
    let asked = config.shards.count;
    let kept = Identity::of(disk.as_ref(), path)?;
    let is_successor = whose == Whose::Successors;
    let kept = kept.and_then(|kept| if is_successor { kept.successor() } else { Some(kept) });
    let origin = membership::origin(config, kept.as_ref())?;
    let (mut identity, is_new) = match (kept, &origin) {
        (Some(kept), _) => (kept, false),
        (None, Some(Origin::Joiner)) => (Identity::joiner(), true),
        (None, _) => (Identity::founder(asked.unwrap_or_else(shards_default)), true),
    };
    // ORDER: before the store, of which nothing may be thrown away for a log that is missing.
    if !is_successor {
        identity.check_log(disk.as_ref(), path)?;
    }
    // ORDER: before others are told of it.
    let listener = listen_for_peers(config, identity.peer_port)?;
    let peer = listener.local_addr().unwrap_or(config.peer.listen());
    let record = {
        let joined = (devices.clock)().now();
        membership::record(config, identity.node(), peer, api, http, joined)
    };
    let door = match origin {
        Some(Origin::Joiner) => Some(Door::of_joiner(config, &identity, &record)?),
        _ => None,
    };
    if is_new {
        identity.peer_port = (config.peer.port == 0).then(|| peer.port());
        // ORDER: before anybody is told of it, so that one who asks twice asks as one node.
        identity.keep(path)?;
    }
    let identity = KeptIdentity::new(disk, path, identity);
    if let Some(door) = door {
        let Welcome { cluster_id, shards, peers } = door.join(ready).await?;
        let before = identity.now().cluster_id;
        if !before.is_empty() && before != cluster_id {
            return Err(JoinError::OtherCluster { before, cluster_id }.into());
        }
        if is_successor {
            let path = path.to_owned();
            let aside = tokio::task::spawn_blocking(move || refill::set_aside(&path));
            aside.await.map_err(RefillError::Thread)??;
        }
        // ORDER: after that. Until then, the next start goes on with what is left to be moved.
        identity.change(|identity| identity.joined(cluster_id, shards, &peers))?;
    }
    // ORDER: before anything is opened. A shard that is led with another number of them would
    // take up slots that are not its own.
    let kept = identity.now().shards;
    if let Some(asked) = asked.filter(|&asked| asked != kept) {
        return Err(NodeError::Shards { kept, asked });
    }
    Ok(Identified { identity, record, listener })
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
    http: Http,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = telemetry::serve_http(listener, http, told(stopping)).await {
            tracing::error!(%error, "the HTTP port ended");
        }
    })
}

/// Completes when the node is told to stop.
async fn told(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means that the node is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests;
