//! What a hosted workflow does once a batch is committed: answers, hands tasks to polls, resolves
//! queries. Steps 6 and 9 of a request's way.

use std::collections::BTreeMap;

use piton_core::error::Rejection;
use piton_core::id::{EventId, RunId};
use piton_core::proto::common::{WorkflowExecution, WorkflowType};
use piton_core::proto::history::{History, HistoryEvent};
use piton_core::proto::query::WorkflowQuery;
use piton_core::proto::taskqueue::TaskQueue;
use piton_core::proto::workflowservice::{
    PollActivityTaskQueueResponse, PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedResponse, StartWorkflowExecutionResponse,
};
use piton_core::request::{RunRequest, WorkflowTaskRef};
use piton_core::run::{ActivityTask, QueryRoute, Reply, StartedTask};

use crate::entity::expire;
use crate::error::ShardError;
use crate::leader::hosting::{Ask, Envelope};
use crate::leader::reads::{refused, unreadable};
use crate::message::{
    ActivityToken, Answer, Delivery, QueryToken, Receipt, TaskToken, Ticket, WorkflowCall,
    WorkflowTaskToken,
};
use crate::route::shard_leader::ReplyTo;
use crate::rows::history;
use crate::workflow::batch::Hosted;
use crate::workflow::pending::{Pending, QueryResults};
use crate::workflow::query::QueryStage;

impl Hosted {
    /// # Errors
    /// When a deletion failed, or the rows have gone on: the actor must go.
    pub(crate) async fn settle(&mut self, pending: Pending) -> Result<(), ShardError> {
        match pending {
            Pending::Answer(reply, answer) => reply.send(answer),
            Pending::Reply(reply, answer) => reply.send(answer.map(|r| Answer::Reply(Box::new(r)))),
            Pending::Started(reply, started) => {
                let answer = self.started(started).map(|s| Answer::Started(Box::new(s)));
                reply.send(answer);
            }
            Pending::Completed { reply, reference, run_id, results, completed } => {
                let answer = self.completed(reference, &run_id, results, completed);
                reply.send(answer.map(|c| Answer::WorkflowTaskCompleted(Box::new(c))));
            }
            Pending::DeliverWorkflowTask(ticket, task) => {
                self.deliver_workflow_task(ticket, &task).await
            }
            Pending::DeliverActivity(ticket, task) => self.deliver_activity(ticket, *task).await,
            Pending::DeliverQuery(ticket, id) => self.deliver_query(ticket, id).await,
            Pending::DeliverNothing(ticket) => {
                self.shard.cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
            }
            Pending::SendQuery(id, stage) => self.send_query(id, stage),
            Pending::Subscribe(run_id, tell) => {
                // The reader may have gone away.
                let _ = tell.send(Ok(self.follow(run_id)));
            }
            Pending::Resume(run_id) => {
                self.check_position(&run_id)?;
                self.resume(&run_id);
            }
            Pending::Expire(row, _turn) => return expire::expire(self, &row).await,
        }
        Ok(())
    }

    /// What was loaded before a commit of unknown outcome came to be says nothing of it: the next actor
    /// resumes the run.
    ///
    /// # Errors
    /// When the rows have gone on: the actor must go.
    fn check_position(&self, run_id: &RunId) -> Result<(), ShardError> {
        let current = self.shard.rows.current(&self.key).map_err(unreadable)?;
        if current.is_none_or(|current| current.position <= self.position) {
            return Ok(());
        }
        let resume = Ask::Resume { run_id: run_id.clone() };
        let again = Envelope { ask: resume, reply: ReplyTo::nobody() };
        self.handle.mailbox.put_back([again].into());
        Err(ShardError::OutcomeUnknown("a commit before this one was missed".to_owned()))
    }

    fn started(&mut self, reply: Reply) -> Result<StartWorkflowExecutionResponse, ShardError> {
        let Reply::Started { run_id, first_run_id, started, status, eager } = reply else {
            return Err(ShardError::Internal("a start was answered with something else".into()));
        };
        let eager = eager.map(|task| self.workflow_task_response(&task)).transpose()?;
        Ok(StartWorkflowExecutionResponse {
            run_id: run_id.to_string(),
            first_execution_run_id: first_run_id.to_string(),
            started,
            status: status.to_proto().into(),
            eager_workflow_task: eager,
            ..Default::default()
        })
    }

