//! What the server says of itself. It advertises only what is there: SDKs switch on what they read
//! here.

use piton_proto::operatorservice::{ClusterMetadata, ListClustersRequest, ListClustersResponse};
use piton_proto::version::{ReleaseInfo, VersionInfo};
use piton_proto::workflowservice::get_system_info_response::Capabilities;
use piton_proto::workflowservice::{
    GetClusterInfoRequest, GetClusterInfoResponse, GetSystemInfoRequest, GetSystemInfoResponse,
};

use super::client_version::{SERVER_VERSION, SUPPORTED_CLIENTS};
use super::error::ApiError;
use super::{Call, Frontend};

/// The name that the official server gives its only cluster; clients print it.
pub(super) const CLUSTER_NAME: &str = "active";
const STORE: &str = "piton";

pub(super) async fn system_info(
    _frontend: &Frontend,
    _call: Call<GetSystemInfoRequest>,
) -> Result<GetSystemInfoResponse, ApiError> {
    Ok(GetSystemInfoResponse {
        server_version: SERVER_VERSION.to_owned(),
        capabilities: Some(Capabilities {
            signal_and_query_header: true,
            internal_error_differentiation: true,
            activity_failure_include_heartbeat: true,
            encoded_failure_attributes: true,
            upsert_memo: true,
            eager_workflow_start: true,
            sdk_metadata: true,
            count_group_by_execution_status: true,
            supports_schedules: false,
            // Workers built on the Rust core say what build they are of only where this is true.
            build_id_based_versioning: true,
            nexus: false,
            server_scaled_deployments: false,
            server_scaled_provider_cloud_run: false,
        }),
    })
}

pub(super) async fn cluster_info(
    frontend: &Frontend,
    _call: Call<GetClusterInfoRequest>,
) -> Result<GetClusterInfoResponse, ApiError> {
    let supported = SUPPORTED_CLIENTS.iter();
    let ours = ReleaseInfo {
        version: SERVER_VERSION.to_owned(),
        notes: format!("piton {}", env!("CARGO_PKG_VERSION")),
        ..ReleaseInfo::default()
    };
    Ok(GetClusterInfoResponse {
        supported_clients: supported.map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        server_version: SERVER_VERSION.to_owned(),
        cluster_id: frontend.facts.cluster_id.clone(),
        version_info: Some(VersionInfo { current: Some(ours), ..VersionInfo::default() }),
        cluster_name: CLUSTER_NAME.to_owned(),
        history_shard_count: frontend.facts.shards as i32,
        persistence_store: STORE.to_owned(),
        visibility_store: STORE.to_owned(),
        initial_failover_version: 1,
        failover_version_increment: 10,
    })
}

pub(super) async fn clusters(
    frontend: &Frontend,
    _call: Call<ListClustersRequest>,
) -> Result<ListClustersResponse, ApiError> {
    let this = ClusterMetadata {
        cluster_name: CLUSTER_NAME.to_owned(),
        cluster_id: frontend.facts.cluster_id.clone(),
        address: frontend.facts.address.clone(),
        initial_failover_version: 1,
        history_shard_count: frontend.facts.shards as i32,
        is_connection_enabled: true,
        ..ClusterMetadata::default()
    };
    Ok(ListClustersResponse { clusters: vec![this], next_page_token: Default::default() })
}
