//! What a cluster is to have from its first start on: its shards, limits, namespaces and search
//! attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_core::time::Span;
use piton_proto::enums::IndexedValueType;
use piton_shard::{Meta, Namespace, NewNamespace};

use super::{NodeError, SYSTEM_NAMESPACE};
use crate::config::Config;
use crate::storage::Storage;

/// Makes what a first start is told to make; does nothing that is done already.
pub(super) async fn set_up(
    storage: &Storage,
    config: &Config,
    shards: u32,
) -> Result<(), NodeError> {
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
