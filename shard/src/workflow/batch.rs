//! A hosted workflow: loads it, decides a batch of requests, commits what they come to, and only
//! then answers and carries out effects. One commit for all requests that waited.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use piton_core::effect::{Effect, EffectKey, TaskKey, TimerKind};
use piton_core::id::{EventId, Position, RequestId, RunId, WorkflowKey};
use piton_core::proto::workflowservice::RespondWorkflowTaskCompletedResponse;
use piton_core::request::WorkflowTaskRef;
use piton_core::run::{Decided, RunState, StartedRun};
use piton_core::time::{Span, Timestamp};
use piton_core::transition::Change;
use tokio::sync::watch;

use crate::error::ShardError;
use crate::leader::hosting::{
    Ask, Envelope, Following, Lost, Subscription, WorkflowHandle, refuse_all,
};
use crate::leader::reads::{not_found, run_not_found, unreadable};
use crate::leader::runtime::ShardRuntime;
use crate::leader::wakeups::{Cause, Wakeup};
use crate::message::{Answer, Offer, QueueCall, WorkflowCall};
use crate::replica::entry::{self, TransitionRecord};
use crate::replica::proposer::Outcome;
use crate::route::shard_leader::ReplyTo;
use crate::rows::recent::RecentHistory;
use crate::rows::{self, Current, EntityKey, RequestKind, RequestRow};
use crate::workflow::pending::Pending;
use crate::workflow::query::Queries;

/// One workflow in memory: the state of its actor.
///
/// It owns what is committed of the workflow (`current`, `position`, `runs`) and what lives only here:
/// the held task's deadline, queries, followers. A batch of requests passes through these steps:
///
/// 1. `load`, once in an actor's life: the rows as they are committed.
/// 2. `decide_*`, for each request: core decides on the state, `accept` takes the outcome into `runs`
///    ahead of the commit, and what is to be answered is noted in the batch. Nothing leaves here.
/// 3. `commit`: all changes as one transition, or a confirmation that this node still leads. If it
///    fails, the state here is ahead of the rows, so the actor must go.
/// 4. `carry_out`, for each change: timers, offers, errands, followers, metrics.
/// 5. `settle`, for each answer noted: replies, deliveries, queries.
/// 6. `forget_unneeded`: whatever nobody waits for leaves memory.
///
/// `abandon` is called instead of all that follows when a step fails.
pub(crate) struct Hosted {
    pub(crate) shard: Arc<ShardRuntime>,
    pub(crate) handle: Arc<WorkflowHandle>,
    pub(crate) key: WorkflowKey,
    loaded: bool,
    /// The committed `current` row.
    pub(crate) current: Option<Current>,
    pub(crate) position: Position,
    /// Runs in memory: the current one if it is open, and others while they are asked for.
    /// Boxed: a node of the map has room for eleven values.
    pub(crate) runs: BTreeMap<RunId, Box<RunState>>,
    pub(crate) queries: Queries,
    pub(crate) recent: RecentHistory,
    watchers: BTreeMap<RunId, watch::Sender<Subscription>>,
    /// The last accepted workflow task answer: its repetition gets the same reply.
    pub(crate) last_accepted: Option<(WorkflowTaskRef, RespondWorkflowTaskCompletedResponse)>,
    /// When the held workflow task has taken too long.
    held_deadline: Option<Wakeup>,
}

/// What the requests of one batch come to, before it is committed.
#[derive(Default)]
pub(crate) struct Batch {
    /// The runs as committed, for those that the batch has touched.
    before: BTreeMap<RunId, Option<Box<RunState>>>,
    /// The run that is current after the batch, if it changes.
    pub(crate) successor: Option<RunId>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) request_rows: BTreeMap<RequestId, RequestRow>,
    /// Tasks that were taken: they need not be withdrawn from their queue.
    pub(crate) taken: BTreeSet<TaskKey>,
    events: usize,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.events >= entry::TRANSITION_EVENTS_MAX || self.bytes >= entry::TRANSITION_BYTES_MAX
    }

    pub(crate) fn answer(&mut self, reply: ReplyTo, answer: Result<Answer, ShardError>) {
        self.pending.push(Pending::Answer(reply, answer));
    }
}

