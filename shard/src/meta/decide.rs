//! What a change of the meta state comes to: pure functions of the state and what was asked.
//! `None`: it is as asked already.

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_core::id::{NamespaceId, ShardId};
use piton_core::limits::Limits;
use piton_core::placement::{SLOTS, initial_range};
use piton_core::proto::enums::IndexedValueType;
use piton_core::search_attribute::is_reserved;
use piton_core::time::Span;

use crate::error::MetaError;
use crate::message::{MetaRequest, NamespaceUpdate, NewNamespace};
use crate::meta::state::SearchAttributeTypes;
use crate::meta::state::{MetaChange, MetaState, Namespace, NamespaceState, Route};

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
