//! Namespaces: register, describe, list, update, deprecate.

use std::sync::Arc;

use piton_core::page_token::ListOf;
use piton_core::time::Span;
use piton_proto::enums::{ArchivalState, NamespaceState};
use piton_proto::namespace::{NamespaceConfig, NamespaceInfo, namespace_info};
use piton_proto::replication::{ClusterReplicationConfig, NamespaceReplicationConfig};
use piton_proto::workflowservice::{
    DeprecateNamespaceRequest, DeprecateNamespaceResponse, DescribeNamespaceRequest,
    DescribeNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse,
    RegisterNamespaceRequest, RegisterNamespaceResponse, UpdateNamespaceRequest,
    UpdateNamespaceResponse,
};
use piton_shard::{Namespace, NamespaceState as State, NamespaceUpdate, NewNamespace};

use super::error::ApiError;
use super::system::CLUSTER_NAME;
use super::{Call, Frontend, validate};

/// The shortest retention of a namespace that lives in one cluster.
const RETENTION_MIN: Span = Span::from_secs(3600);
/// Namespaces in a page of a list.
const PAGE_MAX: u64 = 1_000;

pub(super) async fn register(
    frontend: &Frontend,
    call: Call<RegisterNamespaceRequest>,
) -> Result<RegisterNamespaceResponse, ApiError> {
    let request = call.message;
    validate::required("Namespace", &request.namespace, &frontend.limits())?;
    let disabled = |state: i32| state != ArchivalState::Enabled as i32;
    let elsewhere = request.clusters.iter().any(|c| c.cluster_name != CLUSTER_NAME)
        || !matches!(request.active_cluster_name.as_str(), "" | CLUSTER_NAME);
    let used = [
        (request.is_global_namespace, "is_global_namespace"),
        (elsewhere, "clusters"),
        (!disabled(request.history_archival_state), "history_archival_state"),
        (!disabled(request.visibility_archival_state), "visibility_archival_state"),
        (!request.history_archival_uri.is_empty(), "history_archival_uri"),
        (!request.visibility_archival_uri.is_empty(), "visibility_archival_uri"),
    ];
    validate::refuse_not_built(&used)?;
    let retention = request.workflow_execution_retention_period.as_ref();
    let retention = check_retention(Span::from_proto(retention))?;
    let new = NewNamespace {
        name: request.namespace,
        description: request.description,
        owner: request.owner_email,
        data: request.data.into_iter().collect(),
        retention,
        created: frontend.clock.now(),
    };
    frontend.cluster.meta().register_namespace(new).await?;
    Ok(RegisterNamespaceResponse {})
}

fn check_retention(retention: Span) -> Result<Span, ApiError> {
    if retention < RETENTION_MIN {
        return Err(ApiError::invalid(
            "A valid retention period is not set on request: it must be at least one hour.",
        ));
    }
    Ok(retention)
}

/// The namespace that a request gives by name or by id.
async fn find(frontend: &Frontend, name: &str, id: &str) -> Result<Arc<Namespace>, ApiError> {
    if id.is_empty() {
        return frontend.namespace(name).await;
    }
    Ok(frontend.cluster.meta().find_namespace_by_id(&id.into()).await?)
}

pub(super) async fn describe(
    frontend: &Frontend,
    call: Call<DescribeNamespaceRequest>,
) -> Result<DescribeNamespaceResponse, ApiError> {
    let namespace = find(frontend, &call.message.namespace, &call.message.id).await?;
    Ok(description(frontend, &namespace))
}

const NAMESPACES: ListOf<'_> = ListOf { call: "namespaces", namespace: "", query: &[] };

pub(super) async fn list(
    frontend: &Frontend,
    call: Call<ListNamespacesRequest>,
) -> Result<ListNamespacesResponse, ApiError> {
    let request = call.message;
    let page_size = validate::page_size(request.page_size, PAGE_MAX);
    // Behind the last name of the page before.
    let after = validate::page_token(NAMESPACES, &request.next_page_token)?;
    let mut all = frontend.cluster.meta().namespaces();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut rest = all.into_iter().filter(|n| n.name.as_bytes() > after).peekable();
    let page: Vec<_> = rest.by_ref().take(page_size).collect();
    let next = match (rest.peek(), page.last()) {
        (Some(_), Some(last)) => NAMESPACES.token(last.name.as_bytes()),
        _ => Vec::new(),
    };
    Ok(ListNamespacesResponse {
        namespaces: page.iter().map(|namespace| description(frontend, namespace)).collect(),
        next_page_token: next.into(),
    })
}

