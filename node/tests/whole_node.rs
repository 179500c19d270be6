//! A whole node in this process, spoken to over the wire: what clients see of it before any
//! workflow runs. Workflows are tested in the package `piton-tests`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that panics has failed, and what it prints is read"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use piton_node::config::Config;
use piton_node::{DataDirectoryError, Node, NodeError};
use piton_proto::common::{Payload, Payloads, WorkflowExecution};
use piton_proto::enums::IndexedValueType;
use piton_proto::operatorservice::{
    AddSearchAttributesRequest, AddSearchAttributesResponse, ListSearchAttributesRequest,
    ListSearchAttributesResponse, RemoveSearchAttributesRequest, RemoveSearchAttributesResponse,
};
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::{
    DescribeNamespaceRequest, DescribeNamespaceResponse, GetClusterInfoRequest,
    GetClusterInfoResponse, GetSystemInfoRequest, GetSystemInfoResponse, ListNamespacesRequest,
    ListNamespacesResponse, PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse,
    RegisterNamespaceRequest, RegisterNamespaceResponse, SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse, UpdateNamespaceRequest, UpdateNamespaceResponse,
};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const WORKFLOWS: &str = "temporal.api.workflowservice.v1.WorkflowService";
const OPERATORS: &str = "temporal.api.operatorservice.v1.OperatorService";

fn config(directory: Option<&Path>) -> Config {
    let mut config = Config::default();
    (config.listen.port, config.listen.http_port) = (0, 0);
    (config.peer.port, config.cluster.bootstrap) = (0, true);
    config.shards.count = Some(2);
    config.admission.stop_ms_max = 2_000;
    config.data.ephemeral = directory.is_none();
    if let Some(directory) = directory {
        config.data.directory = directory.to_owned();
    }
    config
}

#[derive(Clone)]
struct Client(Channel);

impl Client {
    async fn of(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self(endpoint.connect().await.unwrap())
    }

    async fn send<Q, A>(
        &self,
        service: &str,
        method: &str,
        request: Request<Q>,
        compression: Option<CompressionEncoding>,
    ) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.0.clone());
        if let Some(encoding) = compression {
            grpc = grpc.send_compressed(encoding);
        }
        grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let path = format!("/{service}/{method}").parse().unwrap();
        let answer = grpc.unary(request, path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.send(WORKFLOWS, method, Request::new(request), None).await
    }

    async fn operate<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.send(OPERATORS, method, Request::new(request), None).await
    }

    async fn system_info(&self) -> Result<GetSystemInfoResponse, Status> {
        self.call("GetSystemInfo", GetSystemInfoRequest {}).await
    }

    async fn namespace(&self, namespace: &str) -> Result<DescribeNamespaceResponse, Status> {
        let namespace = namespace.to_owned();
        self.call("DescribeNamespace", DescribeNamespaceRequest { namespace, ..Default::default() })
            .await
    }

    async fn register(&self, namespace: &str, hours: i64) -> Result<(), Status> {
        let request = RegisterNamespaceRequest {
            namespace: namespace.to_owned(),
            workflow_execution_retention_period: Some(prost_types::Duration {
                seconds: hours * 3_600,
                nanos: 0,
            }),
            ..Default::default()
        };
        let answer: Result<RegisterNamespaceResponse, _> =
            self.call("RegisterNamespace", request).await;
        answer.map(drop)
    }

    async fn poll(
        &self,
        timeout: Option<Duration>,
    ) -> Result<PollWorkflowTaskQueueResponse, Status> {
        let mut request = Request::new(PollWorkflowTaskQueueRequest {
            namespace: "default".to_owned(),
            task_queue: Some(TaskQueue { name: "orders".to_owned(), ..Default::default() }),
            ..Default::default()
        });
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        self.send(WORKFLOWS, "PollWorkflowTaskQueue", request, None).await
    }
}

async fn node_and_client() -> (Node, Client) {
    let node = Node::start(config(None)).await.unwrap();
    let client = Client::of(node.grpc_address()).await;
    (node, client)
}

