//! The public API: one line for each RPC that is built, in the order of the API's own files. Steps
//! 1 and 9 of a request's way: check, convert, ask the cluster, answer. Decides nothing about
//! workflows and keeps no state between two requests. An RPC that is not listed here is refused in
//! `gate.rs` by its name.

use std::future::Future;
use std::sync::Arc;

use piton_core::limits::Limits;
use piton_proto::operatorservice as operator_api;
use piton_proto::workflowservice as workflow_api;
use piton_shard::{Clock, Cluster, Namespace, ShardError};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use self::error::ApiError;
use self::gate::ClientDeadline;

mod activity;
mod client_version;
#[cfg(test)]
mod compatibility_tests;
mod error;
mod gate;
mod incoming;
mod namespace;
mod operator;
mod poll;
mod rpc;
mod server;
mod start;
mod status;
mod system;
mod validate;
mod visibility;
mod worker;
mod workflow;

pub(crate) use server::serve;

/// A packet's worth: compressing less costs time and saves nothing.
const COMPRESSED_BYTES_MIN: usize = 1_400;

/// Both services. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Frontend {
    cluster: Cluster,
    clock: Clock,
    /// Turns true when the node is told to stop.
    stopping: watch::Receiver<bool>,
    /// What this server says of itself.
    facts: Arc<Facts>,
}

/// What does not change while a node runs.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) cluster_id: String,
    /// Where clients reach this node.
    pub(crate) address: String,
    pub(crate) shards: u32,
}

/// A request with what its headers said.
pub(crate) struct Call<T> {
    message: T,
    /// When the client stops waiting. `None`: it never does.
    deadline: Option<Instant>,
    /// The official command line or web UI, which show people what they get.
    is_cli_or_ui: bool,
}

impl<T> Call<T> {
    fn of(request: Request<T>) -> Self {
        let deadline = request.extensions().get::<ClientDeadline>().and_then(|d| d.0);
        let is_cli_or_ui = client_version::is_cli_or_ui(request.metadata());
        Self { message: request.into_inner(), deadline, is_cli_or_ui }
    }
}

impl Frontend {
    pub(crate) fn new(
        cluster: Cluster,
        clock: Clock,
        facts: Facts,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { cluster, clock, stopping, facts: Arc::new(facts) }
    }

    /// What a held request is answered; `None` when the node is told to stop first.
    async fn unless_stopping<T>(
        &self,
        held: impl Future<Output = Result<T, ShardError>>,
    ) -> Result<Option<T>, ApiError> {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            // What is there already is handed out.
            biased;
            answer = held => Ok(Some(answer?)),
            _ = stopping.wait_for(|stop| *stop) => Ok(None),
        }
    }

    fn limits(&self) -> Arc<Limits> {
        self.cluster.meta().limits()
    }

    /// The namespace that a request names, also one that was made on another node a moment ago.
    async fn namespace(&self, name: &str) -> Result<Arc<Namespace>, ApiError> {
        if name.is_empty() {
            return Err(ApiError::invalid("Namespace not set on request."));
        }
        validate::optional("Namespace", name, &self.limits())?;
        Ok(self.cluster.meta().find_namespace(name).await?)
    }
}

/// An answer, compressed for clients that take it so if it is large enough to gain by it.
fn answered<T: Message>(message: T) -> Response<T> {
    let is_small = message.encoded_len() < COMPRESSED_BYTES_MIN;
    let mut response = Response::new(message);
    if is_small {
        response.disable_compression();
    }
    response
}

/// Implements a service: each line names the method, its messages and the function that answers.
macro_rules! service {
    (
        $service:ident, $rpcs:ident, $api:ident;
        $($method:ident: $request:ident -> $response:ident = $answer:path;)+
    ) => {
        #[tonic::async_trait]
        impl $service for Frontend {
            $(async fn $method(
                &self,
                request: Request<$api::$request>,
            ) -> Result<Response<$api::$response>, Status> {
                Ok(answered($answer(self, Call::of(request)).await?))
            })+
        }

        /// The RPCs that are built, by name: an API request is called as its RPC and `Request`.
        pub(crate) const $rpcs: &[&str] = &[$(stringify!($request).split_at(
            stringify!($request).len() - "Request".len(),
        ).0),+];
    };
}

use operator_api::operator_service_server::OperatorService;
use workflow_api::workflow_service_server::WorkflowService;

