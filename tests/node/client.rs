//! What a client and a worker ask of Piton, as a trait: the workload runs the same over gRPC
//! against one node and by function calls against a cluster in this process.

use std::time::Duration;

use async_trait::async_trait;
use piton_proto::command::Command;
use piton_proto::common::{Payload, Payloads, WorkflowExecution, WorkflowType};
use piton_proto::history::HistoryEvent;
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::workflow_service_client::WorkflowServiceClient;
use piton_proto::workflowservice::{
    GetWorkflowExecutionHistoryRequest, PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse, PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest, RespondWorkflowTaskCompletedRequest,
    SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub(crate) const NAMESPACE: &str = "default";
pub(crate) const IDENTITY: &str = "tests";
/// Longer than any poll that these tests let run out.
const POLL_TIME: Duration = Duration::from_secs(10);
const CALL_TIME: Duration = Duration::from_secs(20);

pub(crate) type Service = WorkflowServiceClient<Channel>;

/// A request that was not carried out, or whose outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {text}")]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl Refused {
    /// Whether an SDK would send the same request again: the outcome is unknown.
    pub(crate) fn is_retriable(&self) -> bool {
        use Code::{
            Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown,
        };
        let codes =
            [Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown];
        codes.contains(&self.code)
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { code: status.code(), text: status.message().to_owned() }
    }
}

/// What the workload asks.
#[async_trait]
pub(crate) trait Api: Send + Sync + 'static {
    /// Answers the run id.
    async fn start(&self, request: StartWorkflowExecutionRequest) -> Result<String, Refused>;

    async fn signal(&self, request: SignalWorkflowExecutionRequest) -> Result<(), Refused>;

    /// An empty token: no task came in time.
    async fn poll_workflow_task(
        &self,
        queue: &str,
    ) -> Result<PollWorkflowTaskQueueResponse, Refused>;

    async fn complete_workflow_task(
        &self,
        token: &[u8],
        commands: Vec<Command>,
    ) -> Result<(), Refused>;

    async fn poll_activity_task(
        &self,
        queue: &str,
    ) -> Result<PollActivityTaskQueueResponse, Refused>;

    async fn complete_activity_task(&self, token: &[u8]) -> Result<(), Refused>;

    /// One page of history and the next page's token.
    async fn history_page(
        &self,
        execution: &WorkflowExecution,
        token: Vec<u8>,
    ) -> Result<(Vec<HistoryEvent>, Vec<u8>), Refused>;

    /// The whole history of a run; of the current one if the run id is empty.
    async fn history(&self, execution: &WorkflowExecution) -> Result<Vec<HistoryEvent>, Refused> {
        let (mut events, mut token) = self.history_page(execution, Vec::new()).await?;
        while !token.is_empty() {
            let (page, next) = self.history_page(execution, token).await?;
            events.extend(page);
            token = next;
        }
        Ok(events)
    }
}

pub(crate) fn execution(workflow_id: &str) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }
}

pub(crate) fn task_queue(name: &str) -> TaskQueue {
    TaskQueue { name: name.to_owned(), ..TaskQueue::default() }
}

pub(crate) fn payloads(text: &str) -> Payloads {
    let data = text.as_bytes().to_vec().into();
    Payloads { payloads: vec![Payload { data, ..Payload::default() }] }
}

/// A start with a request id made from the workflow's id: the same for every attempt.
pub(crate) fn start_of(
    workflow_id: &str,
    workflow_type: &str,
    queue: &str,
) -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_id: workflow_id.to_owned(),
        workflow_type: Some(WorkflowType { name: workflow_type.to_owned() }),
        task_queue: Some(task_queue(queue)),
        identity: IDENTITY.to_owned(),
        request_id: format!("start-{workflow_id}"),
        ..StartWorkflowExecutionRequest::default()
    }
}

