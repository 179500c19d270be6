//! What a change of the meta state comes to: pure functions of the state and what was asked.
//! `None`: it is as asked already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use piton_core::id::{NamespaceId, ShardId};
use piton_core::limits::Limits;
use piton_core::placement::{SLOTS, initial_range};
use piton_core::proto::enums::IndexedValueType;
use piton_core::search_attribute::is_reserved;
use piton_core::time::Span;
use piton_raft::NodeId;

use crate::error::MetaError;
use crate::message::{ClusterSettings, NodeRecord, NodeState, Placement};
use crate::message::{MetaRequest, NamespaceUpdate, NewNamespace};
use crate::meta::state::SearchAttributeTypes;
use crate::meta::state::{MetaChange, MetaState, Namespace, NamespaceState, Route};

/// Each node speaks of itself once in a second, and none is down for having missed a few times.
const DOWN_AFTER_MIN: Duration = Duration::from_secs(10);

type Decision = Result<Option<MetaChange>, MetaError>;

pub(crate) fn decide(state: &MetaState, request: &MetaRequest) -> Decision {
    match request {
        MetaRequest::RegisterNamespace { id, new } => register_namespace(state, new, id),
        MetaRequest::UpdateNamespace { name, update } => update_namespace(state, name, update),
        MetaRequest::DeprecateNamespace { name } => edit(state, name, |namespace| {
            namespace.state = NamespaceState::Deprecated;
        }),
        MetaRequest::AddSearchAttributes { namespace, types } => {
            add_search_attributes(state, namespace, types)
        }
        MetaRequest::RemoveSearchAttributes { namespace, names } => {
            remove_search_attributes(state, namespace, names)
        }
        MetaRequest::SetLimits(set) => set_limits(state, set),
        MetaRequest::BootstrapRoutes { shards } => bootstrap_routes(state, *shards),
        MetaRequest::PutNode(node) => put_node(state, node),
        MetaRequest::SetNodeState { node, state: to } => set_node_state(state, *node, *to),
        MetaRequest::Place { shard, expected, voters } => place(state, *shard, *expected, voters),
        MetaRequest::SetCluster(settings) => set_cluster(state, settings),
    }
}

fn register_namespace(state: &MetaState, new: &NewNamespace, id: &NamespaceId) -> Decision {
    if new.name.is_empty() {
        return Err(MetaError::Invalid("Namespace not set on request.".to_owned()));
    }
    if let Some(existing) = state.namespace(&new.name) {
        if existing.id == *id {
            return Ok(None);
        }
        return Err(MetaError::NamespaceExists { name: new.name.clone() });
    }
    let default = Span::of_limit_ms(state.limits().retention_ms_default);
    Ok(Some(MetaChange::Namespace(Namespace {
        id: id.clone(),
        name: new.name.clone(),
        state: NamespaceState::Registered,
        description: new.description.clone(),
        owner: new.owner.clone(),
        data: new.data.clone(),
        retention: new.retention.given().unwrap_or(default).min(Span::MAX),
        created: new.created,
    })))
}

fn update_namespace(state: &MetaState, name: &str, update: &NamespaceUpdate) -> Decision {
    edit(state, name, |namespace| {
        if let Some(description) = &update.description {
            namespace.description.clone_from(description);
        }
        if let Some(owner) = &update.owner {
            namespace.owner.clone_from(owner);
        }
        if let Some(retention) = update.retention {
            namespace.retention = retention.min(Span::MAX);
        }
        namespace.data.extend(update.data.clone());
    })
}

fn edit(state: &MetaState, name: &str, change: impl FnOnce(&mut Namespace)) -> Decision {
    let found = state.namespace(name);
    let before = found.ok_or_else(|| MetaError::NamespaceNotFound { name: name.to_owned() })?;
    let mut after = Namespace::clone(before);
    change(&mut after);
    Ok((after != **before).then_some(MetaChange::Namespace(after)))
}

fn add_search_attributes(
    state: &MetaState,
    namespace: &NamespaceId,
    types: &BTreeMap<String, i32>,
) -> Decision {
    let before = existing_attributes(state, namespace)?;
    if types.is_empty() {
        return Err(MetaError::Invalid("SearchAttributes are not set on request.".to_owned()));
    }
    let mut after = SearchAttributeTypes::clone(&before);
    for (name, &kind) in types {
        if name.is_empty() || is_reserved(name) {
            let text = format!("Search attribute {name} is reserved by system.");
            return Err(MetaError::Invalid(text));
        }
        let kind = IndexedValueType::try_from(kind).unwrap_or(IndexedValueType::Unspecified);
        if kind == IndexedValueType::Unspecified {
            return Err(MetaError::Invalid(format!("Search attribute {name} has no type.")));
        }
        if after.insert(name.clone(), kind).is_some() {
            return Err(MetaError::AttributeExists { name: name.clone() });
        }
    }
    Ok(Some(put_attributes(namespace, &after)))
}

fn remove_search_attributes(
    state: &MetaState,
    namespace: &NamespaceId,
    names: &[String],
) -> Decision {
    let before = existing_attributes(state, namespace)?;
    if names.is_empty() {
        return Err(MetaError::Invalid("SearchAttributes are not set on request.".to_owned()));
    }
    let mut after = SearchAttributeTypes::clone(&before);
    for name in names {
        if is_reserved(name) {
            let text = format!("Unable to remove non-custom search attributes: {name}.");
            return Err(MetaError::Invalid(text));
        }
        if after.remove(name).is_none() {
            return Err(MetaError::AttributeNotFound { name: name.clone() });
        }
    }
    Ok(Some(put_attributes(namespace, &after)))
}

