//! What a client asks of the nodes in `members`, by function calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use piton_core::effect::QueueName;
use piton_core::id::{RunId, WorkflowKey};
use piton_core::request::{RunRequest, Signal, StartRequest};
use piton_proto::command::Command;
use piton_proto::common::WorkflowExecution;
use piton_proto::enums::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use piton_proto::history::HistoryEvent;
use piton_proto::workflowservice::{
    PollActivityTaskQueueResponse, PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest, SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
};
use piton_raft::NodeId;
use piton_shard::{Cluster, HeldEvents, HistoryPage, Namespace, Poll, ShardError, TaskToken};
use tokio::time::Instant;
use tonic::Code;

use crate::client::{Api, IDENTITY, NAMESPACE, Refused, payloads};
use crate::members::Links;

/// As long as real workers poll: longer than the tests' patience, so a poll that is forgotten by
/// the cluster fails its test.
const POLL_TIME: Duration = Duration::from_secs(60);

/// The API by function calls.
pub(crate) struct MembersClient {
    links: Arc<Links>,
    /// The one node that it asks; `None`: all in turn.
    only: Option<NodeId>,
    next: AtomicUsize,
}

impl MembersClient {
    pub(crate) fn new(links: Arc<Links>, only: Option<NodeId>) -> Self {
        Self { links, only, next: AtomicUsize::new(0) }
    }

    /// Asks the next node; a node that ends meanwhile answers nothing.
    async fn ask<T, F>(&self, ask: impl FnOnce(Cluster, Arc<Namespace>) -> F) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, ShardError>>,
    {
        let unavailable = |text: &str| Refused { code: Code::Unavailable, text: text.to_owned() };
        let (cluster, mut gone) = {
            let clusters = self.links.clusters.read().unwrap();
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let found = match self.only {
                Some(node) => clusters.get(&node),
                None => clusters.values().nth(turn % clusters.len().max(1)),
            };
            found.cloned().ok_or_else(|| unavailable("no node runs"))?
        };
        let namespace = cluster.meta().namespace(NAMESPACE);
        let namespace = namespace.ok_or_else(|| unavailable("the node does not know it yet"))?;
        tokio::select! {
            answer = ask(cluster, namespace) => answer.map_err(Refused::from),
            _ = gone.wait_for(|gone| *gone) => Err(unavailable("the node is gone")),
        }
    }
}

impl From<ShardError> for Refused {
    fn from(error: ShardError) -> Self {
        use piton_core::error::Rejection as R;
        let code = match &error {
            ShardError::Rejected(
                R::NotFound(_)
                | R::WorkflowTaskNotFound
                | R::ActivityNotFound(_)
                | R::AlreadyCompleted,
            ) => Code::NotFound,
            ShardError::Rejected(_) | ShardError::BadToken(_) => Code::InvalidArgument,
            ShardError::NamespaceNotFound { .. } => Code::NotFound,
            ShardError::NotLeader { .. }
            | ShardError::Unavailable(_)
            | ShardError::OutcomeUnknown(_) => Code::Unavailable,
            ShardError::Overloaded(_) => Code::ResourceExhausted,
            ShardError::DeadlineExceeded(_) => Code::DeadlineExceeded,
            // A fault of a node, which no test here provokes.
            ShardError::Internal(_) => Code::DataLoss,
        };
        Self { code, text: error.to_string() }
    }
}

pub(crate) fn key(namespace: &Namespace, workflow_id: &str) -> WorkflowKey {
    WorkflowKey { namespace: namespace.id.clone(), workflow_id: workflow_id.into() }
}

pub(crate) fn poll(queue: &str) -> Poll {
    Poll {
        queue: QueueName::normal(queue),
        identity: IDENTITY.to_owned(),
        worker_instance_key: String::new(),
        worker_version: None,
        deadline: Instant::now() + POLL_TIME,
    }
}

#[async_trait]
impl Api for MembersClient {
    async fn start(&self, mut start: StartWorkflowExecutionRequest) -> Result<String, Refused> {
        // What the frontend fills in.
        start.workflow_id_reuse_policy = WorkflowIdReusePolicy::AllowDuplicate.into();
        start.workflow_id_conflict_policy = WorkflowIdConflictPolicy::Fail.into();
        start.workflow_execution_timeout.get_or_insert_default();
        start.workflow_run_timeout.get_or_insert_default();
        self.ask(async |cluster, namespace| {
            let request = StartRequest { start: Box::new(start), signal: None, parent: None };
            Ok(cluster.start_workflow(&namespace, request).await?.run_id)
        })
        .await
    }

    async fn signal(&self, request: SignalWorkflowExecutionRequest) -> Result<(), Refused> {
        self.ask(async |cluster, namespace| {
            let workflow = request.workflow_execution.unwrap_or_default();
            let signal = Signal {
                name: request.signal_name,
                identity: request.identity,
                request_id: request.request_id,
                ..Signal::default()
            };
            let key = key(&namespace, &workflow.workflow_id);
            cluster.request(key, None, RunRequest::Signal(signal)).await.map(drop)
        })
        .await
    }

    async fn poll_workflow_task(
        &self,
        queue: &str,
    ) -> Result<PollWorkflowTaskQueueResponse, Refused> {
        let poll = poll(queue);
        self.ask(async |cluster, namespace| cluster.poll_workflow_task(&namespace, poll).await)
            .await
    }

    async fn complete_workflow_task(
        &self,
        token: &[u8],
        commands: Vec<Command>,
    ) -> Result<(), Refused> {
        let Ok(TaskToken::Workflow(decoded)) = TaskToken::decode(token) else {
            panic!("a workflow task came with another token");
        };
        let answer = RespondWorkflowTaskCompletedRequest {
            task_token: token.to_vec().into(),
            commands,
            identity: IDENTITY.to_owned(),
            ..RespondWorkflowTaskCompletedRequest::default()
        };
        self.ask(async |cluster, _| cluster.complete_workflow_task(decoded, answer).await.map(drop))
            .await
    }

    async fn poll_activity_task(
        &self,
        queue: &str,
    ) -> Result<PollActivityTaskQueueResponse, Refused> {
        let poll = poll(queue);
        self.ask(async |cluster, namespace| cluster.poll_activity_task(&namespace, poll).await)
            .await
    }

    async fn complete_activity_task(&self, token: &[u8]) -> Result<(), Refused> {
        let Ok(TaskToken::Activity(token)) = TaskToken::decode(token) else {
            panic!("an activity task came with another token");
        };
        self.ask(async |cluster, _| {
            let request = RunRequest::CompleteActivity {
                activity: token.reference(),
                result: Some(payloads("done")),
                identity: IDENTITY.to_owned(),
            };
            let run_id = Some(token.run_id.clone());
            cluster.request(token.key(), run_id, request).await.map(drop)
        })
        .await
    }

    async fn history_page(
        &self,
        execution: &WorkflowExecution,
        token: Vec<u8>,
    ) -> Result<(Vec<HistoryEvent>, Vec<u8>), Refused> {
        let page = HistoryPage {
            token,
            max_events: 0,
            wait: None,
            close_only: false,
            reverse: false,
            held: HeldEvents::Hidden,
        };
        self.ask(async |cluster, namespace| {
            let key = key(&namespace, &execution.workflow_id);
            let run_id = Some(execution.run_id.as_str()).filter(|id| !id.is_empty());
            let page = cluster.history(key, run_id.map(RunId::from), page).await?;
            Ok((page.events, page.next_page_token))
        })
        .await
    }
}
