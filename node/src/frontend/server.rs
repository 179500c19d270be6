//! The gRPC listener: both services behind the gate, health and reflection.

use std::future::Future;
use std::time::Duration;

use piton_proto::operatorservice::operator_service_server::OperatorServiceServer;
use piton_proto::workflowservice::workflow_service_server::WorkflowServiceServer;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use super::Frontend;
use super::gate::Gate;
use super::incoming::connections;
use crate::config::AdmissionConfig;
use crate::telemetry::RpcMetrics;

/// A connection that is silent for this long is asked for a sign of life, and closed without one:
/// a worker whose machine is gone must not hold polls.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers of one request; SDKs send a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Calls of one connection that their client gave up before this server had looked at them. A worker
/// that stops gives up all its polls at once, and must not lose its other calls by it; who goes on
/// like that is a flood (CVE-2023-44487), and its connection is closed.
const GIVEN_UP_CALLS_MAX: usize = 1_000;

/// Why the API could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Served {
    #[error("build the reflection service")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("serve the gRPC API")]
    Transport(#[source] tonic::transport::Error),
}

/// Serves the API on `listener` until `stop` completes and the requests under way are answered.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    frontend: Frontend,
    admission: &AdmissionConfig,
    metrics: RpcMetrics,
    stop: impl Future<Output = ()>,
) -> Result<(), Served> {
    let (health, health_service) = tonic_health::server::health_reporter();
    set_serving(&health).await;
    let reflection_v1 = reflection().build_v1().map_err(Served::Reflection)?;
    let reflection_v1alpha = reflection().build_v1alpha().map_err(Served::Reflection)?;
    let workflows = WorkflowServiceServer::new(frontend.clone())
        .max_decoding_message_size(admission.message_bytes_max)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    let operators = OperatorServiceServer::new(frontend)
        .max_decoding_message_size(admission.message_bytes_max)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    Server::builder()
        .max_concurrent_streams(admission.connection_streams_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_CALLS_MAX))
        .layer(Gate::new(admission, metrics))
        // What one service takes, all do: a client has one setting for its connection.
        .add_service(health_service.accept_compressed(CompressionEncoding::Gzip))
        .add_service(reflection_v1.accept_compressed(CompressionEncoding::Gzip))
        .add_service(reflection_v1alpha.accept_compressed(CompressionEncoding::Gzip))
        .add_service(workflows)
        .add_service(operators)
        .serve_with_incoming_shutdown(connections(listener), async {
            stop.await;
            // Clients that ask now go elsewhere.
            health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            health.set_not_serving::<WorkflowServiceServer<Frontend>>().await;
            health.set_not_serving::<OperatorServiceServer<Frontend>>().await;
        })
        .await
        .map_err(Served::Transport)
}

/// The empty name, which stands for the whole server, is SERVING from the beginning.
async fn set_serving(health: &HealthReporter) {
    health.set_serving::<WorkflowServiceServer<Frontend>>().await;
    health.set_serving::<OperatorServiceServer<Frontend>>().await;
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(piton_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
