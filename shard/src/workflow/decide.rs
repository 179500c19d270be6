//! How a hosted workflow decides each kind of request: looks up what deciding needs, hands it to
//! core, and notes what is to be answered once the batch is committed.

use std::sync::Arc;
use std::time::Duration;

use piton_core::effect::TaskKey;
use piton_core::error::Rejection;
use piton_core::id::{EventId, NamespaceId, RunId};
use piton_core::limits::Limits;
use piton_core::matching::{self, Class};
use piton_core::proto::enums::QueryRejectCondition;
use piton_core::proto::query::{QueryRejected, WorkflowQuery};
use piton_core::proto::workflowservice::{
    QueryWorkflowResponse, RespondQueryTaskCompletedRequest, RespondWorkflowTaskCompletedRequest,
};
use piton_core::request::{Drawn, RunRequest, StartRequest, Taker};
use piton_core::run::{self, Met, QueryRoute, Reply};
use piton_core::time::{Span, Timestamp};
use tokio::time::Instant;

use crate::error::ShardError;
use crate::leader::hosting::{Ask, Envelope};
use crate::message::{
    Answer, Offer, OfferedTask, QueryToken, QueueCall, QueueKey, QueueType, Ticket, WorkflowCall,
    WorkflowTaskToken, named_namespaces,
};
use crate::meta::{Namespace, NamespaceAttributes};
use crate::route::shard_leader::ReplyTo;
use crate::rows::RequestKind;
use crate::workflow::batch::{Batch, Hosted};
use crate::workflow::pending::Pending;
use crate::workflow::query::{self, QueryStage, WaitingQuery};

/// What a decision needs from outside, owned.
struct Draw {
    limits: Arc<Limits>,
    namespace: Option<Arc<Namespace>>,
    namespaces: Vec<(Arc<str>, NamespaceId)>,
    search_attributes: NamespaceAttributes,
    number: u64,
    run_id: RunId,
}

impl Draw {
    fn drawn<'a>(&'a self, now: Timestamp, term: u64) -> Drawn<'a> {
        Drawn {
            now,
            term,
            number: self.number,
            run_id: self.run_id.clone(),
            limits: &self.limits,
            namespace_name: self.namespace.as_ref().map_or("", |n| &n.name),
            namespaces: &self.namespaces,
            search_attributes: &self.search_attributes,
        }
    }
}

impl Hosted {
    pub(crate) fn decide_ask(&mut self, envelope: Envelope, batch: &mut Batch) {
        let Envelope { ask, reply } = envelope;
        match ask {
            Ask::Call(call) => self.decide_call(call, reply, batch),
            // What others see or get to do rests on what is committed, so it waits for the batch.
            Ask::Subscribe { run_id, tell } => {
                batch.pending.push(Pending::Subscribe(run_id, tell));
            }
            Ask::Resume { run_id } => batch.pending.push(Pending::Resume(run_id)),
            Ask::Expire(row, turn) => batch.pending.push(Pending::Expire(row, turn)),
            Ask::StickyWaitOver { run_id, query } => self.leave_sticky(&run_id, query, batch),
        }
    }

    fn decide_call(&mut self, call: WorkflowCall, reply: ReplyTo, batch: &mut Batch) {
        match call {
            WorkflowCall::Start { request, .. } => self.decide_start(request, reply, batch),
            WorkflowCall::Run { run_id, request, .. } => {
                self.decide_run(run_id, request, reply, batch)
            }
            WorkflowCall::CompleteWorkflowTask { token, answer } => {
                self.complete_workflow_task(&token, *answer, reply, batch);
            }
            WorkflowCall::Query { run_id, query, reject, timeout, .. } => {
                self.ask_query(run_id, query, reject, timeout, reply, batch);
            }
            WorkflowCall::AnswerQuery { token, answer } => {
                let result = self.answer_query(&token, *answer);
                batch.answer(reply, result);
            }
            WorkflowCall::Describe { run_id, .. } => {
                let described = self
                    .run(run_id.as_ref())
                    .map(|id| Answer::Describe(Box::new(self.runs[&id].describe())));
                batch.answer(reply, described);
            }
            WorkflowCall::Ticket(ticket) => {
                // Whoever sent it hears that it was taken; what comes of it, its poll hears.
                reply.send(Ok(Answer::Done));
                self.redeem(ticket, batch);
            }
            WorkflowCall::NoPoller { run_id, task, .. } => {
                reply.send(Ok(Answer::Done));
                self.no_poller(&run_id, &task, batch);
            }
        }
    }