impl Hosted {
    pub(crate) fn new(
        shard: Arc<ShardRuntime>,
        handle: Arc<WorkflowHandle>,
        key: WorkflowKey,
    ) -> Self {
        Self {
            shard,
            handle,
            key,
            loaded: false,
            current: None,
            position: Position(0),
            runs: BTreeMap::new(),
            queries: Queries::default(),
            recent: RecentHistory::default(),
            watchers: BTreeMap::new(),
            last_accepted: None,
            held_deadline: None,
        }
    }

    /// Decides and commits what waits; what does not fit into one transition is put back.
    ///
    /// # Errors
    /// When the state here can no longer be trusted: the actor must go.
    pub(crate) async fn process(&mut self, waiting: VecDeque<Envelope>) -> Result<(), ShardError> {
        if self.shard.is_stopped() {
            let gone = self.shard.gone();
            refuse_all(waiting, &self.shard.cluster, &gone);
            return Err(gone);
        }
        let mut batch = Batch::default();
        let mut waiting = waiting;
        if !self.loaded
            && let Err(error) = self.load(&mut batch)
        {
            refuse_all(waiting, &self.shard.cluster, &error);
            return Err(error);
        }
        while let Some(envelope) = waiting.pop_front() {
            self.decide(envelope, &mut batch);
            if batch.is_full() {
                break;
            }
        }
        if !waiting.is_empty() {
            self.handle.mailbox.put_back(waiting);
        }
        self.commit(batch).await
    }

    fn load(&mut self, batch: &mut Batch) -> Result<(), ShardError> {
        self.current = self.shard.rows.current(&self.key).map_err(unreadable)?;
        if let Some(current) = &self.current {
            self.position = current.position;
            if current.run.status.is_open() {
                let run_id = current.run.run_id.clone();
                let run = self.shard.rows.load_run(&self.key, &run_id).map_err(unreadable)?;
                let run = run.ok_or_else(|| {
                    ShardError::Internal(format!("the current run {run_id} has no history"))
                })?;
                let flush = !run.buffered.is_empty();
                self.runs.insert(run_id.clone(), Box::new(run));
                self.loaded = true;
                if flush {
                    // docs/design.md, "The held workflow task": nothing is held any more, so what waited goes on.
                    self.decide_own(&run_id, piton_core::request::RunRequest::Rehosted, batch);
                }
            }
        }
        self.loaded = true;
        Ok(())
    }

    /// The run that a request addresses: the given one or the current one. Loads it if it has to.
    pub(crate) fn run(&mut self, run_id: Option<&RunId>) -> Result<RunId, ShardError> {
        let run_id = match run_id {
            Some(run_id) => run_id.clone(),
            None => self.current_run().ok_or_else(|| not_found(&self.key))?,
        };
        if !self.runs.contains_key(&run_id) {
            let loaded = self.shard.rows.load_run(&self.key, &run_id);
            let run = loaded.map_err(unreadable)?;
            let run = run.ok_or_else(|| match self.current {
                None => not_found(&self.key),
                Some(_) => run_not_found(&self.key, &run_id),
            })?;
            self.runs.insert(run_id.clone(), Box::new(run));
        }
        Ok(run_id)
    }

    /// What a start has to know of a closed run, which is not loaded for it. `None`: it is open, or in
    /// memory, or not there.
    pub(crate) fn closed_run(&self, run_id: &RunId) -> Result<Option<StartedRun>, ShardError> {
        if self.runs.contains_key(run_id) {
            return Ok(None);
        }
        if let Some(current) = &self.current
            && current.run.run_id == *run_id
        {
            return Ok(current.as_closed());
        }
        let ends = self.shard.rows.run_ends(&self.key, run_id).map_err(unreadable)?;
        Ok(ends.and_then(|ends| ends.into_closed(run_id)))
    }

