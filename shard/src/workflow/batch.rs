//! A hosted workflow as the shell of entities has it: loads it, takes in what a batch of requests comes
//! to, makes rows of that, and carries out effects once it is committed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use piton_core::effect::{Effect, EffectKey, TaskKey, TimerKind};
use piton_core::id::{EventId, Position, RunId, WorkflowKey};
use piton_core::proto::workflowservice::RespondWorkflowTaskCompletedResponse;
use piton_core::request::WorkflowTaskRef;
use piton_core::run::{Decided, RunState, StartedRun};
use piton_core::time::{Span, Timestamp};
use piton_core::transition::{self, Change};
use piton_store::Write;
use piton_store::codec::CodecError;
use tokio::sync::watch;

use crate::entity::requests::Requests;
use crate::entity::{Entity, Need};
use crate::error::ShardError;
use crate::leader::hosting::{Ask, Envelope, Following, Lost, Subscription, WorkflowHandle};
use crate::leader::reads::{not_found, run_not_found, unreadable};
use crate::leader::runtime::ShardRuntime;
use crate::leader::wakeups::{Cause, Wakeup};
use crate::message::{Answer, Offer, OfferedTask, QueueCall, Ticket, WorkflowCall};
use crate::replica::entry;
use crate::route::shard_leader::ReplyTo;
use crate::rows::recent::RecentHistory;
use crate::rows::retention::Expired;
use crate::rows::{self, Current, EntityKey, HistoryBatch, RequestKind, RequestRow};
use crate::workflow::pending::Pending;
use crate::workflow::query::Queries;

/// One workflow in memory: the state of its actor.
///
/// It owns what is committed of the workflow (`current`, `position`, `runs`) and what lives only here:
/// the held task's deadline, queries, followers. The shell of entities calls it as [`Entity`] says:
/// core decides each request on the state and `accept` takes the outcome into `runs`; `writes` makes
/// rows of the differences; `committed` carries out timers, offers, errands, followers, metrics;
/// `conclude` settles each answer noted: replies, deliveries, queries.
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
    /// Of a commit whose outcome is unknown: see [`Lost`].
    lost_tickets: Vec<Ticket>,
}

/// What the requests of one batch come to, before it is committed.
#[derive(Default)]
pub(crate) struct Batch {
    /// The runs as committed, for those that the batch has touched.
    before: BTreeMap<RunId, Option<Box<RunState>>>,
    /// The run that is current after the batch, if it changes.
    pub(crate) successor: Option<RunId>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) requests: Requests,
    /// Tasks that were taken: they need not be withdrawn from their queue.
    pub(crate) taken: BTreeSet<TaskKey>,
    /// Tasks that the batch both makes and hands out.
    new_and_taken: BTreeSet<TaskKey>,
    /// Tasks that it makes and that are offered already, and how often the rows had been looked through by
    /// then.
    offered_ahead: BTreeMap<(RunId, TaskKey), u64>,
    events: usize,
    bytes: usize,
    /// What is on its way to be committed, with the runs before it.
    changes: Vec<(Option<Box<RunState>>, Change)>,
    /// The batches of history among that.
    history: Vec<(RunId, HistoryBatch)>,
    /// The `current` row after it.
    current: Option<Current>,
}