pub(super) async fn update(
    frontend: &Frontend,
    call: Call<UpdateNamespaceRequest>,
) -> Result<UpdateNamespaceResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace).await?;
    let config = request.config.unwrap_or_default();
    let replicated = request.replication_config.as_ref().is_some_and(|r| {
        r.clusters.iter().any(|c| c.cluster_name != CLUSTER_NAME)
            || !matches!(r.active_cluster_name.as_str(), "" | CLUSTER_NAME)
    });
    let bad_binaries = config.bad_binaries.is_some_and(|b| !b.binaries.is_empty());
    let enabled = |state: i32| state == ArchivalState::Enabled as i32;
    validate::refuse_not_built(&[
        (request.promote_namespace, "promote_namespace"),
        (!request.delete_bad_binary.is_empty(), "delete_bad_binary"),
        (replicated, "replication_config"),
        (bad_binaries, "config.bad_binaries"),
        (enabled(config.history_archival_state), "config.history_archival_state"),
        (enabled(config.visibility_archival_state), "config.visibility_archival_state"),
        (!config.history_archival_uri.is_empty(), "config.history_archival_uri"),
        (!config.visibility_archival_uri.is_empty(), "config.visibility_archival_uri"),
        (
            !config.custom_search_attribute_aliases.is_empty(),
            "config.custom_search_attribute_aliases",
        ),
    ])?;
    let retention = config.workflow_execution_retention_ttl.as_ref();
    let retention = retention.map(|r| check_retention(Span::from_proto(Some(r)))).transpose()?;
    let info = request.update_info.unwrap_or_default();
    let deprecates = match (NamespaceState::try_from(info.state), namespace.state) {
        (Ok(NamespaceState::Unspecified), _) => false,
        (Ok(NamespaceState::Registered), State::Registered) => false,
        (Ok(NamespaceState::Deprecated), _) => true,
        (Ok(NamespaceState::Registered | NamespaceState::Deleted) | Err(_), _) => {
            return Err(ApiError::invalid("Invalid namespace state."));
        }
    };
    // What is left out stays as it is.
    let given = |text: String| (!text.is_empty()).then_some(text);
    let change = NamespaceUpdate {
        description: given(info.description),
        owner: given(info.owner_email),
        data: info.data.into_iter().collect(),
        retention,
    };
    let meta = frontend.cluster.meta();
    let mut updated = meta.update_namespace(&namespace.name, change).await?;
    if deprecates {
        meta.deprecate_namespace(&namespace.name).await?;
        updated = frontend.namespace(&namespace.name).await?;
    }
    let DescribeNamespaceResponse { namespace_info, config, replication_config, .. } =
        description(frontend, &updated);
    Ok(UpdateNamespaceResponse {
        namespace_info,
        config,
        replication_config,
        failover_version: 0,
        is_global_namespace: false,
    })
}

pub(super) async fn deprecate(
    frontend: &Frontend,
    call: Call<DeprecateNamespaceRequest>,
) -> Result<DeprecateNamespaceResponse, ApiError> {
    let namespace = frontend.namespace(&call.message.namespace).await?;
    frontend.cluster.meta().deprecate_namespace(&namespace.name).await?;
    Ok(DeprecateNamespaceResponse {})
}

fn description(frontend: &Frontend, namespace: &Namespace) -> DescribeNamespaceResponse {
    let limits = frontend.limits();
    let info = NamespaceInfo {
        name: namespace.name.to_string(),
        state: api_state(namespace.state).into(),
        description: namespace.description.clone(),
        owner_email: namespace.owner.clone(),
        data: namespace.data.clone().into_iter().collect(),
        id: namespace.id.to_string(),
        capabilities: Some(capabilities()),
        limits: Some(namespace_info::Limits {
            blob_size_limit_error: limits.blob_bytes_max as i64,
            memo_size_limit_error: limits.memo_bytes_max as i64,
            ..namespace_info::Limits::default()
        }),
        supports_schedules: false,
    };
    let config = NamespaceConfig {
        workflow_execution_retention_ttl: Some(namespace.retention.to_proto()),
        history_archival_state: ArchivalState::Disabled.into(),
        visibility_archival_state: ArchivalState::Disabled.into(),
        ..NamespaceConfig::default()
    };
    let cluster = ClusterReplicationConfig {
        cluster_name: CLUSTER_NAME.to_owned(),
        ..ClusterReplicationConfig::default()
    };
    DescribeNamespaceResponse {
        namespace_info: Some(info),
        config: Some(config),
        replication_config: Some(NamespaceReplicationConfig {
            active_cluster_name: CLUSTER_NAME.to_owned(),
            clusters: vec![cluster],
            ..NamespaceReplicationConfig::default()
        }),
        ..DescribeNamespaceResponse::default()
    }
}

pub(super) fn api_state(state: State) -> NamespaceState {
    match state {
        State::Registered => NamespaceState::Registered,
        State::Deprecated => NamespaceState::Deprecated,
    }
}

/// SDKs switch on what they read here: every capability that is not built stays false.
fn capabilities() -> namespace_info::Capabilities {
    namespace_info::Capabilities {
        eager_workflow_start: true,
        worker_poll_complete_on_shutdown: true,
        ..namespace_info::Capabilities::default()
    }
}