/// A signal whose request id is its name: the same for every attempt.
pub(crate) fn signal_of(workflow_id: &str, name: &str) -> SignalWorkflowExecutionRequest {
    SignalWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(execution(workflow_id)),
        signal_name: name.to_owned(),
        identity: IDENTITY.to_owned(),
        request_id: name.to_owned(),
        ..SignalWorkflowExecutionRequest::default()
    }
}

/// A node's gRPC service.
#[derive(Clone)]
pub(crate) struct GrpcClient {
    service: Service,
}

impl GrpcClient {
    pub(crate) async fn connect(address: std::net::SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.tcp_nodelay(true).connect().await.unwrap();
        Self { service: WorkflowServiceClient::new(channel) }
    }

    /// For RPCs that the trait does not have.
    pub(crate) fn service(&self) -> Service {
        self.service.clone()
    }
}

/// A request with a deadline.
pub(crate) fn within<T>(time: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}

pub(crate) fn soon<T>(message: T) -> Request<T> {
    within(CALL_TIME, message)
}

#[async_trait]
impl Api for GrpcClient {
    async fn start(&self, request: StartWorkflowExecutionRequest) -> Result<String, Refused> {
        let answer = self.service().start_workflow_execution(soon(request)).await;
        Ok(answer?.into_inner().run_id)
    }

    async fn signal(&self, request: SignalWorkflowExecutionRequest) -> Result<(), Refused> {
        Ok(self.service().signal_workflow_execution(soon(request)).await.map(drop)?)
    }

    async fn poll_workflow_task(
        &self,
        queue: &str,
    ) -> Result<PollWorkflowTaskQueueResponse, Refused> {
        let request = PollWorkflowTaskQueueRequest {
            namespace: NAMESPACE.to_owned(),
            task_queue: Some(task_queue(queue)),
            identity: IDENTITY.to_owned(),
            ..PollWorkflowTaskQueueRequest::default()
        };
        let answer = self.service().poll_workflow_task_queue(within(POLL_TIME, request)).await;
        Ok(answer.map(Response::into_inner)?)
    }

    async fn complete_workflow_task(
        &self,
        token: &[u8],
        commands: Vec<Command>,
    ) -> Result<(), Refused> {
        let request = RespondWorkflowTaskCompletedRequest {
            namespace: NAMESPACE.to_owned(),
            task_token: token.to_vec().into(),
            commands,
            identity: IDENTITY.to_owned(),
            ..RespondWorkflowTaskCompletedRequest::default()
        };
        Ok(self.service().respond_workflow_task_completed(soon(request)).await.map(drop)?)
    }

    async fn poll_activity_task(
        &self,
        queue: &str,
    ) -> Result<PollActivityTaskQueueResponse, Refused> {
        let request = PollActivityTaskQueueRequest {
            namespace: NAMESPACE.to_owned(),
            task_queue: Some(task_queue(queue)),
            identity: IDENTITY.to_owned(),
            ..PollActivityTaskQueueRequest::default()
        };
        let answer = self.service().poll_activity_task_queue(within(POLL_TIME, request)).await;
        Ok(answer.map(Response::into_inner)?)
    }

    async fn complete_activity_task(&self, token: &[u8]) -> Result<(), Refused> {
        let request = RespondActivityTaskCompletedRequest {
            namespace: NAMESPACE.to_owned(),
            task_token: token.to_vec().into(),
            result: Some(payloads("done")),
            identity: IDENTITY.to_owned(),
            ..RespondActivityTaskCompletedRequest::default()
        };
        Ok(self.service().respond_activity_task_completed(soon(request)).await.map(drop)?)
    }

    async fn history_page(
        &self,
        execution: &WorkflowExecution,
        token: Vec<u8>,
    ) -> Result<(Vec<HistoryEvent>, Vec<u8>), Refused> {
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution.clone()),
            next_page_token: token.into(),
            ..GetWorkflowExecutionHistoryRequest::default()
        };
        let answer = self.service().get_workflow_execution_history(soon(request)).await;
        let page = answer?.into_inner();
        let events = page.history.map(|history| history.events).unwrap_or_default();
        Ok((events, page.next_page_token.into()))
    }
}
