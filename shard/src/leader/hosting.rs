//! The entities of a shard that are in memory: of each its mailbox and what others may know of its
//! actor; and what a workflow's actor can be asked. What actors do is the business of the wings above.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::proto::history::HistoryEvent;
use piton_core::run::HeldTask;
use piton_core::time::Timestamp;
use ractor::{ActorRef, SpawnErr};
use tokio::sync::{oneshot, watch};

use crate::error::ShardError;
use crate::leader::mailbox::{Mailbox, Notice, Refused};
use crate::leader::runtime::ShardRuntime;
use crate::message::{Delivery, Ticket, WorkflowCall};
use crate::route::cluster::Cluster;
use crate::route::shard_leader::ReplyTo;
use crate::rows::keys::EntityKind;
use crate::rows::retention::{ExpireRow, Turn};

/// A request and who waits for its answer.
pub(crate) struct Envelope<A = Ask> {
    pub(crate) ask: A,
    pub(crate) reply: ReplyTo,
}

/// What entities of one kind are asked.
pub(crate) trait Asked: Send + 'static {
    /// Not carried out: whoever waits for it otherwise than for the reply hears why.
    fn refuse(self, cluster: &Cluster, why: &ShardError);
}

/// What an actor may be asked: a call from outside, or something of the shard's own.
#[expect(clippy::large_enum_variant, reason = "almost all are calls")]
pub(crate) enum Ask {
    Call(WorkflowCall),
    /// Follow the history of an open run; `None`: of the current one.
    Subscribe {
        run_id: Option<RunId>,
        tell: Tell,
    },
    /// Carry out what a run owes, which an earlier leader or actor left.
    Resume {
        run_id: RunId,
    },
    /// The sticky queue's worker had its time to answer this query.
    StickyWaitOver {
        run_id: RunId,
        query: u64,
    },
    /// Remove a closed run whose retention is over, or a request id that is old enough.
    Expire(ExpireRow, Turn),
}

/// Where a follower of a run's history waits for its view.
pub(crate) type Tell = oneshot::Sender<Result<Option<Following>, ShardError>>;

/// A run that is followed.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) run_id: RunId,
    pub(crate) views: watch::Receiver<Subscription>,
}

/// How far a run's history is committed, and the task that a worker holds beyond that.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) next_event_id: EventId,
    pub(crate) open: bool,
    pub(crate) held: Option<Arc<HeldTask>>,
    /// The event that closed it, for those who were waiting for it.
    pub(crate) closing: Option<Arc<HistoryEvent>>,
}

/// An entity in memory, as others see it.
pub(crate) struct Handle<A> {
    pub(crate) mailbox: Mailbox<Envelope<A>>,
    last_used_nanos: AtomicI64,
    /// It has something open, as far as its actor knows: a workflow's run.
    open: AtomicBool,
    /// A worker has its workflow task, whose row stands until the answer.
    held: AtomicBool,
}

pub(crate) type WorkflowHandle = Handle<Ask>;

/// All entities of one kind in a shard that are in memory.
pub(crate) struct Hosts<A> {
    kind: EntityKind,
    handles: Mutex<BTreeMap<WorkflowKey, Arc<Handle<A>>>>,
    /// This shard's part of those that may be in memory.
    pub(crate) len_max: usize,
}

pub(crate) type Workflows = Hosts<Ask>;

/// A workflow whose actor gave up.
#[derive(Default)]
pub(crate) struct Lost {
    /// The runs that it had in memory.
    pub(crate) runs: BTreeSet<RunId>,
    /// Requests of our own that it did not come to.
    pub(crate) requests: Vec<Ask>,
    /// Of activities that may have been scheduled and started by one commit, whose outcome is unknown.
    pub(crate) tickets: Vec<Ticket>,
}

/// The workflows of a shard that wait for their recovery. While there is no quorum each request to
/// one costs it another actor, so it stands here once.
#[derive(Default)]
pub(crate) struct LostWorkflows {
    state: Mutex<LostState>,
}

