//! A whole node, from its configuration to its listeners: the only place that wires the crates
//! together. Starts in the order in which things may be refused: a wrong configuration, a taken
//! port, a directory in use, and only then the state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use piton_core::limits::Limits;
use piton_core::time::Span;
use piton_proto::enums::IndexedValueType;
use piton_shard::{Cluster, MetaError, NewNamespace};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{Config, ConfigError};
use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::frontend::{self, Facts, Frontend};
use crate::identity::{Identity, IdentityError};
use crate::storage::{Devices, Storage, StorageError};
use crate::telemetry::{self, Metrics, Ready};

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
    Storage(#[from] StorageError),
    #[error("set up namespaces and limits")]
    Setup(#[from] MetaError),
    #[error(
        "this cluster was first started with {kept} shards, so it cannot be started with {asked}"
    )]
    Shards { kept: usize, asked: u32 },
}

/// A running node.
pub struct Node {
    grpc: SocketAddr,
    http: SocketAddr,
    stop: watch::Sender<bool>,
    ready: Ready,
    storage: Storage,
    api: JoinHandle<()>,
    pages: JoinHandle<()>,
    config: Config,
    devices: Devices,
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
        Self::start_in(config, devices, listeners, directory).await
    }

    async fn start_in(
        config: Config,
        devices: Devices,
        Listeners { grpc, http }: Listeners,
        directory: DataDirectory,
    ) -> Result<Self, NodeError> {
        let identity = Identity::of(directory.path())?;
        let mut registry = Metrics::registry();
        let storage = Storage::open(
            &config,
            directory.path(),
            identity.node(),
            devices.clone(),
            &mut registry,
        )
        .await?;
        if let Err(error) = set_up(&storage, &config).await {
            storage.close().await;
            return Err(error);
        }

        let metrics = Metrics::new(registry);
        let ready = Ready::default();
        let (stop, stopping) = watch::channel(false);
        let addresses = (local(&grpc, config.listen.grpc()), local(&http, config.listen.http()));
        let facts = Facts {
            cluster_id: identity.cluster_id,
            address: addresses.0.to_string(),
            shards: config.shards.count,
        };
        let cluster = storage.cluster.clone();
        let frontend = Frontend::new(cluster.clone(), storage.clock, facts, stopping.clone());
        let pages = serve_pages(http, metrics.clone(), ready.clone(), cluster, stopping.clone());
        let api = serve_api(grpc, frontend, &config, &metrics, stopping);
        ready.set(true);
        Ok(Self {
            grpc: addresses.0,
            http: addresses.1,
            stop,
            ready,
            storage,
            api,
            pages,
            config,
            devices,
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

    pub fn data_directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn is_ephemeral(&self) -> bool {
        self.directory.is_ephemeral()
    }

    /// The names of all namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        let all = self.storage.cluster.meta().namespaces();
        all.iter().map(|namespace| namespace.name.to_string()).collect()
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
            reason = reason(self.storage.log_failed()) => Failure::Log(reason),
            reason = reason(engine) => Failure::Store(reason),
            reason = reason(checkpoints) => Failure::Store(reason),
        }
    }

    /// Stops, discards the store, and starts again in the same place: the store is rebuilt from
    /// snapshots and the log.
    ///
    /// # Errors
    /// See [`NodeError`]; the node has stopped then.
    pub async fn rebuild_store(self) -> Result<Self, NodeError> {
        let mut config = self.config.clone();
        (config.listen.port, config.listen.http_port) = (self.grpc.port(), self.http.port());
        let devices = self.devices.clone();
        let directory = self.lay_down().await;
        Storage::discard_store(directory.path()).await?;
        let listeners = Listeners::bind(&config).await?;
        Self::start_in(config, devices, listeners, directory).await
    }

    /// Stops: new requests are refused, waiting polls answered empty, the others finished, and
    /// then the state is laid down.
    pub async fn stop(self) {
        // ORDER: the directory goes last, when nothing writes there any more.
        drop(self.lay_down().await);
    }

    async fn lay_down(self) -> DataDirectory {
        self.ready.set(false);
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

fn serve_pages(
    listener: TcpListener,
    metrics: Metrics,
    ready: Ready,
    cluster: Cluster,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let refresh = Arc::new(move || cluster.refresh_metrics());
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
async fn set_up(storage: &Storage, config: &Config) -> Result<(), NodeError> {
    let meta = storage.cluster.meta();
    let kept = meta.bootstrap_routes(config.shards.count).await?.len();
    if kept != config.shards.count as usize {
        return Err(NodeError::Shards { kept, asked: config.shards.count });
    }
    let limits = limits_given(&config.limits);
    if !limits.is_empty() {
        meta.set_limits(&limits).await?;
    }
    let types: BTreeMap<_, _> = config
        .namespaces
        .search_attributes
        .iter()
        .filter_map(|(name, kind)| Some((name, search_attribute_type(kind)?)))
        .collect();
    for name in &config.namespaces.names {
        let namespace = match meta.namespace(name) {
            Some(namespace) => namespace,
            None => {
                let retention = Span(meta.limits().retention_ms_default as i64);
                let created = storage.clock.now();
                let name = name.clone();
                let new = NewNamespace { name, retention, created, ..NewNamespace::default() };
                meta.register_namespace(new).await?
            }
        };
        let known = meta.search_attributes(&namespace.id);
        let missing = types.iter().filter(|(name, _)| !known.contains_key(**name));
        let missing: BTreeMap<_, _> =
            missing.map(|(name, kind)| ((*name).clone(), *kind)).collect();
        if !missing.is_empty() {
            meta.add_search_attributes(&namespace.id, missing).await?;
        }
    }
    Ok(())
}

/// The limits that differ from their defaults.
fn limits_given(limits: &Limits) -> BTreeMap<String, u64> {
    let all = |limits: &Limits| {
        let table = toml::Table::try_from(limits).expect("limits are a table of numbers");
        table.into_iter().filter_map(|(name, value)| Some((name, value.as_integer()? as u64)))
    };
    let defaults: BTreeMap<_, _> = all(&Limits::default()).collect();
    all(limits).filter(|(name, value)| defaults.get(name) != Some(value)).collect()
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
    fn only_limits_that_differ_from_their_defaults_are_set() {
        assert!(limits_given(&Limits::default()).is_empty());
        let limits = Limits { signals_max: 7, ..Limits::default() };
        assert_eq!(limits_given(&limits), BTreeMap::from([("signals_max".to_owned(), 7)]));
    }

    #[test]
    fn every_type_that_the_configuration_takes_is_one_of_the_api() {
        for name in SEARCH_ATTRIBUTE_TYPES {
            assert!(search_attribute_type(name).is_some(), "{name}");
        }
    }
}
