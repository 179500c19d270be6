//! The gate around a service that answers what the test says.

use std::collections::BTreeMap;
use std::convert::Infallible;

use piton_proto::enums::ResourceExhaustedCause;
use prometheus_client::registry::Registry;
use tonic::Code;
use tonic::Status;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use super::*;

const INFO: &str = "/temporal.api.workflowservice.v1.WorkflowService/GetSystemInfo";
const POLL: &str = "/temporal.api.workflowservice.v1.WorkflowService/PollWorkflowTaskQueue";

type Inner = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Answers OK at once.
fn ok() -> Inner {
    BoxCloneSyncService::new(service_fn(async |_| Ok(Response::new(Body::empty()))))
}

/// Never answers.
fn silent() -> Inner {
    BoxCloneSyncService::new(service_fn(async |_| {
        std::future::pending::<Result<Response<Body>, Infallible>>().await
    }))
}

/// Answers with a status that is not ours.
fn answering(code: Code, text: &'static str) -> Inner {
    BoxCloneSyncService::new(service_fn(
        move |_| async move { Ok(Status::new(code, text).into_http()) },
    ))
}

struct Fixture {
    gate: Gate,
    registry: Registry,
}

impl Fixture {
    fn new(requests_max: usize, held_requests_max: usize) -> Self {
        let mut registry = Registry::default();
        let metrics = RpcMetrics::register(&mut registry);
        let config = AdmissionConfig { requests_max, held_requests_max, ..Default::default() };
        Self { gate: Gate::new(&config, metrics), registry }
    }

    async fn call(&self, inner: Inner, path: &str, headers: &[(&'static str, &str)]) -> Status {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = self.gate.layer(inner).oneshot(request).await.unwrap();
        Status::from_header_map(response.headers()).unwrap_or_else(|| Status::new(Code::Ok, ""))
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

#[tokio::test]
async fn every_rpc_that_is_not_built_is_refused_by_its_name_and_no_other() {
    let fixture = Fixture::new(1, 1);
    for (path, method) in rpc::all() {
        let status = fixture.call(ok(), path, &[]).await;
        if method.is_built {
            assert_eq!(status.code(), Code::Ok, "{path}");
        } else {
            assert_eq!(status.code(), Code::Unimplemented, "{path}");
            let text = format!("{} is not implemented by this server", method.name);
            assert_eq!(status.message(), text, "{path}");
        }
    }
}

#[tokio::test]
async fn a_request_beyond_the_permits_is_refused_and_let_in_when_one_is_given_back() {
    let fixture = Fixture::new(1, 1);
    let mut first = Box::pin(fixture.call(silent(), INFO, &[]));
    assert!(futures::poll!(&mut first).is_pending());
    let refused = fixture.call(ok(), INFO, &[]).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(!refused.details().is_empty(), "cause {:?}", ResourceExhaustedCause::ConcurrentLimit);
    // Polls are counted apart.
    assert_eq!(fixture.call(ok(), POLL, &[]).await.code(), Code::Ok);
    drop(first);
    assert_eq!(fixture.call(ok(), INFO, &[]).await.code(), Code::Ok);
}

#[tokio::test]
async fn waiting_polls_leave_room_for_short_requests() {
    let fixture = Fixture::new(1, 1);
    let mut poll = Box::pin(fixture.call(silent(), POLL, &[]));
    assert!(futures::poll!(&mut poll).is_pending());
    assert_eq!(fixture.call(ok(), INFO, &[]).await.code(), Code::Ok);
    assert_eq!(fixture.call(ok(), POLL, &[]).await.code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn the_clients_deadline_ends_a_request_with_deadline_exceeded() {
    let fixture = Fixture::new(1, 1);
    let began = Instant::now();
    let status = fixture.call(silent(), INFO, &[("grpc-timeout", "1500m")]).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed().as_millis(), 1500);
}

#[tokio::test]
async fn the_deadline_reaches_the_handler() {
    let inner = BoxCloneSyncService::new(service_fn(async |request: Request<Body>| {
        let deadline = request.extensions().get::<ClientDeadline>().unwrap().0.unwrap();
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(left > Duration::from_secs(60) && left <= Duration::from_secs(70), "{left:?}");
        Ok(Response::new(Body::empty()))
    }));
    let fixture = Fixture::new(1, 1);
    assert_eq!(fixture.call(inner, POLL, &[("grpc-timeout", "70S")]).await.code(), Code::Ok);
}

#[tokio::test]
async fn a_message_too_large_is_said_in_the_words_that_sdks_know() {
    let fixture = Fixture::new(1, 1);
    for (code, text) in [
        (
            Code::OutOfRange,
            "Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes",
        ),
        (
            Code::ResourceExhausted,
            "Error decompressing: size limit, of 4 bytes, exceeded while decompressing message",
        ),
    ] {
        let status = fixture.call(answering(code, text), INFO, &[]).await;
        assert_eq!(status.code(), Code::ResourceExhausted);
        let begins = "grpc: received message larger than max (";
        assert!(status.message().starts_with(begins), "{}", status.message());
    }
    // Refusals of our own pass unchanged.
    let ours = fixture.call(answering(Code::ResourceExhausted, "busy"), INFO, &[]).await;
    assert_eq!(ours.message(), "busy");
}

#[tokio::test]
async fn a_client_that_does_not_fit_is_refused() {
    let fixture = Fixture::new(1, 1);
    let headers = [("client-name", "temporal-go"), ("client-version", "2.1.0")];
    let status = fixture.call(ok(), INFO, &headers).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn answers_and_clients_that_go_away_are_counted_by_method_and_code() {
    let fixture = Fixture::new(1, 1);
    fixture.call(ok(), INFO, &[]).await;
    fixture.call(answering(Code::NotFound, "no"), POLL, &[]).await;
    let mut gone = Box::pin(fixture.call(silent(), POLL, &[]));
    assert!(futures::poll!(&mut gone).is_pending());
    drop(gone);
    fixture.call(ok(), "/temporal.api.workflowservice.v1.WorkflowService/Fly", &[]).await;
    let text = fixture.metrics();
    for line in [
        r#"rpcs_total{method="GetSystemInfo",code="OK"} 1"#,
        r#"rpcs_total{method="PollWorkflowTaskQueue",code="NOT_FOUND"} 1"#,
        r#"rpcs_total{method="PollWorkflowTaskQueue",code="CANCELLED"} 1"#,
        r#"rpcs_total{method="other",code="UNIMPLEMENTED"} 1"#,
        r#"rpcs_in_flight{kind="held"} 0"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn grpc_timeouts_are_read_in_every_unit_and_anything_else_counts_as_none() {
    let table: BTreeMap<&str, Option<Duration>> = [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("70S", Some(Duration::from_secs(70))),
        ("30m", Some(Duration::from_millis(30))),
        ("5u", Some(Duration::from_micros(5))),
        ("99999999n", Some(Duration::from_nanos(99_999_999))),
        ("", None),
        ("S", None),
        ("7", None),
        ("1x", None),
        ("-1S", None),
        ("100000000S", None),
        ("1é", None),
    ]
    .into();
    for (text, expected) in table {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        assert_eq!(client_timeout(&headers), expected, "{text:?}");
    }
}
