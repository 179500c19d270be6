//! What a node is told: defaults, overlaid by a TOML file, overlaid by `PITON_*` and flags. Every
//! queue, retry and batch limit of this process that is not an API limit has its name here; the API
//! limits are `piton_core::limits`. `deploy/piton.toml` documents every key (a test compares).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use piton_core::limits::Limits;
use piton_store::EngineKind;
use serde::{Deserialize, Serialize};

mod peer;

pub use peer::PeerConfig;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read the configuration file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("parse the configuration file {}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("there is no limit called `{name}`; `piton dev --help` lists them all")]
    UnknownLimit { name: String },
    #[error("the limit `{name}` must be between {least} and {LIMIT_MAX}, not {value}")]
    LimitOutOfRange { name: String, value: u64, least: u64 },
    #[error("`{filter}` is not a log filter")]
    LogFilter {
        filter: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("`{given}` is not of the form {form}")]
    Malformed { given: String, form: &'static str },
    #[error("`{given}` is not a type of search attribute; those are {}", SEARCH_ATTRIBUTE_TYPES.join(", "))]
    UnknownType { given: String },
    #[error(
        "peer.ip is {ip}, and nodes speak plaintext only on their own machine: give certificate, key \
         and ca in [peer], or a loopback address"
    )]
    PlaintextPeers { ip: IpAddr },
    #[error("peer.{lane}_queue_bytes_max must be at least {least}, the largest frame of that lane")]
    PeerQueue { lane: &'static str, least: usize },
    #[error("{0}")]
    Refused(&'static str),
}

/// The types a search attribute may have, as flags, files and the API call them.
pub const SEARCH_ATTRIBUTE_TYPES: &[&str] =
    &["Text", "Keyword", "Int", "Double", "Bool", "Datetime", "KeywordList"];

/// No limit is so large that a sum of two, or a span that long, overflows.
const LIMIT_MAX: u64 = 1 << 53;

/// All that a node is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub listen: ListenConfig,
    pub data: DataConfig,
    pub namespaces: NamespacesConfig,
    pub admission: AdmissionConfig,
    pub shards: ShardsConfig,
    pub peer: PeerConfig,
    pub cluster: ClusterConfig,
    pub log: LogConfig,
    /// The API's limits that are given, by name. The cluster keeps them: one that is not given any
    /// more stays as it was last set.
    pub limits: BTreeMap<String, u64>,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    pub ip: IpAddr,
    /// gRPC; 0 takes any free port.
    pub port: u16,
    /// Health and metrics; 0 takes any free port.
    pub http_port: u16,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 7233, http_port: 8233 }
    }
}

impl ListenConfig {
    pub fn grpc(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.http_port)
    }
}

/// How a node that has no data yet comes into a cluster, and where it stands there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// With an empty data directory: found a new cluster.
    pub bootstrap: bool,
    /// With an empty data directory: join the cluster of these nodes, which are asked in turn, by
    /// host:port of their peer port.
    pub join: Vec<String>,
    /// What fails together with this node: replicas of a shard are spread over zones.
    pub zone: String,
    /// Where the log is found damaged at a start: come back as another node, which the others fill. With
    /// false, the node does not start then.
    pub refill: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { bootstrap: false, join: Vec::new(), zone: String::new(), refill: true }
    }
}

/// Where state is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    pub directory: PathBuf,
    /// A temporary directory instead, removed at exit.
    pub ephemeral: bool,
    /// Rows that all shards of this node may hold in memory before they must write them to the store.
    pub table_bytes: u64,
    /// What keeps the store. A store that another engine made is discarded and rebuilt.
    pub store: StoreEngine,
    /// The store's own cache.
    pub store_cache_bytes: u64,
    /// A shard's snapshot is taken, and its log freed, when the log since the last one is larger than
    /// this and than the snapshot.
    pub snapshot_log_bytes: u64,
    /// With less room than this on the disk, requests that write are refused and reads go on; a
    /// warning comes at four times as much.
    pub free_bytes_min: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("./piton-data"),
            ephemeral: false,
            table_bytes: 64 << 20,
            store: StoreEngine::Redb,
            store_cache_bytes: 8 << 20,
            snapshot_log_bytes: 64 << 20,
            free_bytes_min: 128 << 20,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreEngine {
    Sled,
    Redb,
}

impl From<StoreEngine> for EngineKind {
    fn from(engine: StoreEngine) -> Self {
        match engine {
            StoreEngine::Sled => Self::Sled,
            StoreEngine::Redb => Self::Redb,
        }
    }
}

/// What exists from the first start on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamespacesConfig {
    /// Registered at start if they do not exist.
    pub names: Vec<String>,
    /// Added to each of these namespaces: name -> type.
    pub search_attributes: BTreeMap<String, String>,
}

impl Default for NamespacesConfig {
    fn default() -> Self {
        Self { names: vec!["default".to_owned()], search_attributes: BTreeMap::new() }
    }
}

/// How much is let in; what is beyond is refused with RESOURCE_EXHAUSTED.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Short requests being answered at once.
    pub requests_max: usize,
    /// Long polls, history reads and queries being held at once.
    pub held_requests_max: usize,
    /// Streams that one client connection may have open.
    pub connection_streams_max: u32,
    /// A message from a client, decompressed.
    pub message_bytes_max: usize,
    /// How long requests may go on after the order to stop.
    pub stop_ms_max: u64,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            requests_max: 4_096,
            held_requests_max: 65_536,
            connection_streams_max: 16_384,
            // The 4 MiB that the official server takes, and room for what frames a 4 MiB payload.
            message_bytes_max: (4 << 20) + (64 << 10),
            stop_ms_max: 5_000,
        }
    }
}

