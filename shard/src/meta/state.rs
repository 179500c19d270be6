//! The meta group's state: namespaces, search attributes, limits, routes, nodes and what they are to
//! hold; and the replica that applies commands to it. A command carries values decided on the leader and the version they
//! were decided on, so every replica does the same.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use piton_core::id::{NamespaceId, ShardId};
use piton_core::limits::Limits;
use piton_core::placement::Slot;
use piton_core::proto::enums::IndexedValueType;
use piton_core::time::{Span, Timestamp};
use piton_raft::{CommittedEntry, NodeId, Replica, ReplicaError, SnapshotError, SnapshotRows};
use piton_store::codec::{CodecError, Kind};
use piton_store::{KeyRange, Mark, Order, Row, Table, Write};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::message::{ClusterSettings, NodeRecord, Placement};
use crate::replica::entry::{Verdict, encode_verdicts};
use crate::replica::{restore, snapshot};
use crate::rows::end_of;
use crate::rows::keys::meta as keys;

/// A namespace's custom search attributes and their types.
pub type SearchAttributeTypes = BTreeMap<String, IndexedValueType>;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub id: NamespaceId,
    pub name: String,
    pub state: NamespaceState,
    pub description: String,
    pub owner: String,
    pub data: BTreeMap<String, String>,
    /// How long a closed run is kept.
    pub retention: Span,
    pub created: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceState {
    Registered,
    Deprecated,
}

/// Which shard owns which slots, as far as the meta group knows: a hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub shard: ShardId,
    pub slots: Range<u16>,
}

/// The meta group's state at one applied index; never changes once published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetaState {
    /// How many commands were applied.
    pub version: u64,
    namespaces: BTreeMap<NamespaceId, Arc<Namespace>>,
    names: BTreeMap<String, NamespaceId>,
    search_attributes: BTreeMap<NamespaceId, Arc<SearchAttributeTypes>>,
    /// Limits that were set; the rest has its default.
    limits_set: BTreeMap<String, u64>,
    limits: Arc<Limits>,
    routes: Arc<Vec<Route>>,
    nodes: BTreeMap<NodeId, Arc<NodeRecord>>,
    placements: BTreeMap<ShardId, Arc<Placement>>,
    settings: Arc<ClusterSettings>,
}

/// A command of the meta group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MetaCommand {
    /// The version of the state it was decided on.
    pub(crate) expected: u64,
    pub(crate) change: MetaChange,
}

/// What a command puts, as a whole value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum MetaChange {
    Namespace(Namespace),
    /// Types by their numbers in the API.
    SearchAttributes {
        namespace: NamespaceId,
        types: BTreeMap<String, i32>,
    },
    /// All limits that are set.
    Limits(BTreeMap<String, u64>),
    Routes(Vec<Route>),
    Node(NodeRecord),
    Placement(Placement),
    Settings(ClusterSettings),
}

/// Entries of the meta group's log. A namespace lies in them as it lies in its row.
pub(crate) const META_COMMAND: Kind<MetaCommand> = Kind::new("a command of the meta group", &[]);
const NAMESPACE: Kind<Namespace> = Kind::new("a namespace", &[]);
const ATTRIBUTES: Kind<BTreeMap<String, i32>> = Kind::new("search attributes", &[]);
const LIMITS: Kind<BTreeMap<String, u64>> = Kind::new("limits", &[]);
const ROUTES: Kind<Vec<Route>> = Kind::new("routes", &[]);
const NODE: Kind<NodeRecord> = Kind::new("a node", &[]);
const PLACEMENT: Kind<Placement> = Kind::new("a placement", &[]);
const SETTINGS: Kind<ClusterSettings> = Kind::new("the cluster's settings", &[]);
const VERSION: Kind<u64> = Kind::new("the meta state's version", &[]);