    fn draw(&self, names: Vec<String>) -> Draw {
        let meta = self.shard.cluster.meta();
        let resolve = |name: String| {
            let namespace = meta.namespace(&name)?;
            Some((Arc::from(name), namespace.id.clone()))
        };
        Draw {
            limits: meta.limits(),
            namespace: meta.namespace_by_id(&self.key.namespace),
            namespaces: names.into_iter().filter_map(resolve).collect(),
            search_attributes: meta.search_attribute_check(&self.key.namespace),
            number: self.shard.next_number(),
            run_id: self.shard.cluster.new_run_id(),
        }
    }

    /// A decision of our own, whose answer nobody waits for.
    pub(crate) fn decide_own(&mut self, run_id: &RunId, request: RunRequest, batch: &mut Batch) {
        self.decide_run(Some(run_id.clone()), request, ReplyTo::nobody(), batch);
    }

    fn decide_run(
        &mut self,
        run_id: Option<RunId>,
        request: RunRequest,
        reply: ReplyTo,
        batch: &mut Batch,
    ) {
        let decided = self.try_decide_run(run_id, request, batch);
        batch.pending.push(Pending::Reply(reply, decided));
    }

    fn try_decide_run(
        &mut self,
        run_id: Option<RunId>,
        request: RunRequest,
        batch: &mut Batch,
    ) -> Result<Reply, ShardError> {
        let (run_id, id, kind) = self.addressed(run_id, &request)?;
        if batch.requests.known(&id, self)?.is_some_and(|row| row.kind == kind) {
            return Ok(Reply::Done);
        }
        let run = &self.runs[&run_id];
        let before = run.next_event_id;
        let draw = self.draw(Vec::new());
        let decided = run.decide(request, &draw.drawn(self.now(), self.shard.term))?;
        let answer = decided.reply.clone();
        self.accept(decided, batch);
        if answer.is_ok() {
            self.note_request(&id, &run_id, before, kind, batch);
        }
        Ok(answer?)
    }

    /// The run a request goes to, and the request id that its repetition is recognised by.
    fn addressed(
        &mut self,
        run_id: Option<RunId>,
        request: &RunRequest,
    ) -> Result<(RunId, String, RequestKind), ShardError> {
        let (id, kind, chain) = match request {
            RunRequest::Signal(signal) => (signal.request_id.clone(), RequestKind::Signal, ""),
            RunRequest::RequestCancel(cancel) => {
                (cancel.request_id.clone(), RequestKind::Cancel, cancel.first_run_id.as_str())
            }
            RunRequest::Terminate(terminate) => {
                (String::new(), RequestKind::Cancel, terminate.first_run_id.as_str())
            }
            _ => (String::new(), RequestKind::Signal, ""),
        };
        // A request to a chain of runs goes to its current run, whichever run it names.
        let run_id = run_id.filter(|_| chain.is_empty());
        Ok((self.run(run_id.as_ref())?, id, kind))
    }

    fn decide_start(&mut self, request: StartRequest, reply: ReplyTo, batch: &mut Batch) {
        let id = request.start.request_id.clone();
        let signal_id = request.signal.as_ref().map(|s| s.request_id.clone());
        match self.try_start(request, &id, signal_id.as_deref(), batch) {
            Ok(started) => batch.pending.push(Pending::Started(reply, started)),
            Err(error) => batch.answer(reply, Err(error)),
        }
    }