    /// The current run as the batch so far has it.
    pub(crate) fn current_run(&self) -> Option<RunId> {
        self.current.as_ref().map(|c| c.run.run_id.clone())
    }

    /// Times of a workflow never go back, whatever node decides.
    pub(crate) fn now(&self) -> Timestamp {
        let now = self.shard.clock.now();
        self.current.as_ref().map_or(now, |c| now.max(c.run.last_time))
    }

    /// Takes over what a decision comes to. A run that it changed was in memory, or is new.
    pub(crate) fn accept(&mut self, decided: Decided, batch: &mut Batch) {
        let Decided { run, others, successor, reply: _ } = decided;
        if let Some(run) = &successor {
            self.current = Some(Current::of(run, self.position));
            batch.successor = Some(run.run_id.clone());
        }
        for run in run.into_iter().chain(others).chain(successor) {
            let run_id = run.run_id.clone();
            let before = self.runs.insert(run_id.clone(), Box::new(run));
            batch.before.entry(run_id).or_insert(before);
        }
        (batch.events, batch.bytes) = (0, 0);
        for (run_id, before) in &batch.before {
            let Some(run) = self.runs.get(run_id) else { continue };
            let committed = before.as_ref().map_or(0, |before| before.history_bytes);
            batch.events += run.uncommitted.len();
            batch.bytes += usize::try_from(run.history_bytes - committed).unwrap_or(usize::MAX);
        }
    }

    async fn commit(&mut self, mut batch: Batch) -> Result<(), ShardError> {
        let mut changes = Vec::new();
        for (run_id, before) in std::mem::take(&mut batch.before) {
            let run = self.runs.get_mut(&run_id).expect("a touched run is in memory");
            let change = Change::between(before.as_deref(), run);
            if !change.is_empty() {
                changes.push((before, change));
            }
        }
        let done =
            if changes.is_empty() && batch.request_rows.is_empty() && batch.successor.is_none() {
                // Architecture D5a: no commit stands behind these answers.
                let tells_state = batch.pending.iter().any(Pending::tells_state);
                if tells_state { self.shard.confirm().await } else { Ok(()) }
            } else {
                self.replicate(&changes, &batch).await
            };
        done.inspect_err(|error| {
            for pending in std::mem::take(&mut batch.pending) {
                pending.give_up_ticket(&self.shard.cluster);
                pending.refuse(error);
            }
        })?;
        self.watch_held_task();
        for (before, change) in &changes {
            self.carry_out(before.as_deref(), change, &batch.taken);
        }
        for pending in batch.pending {
            self.settle(pending).await;
        }
        self.forget_unneeded();
        Ok(())
    }

    /// Writes everything as one transition and waits for it.
    async fn replicate(
        &mut self,
        changes: &[(Option<Box<RunState>>, Change)],
        batch: &Batch,
    ) -> Result<(), ShardError> {
        let now = self.now();
        let retention = self.shard.cluster.retention_of(&self.key.namespace);
        let unencodable = |e: piton_store::codec::CodecError| ShardError::Internal(e.to_string());
        let mut writes = Vec::new();
        let mut batches = Vec::new();
        for (before, change) in changes {
            let own = rows::change_writes(&self.key, change, retention).map_err(unencodable)?;
            batches.extend(rows::batch_in(change, &own).map(|batch| (&change.run_id, batch)));
            writes.extend(own);
            if let Some(before) = before {
                let milestone = rows::milestone_write(&self.key, before, change);
                writes.extend(milestone.map_err(unencodable)?);
            }
        }
        let entity = EntityKey::from(self.key.clone());
        for (id, row) in &batch.request_rows {
            let keep = Span::of_limit_ms(self.shard.cluster.limits().request_id_ms_min);
            writes.extend(rows::request_writes(&entity, id, row, keep).map_err(unencodable)?);
        }
        let run_id = self.current_run().expect("a change is of a run, which is or was current");
        let run = self.runs.get(&run_id);
        let mut current = match (run, &self.current) {
            (Some(run), _) => Current::of(run, self.position),
            (None, Some(current)) => current.clone(),
            (None, None) => unreachable!("the current run has a row or is in memory"),
        };
        current.position = Position(self.position.0 + 1);
        current.run.last_time = now;
        writes.push(rows::current_write(&self.key, &current).map_err(unencodable)?);
        let transition =
            TransitionRecord { term: self.shard.term, key: entity, base: self.position, writes };
        match self.shard.proposer.propose(transition).await {
            Outcome::Committed => {
                self.position = current.position;
                self.current = Some(current);
                for (run_id, batch) in batches {
                    self.recent.push(run_id, batch);
                }
                Ok(())
            }
            Outcome::Failed(why) => Err(ShardError::Unavailable(why)),
        }
    }