#[derive(Default)]
struct LostState {
    waiting: BTreeMap<WorkflowKey, Lost>,
    in_recovery: bool,
}

impl Subscription {
    /// Whether the committed history is the same.
    pub(crate) fn is_as_far_as(&self, other: &Subscription) -> bool {
        (self.next_event_id, self.open) == (other.next_event_id, other.open)
    }
}

impl Asked for Ask {
    /// The poll of a ticket goes on.
    fn refuse(self, cluster: &Cluster, why: &ShardError) {
        match self {
            Ask::Call(WorkflowCall::Ticket(ticket)) => {
                cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
            }
            Ask::Subscribe { tell, .. } => {
                // The reader may have gone away.
                let _ = tell.send(Err(why.clone()));
            }
            Ask::Call(_) | Ask::Resume { .. } | Ask::Expire(..) | Ask::StickyWaitOver { .. } => {}
        }
    }
}

impl<A: Asked> Envelope<A> {
    /// Not carried out: whoever waits hears why.
    pub(crate) fn refuse(self, cluster: &Cluster, why: ShardError) {
        self.ask.refuse(cluster, &why);
        self.reply.send(Err(why));
    }
}

pub(crate) fn refuse_all<A: Asked>(
    waiting: VecDeque<Envelope<A>>,
    cluster: &Cluster,
    why: &ShardError,
) {
    for envelope in waiting {
        envelope.refuse(cluster, why.clone());
    }
}

impl<A: Asked> Handle<A> {
    pub(crate) fn new(mailbox_len_max: usize, now: Timestamp) -> Self {
        Self {
            mailbox: Mailbox::new(mailbox_len_max),
            last_used_nanos: AtomicI64::new(now.as_nanos()),
            open: AtomicBool::new(true),
            held: AtomicBool::new(false),
        }
    }