    fn try_start(
        &mut self,
        request: StartRequest,
        id: &str,
        signal_id: Option<&str>,
        batch: &mut Batch,
    ) -> Result<Reply, ShardError> {
        if let Some(row) = batch.requests.known(id, self)? {
            let is_repetition = match row.kind {
                RequestKind::Start | RequestKind::Attached => true,
                RequestKind::Signal => signal_id == Some(id),
                RequestKind::Cancel => false,
            };
            if is_repetition {
                if let Some(closed) = self.closed_run(&row.run_id)? {
                    return Ok(closed.started_again(row.kind == RequestKind::Start));
                }
                let run_id = self.run(Some(&row.run_id))?;
                return Ok(self.runs[&run_id].started_again(&request.start));
            }
        }
        let current = self.current_run();
        let closed = current.as_ref().map(|id| self.closed_run(id)).transpose()?.flatten();
        let current = match (current, &closed) {
            (Some(run_id), None) => Some(self.run(Some(&run_id))?),
            (current, _) => current,
        };
        let draw = self.draw(Vec::new());
        let met = match closed {
            Some(closed) => Some(Met::Closed(closed)),
            None => current.as_ref().map(|id| Met::from(&*self.runs[id])),
        };
        let drawn = draw.drawn(self.now(), self.shard.term);
        let decided = run::decide_start(&self.key, met, request, &drawn)?;
        let answer = decided.reply.clone();
        let created = decided.successor.as_ref().map(|run| run.run_id.clone());
        self.accept(decided, batch);
        let answer = answer?;
        // A closed run that had started by this request takes no signal.
        let signalled = created.as_ref().or(current.as_ref());
        if let (Some(signal_id), Some(run)) =
            (signal_id, signalled.and_then(|id| self.runs.get(id)))
        {
            let (run_id, event) = (run.run_id.clone(), run.next_event_id);
            self.note_request(signal_id, &run_id, event, RequestKind::Signal, batch);
        }
        // ORDER: last. Start and signal of one request have the same id, and the start says more.
        if let Some(run_id) = &created {
            self.note_request(id, run_id, EventId::FIRST, RequestKind::Start, batch);
        }
        Ok(answer)
    }

    fn complete_workflow_task(
        &mut self,
        token: &WorkflowTaskToken,
        mut answer: RespondWorkflowTaskCompletedRequest,
        reply: ReplyTo,
        batch: &mut Batch,
    ) {
        let reference = token.reference();
        if let Some((accepted, response)) = &self.last_accepted
            && *accepted == reference
        {
            let response = Answer::WorkflowTaskCompleted(Box::new(response.clone()));
            return batch.answer(reply, Ok(response));
        }
        let results = std::mem::take(&mut answer.query_results);
        let names: Vec<String> = named_namespaces(&answer).map(str::to_owned).collect();
        let meta = self.shard.cluster.meta();
        // Where it came in, the newest state was asked; a leader whose copy lags refuses all the same.
        let is_unknown = |name: &&String| meta.namespace(name).is_none();
        if let Some(name) = names.iter().find(is_unknown) {
            // Nothing is recorded, and the task stays the worker's.
            let name = name.clone();
            return batch.answer(reply, Err(ShardError::NamespaceNotFound { name }));
        }
        let draw = self.draw(names);
        let request =
            RunRequest::CompleteWorkflowTask { token: reference, answer: Box::new(answer) };
        let decided = self.run(Some(&token.run_id)).and_then(|run_id| {
            let drawn = draw.drawn(self.now(), self.shard.term);
            Ok((run_id.clone(), self.runs[&run_id].decide(request, &drawn)?))
        });
        let (run_id, decided) = match decided {
            Ok(decided) => decided,
            Err(error) => return batch.answer(reply, Err(error)),
        };
        let told = decided.reply.clone();
        self.accept(decided, batch);
        let completed = told.map_err(ShardError::from);
        batch.pending.push(Pending::Completed { reply, reference, run_id, results, completed });
    }