impl Batch {
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
            lost_tickets: Vec::new(),
        }
    }

    fn load_current(&mut self, batch: &mut Batch) -> Result<(), ShardError> {
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

    /// Whether these are the last rows of the workflow.
    fn is_last(&self, gone: &Expired, done: bool) -> bool {
        matches!((gone, self.current_run()), (Expired::Run(gone), Some(current))
            if done && *gone == current)
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

    /// Gives new tasks to workers that wait for one at this moment, by the very commit that makes them.
    /// They are delivered after it, like all others. Those of another node's queues are offered there
    /// beside the commit: a ticket waits behind it, and is worth nothing if it fails.
    fn hand_out_new_tasks(&mut self, batch: &mut Batch) {
        let mut offers = Vec::new();
        for (run_id, before) in &batch.before {
            let Some(run) = self.runs.get(run_id) else { continue };
            let new = transition::new_tasks(before.as_deref(), run).into_iter();
            let new = new.filter(|offer| !self.is_held(run_id, &offer.key));
            offers.extend(new.map(|o| rows::offer_of(self.shard.id, &self.key, run_id, &o)));
        }
        for offer in offers {
            if self.shard.cluster.is_elsewhere(&offer.queue) {
                // No poll of another node is made to wait for a commit that stands still.
                if self.shard.commits_stand_still() {
                    continue;
                }
                if let OfferedTask::Task(key) = &offer.task {
                    let round = self.shard.offer_rounds.load(Ordering::SeqCst);
                    batch.offered_ahead.insert((offer.run_id.clone(), key.clone()), round);
                }
                self.shard.cluster.offer(offer);
            } else if let Some(ticket) = self.shard.cluster.meet(offer) {
                if let OfferedTask::Task(key) = &ticket.offer.task {
                    batch.new_and_taken.insert(key.clone());
                }
                self.redeem(ticket, batch);
            }
        }
    }

    /// Takes the changes out of the runs that the batch has touched.
    fn take_changes(&mut self, batch: &mut Batch) {
        for (run_id, before) in std::mem::take(&mut batch.before) {
            let run = self.runs.get_mut(&run_id).expect("a touched run is in memory");
            let change = Change::between(before.as_deref(), run);
            if !change.is_empty() {
                batch.changes.push((before, change));
            }
        }
    }

    /// The rows of what the batch changes.
    fn rows_of(&self, batch: &mut Batch, next: Position) -> Result<Vec<Write>, ShardError> {
        let level = self.shard.cluster.level();
        let retention = self.shard.cluster.retention_of(&self.key.namespace);
        let mut writes = Vec::new();
        for (before, change) in &batch.changes {
            // A run that goes on is kept in any case.
            let is_open = self.runs.get(&change.run_id).is_some_and(|run| run.status.is_open());
            let retention = retention.or_else(|| is_open.then_some(Span::ZERO));
            let retention = retention.ok_or_else(|| self.namespace_is_unknown())?;
            let own = rows::change_writes(level, &self.key, change, retention);
            let own = own.map_err(unencodable)?;
            let history = rows::batch_in(change, &own);
            batch.history.extend(history.map(|history| (change.run_id.clone(), history)));
            writes.extend(own);
            if let Some(before) = before {
                let milestone = rows::milestone_write(level, &self.key, before, change);
                writes.extend(milestone.map_err(unencodable)?);
            }
        }
        writes.extend(batch.requests.writes(self)?);
        let run_id = self.current_run().expect("a change is of a run, which is or was current");
        let run = self.runs.get(&run_id);
        let mut current = match (run, &self.current) {
            (Some(run), _) => Current::of(run, self.position),
            (None, Some(current)) => current.clone(),
            (None, None) => unreachable!("the current run has a row or is in memory"),
        };
        current.position = next;
        current.run.last_time = self.now();
        writes.push(rows::current_write(level, &self.key, &current).map_err(unencodable)?);
        batch.current = Some(current);
        Ok(writes)
    }

    /// The meta state lags behind on this node. Nothing may be recorded that rests on what it does not say.
    fn namespace_is_unknown(&self) -> ShardError {
        let namespace = &self.key.namespace;
        ShardError::Unavailable(format!("namespace {namespace} is not known on this node yet"))
    }

    /// Keeps the held task's deadline with the timers; it has no row.
    fn watch_held_task(&mut self) {
        let held = self.runs.values().find_map(|run| run.held.as_ref().map(|h| (&run.run_id, h)));
        let deadline = held.map(|(run_id, held)| Wakeup {
            due: held.due,
            key: self.key(),
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
    fn carry_out(&mut self, before: Option<&RunState>, change: &Change, batch: &Batch) {
        for key in &change.settled {
            if let EffectKey::Timer(due, kind) = key {
                self.shard.wakeups.disarm(&self.wakeup(&change.run_id, *due, kind));
            }
        }
        for offer in change.settled_tasks.iter().filter(|o| !batch.taken.contains(&o.key)) {
            let offer = rows::offer_of(self.shard.id, &self.key, &change.run_id, offer);
            let Offer { queue, origin, key, run_id, task, .. } = offer;
            let call = QueueCall::Withdraw { queue, origin, key, run_id, task };
            self.shard.cluster.send_to_queue(call);
        }
        for effect in change.owed.values() {
            if !self.is_offered_ahead(&change.run_id, effect, batch) {
                self.take_care_of(&change.run_id, effect);
            }
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

    /// Whether a task's offer may be relied on. A queue that has another owner since, or has had no room for
    /// it, had tasks offered from the rows, where it was not yet.
    fn is_offered_ahead(&self, run_id: &RunId, effect: &Effect, batch: &Batch) -> bool {
        let Effect::Task(offer) = effect else { return false };
        let round = batch.offered_ahead.get(&(run_id.clone(), offer.key.clone()));
        round.is_some_and(|&round| round == self.shard.offer_rounds.load(Ordering::SeqCst))
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
        Wakeup { due, key: self.key(), run_id: run_id.clone(), cause }
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

    pub(crate) fn note_request(
        &self,
        id: &str,
        run: &RunId,
        event: EventId,
        kind: RequestKind,
        batch: &mut Batch,
    ) {
        let row = RequestRow { run_id: run.clone(), event_id: event, at: self.now(), kind };
        batch.requests.note(id, row);
    }
}

impl Entity for Hosted {
    type Ask = Ask;
    type Batch = Batch;

    fn shard(&self) -> &Arc<ShardRuntime> {
        &self.shard
    }

    fn handle(&self) -> &Arc<WorkflowHandle> {
        &self.handle
    }

    fn key(&self) -> EntityKey {
        self.key.clone().into()
    }

    fn position(&mut self) -> &mut Position {
        &mut self.position
    }

    fn is_loaded(&self) -> bool {
        self.loaded
    }

    fn load(&mut self, batch: &mut Batch) -> Result<(), ShardError> {
        self.load_current(batch)
    }

    fn decide(&mut self, envelope: Envelope, batch: &mut Batch) {
        self.decide_ask(envelope, batch);
    }

    fn is_full(batch: &Batch) -> bool {
        batch.events >= entry::TRANSITION_EVENTS_MAX || batch.bytes >= entry::TRANSITION_BYTES_MAX
    }

    fn writes(&mut self, batch: &mut Batch, next: Position) -> Result<Need, ShardError> {
        self.hand_out_new_tasks(batch);
        self.take_changes(batch);
        if batch.changes.is_empty() && batch.requests.is_empty() && batch.successor.is_none() {
            // D5a: no commit stands behind these answers.
            let tells_state = batch.pending.iter().any(Pending::tells_state);
            return Ok(if tells_state { Need::Confirm } else { Need::Nothing });
        }
        self.rows_of(batch, next).map(Need::Commit)
    }

    fn committed(&mut self, batch: &mut Batch) {
        if let Some(current) = batch.current.take() {
            self.current = Some(current);
        }
        for (run_id, history) in batch.history.drain(..) {
            self.recent.push(&run_id, history);
        }
        self.watch_held_task();
        for (before, change) in &batch.changes {
            self.carry_out(before.as_deref(), change, batch);
        }
    }

    fn refuse(&mut self, batch: Batch, why: &ShardError) {
        for pending in batch.pending {
            match pending {
                // Whether there is such an activity shows when nothing is under way any more.
                Pending::DeliverActivity(ticket, _)
                    if matches!(&ticket.offer.task, OfferedTask::Task(key)
                        if batch.new_and_taken.contains(key)) =>
                {
                    self.lost_tickets.push(ticket);
                }
                pending => {
                    pending.give_up_ticket(&self.shard.cluster);
                    pending.refuse(why);
                }
            }
        }
    }

    async fn conclude(&mut self, batch: Batch) -> Result<(), ShardError> {
        let mut concluded = Ok(());
        for pending in batch.pending {
            // All of it: whoever waits for an answer gets it, whatever became of a deletion.
            let settled = self.settle(pending).await;
            concluded = concluded.and(settled);
        }
        self.forget_unneeded();
        concluded
    }

    fn row_without(
        &mut self,
        gone: &Expired,
        done: bool,
        next: Position,
    ) -> Option<Result<Write, ShardError>> {
        if let Expired::Run(run_id) = gone
            && self.runs.get(run_id).is_some_and(|run| run.status.is_open())
        {
            return None;
        }
        let is_last = self.is_last(gone, done);
        Some(match &mut self.current {
            Some(current) if !is_last => {
                current.position = next;
                let level = self.shard.cluster.level();
                rows::current_write(level, &self.key, current).map_err(unencodable)
            }
            _ => Ok(rows::current_delete(&self.key)),
        })
    }

    fn forget(&mut self, gone: &Expired, done: bool) {
        // The `current` row is deleted with it, and with a request id that outlived it.
        if self.current.is_none() || self.is_last(gone, done) {
            (self.position, self.current) = (Position(0), None);
            self.runs.clear();
        }
        if let Expired::Run(run_id) = gone {
            self.runs.remove(run_id);
        }
    }

    fn is_idle(&mut self) -> bool {
        // Nothing that a caller does wakes the actor when the caller goes.
        self.forget_abandoned_queries();
        self.queries.is_empty()
            && self.watchers.values().all(|sender| sender.receiver_count() == 0)
            && self.runs.values().all(|run| run.held.is_none())
    }

    fn leave(&self) {
        self.shard.leave(&self.key, &self.handle);
    }

    /// Callers that wait hear why, and what nobody waits for is done by the next actor.
    fn abandon(&mut self, left: VecDeque<Envelope>, why: &ShardError) {
        let (runs, tickets) =
            (self.runs.keys().cloned().collect(), std::mem::take(&mut self.lost_tickets));
        let mut lost = Lost { runs, tickets, ..Lost::default() };
        for envelope in left {
            let is_ticket = matches!(envelope.ask, Ask::Call(WorkflowCall::Ticket(_)));
            if envelope.reply.is_nobody() && !is_ticket {
                lost.requests.push(envelope.ask);
            } else {
                envelope.refuse(&self.shard.cluster, why.clone());
            }
        }
        if !self.shard.is_stopped() || !lost.tickets.is_empty() {
            self.shard.recover(self.key.clone(), lost);
        }
        self.queries.fail_all(why);
        if let Some(deadline) = self.held_deadline.take() {
            self.shard.wakeups.disarm(&deadline);
        }
        self.watchers.clear();
        self.runs.clear();
    }
}

fn unencodable(error: CodecError) -> ShardError {
    ShardError::Internal(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
