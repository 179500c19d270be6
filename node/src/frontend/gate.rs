//! What every RPC passes before and after its handler: is it built, does the client fit, is there
//! room, until when does the client wait; and, on the way back, count and latency. Reads headers
//! only; a request that is refused here is never decoded.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use super::client_version;
use super::error::ApiError;
use super::rpc::{self, Rpc};
use super::status::{self, code_name, code_of};
use crate::config::AdmissionConfig;
use crate::telemetry::RpcMetrics;

/// When the client stops waiting; put into the request's extensions. `None`: it never does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientDeadline(pub(crate) Option<Instant>);

/// The layer around all services.
#[derive(Clone)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    short: Permits,
    held: Permits,
    metrics: RpcMetrics,
}

/// Room for one kind of request.
struct Permits {
    kind: &'static str,
    all: usize,
    free: Arc<Semaphore>,
}

impl Permits {
    fn new(kind: &'static str, all: usize) -> Self {
        let all = all.min(Semaphore::MAX_PERMITS);
        Self { kind, all, free: Arc::new(Semaphore::new(all)) }
    }

    /// INVARIANT: a request is let in only with a permit, and gives it back when it is answered or
    /// its client goes away; nothing queues here.
    fn take(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.free)
            .try_acquire_owned()
            .map_err(|_| ApiError::TooManyRequests { kind: self.kind, requests: self.all })
    }
}

impl Gate {
    pub(crate) fn new(config: &AdmissionConfig, metrics: RpcMetrics) -> Self {
        let short = Permits::new("short", config.requests_max);
        let held = Permits::new("held", config.held_requests_max);
        Self { shared: Arc::new(Shared { short, held, metrics }) }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, shared: Arc::clone(&self.shared) }
    }
}

/// All services behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let arrived = Instant::now();
        let rpc = rpc::find(request.uri().path());
        let deadline = client_timeout(request.headers()).map(|timeout| arrived + timeout);
        request.extensions_mut().insert(ClientDeadline(deadline));
        let shared = Arc::clone(&self.shared);
        // The service that was polled ready is the one to be called.
        let spare = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, spare);
        Box::pin(async move {
            let measured = Measured::begin(&shared, &rpc, arrived);
            let permit = match shared.admit(&rpc, request.headers()) {
                Ok(permit) => permit,
                Err(refusal) => return Ok(measured.end(refuse(refusal))),
            };
            let response = match deadline {
                // Nobody waits for an answer any more, so the request is not carried out either.
                Some(deadline) if deadline <= arrived => refuse(ApiError::DeadlineExceeded),
                None => inner.call(request).await?,
                Some(deadline) => match timeout_at(deadline, inner.call(request)).await {
                    Ok(answered) => answered?,
                    Err(_) => refuse(ApiError::DeadlineExceeded),
                },
            };
            drop(permit);
            let response = match status::message_too_large(&response) {
                Some(refusal) => refuse(refusal),
                None => response,
            };
            Ok(measured.end(response))
        })
    }
}

fn refuse(refusal: ApiError) -> Response<Body> {
    status::response(refusal)
}

impl Shared {
    fn permits(&self, rpc: &Rpc) -> &Permits {
        if rpc.is_held { &self.held } else { &self.short }
    }

    fn admit(&self, rpc: &Rpc, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, ApiError> {
        if let Some(method) = &rpc.not_built {
            return Err(ApiError::MethodNotBuilt { method: method.clone() });
        }
        client_version::check(headers)?;
        self.permits(rpc).take()
    }
}

/// Measures an RPC from its arrival to its answer, or to the moment its client goes away.
struct Measured {
    metrics: RpcMetrics,
    kind: &'static str,
    label: &'static str,
    arrived: Instant,
    code: &'static str,
}

impl Measured {
    fn begin(shared: &Shared, rpc: &Rpc, arrived: Instant) -> Self {
        let kind = shared.permits(rpc).kind;
        shared.metrics.begun(kind);
        // What is dropped before it ends was given up by its client.
        Self { metrics: shared.metrics.clone(), kind, label: rpc.label, arrived, code: "CANCELLED" }
    }

    fn end(mut self, response: Response<Body>) -> Response<Body> {
        self.code = code_name(code_of(&response));
        response
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.metrics.ended(self.kind, self.label, self.code, self.arrived.elapsed());
    }
}

/// The header `grpc-timeout`: up to eight digits and a unit. Anything else counts as absent.
fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.chars().last().filter(char::is_ascii_alphabetic)?;
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
