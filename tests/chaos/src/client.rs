//! A client of all nodes: each call goes to one of them, is logged, and ends in an answer, a refusal
//! or in not knowing.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use piton_proto::common::WorkflowExecution;
use piton_proto::history::HistoryEvent;
use piton_proto::workflow::WorkflowExecutionInfo;
use piton_proto::workflowservice::workflow_service_client::WorkflowServiceClient;
use piton_proto::workflowservice::{
    CountWorkflowExecutionsRequest, GetWorkflowExecutionHistoryRequest,
    ListWorkflowExecutionsRequest,
};
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::journal::{Call, Journal, Outcome};
use crate::members::Members;

pub(crate) const NAMESPACE: &str = "default";
const CONNECT_MAX: Duration = Duration::from_secs(1);
const ALIVE_EVERY: Duration = Duration::from_secs(1);
const ALIVE_MAX: Duration = Duration::from_secs(2);
/// As SDKs do at first.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(800);
const PAGE_MAX: i32 = 1_000;

pub(crate) type Service = WorkflowServiceClient<Channel>;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It was not carried out.
    Refused(Code, String),
    /// Nobody knows.
    Unknown(Code, String),
}

/// Connections that break are UNAVAILABLE to clients in other languages, too; here they have several
/// codes, and come with a cause.
fn code_of(status: &Status) -> Code {
    match (status.code(), status.message()) {
        (Code::Cancelled, "Timeout expired") => Code::DeadlineExceeded,
        (Code::Unknown | Code::Internal | Code::Cancelled, _) if status.source().is_some() => {
            Code::Unavailable
        }
        (code, _) => code,
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let (code, text) = (code_of(status), status.message().to_owned());
        match code {
            Code::NotFound
            | Code::AlreadyExists
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::OutOfRange => Self::Refused(code, text),
            _ => Self::Unknown(code, text),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(code, text) => write!(f, "refused, {code:?}: {text}"),
            Self::Unknown(code, text) => write!(f, "unknown, {code:?}: {text}"),
        }
    }
}

/// What a call is logged as.
#[derive(Clone, Copy)]
pub(crate) struct What<'a> {
    pub(crate) call: &'static str,
    pub(crate) workflow: &'a str,
    pub(crate) text: &'a str,
}

/// A refusal, over all tries.
#[derive(Clone, Debug)]
pub(crate) struct Insisted {
    pub(crate) failure: Failure,
    /// No earlier try may have been carried out.
    pub(crate) is_known: bool,
}

/// Clones share connections; each goes on from its own node.
pub(crate) struct Client {
    /// Of all nodes that there are; members are asked.
    services: Arc<Vec<Service>>,
    members: Members,
    pub(crate) journal: Journal,
    at: AtomicUsize,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        let at = AtomicUsize::new(self.at.load(Ordering::Relaxed));
        let (members, journal) = (self.members.clone(), self.journal.clone());
        Self { services: Arc::clone(&self.services), members, journal, at }
    }
}

impl Client {
    pub(crate) fn new(
        addresses: &[String],
        members: &Members,
        journal: &Journal,
    ) -> anyhow::Result<Self> {
        let connect = |address: &String| {
            let endpoint = Endpoint::from_shared(address.clone())?
                .tcp_nodelay(true)
                .connect_timeout(CONNECT_MAX)
                .http2_keep_alive_interval(ALIVE_EVERY)
                .keep_alive_timeout(ALIVE_MAX)
                .keep_alive_while_idle(true);
            let service = WorkflowServiceClient::new(endpoint.connect_lazy());
            Ok(service.max_decoding_message_size(64 << 20))
        };
        let services = addresses.iter().map(connect).collect::<anyhow::Result<Vec<_>>>()?;
        let (members, journal, at) = (members.clone(), journal.clone(), AtomicUsize::new(0));
        Ok(Self { services: Arc::new(services), members, journal, at })
    }

    /// Begins with this node.
    pub(crate) fn at(&self, node: usize) -> Self {
        let client = self.clone();
        client.at.store(node, Ordering::Relaxed);
        client
    }

    fn node(&self) -> usize {
        self.members.at(self.at.load(Ordering::Relaxed))
    }

    pub(crate) fn go_on(&self) {
        self.at.fetch_add(1, Ordering::Relaxed);
    }