    /// Keeps the held task's deadline with the timers; it has no row.
    fn watch_held_task(&mut self) {
        let held = self.runs.values().find_map(|run| run.held.as_ref().map(|h| (&run.run_id, h)));
        let deadline = held.map(|(run_id, held)| Wakeup {
            due: held.due,
            key: self.key.clone(),
            run_id: run_id.clone(),
            cause: Cause::HeldTask(held.number),
        });
        if deadline == self.held_deadline {
            return;
        }
        if let Some(old) = self.held_deadline.take() {
            self.shard.wakeups.disarm(&old);
            self.queries.detach();
        }
        if let Some(new) = &deadline {
            self.shard.wakeups.arm(new.clone());
        }
        // ORDER: before the next task is offered, which may come back here as declined.
        self.handle.set_held(deadline.is_some());
        self.held_deadline = deadline;
    }

    /// Carries out the effects of a committed change.
    fn carry_out(&mut self, before: Option<&RunState>, change: &Change, taken: &BTreeSet<TaskKey>) {
        for key in &change.settled {
            if let EffectKey::Timer(due, kind) = key {
                self.shard.wakeups.disarm(&self.wakeup(&change.run_id, *due, kind));
            }
        }
        for offer in change.settled_tasks.iter().filter(|o| !taken.contains(&o.key)) {
            let offer = rows::offer_of(self.shard.id, &self.key, &change.run_id, offer);
            let Offer { queue, origin, key, run_id, task, .. } = offer;
            let call = QueueCall::Withdraw { queue, origin, key, run_id, task };
            self.shard.cluster.send_to_queue(call);
        }
        for effect in change.owed.values() {
            self.take_care_of(&change.run_id, effect);
        }
        self.announce(change);
        self.measure(before, change);
        let closes = before.is_none_or(|run| run.status.is_open())
            && self.runs.get(&change.run_id).is_some_and(|run| !run.status.is_open());
        if closes {
            // No workflow task will take them along any more.
            self.release_queries(&change.run_id);
        }
    }

    /// Sets about what a run owes. Twice does no harm.
    pub(crate) fn take_care_of(&self, run_id: &RunId, effect: &Effect) {
        let shard = &self.shard;
        match effect {
            Effect::Timer(due, kind) => shard.wakeups.arm(self.wakeup(run_id, *due, kind)),
            // Held since the same batch: its worker has it already.
            Effect::Task(offer) if self.is_held(run_id, &offer.key) => {}
            Effect::Task(offer) => {
                shard.cluster.offer(rows::offer_of(shard.id, &self.key, run_id, offer));
            }
            Effect::Errand(key, errand) => {
                shard.run_errand(&self.key, run_id, *key, errand.clone());
            }
        }
    }

    fn wakeup(&self, run_id: &RunId, due: Timestamp, kind: &TimerKind) -> Wakeup {
        let cause = Cause::Timer(kind.clone());
        Wakeup { due, key: self.key.clone(), run_id: run_id.clone(), cause }
    }

