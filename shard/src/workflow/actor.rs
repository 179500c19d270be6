//! One actor per workflow id: takes all requests that wait, decides them one after the other,
//! proposes them together, and replies after the commit (architecture D5). Step 3 of a request's way.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures::FutureExt;
use parking_lot::Mutex;
use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::run::HeldTask;
use piton_core::time::Timestamp;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use crate::error::ShardError;
use crate::leader::mailbox::Mailbox;
use crate::leader::panics;
use crate::leader::term::ShardRuntime;
use crate::message::{Answer, Delivery, WorkflowCall};
use crate::route::cluster::Cluster;
use crate::rows::retention::{ExpireRow, Turn};
use crate::workflow::batch::Hosted;

/// A request and who waits for its answer.
pub(crate) struct Envelope {
    pub(crate) ask: Ask,
    pub(crate) reply: ReplyTo,
}

impl Envelope {
    /// Not carried out: whoever waits hears why, and the poll of a ticket goes on.
    pub(crate) fn refuse(self, cluster: &Cluster, why: ShardError) {
        match self.ask {
            Ask::Call(WorkflowCall::Ticket(ticket)) => {
                cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
            }
            Ask::Subscribe { tell, .. } => {
                // The reader may have gone away.
                let _ = tell.send(Err(why.clone()));
            }
            Ask::Call(_) | Ask::Resume { .. } | Ask::Expire(..) | Ask::StickyWaitOver { .. } => {}
        }
        self.reply.send(Err(why));
    }
}

/// What an actor may be asked: a call from outside, or something of the shard's own.
#[expect(clippy::large_enum_variant, reason = "almost all are calls")]
pub(crate) enum Ask {
    Call(WorkflowCall),
    /// Follow a run's history.
    Subscribe {
        run_id: RunId,
        tell: Tell,
    },
    /// Carry out what a run owes, which an earlier leader or actor left.
    Resume {
        run_id: RunId,
    },
    /// The sticky queue's worker had its time to take this query.
    StickyWaitOver {
        run_id: RunId,
        query: u64,
    },
    /// Remove a closed run whose retention is over, or a request id that is old enough.
    Expire(ExpireRow, Turn),
}

/// Where a follower of a run's history waits for its view.
pub(crate) type Tell = oneshot::Sender<Result<watch::Receiver<Subscription>, ShardError>>;

/// How far a run's history is committed, and the task that a worker holds beyond that.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) next_event_id: EventId,
    pub(crate) open: bool,
    pub(crate) held: Option<Arc<HeldTask>>,
}

impl Subscription {
    /// Whether the committed history is the same.
    pub(crate) fn is_as_far_as(&self, other: &Subscription) -> bool {
        (self.next_event_id, self.open) == (other.next_event_id, other.open)
    }
}

/// Who waits for an answer; nobody does for requests of our own.
pub(crate) struct ReplyTo(Option<oneshot::Sender<Result<Answer, ShardError>>>);

impl ReplyTo {
    pub(crate) fn new(sender: oneshot::Sender<Result<Answer, ShardError>>) -> Self {
        Self(Some(sender))
    }

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

/// A hosted workflow: its queue and its actor.
pub(crate) struct Seat {
    pub(crate) mailbox: Mailbox<Envelope>,
    actor: Mutex<Option<ActorRef<Look>>>,
    last_used_nanos: AtomicI64,
    /// The workflow has an open run, as far as its actor knows.
    open: AtomicBool,
    /// A worker has its workflow task, whose row stands until the answer.
    held: AtomicBool,
}

pub(crate) enum Look {
    Now,
    /// Leave memory unless there is something to do.
    Passivate,
}

impl Seat {
    pub(crate) fn host(shard: &Arc<ShardRuntime>, key: WorkflowKey) -> Arc<Self> {
        let seat = Arc::new(Self {
            mailbox: Mailbox::new(shard.config.mailbox_len_max),
            actor: Mutex::new(None),
            last_used_nanos: AtomicI64::new(shard.clock.now().as_nanos()),
            open: AtomicBool::new(true),
            held: AtomicBool::new(false),
        });
        let hosted = Hosted::new(Arc::clone(shard), Arc::clone(&seat), key);
        match ractor::ActorRuntime::spawn_instant(None, WorkflowActor, hosted) {
            Ok((actor, _)) => *seat.actor.lock() = Some(actor),
            Err(error) => tracing::error!(%error, "cannot start a workflow's actor"),
        }
        seat
    }

    /// A request was added; tells the actor if it has to be told.
    pub(crate) fn used(&self, now: Timestamp, tell: bool) {
        self.last_used_nanos.store(now.as_nanos(), Ordering::Relaxed);
        if tell {
            self.cast(Look::Now);
        }
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

    pub(crate) fn passivate(&self) {
        self.cast(Look::Passivate);
    }

    fn cast(&self, look: Look) {
        if let Some(actor) = &*self.actor.lock() {
            // An actor that has stopped closed its queue first.
            let _ = actor.cast(look);
        }
    }

    /// Ends the actor at once; whoever waits hears `why`.
    pub(crate) fn stop(&self, cluster: &Cluster, why: &ShardError) {
        refuse_all(self.mailbox.close(), cluster, why);
        if let Some(actor) = self.actor.lock().take() {
            actor.stop(None);
        }
    }
}

pub(crate) fn refuse_all(waiting: VecDeque<Envelope>, cluster: &Cluster, why: &ShardError) {
    for envelope in waiting {
        envelope.refuse(cluster, why.clone());
    }
}

pub(crate) struct WorkflowActor;

impl Actor for WorkflowActor {
    type Msg = Look;
    type State = Hosted;
    type Arguments = Hosted;

    async fn pre_start(
        &self,
        _: ActorRef<Look>,
        hosted: Hosted,
    ) -> Result<Hosted, ActorProcessingErr> {
        Ok(hosted)
    }

    async fn handle(
        &self,
        myself: ActorRef<Look>,
        look: Look,
        hosted: &mut Hosted,
    ) -> Result<(), ActorProcessingErr> {
        // Boxed: an actor's own future stays as small as what it waits for, and most only wait.
        if let Err(error) = Box::pin(work(hosted)).await {
            // Architecture D5: the outcome of a commit is unknown or the state cannot be trusted,
            // so the actor goes, and the next request re-hosts the workflow from its rows.
            tracing::debug!(key = ?hosted.key, %error, "a workflow's actor gives up");
            hosted.shard.leave(&hosted.key, &hosted.seat);
            hosted.abandon(&error);
            myself.stop(None);
            return Ok(());
        }
        let leaves = matches!(look, Look::Passivate) || hosted.shard.config.idle.is_zero();
        if leaves && hosted.is_idle() && hosted.seat.mailbox.close_if_empty() {
            hosted.shard.leave(&hosted.key, &hosted.seat);
            myself.stop(None);
        }
        Ok(())
    }
}

/// Works until nothing waits. A panic is a bug of ours in one workflow: it ends this actor only.
async fn work(hosted: &mut Hosted) -> Result<(), ShardError> {
    loop {
        let waiting = hosted.seat.mailbox.take();
        if waiting.is_empty() {
            return Ok(());
        }
        let processed = AssertUnwindSafe(hosted.process(waiting)).catch_unwind().await;
        processed.unwrap_or_else(|panic| {
            let panic = panics::text_of(panic.as_ref());
            tracing::error!(key = ?hosted.key, panic, "a workflow's actor panicked");
            Err(ShardError::Internal("an internal error in this workflow".into()))
        })?;
    }
}
