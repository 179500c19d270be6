//! What the frontend asks of the cluster: requests to workflows, polls, reads. Each finds its shard
//! and waits for the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use piton_core::error::Rejection;
use piton_core::id::{RunId, WorkflowKey};
use piton_core::list_filter::ListFilter;
use piton_core::proto::enums::QueryRejectCondition;
use piton_core::proto::query::WorkflowQuery;
use piton_core::proto::workflow::WorkflowExecutionInfo;
use piton_core::proto::workflowservice::{
    DescribeWorkflowExecutionResponse, PollActivityTaskQueueResponse, PollNexusTaskQueueResponse,
    PollWorkflowTaskQueueResponse, QueryWorkflowResponse, RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse,
    StartWorkflowExecutionResponse,
};
use piton_core::request::{RunRequest, StartRequest};
use piton_core::run::Reply;
use piton_core::time::Timestamp;
use tokio::sync::oneshot::error::RecvError;
use tokio::time::Instant;

use crate::error::ShardError;
use crate::message::{
    Answer, CountReply, Delivery, HistoryPage, HistoryPageReply, PollId, PollRequest, QueryToken,
    QueueCall, QueueKey, QueueType, ReadCall, TaskQueueView, TaskToken, WorkflowCall,
    WorkflowTaskToken, named_namespaces, ticket_id,
};
use crate::meta::Namespace;
use crate::metrics::QueueFigure;
use crate::route::cluster::{Cluster, Poll};
use crate::route::shard_leader::QueueDepth;
use crate::rows::visibility;

/// Wait before a poll that found no owner looks for one again.
const POLL_PAUSE: Duration = Duration::from_millis(20);

impl Cluster {
    fn key(namespace: &Namespace, workflow_id: &str) -> WorkflowKey {
        WorkflowKey { namespace: namespace.id.clone(), workflow_id: workflow_id.into() }
    }

    /// Starts a workflow, or signals it with start.
    ///
    /// # Errors
    /// Refusals of the id policies among others; see [`ShardError`].
    pub async fn start_workflow(
        &self,
        namespace: &Namespace,
        request: StartRequest,
    ) -> Result<StartWorkflowExecutionResponse, ShardError> {
        let key = Self::key(namespace, &request.start.workflow_id);
        match self.call(WorkflowCall::Start { key, request }).await? {
            Answer::Started(started) => Ok(*started),
            _ => self.wrong_answer(),
        }
    }

