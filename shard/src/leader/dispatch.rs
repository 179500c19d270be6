//! Hands what a shard is asked to whom it is for: a workflow's actor, a queue's actor, or the rows.

use std::sync::Arc;

use futures::future::BoxFuture;
use piton_core::id::{RunId, WorkflowKey};
use piton_core::matching::Poll;
use piton_core::request::RunRequest;
use tokio::sync::oneshot;

use crate::error::ShardError;
use crate::leader::hosting::{Ask, Envelope, Following, WorkflowHandle};
use crate::leader::matching;
use crate::leader::runtime::ShardRuntime;
use crate::message::{
    Answer, Delivery, PollName, QueueCall, QueueKey, ReadCall, WantedTasks, WorkflowCall,
};
use crate::route::shard_leader::{QueueDepth, ReplyTo, ShardLeader};
use crate::rows::EntityKey;
use crate::rows::keys::EntityKind;
use crate::rows::retention::{ExpireRow, Turn};

/// What the shard's own rows and its clock ask of an entity. Nobody waits for the answer.
pub(crate) enum Duty {
    /// Whatever is due of a run.
    Fire { run_id: RunId },
    /// The workflow task of this number has been held for its time.
    EndHeldTask { run_id: RunId, number: u64 },
    /// What a run owes, which an earlier leader or actor left.
    Resume { run_id: RunId },
    /// What has expired goes.
    Expire(ExpireRow, Turn),
}

impl ShardLeader for ShardRuntime {
    fn call_workflow(self: Arc<Self>, call: WorkflowCall, reply: ReplyTo) {
        // What nobody waits for is of our own; it ends what is under way.
        if !reply.is_nobody() && call.writes() && self.config.room.is_short() {
            let text = "the server's disk is nearly full: nothing new is taken until there is room";
            return reply.send(Err(ShardError::Overloaded(text.to_owned())));
        }
        self.ask(&call.key(), Envelope { ask: Ask::Call(call), reply });
    }

    fn call_queue(self: Arc<Self>, call: QueueCall, reply: ReplyTo) {
        if !self.is_stopped() {
            let start = |queue, handle| matching::start(&self, queue, handle);
            return self.queues.tell(call, reply, start);
        }
        // The queue belongs to another by now.
        if let QueueCall::Poll(poll) = &call {
            self.cluster.deliver(poll.node, poll.poll, Delivery::Again);
        }
        reply.send(Err(self.gone()));
    }

    fn read(self: Arc<Self>, call: ReadCall) -> BoxFuture<'static, Result<Answer, ShardError>> {
        Box::pin(async move {
            if self.is_stopped() {
                return Err(self.gone());
            }
            self.read_rows(call).await
        })
    }

    fn queue_wants(self: Arc<Self>, wanted: &WantedTasks) {
        if !self.is_stopped() {
            self.offer_again(wanted);
        }
    }

    fn take_poll(&self, queue: &QueueKey, version: &str) -> Option<Poll<PollName>> {
        if self.is_stopped() {
            return None;
        }
        self.queues.take_poll(queue, version).inspect(|_| self.metrics.task_met_poll())
    }

    fn unanswered(&self) -> ShardError {
        let text = if self.is_stopped() {
            format!("shard {} has changed its leader", self.id)
        } else {
            "the workflow's actor ended before it answered".to_owned()
        };
        ShardError::OutcomeUnknown(text)
    }

    fn queue_depths(&self) -> Vec<QueueDepth> {
        self.queues.depths()
    }
}

impl ShardRuntime {
    /// Reminds an entity of a duty: what rows of all kinds of entities lead to, by their kind.
    pub(crate) fn remind(self: &Arc<Self>, EntityKey { kind, key }: EntityKey, duty: Duty) {
        match kind {
            EntityKind::Workflow => {
                let run = |run_id, request| {
                    Ask::Call(WorkflowCall::Run { key: key.clone(), run_id: Some(run_id), request })
                };
                let ask = match duty {
                    Duty::Fire { run_id } => run(run_id, RunRequest::Due),
                    Duty::EndHeldTask { run_id, number } => {
                        run(run_id, RunRequest::WorkflowTaskTimedOut { number })
                    }
                    Duty::Resume { run_id } => Ask::Resume { run_id },
                    Duty::Expire(row, turn) => Ask::Expire(row, turn),
                };
                self.ask(&key, Envelope { ask, reply: ReplyTo::nobody() });
            }
            // Its test hosts it, and no shard does.
            #[cfg(test)]
            EntityKind::Counter => {}
        }
    }

    /// Puts a request into a workflow's mailbox; its actor is started if there is none.
    pub(crate) fn ask(self: &Arc<Self>, key: &WorkflowKey, envelope: Envelope) {
        self.workflows.ask(self, key, envelope, |handle| {
            self.metrics.actors(1);
            (self.start_workflow)(Arc::clone(self), key.clone(), handle)
        });
    }

    /// A request of our own to a run; whoever sends it does not wait for an answer.
    pub(crate) fn tell(self: &Arc<Self>, key: &WorkflowKey, run: &RunId, request: RunRequest) {
        let call = WorkflowCall::Run { key: key.clone(), run_id: Some(run.clone()), request };
        self.ask(key, Envelope { ask: Ask::Call(call), reply: ReplyTo::nobody() });
    }

    /// Follows the history of a run, or of the current one; the actor stays in memory as long as
    /// somebody does. `None`: it is closed, or there is no such run.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        key: &WorkflowKey,
        run_id: Option<RunId>,
    ) -> Result<Option<Following>, ShardError> {
        let (tell, told) = oneshot::channel();
        let ask = Ask::Subscribe { run_id, tell };
        self.ask(key, Envelope { ask, reply: ReplyTo::nobody() });
        told.await.unwrap_or_else(|_| Err(self.unanswered()))
    }

    /// An actor goes: the next request hosts the workflow anew.
    pub(crate) fn leave(&self, key: &WorkflowKey, handle: &Arc<WorkflowHandle>) {
        if self.workflows.remove(key, handle) {
            self.metrics.actors(-1);
        }
    }
}
