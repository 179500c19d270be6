//! What clients and workers ask of any node, over a network that loses requests and answers. Says of
//! each failure whether the request was refused for good or whether nobody knows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use piton_core::effect::QueueName;
use piton_core::error::Rejection;
use piton_core::id::{RunId, WorkflowKey};
use piton_core::request::{RunRequest, StartRequest};
use piton_proto::common::WorkflowExecution;
use piton_proto::history::HistoryEvent;
use piton_proto::workflow::WorkflowExecutionInfo;
use piton_shard::{Cluster, HeldEvents, HistoryPage, Namespace, Poll, ShardError};
use tokio::time::{Instant, sleep_until};

use crate::chance::Chance;
use crate::life::Life;
use crate::world::{NAMESPACE, World, in_ms};

/// How long a client waits for an answer.
const CALL_MS: u64 = 5_000;
/// Pause before the same request is sent again.
const PAUSE_MS: u64 = 50;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Not carried out, for good.
    Refused(String),
    /// Not carried out, but may be later.
    Busy(String),
    /// Perhaps carried out, perhaps not.
    Unknown(String),
}

impl From<ShardError> for Failure {
    fn from(error: ShardError) -> Self {
        let text = error.to_string();
        match error {
            ShardError::Rejected(Rejection::BusyWorkflow(_) | Rejection::WorkflowNotReady(_))
            | ShardError::Overloaded(_) => Self::Busy(text),
            ShardError::Rejected(_)
            | ShardError::NamespaceNotFound { .. }
            | ShardError::BadToken(_) => Self::Refused(text),
            ShardError::NotLeader { .. }
            | ShardError::Unavailable(_)
            | ShardError::OutcomeUnknown(_)
            | ShardError::DeadlineExceeded(_)
            | ShardError::Internal(_) => Self::Unknown(text),
        }
    }
}

/// Asks the nodes, another one each time.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) world: World,
    pub(crate) chance: Chance,
}