    /// A request was added.
    pub(crate) fn used(&self, now: Timestamp) {
        self.last_used_nanos.store(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn last_used(&self) -> Timestamp {
        Timestamp::from_nanos(self.last_used_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Ends the actor at once; whoever waits hears `why`.
    pub(crate) fn stop(&self, cluster: &Cluster, why: &ShardError) {
        refuse_all(self.mailbox.close(), cluster, why);
        self.mailbox.stop_actor();
    }
}

impl<A: Asked> Hosts<A> {
    pub(crate) fn new(kind: EntityKind, len_max: usize) -> Self {
        Self { kind, handles: Mutex::default(), len_max }
    }

    /// Puts a request into an entity's mailbox; `start` starts its actor if there is none.
    pub(crate) fn ask(
        &self,
        shard: &ShardRuntime,
        key: &WorkflowKey,
        mut envelope: Envelope<A>,
        start: impl Fn(Arc<Handle<A>>) -> Result<ActorRef<Notice>, SpawnErr>,
    ) {
        // What nobody waits for is of our own (a due timer, an errand's result) and must not be
        // lost; it is bounded by what caused it.
        let is_own = envelope.reply.is_nobody();
        let len_max = shard.config.mailbox_len_max;
        loop {
            if shard.is_stopped() {
                return envelope.refuse(&shard.cluster, shard.gone());
            }
            let now = shard.clock.now();
            let entity = self.get_or_host(key, len_max, now, &start);
            entity.used(now);
            match entity.mailbox.push(envelope, is_own) {
                Ok(()) => return,
                Err(Refused::Closed(back)) => envelope = back,
                Err(Refused::Full(back)) => {
                    let text = format!("too many requests wait for this {}", self.kind.name());
                    return back.refuse(&shard.cluster, ShardError::Overloaded(text));
                }
            }
        }
    }

    /// The entity's handle; `start` starts its actor if there is none.
    pub(crate) fn get_or_host(
        &self,
        key: &WorkflowKey,
        mailbox_len_max: usize,
        now: Timestamp,
        start: impl FnOnce(Arc<Handle<A>>) -> Result<ActorRef<Notice>, SpawnErr>,
    ) -> Arc<Handle<A>> {
        let mut handles = self.handles.lock();
        if let Some(handle) = handles.get(key) {
            return Arc::clone(handle);
        }
        let handle = Arc::new(Handle::new(mailbox_len_max, now));
        match start(Arc::clone(&handle)) {
            Ok(actor) => handle.mailbox.attach(actor),
            Err(error) => tracing::error!(%error, "cannot start an entity's actor"),
        }
        handles.insert(key.clone(), Arc::clone(&handle));
        handle
    }

    /// Forgets an entity, unless another actor has taken its place. True: it was there.
    pub(crate) fn remove(&self, key: &WorkflowKey, handle: &Arc<Handle<A>>) -> bool {
        let mut handles = self.handles.lock();
        let is_this = handles.get(key).is_some_and(|known| Arc::ptr_eq(known, handle));
        is_this && handles.remove(key).is_some()
    }

    /// Whether it is in memory and open, as far as its actor knows.
    pub(crate) fn is_open(&self, key: &WorkflowKey) -> bool {
        self.handles.lock().get(key).is_some_and(|handle| handle.is_open())
    }

    /// Whether a worker has a workflow task of it.
    pub(crate) fn is_held(&self, key: &WorkflowKey) -> bool {
        self.handles.lock().get(key).is_some_and(|handle| handle.is_held())
    }

    pub(crate) fn all(&self) -> Vec<Arc<Handle<A>>> {
        self.handles.lock().values().cloned().collect()
    }

    /// All of them, in key order; none is left.
    pub(crate) fn take_all(&self) -> Vec<Arc<Handle<A>>> {
        std::mem::take(&mut *self.handles.lock()).into_values().collect()
    }
}

impl LostWorkflows {
    /// True: nobody recovers them yet, so the caller must.
    pub(crate) fn add(&self, key: WorkflowKey, lost: Lost) -> bool {
        let mut state = self.state.lock();
        let known = state.waiting.entry(key).or_default();
        known.runs.extend(lost.runs);
        known.tickets.extend(lost.tickets);
        for ask in lost.requests {
            match ask {
                Ask::Resume { run_id } => drop(known.runs.insert(run_id)),
                other => known.requests.push(other),
            }
        }
        !std::mem::replace(&mut state.in_recovery, true)
    }

    /// All that wait; `None`: nobody does, and whoever is added next must be recovered anew.
    pub(crate) fn take(&self) -> Option<BTreeMap<WorkflowKey, Lost>> {
        let mut state = self.state.lock();
        state.in_recovery = !state.waiting.is_empty();
        state.in_recovery.then(|| std::mem::take(&mut state.waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_that_is_lost_again_and_again_waits_once() {
        let lost = LostWorkflows::default();
        let key = |id: &str| WorkflowKey { namespace: "n".into(), workflow_id: id.into() };
        let of = |run: &str| Lost { runs: [RunId::from(run)].into(), ..Lost::default() };
        assert!(lost.add(key("a"), of("first")), "somebody has to begin");
        for _ in 0..1_000 {
            let resume = Ask::Resume { run_id: RunId::from("first") };
            let lost_again = Lost { requests: vec![resume], ..of("second") };
            assert!(!lost.add(key("a"), lost_again));
        }
        assert!(!lost.add(key("b"), of("other")));
        let taken = lost.take().expect("two wait");
        assert_eq!(taken.len(), 2);
        let a = &taken[&key("a")];
        assert!(a.runs.iter().map(RunId::as_str).eq(["first", "second"]));
        assert_eq!(a.requests.len(), 0, "what a run owes is resumed once");
        assert!(lost.take().is_none());
        assert!(lost.add(key("a"), of("first")), "nobody is at it any more");
    }
}
