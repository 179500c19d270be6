//! What an operator sees of this process: log lines, the metric registry, and the HTTP port with
//! `/metrics`, `/healthz` and `/readyz`. Owns the RPC metrics; other crates register theirs in the
//! registry that [`Metrics::new`] is given. Never logs a payload, a header or a credential.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::RwLock;
use piton_core::id::ShardId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts writing log lines to standard error. A second call in one process changes nothing, so
/// that several nodes may run in one test.
pub fn init_tracing(config: &LogConfig) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // An error means that a subscriber is set already, which is what we want.
    let _ = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}

/// The method and the outcome of an RPC.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RpcLabels {
    pub(crate) method: &'static str,
    pub(crate) code: &'static str,
}

/// Whether an RPC waits for something to happen ("held") or is answered at once ("short").
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub(crate) kind: &'static str,
}

/// The RPC metrics; cheap to clone.
#[derive(Clone)]
pub(crate) struct RpcMetrics {
    answered: Family<RpcLabels, Counter>,
    duration: Family<RpcLabels, Histogram>,
    in_flight: Family<KindLabel, Gauge>,
}

impl RpcMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // From 0.25 ms to 65 s: a long poll ends after 60 s.
        let histogram = || Histogram::new((0..10).map(|n| 0.000_25 * f64::from(4_u32.pow(n))));
        let metrics = Self {
            answered: Family::default(),
            duration: Family::new_with_constructor(histogram as fn() -> Histogram),
            in_flight: Family::default(),
        };
        let Self { answered, duration, in_flight } = metrics.clone();
        registry.register("rpcs", "RPCs answered, by method and gRPC code", answered);
        registry.register(
            "rpc_duration_seconds",
            "Time from an RPC's headers to its answer, by method and gRPC code",
            duration,
        );
        registry.register(
            "rpcs_in_flight",
            "RPCs being answered; kind=held are long polls, history reads and queries",
            in_flight,
        );
        metrics
    }

    pub(crate) fn begun(&self, kind: &'static str) {
        self.in_flight.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn ended(
        &self,
        kind: &'static str,
        method: &'static str,
        code: &'static str,
        took: Duration,
    ) {
        let labels = RpcLabels { method, code };
        self.in_flight.get_or_create(&KindLabel { kind }).dec();
        self.answered.get_or_create(&labels).inc();
        self.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// Everything that `/metrics` shows.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    pub(crate) rpc: RpcMetrics,
}

impl Metrics {
    /// Takes the registry with the metrics of the other crates in it.
    pub(crate) fn new(mut registry: Registry) -> Self {
        let rpc = RpcMetrics::register(&mut registry);
        Self { registry: Arc::new(registry), rpc }
    }

    /// A registry for the metrics of one node; every name in it begins with `piton_`.
    pub(crate) fn registry() -> Registry {
        Registry::with_prefix("piton")
    }

    /// All metrics in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

/// Whether this node answers requests, and why it does not: told to `/readyz`.
#[derive(Clone)]
pub(crate) struct Ready {
    said: Arc<RwLock<Result<(), &'static str>>>,
    looks: Arc<OnceLock<Look>>,
}

/// Looks whether anything keeps a node that is up from serving all that it has.
type Look = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

impl Ready {
    pub(crate) fn set(&self, ready: Result<(), &'static str>) {
        *self.said.write() = ready;
    }

    /// From now on it is as ready as this says; the first one stays.
    pub(crate) fn look(&self, look: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        // Each start of a node has its own.
        let _ = self.looks.set(Box::new(look));
    }

    pub(crate) fn get(&self) -> Result<(), String> {
        (*self.said.read())?;
        self.looks.get().map_or(Ok(()), |look| look())
    }
}

impl Default for Ready {
    fn default() -> Self {
        Self { said: Arc::new(RwLock::new(Err("starting"))), looks: Arc::default() }
    }
}

/// Whether a node goes on with all groups that it has.
pub(crate) fn whole(stopped: &BTreeMap<Option<ShardId>, String>) -> Result<(), String> {
    let Some((shard, why)) = stopped.first_key_value() else { return Ok(()) };
    let group = shard.map_or_else(|| "the meta group".to_owned(), |shard| format!("shard {shard}"));
    Err(format!("this node cannot go on with {group}: {why}"))
}

/// Brings figures up to date that are not counted as they change.
pub(crate) type Refresh = Arc<dyn Fn() + Send + Sync>;

/// What the HTTP port shows. It is served from the moment the node listens, and has figures once the
/// node is up.
#[derive(Clone, Default)]
pub(crate) struct Http {
    pub(crate) ready: Ready,
    pub(crate) figures: Arc<OnceLock<(Metrics, Refresh)>>,
}

/// Serves the HTTP port until `stop` completes.
pub(crate) async fn serve_http(
    listener: TcpListener,
    http: Http,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(http)).with_graceful_shutdown(stop).await
}

fn router(http: Http) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_ready))
        .with_state(http)
}

async fn show_metrics(State(http): State<Http>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let Some((metrics, refresh)) = http.figures.get().cloned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response();
    };
    if tokio::task::spawn_blocking(move || refresh()).await.is_err() {
        tracing::error!("the figures of task queues and files could not be read");
    }
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.text()).into_response()
}

async fn show_ready(State(http): State<Http>) -> impl IntoResponse {
    match http.ready.get() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_rpc_moves_count_duration_and_gauge() {
        let metrics = Metrics::new(Metrics::registry());
        metrics.rpc.begun("short");
        assert!(metrics.text().contains(r#"piton_rpcs_in_flight{kind="short"} 1"#));
        metrics.rpc.ended("short", "GetSystemInfo", "OK", Duration::from_millis(3));
        let text = metrics.text();
        for line in [
            r#"piton_rpcs_total{method="GetSystemInfo",code="OK"} 1"#,
            r#"piton_rpc_duration_seconds_count{method="GetSystemInfo",code="OK"} 1"#,
            r#"piton_rpcs_in_flight{kind="short"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