impl MetaState {
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(self.names.get(name)?)
    }

    pub fn namespace_by_id(&self, id: &NamespaceId) -> Option<&Arc<Namespace>> {
        self.namespaces.get(id)
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.names.values().filter_map(|id| self.namespaces.get(id))
    }

    pub fn search_attributes(&self, namespace: &NamespaceId) -> Arc<SearchAttributeTypes> {
        self.search_attributes.get(namespace).cloned().unwrap_or_default()
    }

    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    pub(crate) fn limits_set(&self) -> &BTreeMap<String, u64> {
        &self.limits_set
    }

    /// Empty until the cluster is bootstrapped.
    pub fn routes(&self) -> &Arc<Vec<Route>> {
        &self.routes
    }

    /// The shard that a slot belongs to, as far as is known here.
    pub fn shard_of(&self, slot: Slot) -> Option<ShardId> {
        let after = self.routes.partition_point(|route| route.slots.start <= slot.0);
        let route = self.routes.get(after.checked_sub(1)?)?;
        route.slots.contains(&slot.0).then_some(route.shard)
    }

    /// Every node that is or was one of the cluster.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.nodes.values()
    }

    pub fn node(&self, id: NodeId) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(&id)
    }

    /// Where every shard is to be, as far as that was decided.
    pub fn placements(&self) -> impl Iterator<Item = &Arc<Placement>> {
        self.placements.values()
    }

    pub fn placement(&self, shard: ShardId) -> Option<&Arc<Placement>> {
        self.placements.get(&shard)
    }

    pub fn settings(&self) -> &Arc<ClusterSettings> {
        &self.settings
    }

    pub(crate) fn put(&mut self, change: MetaChange) {
        match change {
            MetaChange::Namespace(namespace) => {
                let id = namespace.id.clone();
                self.names.retain(|_, named| *named != id);
                self.names.insert(namespace.name.clone(), id.clone());
                self.namespaces.insert(id, Arc::new(namespace));
            }
            MetaChange::SearchAttributes { namespace, types } => {
                let types = types.into_iter().filter_map(|(name, number)| {
                    // A type that only a newer release knows cannot be used by this one.
                    IndexedValueType::try_from(number).ok().map(|kind| (name, kind))
                });
                self.search_attributes.insert(namespace, Arc::new(types.collect()));
            }
            MetaChange::Limits(set) => {
                let mut limits = Limits::default();
                for (name, &value) in &set {
                    // A limit that only a newer release knows does not bind this one.
                    let _known = limits.set(name, value);
                }
                self.limits = Arc::new(limits);
                self.limits_set = set;
            }
            MetaChange::Routes(mut routes) => {
                routes.sort_by_key(|route| route.slots.start);
                self.routes = Arc::new(routes);
            }
            MetaChange::Node(node) => {
                self.nodes.insert(node.id, Arc::new(node));
            }
            MetaChange::Placement(placement) => {
                self.placements.insert(placement.shard, Arc::new(placement));
            }
            MetaChange::Settings(settings) => self.settings = Arc::new(settings),
        }
    }
}

impl MetaChange {
    fn write(&self, level: u32) -> Result<Write, CodecError> {
        let (key, value) = match self {
            Self::Namespace(namespace) => {
                (keys::namespace(namespace.id.as_str()), NAMESPACE.encode_at(level, namespace)?)
            }
            Self::SearchAttributes { namespace, types } => {
                (keys::search_attributes(namespace.as_str()), ATTRIBUTES.encode_at(level, types)?)
            }
            Self::Limits(set) => (keys::limits(), LIMITS.encode_at(level, set)?),
            Self::Routes(routes) => (keys::routes(), ROUTES.encode_at(level, routes)?),
            Self::Node(node) => (keys::node(node.id.0), NODE.encode_at(level, node)?),
            Self::Placement(placement) => {
                (keys::placement(placement.shard.0), PLACEMENT.encode_at(level, placement)?)
            }
            Self::Settings(settings) => (keys::settings(), SETTINGS.encode_at(level, settings)?),
        };
        Ok(Write::put(key, value))
    }
}

/// The meta group's state as Raft applies to it.
pub(crate) struct MetaReplica {
    table: Table,
    published: watch::Sender<Arc<MetaState>>,
}

impl MetaReplica {
    /// Opens the state where the table stands; the receiver sees every state from then on.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub(crate) fn open(
        table: Table,
    ) -> Result<(MetaReplica, watch::Receiver<Arc<MetaState>>), ReplicaError> {
        let state = read_state(&table)?;
        let (published, states) = watch::channel(Arc::new(state));
        Ok((MetaReplica { table, published }, states))
    }
}

impl Replica for MetaReplica {
    /// Every node looks here what namespaces and routes there are.
    fn is_read_everywhere(&self) -> bool {
        true
    }

    fn applied(&self) -> Option<Mark> {
        self.table.applied()
    }

