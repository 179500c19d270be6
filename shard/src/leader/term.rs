//! What a shard's leader does: hosts the workflows' actors, its timers, the queues it owns and the
//! errands of its runs. Taken up when the replica serves in a term, laid down before anything else
//! when it does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::effect::TaskKey;
use piton_core::id::{RunId, ShardId, WorkflowKey};
use piton_core::matching::{self, Bounds};
use piton_core::placement;
use piton_core::request::RunRequest;
use piton_core::time::{Span, Timestamp};
use piton_raft::{Group, Leadership};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::leader::mailbox::Refused;
use crate::leader::matching::Queues;
use crate::leader::outbox::Outbox;
use crate::leader::reads::unreadable;
use crate::leader::recovery::LostWorkflows;
use crate::leader::timers::{TimerActor, Timers};
use crate::message::{
    Answer, Call, Delivery, Offer, OfferedTask, QueueCall, QueueKey, Room, WorkflowCall,
};
use crate::metrics::ShardMetrics;
use crate::replica::entry::{SlotRange, encode_range};
use crate::replica::proposer::Proposer;
use crate::route::cluster::Cluster;
use crate::route::host::ShardHost;
use crate::rows::retention;
use crate::rows::tasks::FirstTasks;
use crate::rows::{LoadError, TaskRow, WorkflowRows};
use crate::workflow::actor::{Ask, Envelope, ReplyTo, Seat, Subscription};

/// Wait before a shard's first entry is proposed again.
const TAKE_UP_PAUSE: Duration = Duration::from_millis(20);

/// The leader's duties of one shard in one term.
pub(crate) struct ShardRuntime {
    pub(crate) id: ShardId,
    pub(crate) term: u64,
    pub(crate) group: Group,
    pub(crate) rows: WorkflowRows,
    pub(crate) cluster: Cluster,
    pub(crate) config: Arc<ShardConfig>,
    pub(crate) clock: Clock,
    pub(crate) began: Timestamp,
    pub(crate) metrics: ShardMetrics,
    pub(crate) proposer: Proposer,
    pub(crate) timers: Timers,
    pub(crate) queues: Queues,
    pub(crate) outbox: Outbox,
    pub(crate) lost: LostWorkflows,
    seats: Mutex<BTreeMap<WorkflowKey, Arc<Seat>>>,
    /// This shard's part of the workflows that may be in memory.
    seats_max: usize,
    stopped: AtomicBool,
    /// What expired is being deleted.
    expiring: AtomicBool,
    /// Numbers of the workflow tasks and the queries of this term.
    numbers: AtomicU64,
}

impl ShardRuntime {
    /// Answers one call to this shard's leader.
    pub(crate) async fn answer(self: &Arc<Self>, call: Call) -> Result<Answer, ShardError> {
        let (reply, answer) = oneshot::channel();
        let reply = ReplyTo::new(reply);
        match call {
            Call::Workflow(call) => self.call_workflow(call, reply),
            Call::Queue(call) => self.call_queue(call, reply),
            Call::Read(_) if self.is_stopped() => return Err(self.gone()),
            Call::Read(call) => return self.read(call).await,
            Call::Room(room) => {
                self.offer_again(&room);
                return Ok(Answer::Done);
            }
        }
        answer.await.unwrap_or_else(|_| Err(self.unanswered()))
    }

    /// Takes a call whose answer nobody waits for.
    pub(crate) fn post(self: &Arc<Self>, call: Call) {
        match call {
            Call::Workflow(call) => self.call_workflow(call, ReplyTo::nobody()),
            Call::Queue(call) => self.call_queue(call, ReplyTo::nobody()),
            Call::Room(room) => self.offer_again(&room),
            // Nobody would see what it reads.
            Call::Read(_) => {}
        }
    }

    fn call_workflow(self: &Arc<Self>, call: WorkflowCall, reply: ReplyTo) {
        self.ask(&call.key(), Envelope { ask: Ask::Call(call), reply });
    }

    fn call_queue(self: &Arc<Self>, call: QueueCall, reply: ReplyTo) {
        if !self.is_stopped() {
            return self.queues.tell(self, call, reply);
        }
        // The queue belongs to another by now.
        if let QueueCall::Poll(poll) = &call {
            self.cluster.deliver(poll.node, poll.poll, Delivery::Again);
        }
        reply.send(Err(self.gone()));
    }

