//! Queries that wait at one workflow's actor: attached to its next workflow task, or sent to a
//! worker on their own. Volatile: if the actor goes, their callers try again.

use std::collections::BTreeMap;

use piton_core::error::Rejection;
use piton_core::id::RunId;
use piton_core::limits::{BLOB_OVERSIZED, Limits};
use piton_core::proto::common::Payloads;
use piton_core::proto::enums::{QueryRejectCondition, QueryResultType};
use piton_core::proto::failure::Failure;
use piton_core::proto::query::{WorkflowQuery, WorkflowQueryResult};
use piton_core::proto::workflowservice::{QueryWorkflowResponse, RespondQueryTaskCompletedRequest};
use tokio::time::Instant;

use crate::error::ShardError;
use crate::message::{Answer, QueueKey};
use crate::route::shard_leader::ReplyTo;

/// A query that has no answer yet.
pub(crate) struct WaitingQuery {
    pub(crate) run_id: RunId,
    pub(crate) query: WorkflowQuery,
    pub(crate) deadline: Instant,
    pub(crate) reply: ReplyTo,
    pub(crate) stage: QueryStage,
    /// The queue that it was offered to last.
    pub(crate) offered_to: Option<QueueKey>,
}

impl WaitingQuery {
    fn is_abandoned(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.deadline <= now
    }

    fn is_sticky(&self) -> bool {
        matches!(self.stage, QueryStage::OfferedSticky | QueryStage::AtStickyWorker)
    }
}

/// How far a query has come on its way to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryStage {
    /// Waits for the next workflow task to take it along.
    AwaitsTask,
    /// At the worker, along with this workflow task.
    WithTask(u64),
    /// Offered to the sticky queue on its own.
    OfferedSticky,
    /// At the sticky queue's worker on its own, which has the same time for both.
    AtStickyWorker,
    /// Offered to the normal queue on its own.
    OfferedNormal,
    /// At a worker of the normal queue on its own.
    AtNormalWorker,
}

impl QueryStage {
    /// Offered on its own, to the sticky queue or the normal one.
    pub(crate) fn offered(sticky: bool) -> Self {
        if sticky { Self::OfferedSticky } else { Self::OfferedNormal }
    }

    /// Taken from that queue.
    pub(crate) fn at_worker(sticky: bool) -> Self {
        if sticky { Self::AtStickyWorker } else { Self::AtNormalWorker }
    }
}

/// The queries of one workflow's actor, by number.
#[derive(Default)]
pub(crate) struct Queries {
    waiting: BTreeMap<u64, WaitingQuery>,
}

impl Queries {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Its number must be one that no other query of this term has: an answer that comes late, or
    /// comes again, may find another life of the actor with other queries.
    pub(crate) fn add(&mut self, number: u64, query: WaitingQuery) {
        self.waiting.insert(number, query);
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut WaitingQuery> {
        self.waiting.get_mut(&id)
    }

    /// Takes out a query that the sticky queue's worker has not answered in time.
    pub(crate) fn take_sticky(&mut self, number: u64) -> Option<WaitingQuery> {
        let is_sticky = self.waiting.get(&number).is_some_and(WaitingQuery::is_sticky);
        if is_sticky { self.waiting.remove(&number) } else { None }
    }

    pub(crate) fn awaiting_task(&self) -> usize {
        self.waiting.values().filter(|q| q.stage == QueryStage::AwaitsTask).count()
    }

    /// Takes out those whose caller has gone or whose time is over.
    pub(crate) fn take_abandoned(&mut self, now: Instant) -> BTreeMap<u64, WaitingQuery> {
        let waiting = std::mem::take(&mut self.waiting);
        let (abandoned, kept) = waiting.into_iter().partition(|(_, query)| query.is_abandoned(now));
        self.waiting = kept;
        abandoned
    }

    /// Lets a workflow task take along what waits for one.
    pub(crate) fn attach(&mut self, run: &RunId, task: u64) -> Vec<(u64, WorkflowQuery)> {
        let mut taken = Vec::new();
        for (id, query) in &mut self.waiting {
            if query.stage == QueryStage::AwaitsTask && query.run_id == *run {
                query.stage = QueryStage::WithTask(task);
                taken.push((*id, query.query.clone()));
            }
        }
        taken
    }

    /// The task that took queries along is gone without answers: they wait again.
    pub(crate) fn detach(&mut self) {
        for query in self.waiting.values_mut() {
            if matches!(query.stage, QueryStage::WithTask(_)) {
                query.stage = QueryStage::AwaitsTask;
            }
        }
    }

    /// Those that wait for a task to take them along; to be sent on their own instead.
    pub(crate) fn release(&mut self, run: &RunId) -> Vec<u64> {
        let waits = |q: &WaitingQuery| q.stage == QueryStage::AwaitsTask && q.run_id == *run;
        self.waiting.iter().filter(|(_, q)| waits(q)).map(|(id, _)| *id).collect()
    }

    /// Answers with what a worker said along with its workflow task.
    pub(crate) fn answered(&mut self, id: u64, result: WorkflowQueryResult, limits: &Limits) {
        let failed = result.result_type() == QueryResultType::Failed;
        let answer = if !limits.is_blob(result.answer.as_ref()) {
            Err(Rejection::invalid(BLOB_OVERSIZED).into())
        } else if failed {
            Err(failure(result.error_message, result.failure))
        } else {
            Ok(success(result.answer))
        };
        self.finish(id, answer);
    }

    /// Answers with what a worker said of the query alone. One that is too large fails the query as
    /// if the worker had said so, unlike one that comes along with a workflow task.
    pub(crate) fn answered_alone(
        &mut self,
        id: u64,
        said: RespondQueryTaskCompletedRequest,
        limits: &Limits,
    ) {
        let answer = if !limits.is_blob(said.query_result.as_ref()) {
            Err(failure(BLOB_OVERSIZED.to_owned(), None))
        } else if said.completed_type() == QueryResultType::Answered {
            Ok(success(said.query_result))
        } else {
            Err(failure(said.error_message, said.failure))
        };
        self.finish(id, answer);
    }

    pub(crate) fn finish(&mut self, id: u64, answer: Result<Answer, ShardError>) {
        if let Some(query) = self.waiting.remove(&id) {
            query.reply.send(answer);
        }
    }

    /// Fails all of a run's queries, or all there are.
    pub(crate) fn fail_all(&mut self, error: &ShardError) {
        for (_, query) in std::mem::take(&mut self.waiting) {
            query.reply.send(Err(error.clone()));
        }
    }
}

fn success(result: Option<Payloads>) -> Answer {
    let response = QueryWorkflowResponse { query_result: result, ..Default::default() };
    Answer::Query(Box::new(response))
}

fn failure(message: String, failure: Option<Failure>) -> ShardError {
    ShardError::Rejected(Rejection::QueryFailed { message, failure: failure.map(Box::new) })
}

/// Whether the caller does not want an answer from a run in this status.
pub(crate) fn is_refused(
    condition: QueryRejectCondition,
    status: piton_core::proto::enums::WorkflowExecutionStatus,
) -> bool {
    use piton_core::proto::enums::WorkflowExecutionStatus as Status;
    match condition {
        QueryRejectCondition::Unspecified | QueryRejectCondition::None => false,
        QueryRejectCondition::NotOpen => status != Status::Running,
        QueryRejectCondition::NotCompletedCleanly => {
            !matches!(status, Status::Running | Status::Completed)
        }
    }
}