service! {
    WorkflowService, WORKFLOW_RPCS, workflow_api;

    register_namespace: RegisterNamespaceRequest -> RegisterNamespaceResponse = namespace::register;
    describe_namespace: DescribeNamespaceRequest -> DescribeNamespaceResponse = namespace::describe;
    list_namespaces: ListNamespacesRequest -> ListNamespacesResponse = namespace::list;
    update_namespace: UpdateNamespaceRequest -> UpdateNamespaceResponse = namespace::update;
    deprecate_namespace: DeprecateNamespaceRequest -> DeprecateNamespaceResponse = namespace::deprecate;

    start_workflow_execution: StartWorkflowExecutionRequest -> StartWorkflowExecutionResponse = workflow::start;
    signal_workflow_execution: SignalWorkflowExecutionRequest -> SignalWorkflowExecutionResponse = workflow::signal;
    signal_with_start_workflow_execution: SignalWithStartWorkflowExecutionRequest -> SignalWithStartWorkflowExecutionResponse = workflow::signal_with_start;
    request_cancel_workflow_execution: RequestCancelWorkflowExecutionRequest -> RequestCancelWorkflowExecutionResponse = workflow::request_cancel;
    terminate_workflow_execution: TerminateWorkflowExecutionRequest -> TerminateWorkflowExecutionResponse = workflow::terminate;
    query_workflow: QueryWorkflowRequest -> QueryWorkflowResponse = workflow::query;
    describe_workflow_execution: DescribeWorkflowExecutionRequest -> DescribeWorkflowExecutionResponse = workflow::describe;
    get_workflow_execution_history: GetWorkflowExecutionHistoryRequest -> GetWorkflowExecutionHistoryResponse = workflow::history;
    get_workflow_execution_history_reverse: GetWorkflowExecutionHistoryReverseRequest -> GetWorkflowExecutionHistoryReverseResponse = workflow::history_reverse;
    reset_sticky_task_queue: ResetStickyTaskQueueRequest -> ResetStickyTaskQueueResponse = workflow::reset_sticky;

    poll_workflow_task_queue: PollWorkflowTaskQueueRequest -> PollWorkflowTaskQueueResponse = worker::poll_workflow_task;
    poll_nexus_task_queue: PollNexusTaskQueueRequest -> PollNexusTaskQueueResponse = worker::poll_nexus_task;
    respond_workflow_task_completed: RespondWorkflowTaskCompletedRequest -> RespondWorkflowTaskCompletedResponse = worker::complete_workflow_task;
    respond_workflow_task_failed: RespondWorkflowTaskFailedRequest -> RespondWorkflowTaskFailedResponse = worker::fail_workflow_task;
    respond_query_task_completed: RespondQueryTaskCompletedRequest -> RespondQueryTaskCompletedResponse = worker::answer_query;
    shutdown_worker: ShutdownWorkerRequest -> ShutdownWorkerResponse = worker::shutdown;
    describe_task_queue: DescribeTaskQueueRequest -> DescribeTaskQueueResponse = worker::describe_task_queue;

    poll_activity_task_queue: PollActivityTaskQueueRequest -> PollActivityTaskQueueResponse = activity::poll;
    record_activity_task_heartbeat: RecordActivityTaskHeartbeatRequest -> RecordActivityTaskHeartbeatResponse = activity::heartbeat;
    record_activity_task_heartbeat_by_id: RecordActivityTaskHeartbeatByIdRequest -> RecordActivityTaskHeartbeatByIdResponse = activity::heartbeat_by_id;
    respond_activity_task_completed: RespondActivityTaskCompletedRequest -> RespondActivityTaskCompletedResponse = activity::complete;
    respond_activity_task_completed_by_id: RespondActivityTaskCompletedByIdRequest -> RespondActivityTaskCompletedByIdResponse = activity::complete_by_id;
    respond_activity_task_failed: RespondActivityTaskFailedRequest -> RespondActivityTaskFailedResponse = activity::fail;
    respond_activity_task_failed_by_id: RespondActivityTaskFailedByIdRequest -> RespondActivityTaskFailedByIdResponse = activity::fail_by_id;
    respond_activity_task_canceled: RespondActivityTaskCanceledRequest -> RespondActivityTaskCanceledResponse = activity::cancel;
    respond_activity_task_canceled_by_id: RespondActivityTaskCanceledByIdRequest -> RespondActivityTaskCanceledByIdResponse = activity::cancel_by_id;

    list_open_workflow_executions: ListOpenWorkflowExecutionsRequest -> ListOpenWorkflowExecutionsResponse = visibility::list_open;
    list_closed_workflow_executions: ListClosedWorkflowExecutionsRequest -> ListClosedWorkflowExecutionsResponse = visibility::list_closed;
    list_workflow_executions: ListWorkflowExecutionsRequest -> ListWorkflowExecutionsResponse = visibility::list;
    scan_workflow_executions: ScanWorkflowExecutionsRequest -> ScanWorkflowExecutionsResponse = visibility::scan;
    count_workflow_executions: CountWorkflowExecutionsRequest -> CountWorkflowExecutionsResponse = visibility::count;

    get_system_info: GetSystemInfoRequest -> GetSystemInfoResponse = system::system_info;
    get_cluster_info: GetClusterInfoRequest -> GetClusterInfoResponse = system::cluster_info;
}

service! {
    OperatorService, OPERATOR_RPCS, operator_api;

    add_search_attributes: AddSearchAttributesRequest -> AddSearchAttributesResponse = operator::add_search_attributes;
    remove_search_attributes: RemoveSearchAttributesRequest -> RemoveSearchAttributesResponse = operator::remove_search_attributes;
    list_search_attributes: ListSearchAttributesRequest -> ListSearchAttributesResponse = operator::list_search_attributes;
    list_clusters: ListClustersRequest -> ListClustersResponse = system::clusters;
}