    fn checkpointed(&self) -> u64 {
        self.table.checkpointed().unwrap_or(0)
    }

    fn apply(
        &mut self,
        entries: Vec<CommittedEntry>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError> {
        const DOING: &str = "apply a meta command";
        let mut state = MetaState::clone(&self.published.borrow());
        let mut writes = Vec::new();
        let mut verdicts = Vec::with_capacity(entries.len());
        for entry in entries {
            let command =
                META_COMMAND.decode(&entry.payload).map_err(|e| ReplicaError::new(DOING, e))?;
            let verdict = if command.expected == state.version {
                state.version += 1;
                let write = command.change.write(state.settings.level);
                writes.push(write.map_err(|e| ReplicaError::new(DOING, e))?);
                state.put(command.change);
                Verdict::Applied
            } else {
                Verdict::Moved
            };
            verdicts.push(encode_verdicts(&[verdict]));
        }
        if !writes.is_empty() {
            let version = VERSION.encode(&state.version);
            let version = version.map_err(|e| ReplicaError::new(DOING, e))?;
            writes.push(Write::put(keys::version(), version));
        }
        self.table.apply(writes, mark);
        self.published.send_replace(Arc::new(state));
        Ok(verdicts)
    }

    fn advance(&mut self, mark: Mark) {
        self.table.advance(mark);
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotRows>, ReplicaError> {
        snapshot(&self.table)
    }

    fn restore(
        &mut self,
        mark: Mark,
        rows: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
    ) -> Result<(), ReplicaError> {
        restore(&self.table, mark, rows)?;
        self.published.send_replace(Arc::new(read_state(&self.table)?));
        Ok(())
    }

    fn clear(&mut self) -> Result<(), ReplicaError> {
        self.table.clear().map_err(|e| ReplicaError::new("clear its rows", e))?;
        self.published.send_replace(Arc::new(MetaState::default()));
        Ok(())
    }
}

fn read_state(table: &Table) -> Result<MetaState, ReplicaError> {
    let mut state = MetaState::default();
    if let Some(version) = read(table, &VERSION, &keys::version())? {
        state.version = version;
    }
    for row in read_prefix(table, &keys::namespaces())? {
        state.put(MetaChange::Namespace(decode(&NAMESPACE, &row.value)?));
    }
    for row in read_prefix(table, &keys::all_search_attributes())? {
        let id = keys::parse_search_attributes(&row.key)
            .ok_or_else(|| ReplicaError::new(READ, "a key of search attributes is none"))?;
        let (namespace, types) = (NamespaceId::new(id), decode(&ATTRIBUTES, &row.value)?);
        state.put(MetaChange::SearchAttributes { namespace, types });
    }
    if let Some(set) = read(table, &LIMITS, &keys::limits())? {
        state.put(MetaChange::Limits(set));
    }
    if let Some(routes) = read(table, &ROUTES, &keys::routes())? {
        state.put(MetaChange::Routes(routes));
    }
    for row in read_prefix(table, &keys::nodes())? {
        state.put(MetaChange::Node(decode(&NODE, &row.value)?));
    }
    for row in read_prefix(table, &keys::placements())? {
        state.put(MetaChange::Placement(decode(&PLACEMENT, &row.value)?));
    }
    if let Some(settings) = read(table, &SETTINGS, &keys::settings())? {
        state.put(MetaChange::Settings(settings));
    }
    Ok(state)
}

const READ: &str = "read the meta state";

fn read<T: serde::de::DeserializeOwned>(
    table: &Table,
    kind: &Kind<T>,
    key: &[u8],
) -> Result<Option<T>, ReplicaError> {
    let value = table.get(key).map_err(|e| ReplicaError::new(READ, e))?;
    value.map(|value| decode(kind, &value)).transpose()
}

fn read_prefix(table: &Table, prefix: &[u8]) -> Result<Vec<Row>, ReplicaError> {
    let end = end_of(prefix);
    let rows = table.scan(KeyRange::new(prefix, &end), Order::Ascending, usize::MAX);
    rows.map_err(|e| ReplicaError::new(READ, e))
}

fn decode<T: serde::de::DeserializeOwned>(kind: &Kind<T>, value: &[u8]) -> Result<T, ReplicaError> {
    kind.decode(value).map_err(|e| ReplicaError::new(READ, e))
}

#[cfg(test)]
mod tests;