/// Counts a request as under way while it is.
struct InFlight<'a>(&'a World);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight().fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    pub(crate) fn new(world: &World, chance: &Chance) -> Self {
        Self { world: world.clone(), chance: chance.fork() }
    }

    pub(crate) async fn pause(&self) {
        sleep_until(in_ms(self.chance.between(1, PAUSE_MS))).await;
    }

    fn some_node(&self) -> Option<(Arc<Life>, Cluster)> {
        let running = self.world.running();
        let drawn = self.chance.below(running.len() as u64) as usize;
        running.into_iter().nth(drawn).map(|(life, cluster, _)| (life, cluster))
    }

    /// Asks one node once.
    async fn ask<T, F>(
        &self,
        limit_ms: u64,
        ask: impl FnOnce(Cluster, Arc<Namespace>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ShardError>>,
    {
        let limit = in_ms(limit_ms);
        sleep_until(in_ms(self.chance.between(1, 3))).await;
        let Some((life, cluster)) = self.some_node() else {
            return Err(Failure::Unknown("no node runs".into()));
        };
        let Some(namespace) = cluster.meta().namespace(NAMESPACE) else {
            return Err(Failure::Unknown("the node does not know the namespace yet".into()));
        };
        let answer = tokio::select! {
            biased;
            () = life.over() => return Err(Failure::Unknown("the node is gone".into())),
            answer = ask(cluster, namespace) => answer,
            () = sleep_until(limit) => return Err(Failure::Unknown("no answer in time".into())),
        };
        if self.world.in_flight().load(Ordering::Relaxed) > 0 {
            self.world.points().reached(life.node, "before reply");
        }
        // The way back is that of any message: it may be lost, and the node with it.
        let back = self.world.network().way(life.node, piton_raft::NodeId(0));
        sleep_until(back.at).await;
        if !life.is_alive() || !back.arrives {
            return Err(Failure::Unknown("the answer was lost".into()));
        }
        answer.map_err(Failure::from)
    }

    /// The same for what counts as work under way.
    async fn request<T, F>(
        &self,
        ask: impl FnOnce(Cluster, Arc<Namespace>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ShardError>>,
    {
        self.world.in_flight().fetch_add(1, Ordering::Relaxed);
        let _in_flight = InFlight(&self.world);
        self.ask(CALL_MS, ask).await
    }

    /// Answers the run's id.
    pub(crate) async fn start(&self, request: &StartRequest) -> Result<String, Failure> {
        let request = request.clone();
        self.request(async |cluster, namespace| {
            Ok(cluster.start_workflow(&namespace, request).await?.run_id)
        })
        .await
    }

    pub(crate) async fn run(
        &self,
        workflow_id: &str,
        run_id: Option<RunId>,
        request: RunRequest,
    ) -> Result<(), Failure> {
        self.request(async |cluster, namespace| {
            cluster.request(key(&namespace, workflow_id), run_id, request).await.map(drop)
        })
        .await
    }

    pub(crate) async fn on_cluster<T, F>(
        &self,
        ask: impl FnOnce(Cluster, Arc<Namespace>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ShardError>>,
    {
        self.request(ask).await
    }

    /// Polls for `limit_ms` at most; what it holds open is no work under way.
    pub(crate) async fn poll<T, F>(
        &self,
        queue: &str,
        limit_ms: u64,
        ask: impl FnOnce(Cluster, Arc<Namespace>, Poll) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ShardError>>,
    {
        let poll = Poll {
            queue: QueueName::normal(queue),
            identity: "worker".to_owned(),
            worker_instance_key: String::new(),
            worker_version: None,
            deadline: in_ms(limit_ms),
        };
        self.ask(limit_ms + CALL_MS, |cluster, namespace| ask(cluster, namespace, poll)).await
    }

    /// The whole history of a run, or of the current one.
    pub(crate) async fn history(
        &self,
        execution: &WorkflowExecution,
    ) -> Result<Vec<HistoryEvent>, Failure> {
        self.history_after(execution, Vec::new(), Vec::new()).await
    }

    /// What of a history follows `events`, from a page's token on.
    pub(crate) async fn history_after(
        &self,
        execution: &WorkflowExecution,
        mut events: Vec<HistoryEvent>,
        mut token: Vec<u8>,
    ) -> Result<Vec<HistoryEvent>, Failure> {
        loop {
            let page = HistoryPage {
                token: token.clone(),
                max_events: 0,
                wait: None,
                close_only: false,
                reverse: false,
                held: HeldEvents::Hidden,
            };
            let run_id = Some(execution.run_id.as_str()).filter(|id| !id.is_empty());
            let page = self.request(async |cluster, namespace| {
                let key = key(&namespace, &execution.workflow_id);
                cluster.history(key, run_id.map(RunId::from), page).await
            });
            let page = page.await?;
            events.extend(page.events);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(events);
            }
        }
    }

    /// All runs that the index knows, and how many it counts.
    pub(crate) async fn list(&self) -> Result<(Vec<WorkflowExecutionInfo>, u64), Failure> {
        self.request(async |cluster, namespace| {
            let filter = piton_core::list_filter::ListFilter::parse("").expect("nothing to parse");
            let (mut all, mut token) = (Vec::new(), Vec::new());
            loop {
                let (rows, next) = cluster.list(&namespace, &filter, 100, token, None).await?;
                all.extend(rows);
                if next.is_empty() {
                    break;
                }
                token = next;
            }
            let count = cluster.count(&namespace, &filter, None).await?;
            Ok((all, count.total))
        })
        .await
    }

    /// Tries until there is an answer for good, or until `end`.
    pub(crate) async fn insist<T>(
        &self,
        end: Instant,
        mut send: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<T, Insisted> {
        let (mut is_known, mut last) = (true, String::new());
        loop {
            match send().await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(text)) => return Err(Insisted { text, is_known }),
                Err(Failure::Busy(_)) => {}
                Err(Failure::Unknown(text)) => (is_known, last) = (false, text),
            }
            if Instant::now() >= end {
                let text = format!("not within its time, last: {last}");
                return Err(Insisted { text, is_known: false });
            }
            self.pause().await;
        }
    }
}

/// A request that got no acknowledgement.
pub(crate) struct Insisted {
    pub(crate) text: String,
    /// No try before was left without an answer.
    pub(crate) is_known: bool,
}

pub(crate) fn key(namespace: &Namespace, workflow_id: &str) -> WorkflowKey {
    WorkflowKey { namespace: namespace.id.clone(), workflow_id: workflow_id.into() }
}