    /// One call to one node.
    pub(crate) async fn call<R, A>(
        &self,
        what: What<'_>,
        limit: Duration,
        request: R,
        send: impl AsyncFnOnce(Service, Request<R>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        let node = self.node();
        let mut request = Request::new(request);
        request.set_timeout(limit);
        let from_us = self.journal.now_us();
        let in_flight = self.journal.begin();
        let sent = send(self.services[node].clone(), request);
        // The server has the deadline too; a node that hangs does not keep it.
        let answer = tokio::time::timeout(limit + ALIVE_EVERY, sent).await;
        drop(in_flight);
        let answer = match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::from(&status)),
            Err(_) => Err(Failure::Unknown(Code::DeadlineExceeded, "no answer".to_owned())),
        };
        let (outcome, code, detail) = match &answer {
            Ok(_) => (Outcome::Done, Code::Ok, String::new()),
            Err(Failure::Refused(code, text)) => (Outcome::Refused, *code, text.clone()),
            Err(Failure::Unknown(code, text)) => (Outcome::Unknown, *code, text.clone()),
        };
        self.journal.log(Call {
            from_us,
            to_us: self.journal.now_us(),
            node,
            call: what.call,
            workflow: what.workflow.to_owned(),
            text: what.text.to_owned(),
            outcome,
            code,
            detail,
        });
        answer
    }

    /// Sends a request until it is answered for good or the time is over, as SDKs do; to the next
    /// node after each try without an answer. With the answer goes whether there were such tries.
    pub(crate) async fn insist<A>(
        &self,
        patience: Duration,
        send: impl AsyncFn(&Client) -> Result<A, Failure>,
    ) -> Result<(A, bool), Insisted> {
        let from_us = self.journal.now_us();
        let ended = self.try_again(Instant::now() + patience, send).await;
        let is_answered = !matches!(&ended, Err(Insisted { failure: Failure::Unknown(..), .. }));
        self.journal.requested(from_us, is_answered);
        ended
    }

    async fn try_again<A>(
        &self,
        end: Instant,
        send: impl AsyncFn(&Client) -> Result<A, Failure>,
    ) -> Result<(A, bool), Insisted> {
        let (mut is_known, mut pause) = (true, PAUSE_MIN);
        loop {
            match send(self).await {
                Ok(answer) => return Ok((answer, !is_known)),
                Err(failure @ Failure::Refused(..)) => return Err(Insisted { failure, is_known }),
                Err(failure) => {
                    is_known = false;
                    self.go_on();
                    if Instant::now() >= end {
                        return Err(Insisted { failure, is_known });
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// The whole history of a run; of the current one if the run id is empty.
    pub(crate) async fn history(
        &self,
        execution: &WorkflowExecution,
        limit: Duration,
    ) -> Result<Vec<HistoryEvent>, Failure> {
        self.history_after(execution, Vec::new(), Vec::new(), limit).await
    }

    /// What follows after pages that are known.
    pub(crate) async fn history_after(
        &self,
        execution: &WorkflowExecution,
        mut events: Vec<HistoryEvent>,
        mut token: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<HistoryEvent>, Failure> {
        let what = What { call: "history", workflow: &execution.workflow_id, text: "" };
        loop {
            let request = GetWorkflowExecutionHistoryRequest {
                namespace: NAMESPACE.to_owned(),
                execution: Some(execution.clone()),
                next_page_token: token.into(),
                ..GetWorkflowExecutionHistoryRequest::default()
            };
            let page = self
                .call(what, limit, request, async |mut service, request| {
                    service.get_workflow_execution_history(request).await
                })
                .await?;
            events.extend(page.history.map(|history| history.events).unwrap_or_default());
            token = page.next_page_token.into();
            if token.is_empty() {
                return Ok(events);
            }
        }
    }

    /// All rows that a query finds.
    pub(crate) async fn list(
        &self,
        query: &str,
        limit: Duration,
    ) -> Result<Vec<WorkflowExecutionInfo>, Failure> {
        let (mut rows, mut token) = (Vec::new(), Vec::new());
        loop {
            let request = ListWorkflowExecutionsRequest {
                namespace: NAMESPACE.to_owned(),
                query: query.to_owned(),
                page_size: PAGE_MAX,
                next_page_token: token.into(),
            };
            let what = What { call: "list", workflow: "", text: query };
            let page = self
                .call(what, limit, request, async |mut service, request| {
                    service.list_workflow_executions(request).await
                })
                .await?;
            rows.extend(page.executions);
            token = page.next_page_token.into();
            if token.is_empty() {
                return Ok(rows);
            }
        }
    }

    pub(crate) async fn count(&self, limit: Duration) -> Result<u64, Failure> {
        let request = CountWorkflowExecutionsRequest {
            namespace: NAMESPACE.to_owned(),
            query: String::new(),
        };
        let what = What { call: "count", workflow: "", text: "" };
        let answer = self.call(what, limit, request, async |mut service, request| {
            service.count_workflow_executions(request).await
        });
        Ok(answer.await?.count.unsigned_abs())
    }
}