    fn is_held(&self, run_id: &RunId, task: &TaskKey) -> bool {
        matches!(task, TaskKey::Workflow { .. })
            && self.runs.get(run_id).is_some_and(|run| run.held.is_some())
    }

    fn view(&self, run_id: &RunId) -> Option<Subscription> {
        let run = self.runs.get(run_id)?;
        let (next_event_id, open) = (run.next_event_id, run.status.is_open());
        Some(Subscription { next_event_id, open, held: run.held.clone(), closing: None })
    }

    /// Follows a run that is in memory, as open ones are. No other is loaded for it: what a closed
    /// run's history is, its rows say.
    pub(crate) fn follow(&mut self, run_id: Option<RunId>) -> Option<Following> {
        let run_id = run_id.or_else(|| self.current_run())?;
        let view = self.view(&run_id).filter(|view| view.open)?;
        let sender =
            self.watchers.entry(run_id.clone()).or_insert_with(|| watch::channel(view.clone()).0);
        sender.send_replace(view);
        let views = sender.subscribe();
        Some(Following { run_id, views })
    }

    fn announce(&self, change: &Change) {
        let Some(sender) = self.watchers.get(&change.run_id) else { return };
        let Some(mut view) = self.view(&change.run_id) else { return };
        if !view.open {
            view.closing = change.events.last().cloned();
        }
        sender.send_replace(view);
    }

    /// Drops closed runs and followers nobody needs; keeps the open current run.
    fn forget_unneeded(&mut self) {
        self.watchers.retain(|_, sender| sender.receiver_count() > 0);
        self.forget_abandoned_queries();
        let current = self.current_run();
        self.runs.retain(|id, run| Some(id) == current.as_ref() || run.status.is_open());
        self.handle.set_open(self.current.as_ref().is_some_and(|c| c.run.status.is_open()));
    }

    /// Whether nothing of this workflow lives only in memory (D6).
    pub(crate) fn is_idle(&self) -> bool {
        self.queries.is_empty()
            && self.watchers.values().all(|sender| sender.receiver_count() == 0)
            && self.runs.values().all(|run| run.held.is_none())
    }

    /// The actor goes without having finished: callers that wait hear why, and what nobody waits
    /// for is done by the next actor.
    pub(crate) fn abandon(&mut self, why: &ShardError) {
        let mut lost = Lost { runs: self.runs.keys().cloned().collect(), requests: Vec::new() };
        for envelope in self.handle.mailbox.close() {
            let is_ticket = matches!(envelope.ask, Ask::Call(WorkflowCall::Ticket(_)));
            if envelope.reply.is_nobody() && !is_ticket {
                lost.requests.push(envelope.ask);
            } else {
                envelope.refuse(&self.shard.cluster, why.clone());
            }
        }
        if !self.shard.is_stopped() {
            self.shard.recover(self.key.clone(), lost);
        }
        self.queries.fail_all(why);
        if let Some(deadline) = self.held_deadline.take() {
            self.shard.wakeups.disarm(&deadline);
        }
        self.watchers.clear();
        self.runs.clear();
    }

    /// Whether this request id has been taken before, by a committed transition or this batch.
    pub(crate) fn known_request(
        &self,
        id: &str,
        batch: &Batch,
    ) -> Result<Option<RequestRow>, ShardError> {
        if id.is_empty() {
            return Ok(None);
        }
        let id = RequestId::from(id);
        if let Some(row) = batch.request_rows.get(&id) {
            return Ok(Some(row.clone()));
        }
        self.shard.rows.request(&self.key.clone().into(), &id).map_err(unreadable)
    }

    pub(crate) fn note_request(
        &self,
        id: &str,
        run: &RunId,
        event: EventId,
        kind: RequestKind,
        batch: &mut Batch,
    ) {
        if !id.is_empty() {
            let row = RequestRow { run_id: run.clone(), event_id: event, at: self.now(), kind };
            batch.request_rows.insert(RequestId::from(id), row);
        }
    }
}