    /// An offer met a poll: hand the task out, or let the poll go on.
    pub(crate) fn redeem(&mut self, ticket: Ticket, batch: &mut Batch) {
        let taker = Taker {
            identity: ticket.identity.clone(),
            request_id: ticket.id().into(),
            sticky: ticket.offer.queue.queue.is_sticky(),
            worker_version: ticket.worker_version.clone(),
        };
        let run_id = ticket.offer.run_id.clone();
        let request = match &ticket.offer.task {
            OfferedTask::Query(id) => {
                let id = *id;
                return batch.pending.push(Pending::DeliverQuery(ticket, id));
            }
            OfferedTask::Task(TaskKey::Workflow { scheduled, stamp }) => {
                RunRequest::TakeWorkflowTask { scheduled: *scheduled, stamp: *stamp, taker }
            }
            OfferedTask::Task(TaskKey::Activity { scheduled, stamp }) => {
                let (scheduled, stamp, created) = (*scheduled, *stamp, ticket.offer.created);
                RunRequest::StartActivity { scheduled, stamp, created, taker }
            }
        };
        let pending = match self.try_decide_run(Some(run_id), request, batch) {
            Ok(Reply::WorkflowTask(task)) => Pending::DeliverWorkflowTask(ticket, task),
            Ok(Reply::Activity(task)) => {
                if let OfferedTask::Task(key) = &ticket.offer.task {
                    batch.taken.insert(key.clone());
                }
                Pending::DeliverActivity(ticket, task)
            }
            Ok(_) | Err(_) => Pending::DeliverNothing(ticket),
        };
        batch.pending.push(pending);
    }

    fn no_poller(&mut self, run_id: &RunId, task: &OfferedTask, batch: &mut Batch) {
        match task {
            OfferedTask::Task(TaskKey::Workflow { stamp, .. }) => {
                self.decide_own(run_id, RunRequest::StickyUnavailable { stamp: *stamp }, batch);
            }
            OfferedTask::Task(TaskKey::Activity { .. }) => {}
            OfferedTask::Query(id) => match self.queries.get_mut(*id).map(|q| q.stage) {
                Some(QueryStage::OfferedSticky | QueryStage::AtStickyWorker) => {
                    self.leave_sticky(run_id, *id, batch);
                }
                Some(QueryStage::OfferedNormal) => {
                    let text = "no poller seen for task queue recently, worker may be down";
                    let refusal = Rejection::FailedPrecondition(text.into());
                    self.queries.finish(*id, Err(refusal.into()));
                }
                // A worker has it, or will get it with a workflow task.
                Some(
                    QueryStage::AtNormalWorker | QueryStage::AwaitsTask | QueryStage::WithTask(_),
                )
                | None => {}
            },
        }
    }

    /// The sticky worker has not answered this query, whether it took it or not: it goes to the
    /// normal queue, and so does what comes after it.
    fn leave_sticky(&mut self, run_id: &RunId, query: u64, batch: &mut Batch) {
        if let Some(waiting) = self.queries.take_sticky(query) {
            self.withdraw_query(query, &waiting);
            // By another number, so that an answer that comes late is to none.
            let renewed = self.shard.next_number();
            self.queries.add(renewed, waiting);
            self.decide_own(run_id, RunRequest::StickyLost, batch);
            batch.pending.push(Pending::SendQuery(renewed, QueryStage::OfferedNormal));
        }
    }

    fn ask_query(
        &mut self,
        run_id: Option<RunId>,
        query: WorkflowQuery,
        reject: QueryRejectCondition,
        timeout: Duration,
        reply: ReplyTo,
        batch: &mut Batch,
    ) {
        let run_id = match self.run(run_id.as_ref()) {
            Ok(run_id) => run_id,
            Err(error) => return batch.answer(reply, Err(error)),
        };
        let run = &self.runs[&run_id];
        let status = run.status.to_proto();
        if query::is_refused(reject, status) {
            let rejected = QueryRejected { status: status.into() };
            let response =
                QueryWorkflowResponse { query_rejected: Some(rejected), ..Default::default() };
            return batch.answer(reply, Ok(Answer::Query(Box::new(response))));
        }
        let stage = match run.query_route(self.now() + Span::from(timeout)) {
            QueryRoute::NotReady(text) => {
                return batch.answer(reply, Err(Rejection::WorkflowNotReady(text.into()).into()));
            }
            QueryRoute::Attach => QueryStage::AwaitsTask,
            QueryRoute::Direct => QueryStage::offered(run.note.sticky.is_some()),
        };
        let limit = self.shard.cluster.limits().buffered_queries_max as usize;
        if stage == QueryStage::AwaitsTask && self.queries.awaiting_task() >= limit {
            let text = "consistent query buffer is full".to_owned();
            return batch.answer(reply, Err(Rejection::BusyWorkflow(text).into()));
        }
        let deadline = Instant::now() + timeout;
        let id = self.shard.next_number();
        self.queries
            .add(id, WaitingQuery { run_id, query, deadline, reply, stage, offered_to: None });
        if stage != QueryStage::AwaitsTask {
            batch.pending.push(Pending::SendQuery(id, stage));
        }
    }