fn existing_attributes(
    state: &MetaState,
    namespace: &NamespaceId,
) -> Result<Arc<SearchAttributeTypes>, MetaError> {
    if state.namespace_by_id(namespace).is_none() {
        return Err(MetaError::NamespaceNotFound { name: namespace.to_string() });
    }
    Ok(state.search_attributes(namespace))
}

fn put_attributes(namespace: &NamespaceId, types: &SearchAttributeTypes) -> MetaChange {
    let types = types.iter().map(|(name, &kind)| (name.clone(), kind as i32)).collect();
    MetaChange::SearchAttributes { namespace: namespace.clone(), types }
}

fn set_limits(state: &MetaState, set: &BTreeMap<String, u64>) -> Decision {
    let mut known = Limits::default();
    if let Some(name) = set.iter().find_map(|(name, &v)| (!known.set(name, v)).then_some(name)) {
        return Err(MetaError::Invalid(format!("There is no limit called {name}.")));
    }
    let before = state.limits_set();
    let mut after = before.clone();
    after.extend(set.iter().map(|(name, &value)| (name.clone(), value)));
    Ok((after != *before).then_some(MetaChange::Limits(after)))
}

fn bootstrap_routes(state: &MetaState, shards: u32) -> Decision {
    if !state.routes().is_empty() {
        return Ok(None);
    }
    if shards == 0 || shards > u32::from(SLOTS) {
        return Err(MetaError::Invalid(format!("There can be 1 to {SLOTS} shards.")));
    }
    let route = |n| Route { shard: ShardId(n), slots: initial_range(ShardId(n), shards) };
    Ok(Some(MetaChange::Routes((0..shards).map(route).collect())))
}

fn put_node(state: &MetaState, node: &NodeRecord) -> Decision {
    // It could not read what the others write.
    let level = state.settings().level;
    if node.level < level {
        return Err(MetaError::Invalid(format!(
            "Node {} knows feature levels up to {}, and the cluster is at {level}: it needs a newer \
             release.",
            node.id, node.level
        )));
    }
    let Some(before) = state.node(node.id) else {
        return Ok(Some(MetaChange::Node(node.clone())));
    };
    if before.state == NodeState::Removed {
        return Err(MetaError::Invalid(format!(
            "Node {} was removed from this cluster. It comes back with an empty data directory, as \
             another node.",
            node.id
        )));
    }
    let after = NodeRecord { state: before.state, joined: before.joined, ..node.clone() };
    Ok((after != **before).then_some(MetaChange::Node(after)))
}

fn set_node_state(state: &MetaState, node: NodeId, to: NodeState) -> Decision {
    let before = known_node(state, node)?;
    if before.state == to {
        return Ok(None);
    }
    if before.state == NodeState::Removed {
        return Err(MetaError::Invalid(format!("Node {node} was removed from this cluster.")));
    }
    if to == NodeState::Removed {
        let holds = |placement: &&Arc<Placement>| placement.voters.contains(&node);
        if let Some(placement) = state.placements().find(holds) {
            let shard = placement.shard;
            let text = format!("Node {node} cannot be removed while it is to hold shard {shard}.");
            return Err(MetaError::Invalid(text));
        }
    }
    let mut after = NodeRecord::clone(before);
    after.state = to;
    Ok(Some(MetaChange::Node(after)))
}

fn known_node(state: &MetaState, node: NodeId) -> Result<&Arc<NodeRecord>, MetaError> {
    let unknown = || MetaError::Invalid(format!("There is no node {node} in this cluster."));
    state.node(node).ok_or_else(unknown)
}

fn place(state: &MetaState, shard: ShardId, expected: u64, voters: &BTreeSet<NodeId>) -> Decision {
    if !state.routes().iter().any(|route| route.shard == shard) {
        return Err(MetaError::Invalid(format!("There is no shard {shard}.")));
    }
    let before = state.placement(shard);
    let version = before.map_or(0, |placement| placement.version);
    if version != expected {
        let text = format!("Shard {shard} was placed anew meanwhile: version {version}.");
        return Err(MetaError::Invalid(text));
    }
    if voters.is_empty() {
        return Err(MetaError::Invalid(format!("Shard {shard} must be held by some node.")));
    }
    for node in voters {
        let known = known_node(state, *node)?;
        // A first placement says where the shard is already.
        let is_new = before.is_some_and(|placement| !placement.voters.contains(node));
        if is_new && !known.state.takes_replicas() {
            let text = format!("Node {node} is {}: it takes no more.", known.state.name());
            return Err(MetaError::Invalid(text));
        }
    }
    if before.is_some_and(|placement| placement.voters == *voters) {
        return Ok(None);
    }
    let voters = voters.clone();
    Ok(Some(MetaChange::Placement(Placement { shard, version: version + 1, voters })))
}

fn set_cluster(state: &MetaState, settings: &ClusterSettings) -> Decision {
    let before = state.settings();
    if settings.replicas.is_multiple_of(2) {
        let text = "A shard has an odd number of replicas: an even one outlives no more losses.";
        return Err(MetaError::Invalid(text.to_owned()));
    }
    if settings.down_after < DOWN_AFTER_MIN {
        let text =
            format!("A node is down after {} seconds at the soonest.", DOWN_AFTER_MIN.as_secs());
        return Err(MetaError::Invalid(text));
    }
    if settings.level < before.level {
        let text = format!("The feature level is {} and never falls.", before.level);
        return Err(MetaError::Invalid(text));
    }
    let mut nodes = state.nodes().filter(|node| node.state.is_member());
    if let Some(node) = nodes.find(|node| node.level < settings.level) {
        let (id, known, asked) = (node.id, node.level, settings.level);
        let text = format!("Node {id} knows feature levels up to {known}, not {asked}.");
        return Err(MetaError::Invalid(text));
    }
    Ok((*settings != **before).then(|| MetaChange::Settings(settings.clone())))
}