    fn completed(
        &mut self,
        reference: WorkflowTaskRef,
        run_id: &RunId,
        results: QueryResults,
        completed: Result<Reply, ShardError>,
    ) -> Result<RespondWorkflowTaskCompletedResponse, ShardError> {
        let completed = completed?;
        let limits = self.shard.cluster.limits();
        // In order, so that a repeated run answers in the same one.
        for (id, result) in results.into_iter().collect::<BTreeMap<_, _>>() {
            if let Ok(id) = id.parse() {
                self.queries.answered(id, result, &limits);
            }
        }
        self.queries.detach();
        let Reply::WorkflowTaskCompleted { next, eager_activities } = completed else {
            return Err(ShardError::Internal(
                "a completion was answered with something else".into(),
            ));
        };
        let next = next.map(|task| self.workflow_task_response(&task)).transpose()?;
        if next.is_none() {
            self.release_queries(run_id);
        }
        let response = RespondWorkflowTaskCompletedResponse {
            workflow_task: next,
            activity_tasks: eager_activities
                .into_iter()
                .map(|task| self.activity_response(run_id, task))
                .collect(),
            ..Default::default()
        };
        self.last_accepted = Some((reference, response.clone()));
        Ok(response)
    }

    /// Queries that no workflow task will take along are sent on their own.
    pub(crate) fn release_queries(&mut self, run_id: &RunId) {
        let Some(run) = self.runs.get(run_id) else { return };
        match run.query_route(self.now()) {
            QueryRoute::Attach => {}
            QueryRoute::Direct => {
                let stage = QueryStage::offered(run.note.sticky.is_some());
                for id in self.queries.release(run_id) {
                    self.send_query(id, stage);
                }
            }
            QueryRoute::NotReady(text) => {
                for id in self.queries.release(run_id) {
                    let refusal = Rejection::WorkflowNotReady(text.into());
                    self.queries.finish(id, Err(refusal.into()));
                }
            }
        }
    }

    async fn deliver_workflow_task(&mut self, ticket: Ticket, task: &StartedTask) {
        let delivered = match self.workflow_task_response(task) {
            Ok(response) => {
                let delivery = Delivery::WorkflowTask(Box::new(response));
                self.shard.cluster.deliver_to(ticket.node, ticket.poll, delivery).await
                    == Receipt::Taken
            }
            Err(error) => {
                tracing::error!(key = ?self.key, %error, "cannot read the history of a workflow task");
                self.shard.cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
                false
            }
        };
        if !delivered {
            let request = RunRequest::WorkflowTaskUndelivered { number: task.number };
            self.shard.tell(&self.key, &task.run_id, request);
        }
    }

    async fn deliver_activity(&mut self, ticket: Ticket, task: ActivityTask) {
        let (scheduled, stamp) = (task.scheduled, task.stamp);
        let run_id = ticket.offer.run_id.clone();
        let request_id = ticket.id();
        let response = self.activity_response(&run_id, task);
        let delivery = Delivery::ActivityTask(Box::new(response));
        let request_id = request_id.into();
        let request = RunRequest::ActivityUndelivered { scheduled, stamp, request_id };
        let call = WorkflowCall::Run { key: self.key.clone(), run_id: Some(run_id), request };
        let (to, undelivered) = ((ticket.node, ticket.poll), (self.shard.id, call));
        self.shard.cluster.deliver_attempt(to, delivery, undelivered).await;
    }

    async fn deliver_query(&mut self, ticket: Ticket, id: u64) {
        let response = match self.query_response(&ticket, id) {
            Ok(Some(response)) => response,
            Ok(None) => {
                self.shard.cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
                return;
            }
            Err(error) => {
                self.shard.cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
                return self.queries.finish(id, Err(error));
            }
        };
        let delivery = Delivery::WorkflowTask(Box::new(response));
        let was_sticky = ticket.offer.queue.queue.is_sticky();
        let receipt = self.shard.cluster.deliver_to(ticket.node, ticket.poll, delivery).await;
        if receipt != Receipt::Taken {
            self.send_query(id, QueryStage::offered(was_sticky));
        }
    }

