//! One actor per task queue: offers meet polls, and the pair becomes a ticket (architecture D8).
//!
//! Soft state: the truth is the task rows in the shards. It lives on the leader of the shard that
//! the queue's name hashes to, so a queue has one owner and one order. Payloads never come here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use piton_core::id::{RunId, ShardId, WorkflowKey};
use piton_core::time::{Span, Timestamp};
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};

use crate::leader::mailbox::Notice;
use crate::leader::queues::QueueHandle;
use crate::leader::runtime::ShardRuntime;
use crate::message::{
    Answer, Call, Delivery, Offer, OfferedTask, PollRequest, Poller, QueueCall, QueueKey,
    TaskQueueView, Ticket, WorkflowCall,
};

/// Starts a queue's actor.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(
    shard: &Arc<ShardRuntime>,
    queue: QueueKey,
    handle: Arc<QueueHandle>,
) -> Result<ActorRef<Notice>, SpawnErr> {
    let state = Matching::new(shard, queue, handle);
    ractor::ActorRuntime::spawn_instant(None, MatchingActor, state).map(|(actor, _)| actor)
}

struct MatchingActor;

type Identity = (WorkflowKey, RunId, OfferedTask);
/// Priority, then age, then order of arrival.
type Rank = (u8, Timestamp, u64);

/// A queue: what waits on either side. Never does a task wait while a poll waits.
struct Matching {
    shard: Weak<ShardRuntime>,
    queue: QueueKey,
    handle: Arc<QueueHandle>,
    tasks: BTreeMap<Rank, Offer>,
    ranks: HashMap<Identity, Rank>,
    arrivals: u64,
    polls: VecDeque<PollRequest>,
    pollers: BTreeMap<String, Timestamp>,
    last_poll: Timestamp,
    /// Shards with tasks that did not fit into the window, or that they have not offered.
    declined: BTreeSet<ShardId>,
    /// Workers that have shut down, and when.
    shut_down: BTreeMap<String, Timestamp>,
}

impl Actor for MatchingActor {
    type Msg = Notice;
    type State = Matching;
    type Arguments = Matching;

    async fn pre_start(
        &self,
        _: ActorRef<Notice>,
        m: Matching,
    ) -> Result<Matching, ActorProcessingErr> {
        Ok(m)
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        _: Notice,
        matching: &mut Matching,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = matching.shard.upgrade() else {
            myself.stop(None);
            return Ok(());
        };
        loop {
            let calls = matching.handle.mailbox.take();
            if calls.is_empty() {
                break;
            }
            for (call, reply) in calls {
                reply.send(Ok(matching.take(&shard, call)));
            }
        }
        matching.ask_for_more(&shard);
        matching.show();
        if matching.is_abandoned(&shard) && matching.handle.mailbox.close_if_empty() {
            shard.queues.remove(&matching.queue);
            myself.stop(None);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Notice>,
        matching: &mut Matching,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = matching.shard.upgrade() else { return Ok(()) };
        let late = matching.handle.mailbox.close();
        let late = late.into_iter().filter_map(|(call, _)| match call {
            QueueCall::Poll(poll) => Some(poll),
            _ => None,
        });
        for poll in matching.polls.drain(..).chain(late) {
            shard.cluster.deliver(poll.node, poll.poll, Delivery::Again);
        }
        Ok(())
    }
}

impl Matching {
    fn new(shard: &Arc<ShardRuntime>, queue: QueueKey, handle: Arc<QueueHandle>) -> Self {
        Self {
            shard: Arc::downgrade(shard),
            queue,
            handle,
            tasks: BTreeMap::new(),
            ranks: HashMap::new(),
            arrivals: 0,
            polls: VecDeque::new(),
            pollers: BTreeMap::new(),
            // Workers that polled the owner before this one get the time to come here.
            last_poll: shard.began,
            declined: BTreeSet::new(),
            shut_down: BTreeMap::new(),
        }
    }

    fn take(&mut self, shard: &ShardRuntime, call: QueueCall) -> Answer {
        match call {
            QueueCall::Offer(offer) => {
                let has_more = offer.more_behind.then_some(offer.origin);
                self.offer(shard, offer);
                // ORDER: afterwards, as whoever has been declined gets nothing more in.
                self.declined.extend(has_more);
            }
            QueueCall::Withdraw { key, run_id, task, .. } => {
                if let Some(rank) = self.ranks.remove(&(key, run_id, task)) {
                    self.tasks.remove(&rank);
                }
            }
            QueueCall::Poll(poll) => self.poll(shard, poll),
            QueueCall::WithdrawPoll { node, poll, .. } => {
                self.polls.retain(|p| (p.node, p.poll) != (node, poll));
            }
            QueueCall::ShutdownWorker { worker_instance_key, .. } => {
                self.shut_down(shard, &worker_instance_key);
            }
            QueueCall::Describe { .. } => return Answer::Queue(self.view(shard)),
        }
        Answer::Done
    }