    /// Sends a request to a run; `None`: to the workflow's current run.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn request(
        &self,
        key: WorkflowKey,
        run_id: Option<RunId>,
        request: RunRequest,
    ) -> Result<Reply, ShardError> {
        match self.call(WorkflowCall::Run { key, run_id, request }).await? {
            Answer::Reply(reply) => Ok(*reply),
            _ => self.wrong_answer(),
        }
    }

    /// Hands in a worker's answer to a workflow task.
    ///
    /// # Errors
    /// See [`ShardError`]; `CommandsRefused` is recorded as a failed task.
    pub async fn complete_workflow_task(
        &self,
        token: WorkflowTaskToken,
        answer: RespondWorkflowTaskCompletedRequest,
    ) -> Result<RespondWorkflowTaskCompletedResponse, ShardError> {
        for name in named_namespaces(&answer) {
            self.meta().find_namespace(name).await?;
        }
        let call = WorkflowCall::CompleteWorkflowTask { token, answer: Box::new(answer) };
        match self.call(call).await? {
            Answer::WorkflowTaskCompleted(completed) => Ok(*completed),
            _ => self.wrong_answer(),
        }
    }

    /// Waits for a workflow task; empty at the deadline.
    ///
    /// # Errors
    /// See [`ShardError`].
    ///
    /// # Cancel safety
    /// Dropping it withdraws the poll; a task that was on its way is offered again.
    pub async fn poll_workflow_task(
        &self,
        namespace: &Namespace,
        poll: Poll,
    ) -> Result<PollWorkflowTaskQueueResponse, ShardError> {
        match self.poll(namespace, QueueType::Workflow, poll).await? {
            Some(Delivery::WorkflowTask(task)) => Ok(*task),
            _ => Ok(PollWorkflowTaskQueueResponse::default()),
        }
    }

    /// Waits for an activity task; empty at the deadline.
    ///
    /// # Errors
    /// See [`ShardError`].
    ///
    /// # Cancel safety
    /// As [`Cluster::poll_workflow_task`].
    pub async fn poll_activity_task(
        &self,
        namespace: &Namespace,
        poll: Poll,
    ) -> Result<PollActivityTaskQueueResponse, ShardError> {
        match self.poll(namespace, QueueType::Activity, poll).await? {
            Some(Delivery::ActivityTask(task)) => Ok(*task),
            _ => Ok(PollActivityTaskQueueResponse::default()),
        }
    }

    /// Waits for a Nexus task, of which there are none yet: until the deadline, or until the worker
    /// shuts down.
    ///
    /// # Errors
    /// See [`ShardError`].
    ///
    /// # Cancel safety
    /// As [`Cluster::poll_workflow_task`].
    pub async fn poll_nexus_task(
        &self,
        namespace: &Namespace,
        poll: Poll,
    ) -> Result<PollNexusTaskQueueResponse, ShardError> {
        self.poll(namespace, QueueType::Nexus, poll).await?;
        Ok(PollNexusTaskQueueResponse::default())
    }

    async fn poll(
        &self,
        namespace: &Namespace,
        kind: QueueType,
        poll: Poll,
    ) -> Result<Option<Delivery>, ShardError> {
        let queue = QueueKey { namespace: namespace.id.clone(), queue: poll.queue, kind };
        loop {
            let mut waiting = WaitingPoll {
                cluster: self,
                queue: &queue,
                open: self.host().polls().open(),
                is_over: false,
            };
            let request = PollRequest {
                queue: queue.clone(),
                node: self.host().node(),
                poll: waiting.open.id,
                identity: poll.identity.clone(),
                worker_instance_key: poll.worker_instance_key.clone(),
                worker_version: poll.worker_version.clone(),
            };
            let delivered = tokio::select! {
                biased;
                delivered = &mut waiting.open.delivery => {
                    waiting.is_over = true;
                    delivered
                }
                registered = self.register_poll(request) => match (registered, waiting.end()) {
                    (Err(error), Ok(Delivery::Again)) => return Err(error),
                    (_, delivered) => delivered,
                },
                () = tokio::time::sleep_until(poll.deadline) => return Ok(None),
            };
            match delivered {
                Ok(Delivery::Again) => {
                    if self.host().serving(self.shard_of_queue(&queue)).is_none() {
                        // The queue's owner is changing; no need to ask in a tight circle.
                        let soon = Instant::now() + POLL_PAUSE;
                        tokio::time::sleep_until(soon.min(poll.deadline)).await;
                    }
                }
                Ok(Delivery::Shutdown) => return Ok(None),
                Ok(task @ (Delivery::WorkflowTask(_) | Delivery::ActivityTask(_))) => {
                    return Ok(Some(task));
                }
                Err(_) => return Err(ShardError::Unavailable("the node is stopping".into())),
            }
            if Instant::now() >= poll.deadline {
                return Ok(None);
            }
        }
    }

    /// Tells a queue's owner of a poll. Returns when the poll is to be replaced by another: since its
    /// owner is none any more, or another leader has taken its place, who cannot know of it (an owner
    /// whose node dies does not say so to the polls it held); or now and then, since a task for it
    /// may have been lost on its way.
    ///
    /// # Errors
    /// When nobody decides for the queue: its caller may know of a node that knows who does.
    // INVARIANT: a poll is registered once. If it came again while its task is on the way, it would
    // wait at the queue as well, and the next task that it meets there would be nobody's.
    async fn register_poll(&self, request: PollRequest) -> Result<(), ShardError> {
        let shard = self.shard_of_queue(&request.queue);
        let mut leadership = self.host().leaders().watch(shard);
        let term = leadership.borrow_and_update().term;
        let renewal = self.host().config().poll_renewal;
        match self.ask(shard, QueueCall::Poll(request).into()).await {
            Ok(_) => {}
            Err(error) if error.is_passing() => return Err(error),
            Err(_) => {
                // Whatever it is, it may well happen again at once.
                tokio::time::sleep(POLL_PAUSE).await;
                return Ok(());
            }
        }
        // Who was named by somebody else may not be known here yet.
        let was_known = leadership.borrow().leader.is_some();
        let moves = leadership.wait_for(|now| match now.leader {
            Some(_) => now.term != term,
            None => was_known,
        });
        if tokio::time::timeout(renewal, moves).await.is_ok_and(|moved| moved.is_err()) {
            // The group has stopped and the node with it; its frontend ends the poll.
            std::future::pending().await
        }
        Ok(())
    }

    /// A poll went away with a task in its hands: puts the task back where it came from.
    fn put_back(&self, poll: PollId, delivery: &Delivery) {
        let token = match delivery {
            Delivery::WorkflowTask(task) => &task.task_token,
            Delivery::ActivityTask(task) => &task.task_token,
            Delivery::Again | Delivery::Shutdown => return,
        };
        let (key, run_id, request) = match TaskToken::decode(token) {
            Ok(TaskToken::Workflow(token)) => {
                let request = RunRequest::WorkflowTaskUndelivered { number: token.number };
                (token.key(), token.run_id, request)
            }
            Ok(TaskToken::Activity(token)) => {
                let (scheduled, stamp) = (token.scheduled, token.stamp);
                let request_id = ticket_id(self.host().node(), poll).into();
                let request = RunRequest::ActivityUndelivered { scheduled, stamp, request_id };
                (token.key(), token.run_id, request)
            }
            // Who asked waits to the end of its time and asks again; no row stands for a query.
            Ok(TaskToken::Query(_)) => return,
            Err(error) => return tracing::error!(%error, "a task came with a token not of ours"),
        };
        let shard = self.shard_of(&key);
        let call = WorkflowCall::Run { key, run_id: Some(run_id), request };
        self.insist(shard, call.into());
    }

    /// Asks a run's code something.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn query(
        &self,
        key: WorkflowKey,
        run_id: Option<RunId>,
        query: WorkflowQuery,
        reject: QueryRejectCondition,
        deadline: Instant,
    ) -> Result<QueryWorkflowResponse, ShardError> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let call = WorkflowCall::Query { key, run_id, query, reject, timeout };
        let answer = tokio::time::timeout_at(deadline, self.call(call)).await;
        match answer.unwrap_or_else(|_| {
            let text = "query timed out before a worker could process it".to_owned();
            Err(ShardError::DeadlineExceeded(text))
        })? {
            Answer::Query(response) => Ok(*response),
            _ => self.wrong_answer(),
        }
    }

    /// Hands in a worker's answer to a query that was sent on its own.
    ///
    /// # Errors
    /// `NotFound` when nobody waits for it any more.
    pub async fn respond_query(
        &self,
        token: QueryToken,
        answer: RespondQueryTaskCompletedRequest,
    ) -> Result<(), ShardError> {
        let call = WorkflowCall::AnswerQuery { token, answer: Box::new(answer) };
        self.call(call).await.map(|_| ())
    }

    /// Reads a page of history; may wait for new events.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn history(
        &self,
        key: WorkflowKey,
        run_id: Option<RunId>,
        page: HistoryPage,
    ) -> Result<HistoryPageReply, ShardError> {
        let shard = self.shard_of(&key);
        match self.ask(shard, ReadCall::History { key, run_id, page }.into()).await? {
            Answer::History(page) => Ok(page),
            _ => self.wrong_answer(),
        }
    }

    /// Describes a run.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn describe_workflow(
        &self,
        key: WorkflowKey,
        run_id: Option<RunId>,
    ) -> Result<DescribeWorkflowExecutionResponse, ShardError> {
        match self.call(WorkflowCall::Describe { key, run_id }).await? {
            Answer::Describe(described) => Ok(*described),
            _ => self.wrong_answer(),
        }
    }

    /// Lists runs: open first, then by close time, newest first. The token goes on where a page
    /// ended; empty at the end.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn list(
        &self,
        namespace: &Namespace,
        filter: &ListFilter,
        page_size: usize,
        token: Vec<u8>,
        deadline: Option<Instant>,
    ) -> Result<(Vec<WorkflowExecutionInfo>, Vec<u8>), ShardError> {
        let after = (!token.is_empty()).then_some(token);
        let call = || ReadCall::List {
            namespace: namespace.id.clone(),
            filter: filter.clone(),
            after: after.clone(),
            limit: page_size,
            timeout: time_left(deadline),
        };
        let mut answers = Vec::new();
        for answer in self.ask_all(call).await? {
            match answer {
                Answer::List { rows, covered } => answers.push((rows, covered)),
                _ => return self.wrong_answer(),
            }
        }
        let merged = visibility::merge_lists(answers, page_size);
        let (rows, next) = merged.ok_or_else(|| self.partial())?;
        Ok((rows, next.unwrap_or_default()))
    }

    /// Counts runs.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn count(
        &self,
        namespace: &Namespace,
        filter: &ListFilter,
        deadline: Option<Instant>,
    ) -> Result<CountReply, ShardError> {
        let call = || ReadCall::Count {
            namespace: namespace.id.clone(),
            filter: filter.clone(),
            timeout: time_left(deadline),
        };
        let mut answers = Vec::new();
        for answer in self.ask_all(call).await? {
            match answer {
                Answer::Count { counts, covered } => answers.push((counts, covered)),
                _ => return self.wrong_answer(),
            }
        }
        visibility::merge_counts(answers).ok_or_else(|| self.partial())
    }

    fn partial(&self) -> ShardError {
        ShardError::Unavailable("not all shards answered for their slots; try again".into())
    }

    /// Asks every shard at once.
    async fn ask_all(&self, call: impl Fn() -> ReadCall) -> Result<Vec<Answer>, ShardError> {
        let asks = self.host().shard_ids().map(|shard| self.ask(shard, call().into()));
        futures::future::try_join_all(asks.collect::<Vec<_>>()).await
    }

    /// Who polls a queue and what waits in it.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub async fn describe_task_queue(
        &self,
        namespace: &Namespace,
        queue: piton_core::effect::QueueName,
        kind: QueueType,
    ) -> Result<TaskQueueView, ShardError> {
        let queue = QueueKey { namespace: namespace.id.clone(), queue, kind };
        let call = QueueCall::Describe { queue: queue.clone() };
        let Answer::Queue(mut view) = self.ask(self.shard_of_queue(&queue), call.into()).await?
        else {
            return self.wrong_answer();
        };
        if view.beyond_window.is_empty() {
            return Ok(view);
        }
        // More waits than the owner holds: the rows in the shards say how much.
        let answers =
            self.ask_all(|| ReadCall::Backlog { queue: queue.clone(), timeout: None }).await?;
        (view.backlog_count, view.oldest) = (0, None);
        for answer in answers {
            let Answer::Queue(part) = answer else { return self.wrong_answer() };
            view.backlog_count += part.backlog_count;
            view.oldest = match (view.oldest, part.oldest) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(view)
    }

    /// A worker goes: its open polls are answered empty, and its sticky queue has no poller.
    pub fn shutdown_worker(
        &self,
        namespace: &Namespace,
        queues: impl IntoIterator<Item = (piton_core::effect::QueueName, QueueType)>,
        worker_instance_key: &str,
    ) {
        for (queue, kind) in queues {
            let queue = QueueKey { namespace: namespace.id.clone(), queue, kind };
            let worker_instance_key = worker_instance_key.to_owned();
            self.send_to_queue(QueueCall::ShutdownWorker { queue, worker_instance_key });
        }
    }

    /// Whether the meta group and every shard have a leader that this node knows of.
    pub fn is_ready(&self) -> bool {
        let (node, stopped) = (self.host().node(), self.host().stopped());
        self.meta().is_led(node)
            && self.host().shard_ids().all(|shard| {
                let leader = self.host().leaders().leader(shard);
                let is_led = leader.is_some_and(|l| l != node);
                is_led
                    || self.host().deciding(shard).is_some()
                    || stopped.contains_key(&Some(shard))
            })
    }

    /// Brings the figures of the task queues up to date, before they are read. Counts the rows of
    /// long queues, so it may block for a while.
    pub fn refresh_metrics(&self) {
        let now = self.host().clock().now();
        let mut figures = BTreeMap::new();
        for shard in self.host().shard_ids() {
            let Some(leader) = self.host().serving(shard) else { continue };
            for mut queue in leader.queue_depths() {
                // Sticky queues come and go with workers; their names would pile up.
                if queue.queue.queue.is_sticky() {
                    continue;
                }
                if queue.is_beyond_window {
                    self.count_backlog(&mut queue);
                }
                let namespace = self.meta().namespace_by_id(&queue.queue.namespace);
                let namespace = namespace.map_or_else(String::new, |n| n.name.clone());
                let kind = match queue.queue.kind {
                    QueueType::Workflow => "workflow",
                    QueueType::Activity => "activity",
                    QueueType::Nexus => "nexus",
                };
                let age = queue.oldest.map(|oldest: Timestamp| (now - oldest).to_std());
                let figure = QueueFigure {
                    namespace,
                    task_queue: queue.queue.queue.name.to_string(),
                    kind,
                    depth: queue.depth,
                    age: age.unwrap_or_default(),
                    polls: queue.polls,
                };
                figures.insert(queue.queue, figure);
            }
        }
        self.host().metrics().show_queues(figures.into_values().collect());
    }

    /// What the shards led here hold of a queue.
    fn count_backlog(&self, queue: &mut QueueDepth) {
        let (mut depth, mut oldest) = (0, None);
        for shard in self.host().shard_ids().filter(|&shard| self.host().serving(shard).is_some()) {
            let Some(replica) = self.host().replica(shard) else { continue };
            match replica.rows.backlog(&queue.queue) {
                Ok((count, first)) => {
                    depth += count;
                    oldest = [oldest, first].into_iter().flatten().min();
                }
                Err(error) => tracing::error!(%shard, %error, "cannot read task rows"),
            }
        }
        (queue.depth, queue.oldest) = (queue.depth.max(depth), oldest.or(queue.oldest));
    }
}

