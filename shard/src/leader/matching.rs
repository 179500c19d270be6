//! One actor per task queue: offers meet polls, and the pair becomes a ticket (D8). Who
//! meets whom is decided by `core`; here it is asked and carried out.
//!
//! Soft state: the truth is the task rows in the shards. It lives on the leader of the shard that
//! the queue's name hashes to, so a queue has one owner and one order. Payloads never come here.
//! Only a task that meets a waiting poll before its commit passes the actor by (`queues`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::MutexGuard;
use piton_core::matching::{Match, Matching, Offered, Poll, Polled, Standing, Task, Want};
use piton_core::time::Timestamp;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};

use crate::error::ShardError;
use crate::leader::mailbox::Notice;
use crate::leader::panics::caught;
use crate::leader::queues::{QueueHandle, TaskId, bounds};
use crate::leader::runtime::ShardRuntime;
use crate::message::{
    Answer, Call, Delivery, Offer, OfferedTask, PollName, PollRequest, Poller, QueueCall, QueueKey,
    TaskQueueView, Ticket, WantedTasks, WorkflowCall,
};

/// Wait before a queue that has lost its state to a bug of ours is filled again: it may well happen
/// again.
const BEGIN_ANEW_PAUSE: Duration = Duration::from_millis(100);

/// Starts a queue's actor.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(
    shard: &Arc<ShardRuntime>,
    queue: QueueKey,
    handle: Arc<QueueHandle>,
) -> Result<ActorRef<Notice>, SpawnErr> {
    let owned = Owned::new(shard, queue, handle);
    ractor::ActorRuntime::spawn_instant(None, MatchingActor, owned).map(|(actor, _)| actor)
}

struct MatchingActor;

/// A queue and what its actor knows of the world.
struct Owned {
    shard: Weak<ShardRuntime>,
    queue: QueueKey,
    handle: Arc<QueueHandle>,
}

impl Actor for MatchingActor {
    type Msg = Notice;
    type State = Owned;
    type Arguments = Owned;

    async fn pre_start(&self, _: ActorRef<Notice>, o: Owned) -> Result<Owned, ActorProcessingErr> {
        Ok(o)
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        _: Notice,
        owned: &mut Owned,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = owned.shard.upgrade() else {
            myself.stop(None);
            return Ok(());
        };
        owned.work(&shard);
        let is_abandoned = owned.matching().is_abandoned(shard.clock.now());
        if is_abandoned && owned.handle.mailbox.close_if_empty() {
            shard.queues.remove(&owned.queue);
            myself.stop(None);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Notice>,
        owned: &mut Owned,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = owned.shard.upgrade() else { return Ok(()) };
        let late = owned.handle.mailbox.close();
        let late = late.into_iter().filter_map(|(call, _)| match call {
            QueueCall::Poll(poll) => Some((poll.node, poll.poll)),
            _ => None,
        });
        let waiting = owned.matching().stop();
        let waiting = waiting.into_iter().map(|poll| poll.id);
        for (node, poll) in waiting.chain(late) {
            shard.cluster.deliver(node, poll, Delivery::Again);
        }
        Ok(())
    }
}

impl Owned {
    fn new(shard: &Arc<ShardRuntime>, queue: QueueKey, handle: Arc<QueueHandle>) -> Self {
        Self { shard: Arc::downgrade(shard), queue, handle }
    }

    fn matching(&self) -> MutexGuard<'_, Matching<TaskId, PollName>> {
        self.handle.matching.lock()
    }

    /// Works until nothing waits. A panic is a bug of ours: the call is lost, the queue is not.
    fn work(&mut self, shard: &Arc<ShardRuntime>) {
        loop {
            let calls = self.handle.mailbox.take();
            if calls.is_empty() {
                break;
            }
            for (call, reply) in calls {
                let answer = caught(shard.id, "matching", || self.take(shard, call));
                reply.send(answer.ok_or_else(|| {
                    self.begin_anew(shard);
                    ShardError::Internal("an internal error in this task queue".into())
                }));
            }
        }
        let done = caught(shard.id, "matching", || {
            self.ask_for_more(shard);
            self.show();
        });
        if done.is_none() {
            self.begin_anew(shard);
        }
    }

    /// What is here cannot be trusted any more. Polls come again, and the shards offer again.
    fn begin_anew(&mut self, shard: &Arc<ShardRuntime>) {
        let stop = || self.matching().stop();
        let polls = caught(shard.id, "matching", stop).unwrap_or_default();
        let anew = Matching::new(bounds(&shard.config, &self.queue), shard.clock.now());
        *self.matching() = anew;
        for Poll { id: (node, poll), .. } in polls {
            shard.cluster.deliver(node, poll, Delivery::Again);
        }
        let (shard, queue) = (Arc::clone(shard), self.queue.clone());
        tokio::spawn(async move {
            tokio::time::sleep(BEGIN_ANEW_PAUSE).await;
            let limit = shard.config.matching_window;
            for origin in shard.cluster.host().shard_ids() {
                let wanted = WantedTasks { queue: queue.clone(), class: None, limit };
                shard.cluster.insist(origin, Call::Wanted(wanted));
            }
        });
    }

