//! Queries that wait at one workflow's actor: attached to its next workflow task, or sent to a
//! worker on their own. Volatile: if the actor goes, their callers try again.

use std::collections::BTreeMap;

use piton_core::error::Rejection;
use piton_core::id::RunId;
use piton_core::proto::common::Payloads;
use piton_core::proto::enums::{QueryRejectCondition, QueryResultType};
use piton_core::proto::failure::Failure;
use piton_core::proto::query::{WorkflowQuery, WorkflowQueryResult};
use piton_core::proto::workflowservice::QueryWorkflowResponse;
use tokio::time::Instant;

use crate::error::ShardError;
use crate::message::Answer;
use crate::route::shard_leader::ReplyTo;

/// A query that has no answer yet.
pub(crate) struct WaitingQuery {
    pub(crate) run_id: RunId,
    pub(crate) query: WorkflowQuery,
    pub(crate) deadline: Instant,
    pub(crate) reply: ReplyTo,
    pub(crate) place: Place,
}

/// Where a query waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// For the next workflow task to take it along.
    Attachable,
    /// At the worker, along with this workflow task.
    Attached(u64),
    /// Offered to the sticky queue on its own.
    Sticky,
    /// Offered to the normal queue on its own.
    Normal,
    /// At a worker on its own.
    AtWorker,
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

    pub(crate) fn attachable(&self) -> usize {
        self.waiting.values().filter(|q| q.place == Place::Attachable).count()
    }

    /// Forgets those whose caller has gone or whose time is over.
    pub(crate) fn forget_abandoned(&mut self, now: Instant) {
        self.waiting.retain(|_, q| !q.reply.is_closed() && q.deadline > now);
    }

    /// Lets a workflow task take along what waits for one.
    pub(crate) fn attach(&mut self, run: &RunId, task: u64) -> Vec<(u64, WorkflowQuery)> {
        let mut taken = Vec::new();
        for (id, query) in &mut self.waiting {
            if query.place == Place::Attachable && query.run_id == *run {
                query.place = Place::Attached(task);
                taken.push((*id, query.query.clone()));
            }
        }
        taken
    }

    /// The task that took queries along is gone without answers: they wait again.
    pub(crate) fn detach(&mut self) {
        for query in self.waiting.values_mut() {
            if matches!(query.place, Place::Attached(_)) {
                query.place = Place::Attachable;
            }
        }
    }

    /// Those that wait for a task to take them along; to be sent on their own instead.
    pub(crate) fn release(&mut self, run: &RunId) -> Vec<u64> {
        let waits = |q: &WaitingQuery| q.place == Place::Attachable && q.run_id == *run;
        self.waiting.iter().filter(|(_, q)| waits(q)).map(|(id, _)| *id).collect()
    }

    /// Answers with what a worker said along with its workflow task.
    pub(crate) fn answered(&mut self, id: u64, result: WorkflowQueryResult) {
        let failed = result.result_type() == QueryResultType::Failed;
        let answer = if failed {
            Err(failure(result.error_message, result.failure))
        } else {
            Ok(success(result.answer))
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

pub(crate) fn success(result: Option<Payloads>) -> Answer {
    let response = QueryWorkflowResponse { query_result: result, ..Default::default() };
    Answer::Query(Box::new(response))
}

pub(crate) fn failure(message: String, failure: Option<Failure>) -> ShardError {
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