    /// Offers a query to a worker on its own.
    pub(crate) fn send_query(&mut self, id: u64, stage: QueryStage) {
        let Some(run_id) = self.queries.get_mut(id).map(|query| query.run_id.clone()) else {
            return;
        };
        // A closed run does not stay in memory for its queries.
        if let Err(error) = self.run(Some(&run_id)) {
            return self.queries.finish(id, Err(error));
        }
        let run = &self.runs[&run_id];
        let sticky = run.note.sticky.as_ref().filter(|_| stage == QueryStage::OfferedSticky);
        let stage = QueryStage::offered(sticky.is_some());
        let queue = sticky.map_or_else(|| run.normal_queue(), |s| s.queue.clone());
        if let Some(sticky) = sticky {
            self.give_up_sticky_after(sticky.schedule_to_start.to_std(), &run_id, id);
        }
        let namespace = self.key.namespace.clone();
        let queue = QueueKey { namespace, queue, kind: QueueType::Workflow };
        if let Some(query) = self.queries.get_mut(id) {
            (query.stage, query.offered_to) = (stage, Some(queue.clone()));
        }
        self.shard.cluster.offer(Offer {
            queue,
            origin: self.shard.id,
            key: self.key.clone(),
            run_id,
            task: OfferedTask::Query(id),
            class: Class { priority: 1, ..Class::default() },
            stride: matching::stride(0.0),
            created: self.now(),
            more_behind: false,
        });
    }

    /// Nobody shall take this query from the queue that it was offered to.
    fn withdraw_query(&self, id: u64, query: &WaitingQuery) {
        if let Some(queue) = query.offered_to.clone() {
            self.shard.cluster.send_to_queue(QueueCall::Withdraw {
                queue,
                origin: self.shard.id,
                key: self.key.clone(),
                run_id: query.run_id.clone(),
                task: OfferedTask::Query(id),
            });
        }
    }

    /// Forgets the queries whose callers have gone or whose time is over: they keep neither this
    /// workflow nor a queue in memory.
    pub(crate) fn forget_abandoned_queries(&mut self) {
        for (id, query) in self.queries.take_abandoned(Instant::now()) {
            self.withdraw_query(id, &query);
        }
    }

    /// A sticky worker that does not answer a query in time, be it that it died with the query in its
    /// hands, has lost it to the normal queue.
    fn give_up_sticky_after(&self, wait: Duration, run_id: &RunId, query: u64) {
        let (shard, key, run_id) = (Arc::clone(&self.shard), self.key.clone(), run_id.clone());
        let until = Instant::now() + wait;
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            let ask = Ask::StickyWaitOver { run_id, query };
            shard.ask(&key, Envelope { ask, reply: ReplyTo::nobody() });
        });
    }

    fn answer_query(
        &mut self,
        token: &QueryToken,
        answer: RespondQueryTaskCompletedRequest,
    ) -> Result<Answer, ShardError> {
        if token.term != self.shard.term || self.queries.get_mut(token.query).is_none() {
            let text = "query task not found, or already expired";
            return Err(Rejection::NotFound(text.into()).into());
        }
        let limits = self.shard.cluster.limits();
        self.queries.answered_alone(token.query, answer, &limits);
        Ok(Answer::Done)
    }

    /// Carries out all that a run still owes.
    pub(crate) fn resume(&mut self, run_id: &RunId) {
        // A run that was never committed, or is deleted, owes nothing.
        let Ok(run_id) = self.run(Some(run_id)) else { return };
        for effect in self.runs[&run_id].owed() {
            self.take_care_of(&run_id, &effect);
        }
    }
}