    /// Puts a request into a workflow's queue; its actor is hosted if it is not.
    pub(crate) fn ask(self: &Arc<Self>, key: &WorkflowKey, envelope: Envelope) {
        // What nobody waits for is of our own (a due timer, an errand's result) and must not be
        // lost; it is bounded by what caused it.
        let is_own = envelope.reply.is_nobody();
        let mut envelope = envelope;
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return envelope.refuse(&self.cluster, self.gone());
            }
            let seat = self.seat(key);
            match seat.mailbox.push(envelope, is_own) {
                Ok(told) => return seat.used(self.clock.now(), told),
                Err(Refused::Closed(back)) => envelope = back,
                Err(Refused::Full(back)) => {
                    let text = "too many requests wait for this workflow".to_owned();
                    return back.refuse(&self.cluster, ShardError::Overloaded(text));
                }
            }
        }
    }

    /// A request of our own to a run; whoever sends it does not wait for an answer.
    pub(crate) fn tell(self: &Arc<Self>, key: &WorkflowKey, run: &RunId, request: RunRequest) {
        let call = WorkflowCall::Run { key: key.clone(), run_id: Some(run.clone()), request };
        self.ask(key, Envelope { ask: Ask::Call(call), reply: ReplyTo::nobody() });
    }

    /// Follows a run's history; the actor stays in memory as long as somebody does.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<watch::Receiver<Subscription>, ShardError> {
        let (tell, told) = oneshot::channel();
        let ask = Ask::Subscribe { run_id: run_id.clone(), tell };
        self.ask(key, Envelope { ask, reply: ReplyTo::nobody() });
        told.await.unwrap_or_else(|_| Err(self.unanswered()))
    }

    fn seat(self: &Arc<Self>, key: &WorkflowKey) -> Arc<Seat> {
        let mut seats = self.seats.lock();
        if let Some(seat) = seats.get(key) {
            return Arc::clone(seat);
        }
        let seat = Seat::host(self, key.clone());
        seats.insert(key.clone(), Arc::clone(&seat));
        self.metrics.actors(1);
        seat
    }

    /// An actor goes: the next request hosts the workflow anew.
    pub(crate) fn leave(&self, key: &WorkflowKey, seat: &Arc<Seat>) {
        let mut seats = self.seats.lock();
        if seats.get(key).is_some_and(|s| Arc::ptr_eq(s, seat)) {
            seats.remove(key);
            self.metrics.actors(-1);
        }
    }

    /// A number that no other workflow task or query of this term has.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn gone(&self) -> ShardError {
        ShardError::Unavailable(format!("shard {} has changed its leader", self.id))
    }

    /// Whoever should have answered is gone.
    fn unanswered(&self) -> ShardError {
        if self.is_stopped() {
            return self.gone();
        }
        ShardError::Unavailable("the workflow's actor ended before it answered".into())
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Confirms that this node still leads, for answers that no commit stands behind.
    pub(crate) async fn confirm(&self) -> Result<(), ShardError> {
        self.group.read_index().await.map_err(|e| ShardError::Unavailable(e.to_string()))
    }

    /// Offers the first tasks that a queue has room for.
    pub(crate) fn offer_again(&self, room: &Room) {
        if self.is_stopped() {
            return;
        }
        let Room { queue, class, limit } = room;
        let is_meant = |row: &TaskRow| !self.is_held(row);
        let offered = match class {
            Some(class) => self
                .rows
                .first_of_class(queue, class, *limit, is_meant)
                .map(|first| self.offer_in_order(first)),
            None => self.offer_each_class(queue, *limit),
        };
        if let Err(error) = offered {
            tracing::error!(shard = %self.id, %error, "cannot read task rows");
        }
    }

    /// Offers what waits here in the queues of these owners. What they hold already, or have given
    /// to a worker, they or the task's workflow drop.
    fn offer_first_tasks(&self, is_meant: impl Fn(ShardId) -> bool) {
        // All shards together fill a window; its owner asks for the rest.
        let shards = self.cluster.host().shard_ids().count().max(1);
        let limit = (self.config.matching_window / shards).max(Bounds::LANE_MIN);
        let offered = self.rows.queues_with_tasks().and_then(|queues| {
            let mut meant = queues.iter().filter(|q| is_meant(self.cluster.shard_of_queue(q)));
            meant.try_for_each(|queue| self.offer_each_class(queue, limit))
        });
        if let Err(error) = offered {
            tracing::error!(shard = %self.id, %error, "cannot read task rows");
        }
    }

    fn offer_each_class(&self, queue: &QueueKey, limit: usize) -> Result<(), LoadError> {
        let is_meant = |row: &TaskRow| !self.is_held(row);
        for first in self.rows.first_of_each_class(queue, limit, is_meant)? {
            self.offer_in_order(first);
        }
        Ok(())
    }

    /// Whether a worker has this task. Such rows must not stand among the first ones: behind a
    /// window full of them nothing would be offered, and polls would get them in a circle.
    fn is_held(&self, row: &TaskRow) -> bool {
        matches!(row.task, TaskKey::Workflow { .. })
            && self.seats.lock().get(&row.key).is_some_and(|seat| seat.is_held())
    }

    /// Offers to other nodes may be lost on the way; this makes good for it.
    fn offer_to_other_nodes(&self) {
        let host = self.cluster.host();
        let is_elsewhere = |owner: ShardId| host.serving(owner).is_none();
        if host.shard_ids().any(is_elsewhere) {
            self.offer_first_tasks(is_elsewhere);
        }
    }

    /// Offers again whenever a shard gets another leader: the queues that it owns begin empty there
    /// (architecture D8).
    fn follow_owner(self: &Arc<Self>, owner: ShardId) {
        let shard = Arc::downgrade(self);
        let mut leadership = self.cluster.host().group(owner).leadership();
        let mut term = leadership.borrow_and_update().term;
        tokio::spawn(async move {
            while leadership.changed().await.is_ok() {
                let now = *leadership.borrow_and_update();
                let Some(shard) = shard.upgrade().filter(|shard| !shard.is_stopped()) else {
                    return;
                };
                if now.leader.is_some() && now.term != term {
                    term = now.term;
                    shard.offer_first_tasks(|of| of == owner);
                }
            }
        });
    }

    /// Offers the first tasks of one class; with the last one goes whether there are more.
    fn offer_in_order(&self, first: FirstTasks) {
        let last = first.rows.len();
        for (row, place) in first.rows.into_iter().zip(1..) {
            let more_behind = first.has_more && place == last;
            self.cluster.offer(Offer { more_behind, ..self.offer_of(row) });
        }
    }

    fn offer_of(&self, row: TaskRow) -> Offer {
        Offer {
            class: row.class(),
            stride: matching::stride(row.fairness_weight),
            queue: row.queue,
            origin: self.id,
            key: row.key,
            run_id: row.run_id,
            task: OfferedTask::Task(row.task),
            created: row.created,
            more_behind: false,
        }
    }

    /// Passivates what has been idle for long.
    fn sweep(&self) {
        let now = self.clock.now();
        let [open, closed] =
            [self.config.idle, self.config.idle_closed()].map(|idle| now - Span::from(idle));
        let mut seats: Vec<_> = self.seats.lock().values().cloned().collect();
        // A burst must not take memory for all of its workflows at once: the longest unused go.
        let too_many = seats.len().saturating_sub(self.seats_max);
        if too_many > 0 {
            seats.select_nth_unstable_by_key(too_many, |seat| seat.last_used());
        }
        for (index, seat) in seats.iter().enumerate() {
            let idle_since = if seat.is_open() { open } else { closed };
            if index < too_many || seat.last_used() < idle_since {
                seat.passivate();
            }
        }
    }

    /// Has runs and request ids deleted whose time is over, one batch after the other.
    fn expire(self: &Arc<Self>) {
        if !self.expiring.swap(true, Ordering::AcqRel) {
            let shard = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = shard.expire_all().await {
                    tracing::error!(shard = %shard.id, %error, "cannot read expiry rows");
                }
                shard.expiring.store(false, Ordering::Release);
            });
        }
    }

    async fn expire_all(self: &Arc<Self>) -> Result<(), LoadError> {
        let limit = self.config.retention_batch;
        let mut oldest = None;
        while !self.is_stopped() {
            let rows = retention::expired(&self.rows, self.clock.now(), limit)?;
            let is_last = rows.len() < limit;
            if rows.first() == oldest.as_ref() {
                // It could not be deleted, or there is none.
                break;
            }
            oldest = rows.first().cloned();
            let (turn, over) = retention::batch();
            for row in rows {
                let key = row.key.clone();
                let ask = Ask::Expire(row, turn.clone());
                self.ask(&key, Envelope { ask, reply: ReplyTo::nobody() });
            }
            drop(turn);
            over.await;
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// ORDER: actors stop before anything else, in key order, so that a repeated run stops the
    /// same way (architecture D4; style guide section 6).
    fn lay_down(&self) {
        self.stopped.store(true, Ordering::Release);
        let seats = std::mem::take(&mut *self.seats.lock());
        self.metrics.actors(-(seats.len() as i64));
        for seat in seats.into_values() {
            seat.stop(&self.cluster, &self.gone());
        }
        self.queues.stop();
        self.timers.stop();
        self.outbox.stop();
        self.metrics.leads(self.id, false);
    }
}

/// Takes up and lays down a shard's duties as leadership comes and goes.
pub(crate) struct ShardActor;

pub(crate) enum ShardMessage {
    Leadership(Leadership),
    Sweep,
    Expire,
}

pub(crate) struct ShardState {
    pub(crate) id: ShardId,
    pub(crate) cluster: Cluster,
    pub(crate) serving: Option<Arc<ShardRuntime>>,
}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardState;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        state: ShardState,
    ) -> Result<ShardState, ActorProcessingErr> {
        let mut leadership = state.cluster.host().group(state.id).leadership();
        let watcher = myself.clone();
        tokio::spawn(async move {
            loop {
                let now = *leadership.borrow_and_update();
                let told = watcher.cast(ShardMessage::Leadership(now));
                if told.is_err() || leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        let idle = state.cluster.host().config().idle;
        if !idle.is_zero() {
            let interval = state.cluster.host().config().idle_closed() / 2;
            myself.send_interval(interval, || ShardMessage::Sweep);
        }
        let interval = state.cluster.host().config().retention_interval;
        myself.send_interval(interval, || ShardMessage::Expire);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<ShardMessage>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMessage::Leadership(now) => state.follow(now).await,
            ShardMessage::Sweep => {
                if let Some(runtime) = &state.serving {
                    runtime.sweep();
                }
            }
            ShardMessage::Expire => {
                if let Some(runtime) = &state.serving {
                    runtime.expire();
                    runtime.queues.sweep();
                    runtime.offer_to_other_nodes();
                }
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<ShardMessage>,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        state.follow(Leadership::default()).await;
        Ok(())
    }
}

impl ShardState {
    async fn follow(&mut self, now: Leadership) {
        let serves = now.serving.then_some(now.term);
        if self.serving.as_ref().map(|r| r.term) == serves {
            return;
        }
        let host = Arc::clone(self.cluster.host());
        // ORDER: the old term's actors are gone before the new term's can exist.
        if let Some(old) = self.serving.take() {
            host.set_serving(self.id, None);
            old.lay_down();
            tracing::info!(shard = %self.id, term = old.term, "laid down leadership");
        }
        if let Some(term) = serves {
            while let Err(error) = own_slots(&host, self.id).await {
                tracing::warn!(shard = %self.id, %error, "cannot take up leadership");
                if *host.group(self.id).leadership().borrow() != now {
                    // It has moved again, or the node is stopping; the next change is followed.
                    return;
                }
                tokio::time::sleep(TAKE_UP_PAUSE).await;
            }
            let runtime = take_up(&host, &self.cluster, self.id, term);
            self.serving = Some(Arc::clone(&runtime));
            host.set_serving(self.id, Some(runtime));
            tracing::info!(shard = %self.id, term, "took up leadership");
        }
    }
}

/// A new shard's first entry gives it its slots (architecture D1); no transition is applied before.
async fn own_slots(host: &ShardHost, id: ShardId) -> Result<(), ShardError> {
    if host.rows(id).range().map_err(unreadable)?.is_some() {
        return Ok(());
    }
    let slots = placement::initial_range(id, host.config().shards);
    let entry = encode_range(&SlotRange { version: 1, slots });
    let committed = host.group(id).propose(entry).await;
    committed.map(|_| ()).map_err(|e| ShardError::Unavailable(e.to_string()))
}

/// Starts the duties of a term: timers, waiting tasks and errands are found in the rows.
fn take_up(host: &Arc<ShardHost>, cluster: &Cluster, id: ShardId, term: u64) -> Arc<ShardRuntime> {
    let group = host.group(id).clone();
    let metrics = host.metrics().clone();
    let runtime = Arc::new(ShardRuntime {
        id,
        term,
        rows: host.rows(id),
        cluster: cluster.clone(),
        config: Arc::clone(host.config()),
        clock: host.clock(),
        began: host.clock().now(),
        proposer: Proposer::start(
            group.clone(),
            host.config(),
            host.checkpoints().clone(),
            metrics.clone(),
        ),
        group,
        timers: Timers::default(),
        queues: Queues::default(),
        outbox: Outbox::default(),
        lost: LostWorkflows::default(),
        seats: Mutex::new(BTreeMap::new()),
        seats_max: host.config().in_memory_max / host.shard_ids().count().max(1),
        stopped: AtomicBool::new(false),
        expiring: AtomicBool::new(false),
        numbers: AtomicU64::new(0),
        metrics,
    });
    runtime.metrics.leads(id, true);
    TimerActor::start(&runtime);
    for owner in host.shard_ids().filter(|&owner| owner != id) {
        runtime.follow_owner(owner);
    }
    let resumed = Arc::clone(&runtime);
    tokio::spawn(async move { resumed.resume().await });
    runtime
}

impl ShardRuntime {
    /// Offers what waits and resumes the errands that the last leader left.
    async fn resume(self: Arc<Self>) {
        self.offer_first_tasks(|_| true);
        match self.rows.runs_with_errands() {
            Ok(runs) => {
                for (key, run_id) in runs {
                    self.ask(
                        &key,
                        Envelope { ask: Ask::Resume { run_id }, reply: ReplyTo::nobody() },
                    );
                }
            }
            Err(error) => tracing::error!(shard = %self.id, %error, "cannot read errand rows"),
        }
    }
}