impl AdmissionConfig {
    pub fn stop_max(&self) -> Duration {
        Duration::from_millis(self.stop_ms_max)
    }
}

/// Shards of a new cluster where nobody says how many (D1): one for each core. More let less be done
/// together, and each costs a Raft group of its own.
pub(crate) fn shards_default() -> u32 {
    const MAX: u32 = 16;
    let cores = std::thread::available_parallelism().map_or(MAX as usize, usize::from);
    u32::try_from(cores).unwrap_or(MAX).min(MAX)
}

/// How workflows are spread and kept in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShardsConfig {
    /// Fixed when a cluster is first started: one for each core, at most 16, unless given, and from
    /// then on what it was; another number is refused.
    pub count: Option<u32>,
    /// A workflow without anything to do leaves memory after this time.
    pub idle_ms: u64,
    /// Beyond so many in memory, those that were unused the longest leave before their time.
    pub in_memory_max: u64,
}

impl Default for ShardsConfig {
    fn default() -> Self {
        Self { count: None, idle_ms: 10_000, in_memory_max: 4_096 }
    }
}

/// Log lines, on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// As `tracing_subscriber::EnvFilter` reads it.
    pub filter: String,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        // What goes on inside of Raft is not for a reader of state changes.
        Self { filter: "info,openraft=error".to_owned(), format: LogFormat::Text }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// Reads a configuration file; keys that it does not name keep their defaults.
    ///
    /// # Errors
    /// When it cannot be read, or names a key that does not exist.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Takes `key=value` for one of the API's limits; whether there is such a limit is seen by
    /// [`Config::check`].
    ///
    /// # Errors
    /// When the value is not a whole number.
    pub fn set_limit(&mut self, given: &str) -> Result<(), ConfigError> {
        let malformed = || ConfigError::Malformed { given: given.to_owned(), form: "key=number" };
        let (name, value) = given.split_once('=').ok_or_else(malformed)?;
        let value = value.trim().replace('_', "").parse().map_err(|_| malformed())?;
        self.limits.insert(name.trim().to_owned(), value);
        Ok(())
    }

    /// Takes `name=Type` for a search attribute of the namespaces made at start.
    ///
    /// # Errors
    /// When it has another form, or the type does not exist.
    pub fn add_search_attribute(&mut self, given: &str) -> Result<(), ConfigError> {
        let malformed = || ConfigError::Malformed { given: given.to_owned(), form: "name=Type" };
        let (name, kind) = given.split_once('=').ok_or_else(malformed)?;
        if name.trim().is_empty() {
            return Err(malformed());
        }
        self.namespaces.search_attributes.insert(name.trim().to_owned(), kind.trim().to_owned());
        Ok(())
    }

    pub fn add_namespace(&mut self, name: String) {
        if !self.namespaces.names.contains(&name) {
            self.namespaces.names.push(name);
        }
    }

    /// Checks what cannot be right, before anything is opened.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.shards.count.is_some_and(|count| !(1..=1024).contains(&count)) {
            return Err(ConfigError::Refused("shards.count must be between 1 and 1024"));
        }
        let admission = &self.admission;
        if admission.requests_max == 0 || admission.held_requests_max == 0 {
            return Err(ConfigError::Refused("a node must admit at least one request"));
        }
        if admission.connection_streams_max == 0 {
            return Err(ConfigError::Refused(
                "admission.connection_streams_max must be at least 1",
            ));
        }
        if self.listen.port != 0 && self.listen.port == self.listen.http_port {
            return Err(ConfigError::Refused("listen.port and listen.http_port must differ"));
        }
        if self.namespaces.names.iter().any(String::is_empty) {
            return Err(ConfigError::Refused("a namespace must have a name"));
        }
        self.peer.check()?;
        if self.cluster.bootstrap && !self.cluster.join.is_empty() {
            return Err(ConfigError::Refused(
                "cluster.bootstrap founds a new cluster and cluster.join joins another: give one of them",
            ));
        }
        for address in &self.cluster.join {
            address.parse::<crate::peer::PeerAddress>()?;
        }
        let mut types = self.namespaces.search_attributes.values();
        if let Some(kind) = types.find(|kind| !SEARCH_ATTRIBUTE_TYPES.contains(&kind.as_str())) {
            return Err(ConfigError::UnknownType { given: kind.clone() });
        }
        let filter = &self.log.filter;
        tracing_subscriber::EnvFilter::try_new(filter)
            .map_err(|source| ConfigError::LogFilter { filter: filter.clone(), source })?;
        self.limits.iter().try_for_each(|(name, &value)| check_limit(name, value))
    }
}

fn check_limit(name: &str, value: u64) -> Result<(), ConfigError> {
    if !Limits::ALL.iter().any(|(known, ..)| *known == name) {
        return Err(ConfigError::UnknownLimit { name: name.to_owned() });
    }
    // A least span may be nothing; a page, a size or a count of nothing would refuse everything.
    let least = u64::from(!name.ends_with("_min"));
    if (least..=LIMIT_MAX).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::LimitOutOfRange { name: name.to_owned(), value, least })
}

#[cfg(test)]
mod tests;