/// A poll that waits; withdrawn from its queue when it is dropped unanswered.
struct WaitingPoll<'a> {
    cluster: &'a Cluster,
    queue: &'a QueueKey,
    open: crate::route::polls::OpenPoll,
    is_over: bool,
}

impl WaitingPoll<'_> {
    /// Ends the poll here: what comes for it from now on is nobody's. It may have come by now.
    fn end(&mut self) -> Result<Delivery, RecvError> {
        self.open.delivery.close();
        let delivered = self.open.delivery.try_recv();
        self.is_over = delivered.is_ok();
        Ok(delivered.unwrap_or(Delivery::Again))
    }
}

impl Drop for WaitingPoll<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // ORDER: closed before it is looked into, so that whoever delivers later hears that the
        // poll is gone, and what was delivered before is found here.
        self.open.delivery.close();
        if let Ok(delivery) = self.open.delivery.try_recv() {
            return self.cluster.put_back(self.open.id, &delivery);
        }
        self.cluster.withdraw_poll(self.queue, self.open.id);
    }
}

/// How long a caller still waits, as another node is told.
fn time_left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

/// The refusal of a history page that is not for the addressed run.
pub(crate) fn token_of_another_run() -> ShardError {
    let text = "RunId in the request does not match the NextPageToken.";
    ShardError::Rejected(Rejection::InvalidArgument(text.into()))
}