    fn take(&mut self, shard: &ShardRuntime, call: QueueCall) -> Answer {
        let now = shard.clock.now();
        match call {
            QueueCall::Offer(offer) => {
                let more_behind = offer.more_behind;
                let offered = self.matching().offer(task_of(offer), more_behind, now);
                match offered {
                    Offered::Matched(met) => {
                        shard.metrics.task_met_poll();
                        self.issue(shard, met);
                    }
                    Offered::Refused(task) => refuse(shard, task),
                    Offered::Waits | Offered::Declined => {}
                }
            }
            QueueCall::Withdraw { key, run_id, task, .. } => {
                self.matching().withdraw(&(key, run_id, task));
            }
            QueueCall::Poll(poll) => {
                let polled = self.matching().poll(poll_of(poll), now);
                match polled {
                    Polled::Matched(met) => {
                        shard.metrics.poll_met_task();
                        self.issue(shard, met);
                    }
                    Polled::ShutDown(poll) => end(shard, poll),
                    Polled::Waits | Polled::Known => {}
                }
            }
            QueueCall::WithdrawPoll { node, poll, .. } => {
                self.matching().withdraw_poll(&(node, poll))
            }
            QueueCall::ShutdownWorker { worker_instance_key, .. } => {
                self.shut_down(shard, &worker_instance_key);
            }
            QueueCall::Describe { .. } => return Answer::Queue(self.view(now)),
        }
        Answer::Done
    }

    /// Answers a worker's polls empty, also those that are still on their way here. Its sticky queue
    /// has no worker from now on: what waits there goes back at once.
    fn shut_down(&mut self, shard: &ShardRuntime, worker: &str) {
        let now = shard.clock.now();
        if !self.queue.queue.is_sticky() {
            let polls = self.matching().shut_down(worker, now);
            return polls.into_iter().for_each(|poll| end(shard, poll));
        }
        let left = self.matching().close(worker, now);
        left.polls.into_iter().for_each(|poll| end(shard, poll));
        left.tasks.into_iter().for_each(|task| refuse(shard, task));
    }

    /// Tells the shards for whose tasks there is room.
    fn ask_for_more(&mut self, shard: &ShardRuntime) {
        let wants = self.matching().wants();
        for Want { shard: origin, class, limit } in wants {
            let wanted = WantedTasks { queue: self.queue.clone(), class, limit };
            shard.cluster.send(origin, Call::Wanted(wanted));
        }
    }

    fn view(&mut self, now: Timestamp) -> TaskQueueView {
        let poller = |(identity, last_access): (&str, Timestamp)| Poller {
            identity: identity.to_owned(),
            last_access,
        };
        let mut matching = self.matching();
        TaskQueueView {
            pollers: matching.pollers(now).map(poller).collect(),
            backlog_count: matching.len() as u64,
            oldest: matching.oldest(),
            beyond_window: matching.beyond().into_iter().collect(),
        }
    }

    fn show(&self) {
        self.handle.show(&self.matching());
    }

    fn issue(&self, shard: &ShardRuntime, met: Match<TaskId, PollName>) {
        let Match { task, poll } = met;
        let origin = task.origin;
        let ticket = Ticket::new(offer_of(self.queue.clone(), task), poll);
        shard.cluster.send(origin, WorkflowCall::Ticket(ticket).into());
    }
}

fn task_of(offer: Offer) -> Task<TaskId> {
    let standing = match offer.task {
        OfferedTask::Task(_) => Standing::Row,
        OfferedTask::Query(_) => Standing::Volatile,
    };
    Task {
        id: (offer.key, offer.run_id, offer.task),
        origin: offer.origin,
        class: offer.class,
        stride: offer.stride,
        created: offer.created,
        standing,
    }
}

fn offer_of(queue: QueueKey, task: Task<TaskId>) -> Offer {
    let (key, run_id, offered) = task.id;
    Offer {
        queue,
        origin: task.origin,
        key,
        run_id,
        task: offered,
        class: task.class,
        stride: task.stride,
        created: task.created,
        more_behind: false,
    }
}

fn poll_of(poll: PollRequest) -> Poll<PollName> {
    Poll {
        id: (poll.node, poll.poll),
        version: Arc::default(),
        identity: poll.identity,
        worker_version: poll.worker_version,
        worker: poll.worker_instance_key,
    }
}

/// Nobody will take it here; its workflow is to know.
fn refuse(shard: &ShardRuntime, task: Task<TaskId>) {
    let (key, run_id, offered) = task.id;
    let call = WorkflowCall::NoPoller { key, run_id, task: offered };
    shard.cluster.send(task.origin, call.into());
}

/// Answers a poll of a worker that has shut down.
fn end(shard: &ShardRuntime, poll: Poll<PollName>) {
    let (node, id) = poll.id;
    shard.cluster.deliver(node, id, Delivery::Shutdown);
}
