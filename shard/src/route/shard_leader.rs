//! What this wing asks of whoever leads a shard on this node. The leader's wing, which lies above,
//! implements it.

use std::sync::Arc;

use futures::future::BoxFuture;
use piton_core::matching::Poll;
use piton_core::time::Timestamp;
use tokio::sync::oneshot;

use crate::error::ShardError;
use crate::message::{
    Answer, Call, PollName, QueueCall, QueueKey, ReadCall, WantedTasks, WorkflowCall,
};

/// The leader of a shard, one method for each kind of call.
pub(crate) trait ShardLeader: Send + Sync {
    fn call_workflow(self: Arc<Self>, call: WorkflowCall, reply: ReplyTo);

    fn call_queue(self: Arc<Self>, call: QueueCall, reply: ReplyTo);

    fn read(self: Arc<Self>, call: ReadCall) -> BoxFuture<'static, Result<Answer, ShardError>>;

    /// A queue has room for more of the shard's tasks.
    fn queue_wants(self: Arc<Self>, wanted: &WantedTasks);

    /// A poll that waits at a queue of this shard for a task of this version. It is the caller's then.
    fn take_poll(&self, queue: &QueueKey, version: &str) -> Option<Poll<PollName>>;

    /// What a caller hears whose reply was dropped.
    fn unanswered(&self) -> ShardError;

    /// The queues that the shard owns.
    fn queue_depths(&self) -> Vec<QueueDepth>;
}

impl dyn ShardLeader {
    /// Answers one call.
    pub(crate) async fn answer(self: Arc<Self>, call: Call) -> Result<Answer, ShardError> {
        let (sender, answer) = oneshot::channel();
        let reply = ReplyTo(Some(sender));
        match call {
            Call::Workflow(call) => Arc::clone(&self).call_workflow(call, reply),
            Call::Queue(call) => Arc::clone(&self).call_queue(call, reply),
            Call::Read(call) => return self.read(call).await,
            Call::Wanted(wanted) => {
                self.queue_wants(&wanted);
                return Ok(Answer::Done);
            }
        }
        answer.await.unwrap_or_else(|_| Err(self.unanswered()))
    }

    /// Takes a call whose answer nobody waits for.
    pub(crate) fn post(self: Arc<Self>, call: Call) {
        match call {
            Call::Workflow(call) => self.call_workflow(call, ReplyTo::nobody()),
            Call::Queue(call) => self.call_queue(call, ReplyTo::nobody()),
            Call::Wanted(wanted) => self.queue_wants(&wanted),
            // Nobody would see what it reads.
            Call::Read(_) => {}
        }
    }
}

/// Who waits for an answer; nobody does for requests of our own.
pub(crate) struct ReplyTo(Option<oneshot::Sender<Result<Answer, ShardError>>>);

impl ReplyTo {
    pub(crate) fn nobody() -> Self {
        Self(None)
    }

    pub(crate) fn is_nobody(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn send(self, answer: Result<Answer, ShardError>) {
        if let Some(sender) = self.0 {
            // The caller may have gone away; what was decided stands.
            let _ = sender.send(answer);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// One queue as metrics show it.
pub(crate) struct QueueDepth {
    pub(crate) queue: QueueKey,
    pub(crate) depth: u64,
    pub(crate) oldest: Option<Timestamp>,
    /// It is deeper than that, and maybe older: the shards' rows say how much.
    pub(crate) is_beyond_window: bool,
    /// Polls that wait for a task.
    pub(crate) polls: u64,
}