    /// A poll's answer that carries a query only; without history for a worker that holds the run.
    fn query_response(
        &mut self,
        ticket: &Ticket,
        id: u64,
    ) -> Result<Option<PollWorkflowTaskQueueResponse>, ShardError> {
        let sticky = ticket.offer.queue.queue.is_sticky();
        let Some(query) = self.queries.get_mut(id) else { return Ok(None) };
        if query.stage != QueryStage::offered(sticky) {
            // It has been offered elsewhere since.
            return Ok(None);
        }
        query.stage = QueryStage::at_worker(sticky);
        let (run_id, query) = (query.run_id.clone(), query.query.clone());
        let run_id = self.run(Some(&run_id))?;
        let run = &self.runs[&run_id];
        let token = TaskToken::Query(QueryToken {
            namespace: self.key.namespace.clone(),
            workflow_id: self.key.workflow_id.clone(),
            run_id: run_id.clone(),
            term: self.shard.term,
            query: id,
        });
        let (history, next_page_token) = if sticky {
            (History::default(), Vec::new())
        } else {
            self.history_of(&run_id, EventId::FIRST, run.next_event_id, &[])?
        };
        let run = &self.runs[&run_id];
        Ok(Some(PollWorkflowTaskQueueResponse {
            task_token: token.encode().into(),
            workflow_execution: Some(self.execution(&run_id)),
            workflow_type: run.started.workflow_type.clone(),
            previous_started_event_id: run.previous_started.0,
            // No task was started. Workers take another number for the end of the history.
            started_event_id: 0,
            attempt: 1,
            query: Some(query),
            history: Some(history),
            next_page_token: next_page_token.into(),
            workflow_execution_task_queue: Some(normal_queue(&run.normal_queue().name)),
            ..Default::default()
        }))
    }

    /// A workflow task with its token, history and the queries that go along.
    pub(crate) fn workflow_task_response(
        &mut self,
        task: &StartedTask,
    ) -> Result<PollWorkflowTaskQueueResponse, ShardError> {
        let token = TaskToken::Workflow(WorkflowTaskToken {
            namespace: self.key.namespace.clone(),
            workflow_id: self.key.workflow_id.clone(),
            run_id: task.run_id.clone(),
            scheduled: task.scheduled_event_id,
            started: task.started_event_id,
            attempt: task.attempt,
            term: task.term,
            number: task.number,
        });
        let (history, next_page_token) =
            self.history_of(&task.run_id, task.history_from, task.history_end, &task.suffix)?;
        let queries = self.queries.attach(&task.run_id, task.number);
        let query = |(id, query): (u64, WorkflowQuery)| (id.to_string(), query);
        Ok(PollWorkflowTaskQueueResponse {
            task_token: token.encode().into(),
            workflow_execution: Some(self.execution(&task.run_id)),
            workflow_type: Some(WorkflowType { name: task.workflow_type.clone() }),
            previous_started_event_id: task.previous_started.0,
            started_event_id: task.started_event_id.0,
            attempt: task.attempt as i32,
            history: Some(history),
            next_page_token: next_page_token.into(),
            workflow_execution_task_queue: Some(normal_queue(&task.queue.name)),
            scheduled_time: Some(task.scheduled_at.to_proto()),
            started_time: Some(task.started_at.to_proto()),
            queries: queries.into_iter().map(query).collect(),
            ..Default::default()
        })
    }

    fn activity_response(
        &self,
        run_id: &RunId,
        task: ActivityTask,
    ) -> PollActivityTaskQueueResponse {
        let mut response = *task.response;
        let name = response.activity_type.as_ref().map(|t| t.name.clone());
        let token = TaskToken::Activity(ActivityToken {
            namespace: self.key.namespace.clone(),
            workflow_id: self.key.workflow_id.clone(),
            run_id: run_id.clone(),
            activity_id: response.activity_id.clone(),
            activity_type: name.unwrap_or_default(),
            scheduled: task.scheduled,
            attempt: task.attempt,
            stamp: task.stamp,
        });
        response.task_token = token.encode().into();
        response
    }

    pub(crate) fn execution(&self, run_id: &RunId) -> WorkflowExecution {
        WorkflowExecution {
            workflow_id: self.key.workflow_id.to_string(),
            run_id: run_id.to_string(),
        }
    }

    /// Committed events of a run from `from` up to `end`, then `suffix`; the token goes on where
    /// the first page ends.
    pub(crate) fn history_of(
        &self,
        run_id: &RunId,
        from: EventId,
        end: EventId,
        suffix: &[HistoryEvent],
    ) -> Result<(History, Vec<u8>), ShardError> {
        let limits = self.shard.cluster.limits();
        let (rows, recent) = (&self.shard.rows, &self.recent);
        let page = history::task_page(rows, recent, &self.key, run_id, from..end, suffix, &limits);
        let (events, token) = page.map_err(refused)?;
        Ok((History { events }, token))
    }
}

fn normal_queue(name: &str) -> TaskQueue {
    TaskQueue {
        name: name.to_owned(),
        kind: piton_core::proto::enums::TaskQueueKind::Normal.into(),
        ..Default::default()
    }
}