/// The body of a page of the HTTP port, and its status line.
async fn page(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: piton\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_who_it_is_and_what_it_can() {
    let (node, client) = node_and_client().await;
    let info = client.system_info().await.unwrap();
    assert_eq!(info.server_version, "1.31.0");
    let can = info.capabilities.unwrap();
    assert!(can.eager_workflow_start && can.upsert_memo && can.encoded_failure_attributes);
    // Workers built on the Rust core say what build they are of only then.
    assert!(can.build_id_based_versioning);
    assert!(!can.nexus && !can.supports_schedules);

    let cluster: GetClusterInfoResponse =
        client.call("GetClusterInfo", GetClusterInfoRequest {}).await.unwrap();
    assert_eq!((cluster.cluster_name.as_str(), cluster.history_shard_count), ("active", 2));

    let namespace = client.namespace("default").await.unwrap();
    let info = namespace.namespace_info.unwrap();
    let can = info.capabilities.unwrap();
    assert!(can.eager_workflow_start && can.worker_poll_complete_on_shutdown);
    assert!(!can.sync_update && !can.async_update && !can.worker_heartbeats);
    assert_eq!(info.limits.unwrap().blob_size_limit_error, 2 << 20);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_for_the_server_and_for_the_service() {
    let (node, client) = node_and_client().await;
    for service in ["", WORKFLOWS, OPERATORS] {
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        let health: HealthCheckResponse =
            client.send("grpc.health.v1.Health", "Check", request, None).await.unwrap();
        assert_eq!(health.status, 1, "{service}");
    }
    let (status, body) = page(node.http_address(), "/readyz").await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "ready\n"));
    let (status, _) = page(node.http_address(), "/healthz").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_directory_in_use_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start(config(Some(&parent.path().join("a")))).await.unwrap();

    let mut same_port = config(None);
    same_port.listen.port = node.grpc_address().port();
    let refused = Node::start(same_port).await.err().unwrap();
    assert!(matches!(refused, NodeError::PortTaken { flag: "--port", .. }), "{refused}");

    let mut same_http_port = config(None);
    same_http_port.listen.http_port = node.http_address().port();
    let refused = Node::start(same_http_port).await.err().unwrap();
    assert!(matches!(refused, NodeError::PortTaken { flag: "--http-port", .. }), "{refused}");

    let refused = Node::start(config(Some(&parent.path().join("a")))).await.err().unwrap();
    let in_use = matches!(refused, NodeError::Directory(DataDirectoryError::InUse { .. }));
    assert!(in_use, "{refused}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_and_search_attributes_outlive_a_restart() {
    let parent = tempfile::tempdir().unwrap();
    let node = Node::start(config(Some(parent.path()))).await.unwrap();
    let client = Client::of(node.grpc_address()).await;
    client.register("orders", 72).await.unwrap();
    let namespace = "orders".to_owned();
    let search_attributes = [("Customer".to_owned(), IndexedValueType::Keyword as i32)].into();
    let _: AddSearchAttributesResponse = client
        .operate("AddSearchAttributes", AddSearchAttributesRequest { search_attributes, namespace })
        .await
        .unwrap();
    let id = client.namespace("orders").await.unwrap().namespace_info.unwrap().id;
    node.stop().await;

    let node = Node::start(config(Some(parent.path()))).await.unwrap();
    let client = Client::of(node.grpc_address()).await;
    let again = client.namespace("orders").await.unwrap();
    assert_eq!(again.namespace_info.unwrap().id, id);
    assert_eq!(again.config.unwrap().workflow_execution_retention_ttl.unwrap().seconds, 72 * 3_600);
    let list = ListSearchAttributesRequest { namespace: "orders".to_owned() };
    let list: ListSearchAttributesResponse =
        client.operate("ListSearchAttributes", list).await.unwrap();
    assert_eq!(list.custom_attributes["Customer"], IndexedValueType::Keyword as i32);
    assert_eq!(list.system_attributes["StartTime"], IndexedValueType::Datetime as i32);
    node.stop().await;

    let mut more_shards = config(Some(parent.path()));
    more_shards.shards.count = Some(3);
    let refused = Node::start(more_shards).await.err().unwrap();
    assert!(matches!(refused, NodeError::Shards { kept: 2, asked: 3 }), "{refused}");
    assert!(refused.to_string().contains("--shards"), "{refused}");

    // Whoever does not ask for a number gets the one there is.
    let mut any_shards = config(Some(parent.path()));
    any_shards.shards.count = None;
    let node = Node::start(any_shards).await.unwrap();
    let client = Client::of(node.grpc_address()).await;
    assert_eq!(client.namespace("orders").await.unwrap().namespace_info.unwrap().id, id);
    node.stop().await;

    let mut other_type = config(Some(parent.path()));
    other_type.namespaces.names = vec!["orders".to_owned()];
    other_type.add_search_attribute("Customer=Int").unwrap();
    let refused = Node::start(other_type).await.err().unwrap().to_string();
    assert!(refused.contains("`Customer`") && refused.contains("is of type Keyword"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_registered_once_updated_listed_and_deprecated() {
    let (node, client) = node_and_client().await;
    assert_eq!(client.register("", 24).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.register("orders", 0).await.unwrap_err().code(), Code::InvalidArgument);
    client.register("orders", 24).await.unwrap();
    let exists = client.register("orders", 24).await.unwrap_err();
    assert_eq!((exists.code(), exists.details().is_empty()), (Code::AlreadyExists, false));
    let unknown = client.namespace("nowhere").await.unwrap_err();
    assert_eq!((unknown.code(), unknown.details().is_empty()), (Code::NotFound, false));

    let mut update =
        UpdateNamespaceRequest { namespace: "orders".to_owned(), ..Default::default() };
    update.update_info.get_or_insert_default().description = "all orders".to_owned();
    let updated: UpdateNamespaceResponse =
        client.call("UpdateNamespace", update.clone()).await.unwrap();
    assert_eq!(updated.namespace_info.unwrap().description, "all orders");
    update.promote_namespace = true;
    let refused: Result<UpdateNamespaceResponse, _> = client.call("UpdateNamespace", update).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(refused.message(), "promote_namespace is not implemented by this server");

    let mut names = Vec::new();
    let mut next_page_token = Default::default();
    loop {
        let request = ListNamespacesRequest { page_size: 1, next_page_token, ..Default::default() };
        let list: ListNamespacesResponse = client.call("ListNamespaces", request).await.unwrap();
        names.extend(list.namespaces.into_iter().map(|n| n.namespace_info.unwrap().name));
        if list.next_page_token.is_empty() {
            break;
        }
        next_page_token = list.next_page_token;
    }
    assert_eq!(names, ["default", "orders", "temporal-system"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn search_attributes_are_added_once_and_removed() {
    let (node, client) = node_and_client().await;
    let add = |name: &str, kind: i32| AddSearchAttributesRequest {
        search_attributes: [(name.to_owned(), kind)].into(),
        namespace: "default".to_owned(),
    };
    let keyword = IndexedValueType::Keyword as i32;
    for (request, code) in [
        (add("Customer", keyword), Code::Ok),
        (add("Customer", keyword), Code::AlreadyExists),
        (add("Amount", 0), Code::InvalidArgument),
        (add("Amount", 77), Code::InvalidArgument),
        (add("", keyword), Code::InvalidArgument),
        (add("StartTime", keyword), Code::InvalidArgument),
        (add("TemporalMine", keyword), Code::InvalidArgument),
    ] {
        let text = format!("{request:?}");
        let added: Result<AddSearchAttributesResponse, _> =
            client.operate("AddSearchAttributes", request).await;
        assert_eq!(added.map_or_else(|s| s.code(), |_| Code::Ok), code, "{text}");
    }
    for (name, code) in
        [("Customer", Code::Ok), ("Customer", Code::NotFound), ("RunId", Code::InvalidArgument)]
    {
        let request = RemoveSearchAttributesRequest {
            search_attributes: vec![name.to_owned()],
            namespace: "default".to_owned(),
        };
        let removed: Result<RemoveSearchAttributesResponse, _> =
            client.operate("RemoveSearchAttributes", request).await;
        assert_eq!(removed.map_or_else(|s| s.code(), |_| Code::Ok), code, "{name}");
    }
    node.stop().await;
}

/// All RPCs in the compatibility document, with whether they are built.
fn documented() -> Vec<(&'static str, &'static str, bool)> {
    let document = include_str!("../../docs/compatibility.md");
    let mut service = "";
    let mut rpcs = Vec::new();
    for line in document.lines() {
        match line.strip_prefix("## ") {
            Some(heading) if heading.starts_with("WorkflowService") => service = WORKFLOWS,
            Some(_) => service = OPERATORS,
            None => {}
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", name, "built", _, ""] => rpcs.push((service, name, true)),
            ["", name, "unimplemented", _, ""] => rpcs.push((service, name, false)),
            _ => {}
        }
    }
    rpcs
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_request_to_any_rpc_is_answered_or_refused_in_order() {
    let (node, client) = node_and_client().await;
    let rpcs = documented();
    assert_eq!(rpcs.len(), 135);
    for (service, method, is_built) in rpcs {
        // An empty message of one type is one of any.
        let mut request = Request::new(GetSystemInfoRequest {});
        request.set_timeout(Duration::from_secs(5));
        let answer: Result<GetClusterInfoRequest, Status> =
            client.send(service, method, request, None).await;
        let status = answer.err();
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        if is_built {
            let allowed = [Code::Ok, Code::InvalidArgument, Code::NotFound];
            assert!(allowed.contains(&code), "{method}: {status:?}");
        } else {
            assert_eq!(code, Code::Unimplemented, "{method}: {status:?}");
            assert!(status.unwrap().message().starts_with(method), "{method}");
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_malformed_messages_do_not_hurt_others() {
    let (node, client) = node_and_client().await;
    let data = vec![0; 5 << 20].into();
    let payloads = vec![Payload { data, ..Default::default() }];
    let large = || SignalWorkflowExecutionRequest {
        namespace: "default".to_owned(),
        workflow_execution: Some(WorkflowExecution {
            workflow_id: "w".to_owned(),
            ..Default::default()
        }),
        signal_name: "s".to_owned(),
        input: Some(Payloads { payloads: payloads.clone() }),
        ..Default::default()
    };
    // Plain, and as a few kilobytes that become 5 MiB.
    for compression in [None, Some(CompressionEncoding::Gzip)] {
        let answer: Result<SignalWorkflowExecutionResponse, _> = client
            .send(WORKFLOWS, "SignalWorkflowExecution", Request::new(large()), compression)
            .await;
        let refused = answer.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let text = "grpc: received message larger than max (";
        assert!(refused.message().starts_with(text), "{}", refused.message());
    }
    // Field 1 as a number where the API has a text.
    let malformed = ListNamespacesRequest { page_size: 5, ..Default::default() };
    let answer: Result<SignalWorkflowExecutionResponse, _> =
        client.call("SignalWorkflowExecution", malformed).await;
    assert_eq!(answer.unwrap_err().code(), Code::Internal);
    client.system_info().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_are_read() {
    let (node, client) = node_and_client().await;
    let request =
        DescribeNamespaceRequest { namespace: "default".to_owned(), ..Default::default() };
    let gzip = Some(CompressionEncoding::Gzip);
    let described: DescribeNamespaceResponse =
        client.send(WORKFLOWS, "DescribeNamespace", Request::new(request), gzip).await.unwrap();
    assert_eq!(described.namespace_info.unwrap().name, "default");
    // A client has one setting for all services of a connection.
    let health = Request::new(HealthCheckRequest::default());
    let health: HealthCheckResponse =
        client.send("grpc.health.v1.Health", "Check", health, gzip).await.unwrap();
    assert_eq!(health.status, 1);
    for version in ["v1", "v1alpha"] {
        let service = format!("grpc.reflection.{version}.ServerReflection");
        let asked = ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let answer: ServerReflectionResponse =
            client.send(&service, "ServerReflectionInfo", Request::new(asked), gzip).await.unwrap();
        let answer = answer.message_response.unwrap();
        assert!(matches!(answer, MessageResponse::ListServicesResponse(_)), "{answer:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_need_time_end_empty_and_are_answered_when_the_node_stops() {
    let (node, client) = node_and_client().await;
    assert_eq!(client.poll(None).await.unwrap_err().code(), Code::InvalidArgument);
    let hurried = client.poll(Some(Duration::from_millis(1_500))).await.unwrap_err();
    assert_eq!(hurried.code(), Code::FailedPrecondition);
    // Empty a second before the client stops waiting.
    let empty = client.poll(Some(Duration::from_millis(2_500))).await.unwrap();
    assert!(empty.task_token.is_empty());

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.poll(Some(Duration::from_secs(70))).await }
    });
    // Until the poll is seen to wait.
    let held = r#"piton_rpcs_in_flight{kind="held"} 1"#;
    while !page(node.http_address(), "/metrics").await.1.contains(held) {
        tokio::task::yield_now().await;
    }
    node.stop().await;
    assert!(waiting.await.unwrap().unwrap().task_token.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_rpcs_and_syncs() {
    let (node, client) = node_and_client().await;
    client.system_info().await.unwrap();
    client.namespace("nowhere").await.unwrap_err();
    let (status, text) = page(node.http_address(), "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        r#"piton_rpcs_total{method="GetSystemInfo",code="OK"} 1"#,
        r#"piton_rpcs_total{method="DescribeNamespace",code="NOT_FOUND"} 1"#,
        r#"piton_rpc_duration_seconds_count{method="GetSystemInfo",code="OK"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let figure = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    };
    // The node has made its namespace durable.
    assert!(figure("piton_log_batches_total ") > 0.0);
    let syncs = figure("piton_log_sync_duration_seconds_count ");
    assert!(syncs > 0.0);
    let bucket = r#"piton_log_sync_duration_seconds_bucket{le="+Inf"} "#;
    assert_eq!(figure(bucket), syncs);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_node_leaves_nothing_behind() {
    let (node, _) = node_and_client().await;
    let directory = node.data_directory().to_owned();
    assert!(node.is_ephemeral() && directory.exists());
    node.stop().await;
    assert!(!directory.exists());
}
