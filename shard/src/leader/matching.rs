//! One actor per task queue: offers meet polls, and the pair becomes a ticket (architecture D8).
//!
//! Soft state: the truth is the task rows in the shards. It lives on the leader of the shard that
//! the queue's name hashes to, so a queue has one owner and one order. Payloads never come here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use piton_core::id::{RunId, ShardId, WorkflowKey};
use piton_core::time::{Span, Timestamp};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::leader::mailbox::{Mailbox, Refused};
use crate::leader::term::ShardRuntime;
use crate::message::{
    Answer, Call, Delivery, Offer, OfferedTask, PollRequest, Poller, QueueCall, QueueKey,
    TaskQueueView, Ticket, WorkflowCall,
};
use crate::workflow::actor::ReplyTo;

/// The queues whose owner is this shard.
#[derive(Default)]
pub(crate) struct Queues {
    map: Mutex<BTreeMap<QueueKey, Arc<Seat>>>,
}

/// A queue's place: its requests, its actor and what it shows to metrics.
struct Seat {
    mailbox: Mailbox<(QueueCall, ReplyTo)>,
    actor: Mutex<Option<ActorRef<Look>>>,
    depth: AtomicU64,
    /// When the oldest waiting task was created; 0: none waits.
    oldest_nanos: AtomicI64,
    /// Shards hold more tasks than the window does.
    is_beyond_window: AtomicBool,
}

pub(crate) struct Look;

/// One queue as metrics show it.
pub(crate) struct QueueDepth {
    pub(crate) queue: QueueKey,
    pub(crate) depth: u64,
    pub(crate) oldest: Option<Timestamp>,
    /// It is deeper than that, and maybe older: the shards' rows say how much.
    pub(crate) is_beyond_window: bool,
}

impl Queues {
    /// Hands a call to the queue's actor, which is started if there is none.
    pub(crate) fn tell(&self, shard: &Arc<ShardRuntime>, call: QueueCall, reply: ReplyTo) {
        let mut asked = (call, reply);
        loop {
            let seat = self.seat(shard, asked.0.queue());
            match seat.mailbox.push(asked, true) {
                Ok(true) => return seat.look(),
                Ok(false) => return,
                Err(Refused::Closed(back)) => asked = back,
                // Polls are bounded by admission, offers by what the shards' actors decide.
                Err(Refused::Full(_)) => unreachable!("a push that must not be refused is not"),
            }
        }
    }

    fn seat(&self, shard: &Arc<ShardRuntime>, queue: &QueueKey) -> Arc<Seat> {
        let mut map = self.map.lock();
        if let Some(seat) = map.get(queue) {
            return Arc::clone(seat);
        }
        let seat = Arc::new(Seat {
            mailbox: Mailbox::new(usize::MAX),
            actor: Mutex::new(None),
            depth: AtomicU64::new(0),
            oldest_nanos: AtomicI64::new(0),
            is_beyond_window: AtomicBool::new(false),
        });
        let state = Matching::new(shard, queue.clone(), Arc::clone(&seat));
        match ractor::ActorRuntime::spawn_instant(None, MatchingActor, state) {
            Ok((actor, _)) => *seat.actor.lock() = Some(actor),
            Err(error) => tracing::error!(%error, "cannot start a matching actor"),
        }
        map.insert(queue.clone(), Arc::clone(&seat));
        seat
    }

    pub(crate) fn depths(&self) -> Vec<QueueDepth> {
        let map = self.map.lock();
        let depth = |(queue, seat): (&QueueKey, &Arc<Seat>)| QueueDepth {
            queue: queue.clone(),
            depth: seat.depth.load(Ordering::Relaxed),
            oldest: Some(seat.oldest_nanos.load(Ordering::Relaxed))
                .filter(|&t| t > 0)
                .map(Timestamp::from_nanos),
            is_beyond_window: seat.is_beyond_window.load(Ordering::Relaxed),
        };
        map.iter().map(depth).collect()
    }

    /// Ends all actors. Polls that wait are told to try again, at the next owner.
    pub(crate) fn stop(&self) {
        let map = std::mem::take(&mut *self.map.lock());
        for seat in map.into_values() {
            if let Some(actor) = seat.actor.lock().take() {
                actor.stop(None);
            }
        }
    }

    /// Has each actor look whether its queue is still used.
    pub(crate) fn sweep(&self) {
        let seats: Vec<_> = self.map.lock().values().cloned().collect();
        for seat in seats {
            seat.look();
        }
    }

    fn remove(&self, queue: &QueueKey) {
        self.map.lock().remove(queue);
    }
}

impl Seat {
    fn look(&self) {
        if let Some(actor) = &*self.actor.lock() {
            let _ = actor.cast(Look);
        }
    }
}

struct MatchingActor;

type Identity = (WorkflowKey, RunId, OfferedTask);
/// Priority, then age, then order of arrival.
type Rank = (u8, Timestamp, u64);

/// A queue: what waits on either side. Never does a task wait while a poll waits.
struct Matching {
    shard: Weak<ShardRuntime>,
    queue: QueueKey,
    seat: Arc<Seat>,
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
    type Msg = Look;
    type State = Matching;
    type Arguments = Matching;

    async fn pre_start(
        &self,
        _: ActorRef<Look>,
        m: Matching,
    ) -> Result<Matching, ActorProcessingErr> {
        Ok(m)
    }

    async fn handle(
        &self,
        myself: ActorRef<Look>,
        Look: Look,
        matching: &mut Matching,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = matching.shard.upgrade() else {
            myself.stop(None);
            return Ok(());
        };
        loop {
            let calls = matching.seat.mailbox.take();
            if calls.is_empty() {
                break;
            }
            for (call, reply) in calls {
                reply.send(Ok(matching.take(&shard, call)));
            }
        }
        matching.ask_for_more(&shard);
        matching.show();
        if matching.is_abandoned(&shard) && matching.seat.mailbox.close_if_empty() {
            shard.queues.remove(&matching.queue);
            myself.stop(None);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Look>,
        matching: &mut Matching,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = matching.shard.upgrade() else { return Ok(()) };
        let late = matching.seat.mailbox.close();
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
    fn new(shard: &Arc<ShardRuntime>, queue: QueueKey, seat: Arc<Seat>) -> Self {
        Self {
            shard: Arc::downgrade(shard),
            queue,
            seat,
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
        self.seat.depth.store(self.tasks.len() as u64, Ordering::Relaxed);
        // Ranked by priority first: the first task of each priority is its oldest.
        let mut oldest = i64::MAX;
        let mut next = self.tasks.first_key_value();
        while let Some((&(priority, created, _), _)) = next {
            oldest = oldest.min(created.as_nanos());
            let Some(below) = priority.checked_add(1) else { break };
            next = self.tasks.range((below, Timestamp::MIN, 0)..).next();
        }
        let oldest = if self.tasks.is_empty() { 0 } else { oldest };
        self.seat.is_beyond_window.store(!self.declined.is_empty(), Ordering::Relaxed);
        self.seat.oldest_nanos.store(oldest, Ordering::Relaxed);
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
    let ticket = Ticket { offer, node: poll.node, poll: poll.poll, identity: poll.identity };
    shard.cluster.send(origin, WorkflowCall::Ticket(ticket).into());
}