    fn offer(&mut self, shard: &ShardRuntime, offer: Offer) {
        if let Some(poll) = self.polls.pop_front() {
            return issue(shard, offer, poll);
        }
        let age = shard.clock.now() - self.last_poll;
        let limit = match (&offer.task, self.queue.queue.is_sticky()) {
            (_, true) => Some(shard.config.sticky_poller_max_age),
            (OfferedTask::Query(_), false) => Some(shard.config.poller_max_age),
            (OfferedTask::Task(_), false) => None,
        };
        if limit.is_some_and(|limit| age > Span::from(limit)) {
            let Offer { key, run_id, task, .. } = offer;
            let call = WorkflowCall::NoPoller { key, run_id, task };
            return shard.cluster.send(offer.origin, call.into());
        }
        let identity = (offer.key.clone(), offer.run_id.clone(), offer.task.clone());
        if self.ranks.contains_key(&identity) {
            return;
        }
        let is_row = matches!(offer.task, OfferedTask::Task(_));
        if is_row && (self.tasks.len() >= shard.config.matching_window || !self.declined.is_empty())
        {
            self.declined.insert(offer.origin);
            return;
        }
        self.arrivals += 1;
        let rank = (offer.priority, offer.created, self.arrivals);
        self.ranks.insert(identity, rank);
        self.tasks.insert(rank, offer);
    }

    fn poll(&mut self, shard: &ShardRuntime, poll: PollRequest) {
        if self.shut_down.contains_key(&poll.worker_instance_key) {
            shard.cluster.deliver(poll.node, poll.poll, Delivery::Shutdown);
            return;
        }
        self.last_poll = shard.clock.now();
        if self.pollers.insert(poll.identity.clone(), self.last_poll).is_none() {
            // Workers come and go with ever new names.
            self.forget_pollers(shard);
        }
        match self.tasks.pop_first() {
            Some((_, offer)) => {
                self.ranks.remove(&(offer.key.clone(), offer.run_id.clone(), offer.task.clone()));
                issue(shard, offer, poll);
            }
            None if self.polls.iter().any(|p| (p.node, p.poll) == (poll.node, poll.poll)) => {}
            None => self.polls.push_back(poll),
        }
    }

    /// Answers a worker's polls empty, also those that are still on their way here; a sticky queue
    /// of it has no poller from now on.
    fn shut_down(&mut self, shard: &ShardRuntime, worker: &str) {
        let oldest = remembered_since(shard);
        self.shut_down.retain(|_, since| *since >= oldest);
        if !worker.is_empty() {
            self.shut_down.insert(worker.to_owned(), shard.clock.now());
        }
        if self.queue.queue.is_sticky() {
            self.last_poll = Timestamp::default();
        }
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.polls)
            .into_iter()
            .partition(|p| !worker.is_empty() && p.worker_instance_key == worker);
        self.polls = kept;
        for poll in gone {
            self.pollers.remove(&poll.identity);
            shard.cluster.deliver(poll.node, poll.poll, Delivery::Shutdown);
        }
    }

    /// When the window is half empty, the shards that were declined may offer again.
    fn ask_for_more(&mut self, shard: &ShardRuntime) {
        if self.tasks.len() <= shard.config.matching_window / 2 {
            for origin in std::mem::take(&mut self.declined) {
                shard.cluster.send(origin, Call::Room(self.queue.clone()));
            }
        }
    }

    fn view(&mut self, shard: &ShardRuntime) -> TaskQueueView {
        self.forget_pollers(shard);
        let poller = |(identity, seen): (&String, &Timestamp)| Poller {
            identity: identity.clone(),
            last_access: *seen,
        };
        TaskQueueView {
            pollers: self.pollers.iter().map(poller).collect(),
            backlog_count: self.tasks.len() as u64,
            oldest: self.oldest(),
            beyond_window: self.declined.iter().copied().collect(),
        }
    }

    fn forget_pollers(&mut self, shard: &ShardRuntime) {
        let oldest = remembered_since(shard);
        self.pollers.retain(|_, seen| *seen >= oldest);
    }

    fn oldest(&self) -> Option<Timestamp> {
        self.tasks.values().map(|offer| offer.created).min()
    }

    fn show(&self) {
        // Ranked by priority first: the first task of each priority is its oldest.
        let mut oldest = None;
        let mut next = self.tasks.first_key_value();
        while let Some((&(priority, created, _), _)) = next {
            oldest = oldest.into_iter().chain([created]).min();
            let Some(below) = priority.checked_add(1) else { break };
            next = self.tasks.range((below, Timestamp::MIN, 0)..).next();
        }
        self.handle.show(self.tasks.len(), oldest, !self.declined.is_empty());
    }

    /// Nothing waits, nobody has polled for long, and no worker has shut down whose polls may still be
    /// on their way here: the queue may be forgotten.
    fn is_abandoned(&self, shard: &ShardRuntime) -> bool {
        let is_long_ago = |time: Timestamp| time < remembered_since(shard);
        self.tasks.is_empty()
            && self.polls.is_empty()
            && self.declined.is_empty()
            && is_long_ago(self.last_poll)
            && self.shut_down.values().copied().all(is_long_ago)
    }
}

/// Polls and shut down workers from before this time are forgotten.
fn remembered_since(shard: &ShardRuntime) -> Timestamp {
    shard.clock.now() - Span::from(shard.config.poller_memory)
}

fn issue(shard: &ShardRuntime, offer: Offer, poll: PollRequest) {
    let origin = offer.origin;
    let PollRequest { node, poll, identity, worker_version, .. } = poll;
    let ticket = Ticket { offer, node, poll, identity, worker_version };
    shard.cluster.send(origin, WorkflowCall::Ticket(ticket).into());
}
