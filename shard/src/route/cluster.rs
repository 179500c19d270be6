//! This node's way into the cluster: finds the leader of what a request is for, here or elsewhere.
//! Step 2 of a request's way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use piton_core::effect::QueueName;
use piton_core::id::{NamespaceId, RunId, ShardId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::placement;
use piton_core::proto::common::WorkerVersionStamp;
pub use piton_core::proto::query::WorkflowQuery;
use piton_core::time::Span;
use piton_raft::NodeId;
use tokio::time::Instant;

use crate::error::ShardError;
use crate::message::{
    Answer, Call, Delivery, Forwarded, Offer, PeerAnswer, PeerRequest, PollId, QueueCall, QueueKey,
    ReadCall, Receipt, Ticket, WorkflowCall,
};
use crate::meta::Meta;
use crate::route::host::ShardHost;
use crate::route::leaders::Leader;

/// How long to wait before a call that another node did not take is sent again.
const SEND_PAUSE: Duration = Duration::from_millis(20);

/// How often a request that waits for a shard's leader looks again where it has heard nothing.
const LEADER_LOOK: Duration = Duration::from_millis(100);

/// How long a leader that is none any more may take to answer a call that may be sent again; and another.
const MOVED_WAIT: Duration = Duration::from_millis(100);
const MOVED_WAIT_UNSAFE: Duration = Duration::from_millis(500);

/// A node that was heard of before, and not for so long, is not waited for.
const SILENT_MAX: Duration = Duration::from_secs(2);
/// How often who waits for a node looks whether it is silent.
const SILENT_LOOK: Duration = Duration::from_millis(250);

/// Whether a call that was refused, or not answered, is sent again. What this node cannot do it says at
/// once, unless somebody else may be able to.
fn may_send_again(call: &Call, error: &ShardError, is_here: bool) -> bool {
    match error {
        ShardError::NotLeader { .. } => true,
        ShardError::Unavailable(_) => !is_here,
        ShardError::OutcomeUnknown(_) => call.is_safe_to_repeat(),
        _ => false,
    }
}

/// What is to be said of a call that failed more than once: if it was perhaps carried out the first time,
/// no later refusal says that it was not.
fn worse(before: ShardError, later: ShardError) -> ShardError {
    let was_unknown = matches!(before, ShardError::OutcomeUnknown(_));
    if was_unknown && later.is_retriable() { before } else { later }
}

/// A worker's poll.
#[derive(Clone, Debug)]
pub struct Poll {
    pub queue: QueueName,
    pub identity: String,
    /// Names the worker process to `ShutdownWorker`; empty if it gave none.
    pub worker_instance_key: String,
    /// What the worker says of its build.
    pub worker_version: Option<WorkerVersionStamp>,
    /// When the poll is answered empty.
    pub deadline: Instant,
}

/// This node's view of all shards. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    host: Arc<ShardHost>,
}

impl Cluster {
    pub fn new(host: Arc<ShardHost>) -> Self {
        Self { host }
    }

    pub fn host(&self) -> &Arc<ShardHost> {
        &self.host
    }

    pub fn meta(&self) -> &Meta {
        self.host.meta()
    }

    pub(crate) fn limits(&self) -> Arc<Limits> {
        self.meta().limits()
    }

    /// How long a namespace keeps closed runs; `None`: this node does not know it yet.
    pub(crate) fn retention_of(&self, namespace: &NamespaceId) -> Option<Span> {
        self.meta().namespace_by_id(namespace).map(|namespace| namespace.retention)
    }

    /// The cluster's feature level: what is written is such that every node can read it.
    pub(crate) fn level(&self) -> u32 {
        self.meta().state().settings().level
    }

    pub(crate) fn new_run_id(&self) -> RunId {
        RunId::from(self.host.ids().draw_in_order().to_string())
    }

    pub fn shard_of(&self, key: &WorkflowKey) -> ShardId {
        self.host.shard_of_slot(placement::slot_of(key))
    }

    pub(crate) fn shard_of_queue(&self, queue: &QueueKey) -> ShardId {
        let slot = placement::slot_of_parts(queue.namespace.as_str(), &queue.queue.name);
        self.host.shard_of_slot(slot)
    }

    /// Asks a workflow.
    pub(crate) async fn call(&self, call: WorkflowCall) -> Result<Answer, ShardError> {
        self.ask(self.shard_of(&call.key()), call.into()).await
    }

    /// Asks the leader of a shard: here, or at most one hop away. Waits for a leader if there is
    /// none. A call that was certainly not carried out, or may be carried out twice, is sent again, to
    /// whoever leads by then.
    pub(crate) async fn ask(&self, shard: ShardId, call: Call) -> Result<Answer, ShardError> {
        let sole = self.host.deciding(shard).filter(|_| self.host.is_sole_voter(shard));
        if let Some(sole) = sole {
            // There is nobody else to ask.
            return sole.answer(call).await;
        }
        let (mut leadership, mut duties) = (self.host.leaders().watch(shard), self.host.duties());
        let (began, this) = (Instant::now(), self.host.node());
        let until = began + self.host.config().leader_wait;
        let mut error = ShardError::Unavailable(format!("shard {shard} has no leader"));
        // Whom the last refusal named: it may know of a newer leader than this node does.
        let (mut named, mut followed) = (None, false);
        loop {
            duties.borrow_and_update();
            let known = leadership.borrow_and_update().leader;
            let here = self.host.deciding(shard);
            let other = named.take().or(known).filter(|&leader| leader != this);
            let refusal = match (here, other) {
                (Some(here), _) => {
                    let answer = here.answer(call.clone().after(began.elapsed()));
                    let answer = self.unless_it_moves(shard, this, &call, answer).await;
                    Some(answer.map_err(|refusal| (this, refusal)))
                }
                (None, Some(leader)) => {
                    let answer = self.forward(leader, shard, &call, began);
                    let answer = self.unless_it_moves(shard, leader, &call, answer).await;
                    Some(answer.map_err(|refusal| (leader, refusal)))
                }
                (None, None) => None,
            };
            let was_asked = refusal.is_some();
            if let Some(answered) = refusal {
                let (asked, refusal) = match answered {
                    Err((asked, refusal)) if may_send_again(&call, &refusal, asked == this) => {
                        (asked, refusal)
                    }
                    settled => return settled.map_err(|(_, later)| worse(error, later)),
                };
                if let ShardError::NotLeader { leader: Some(other), .. } = refusal {
                    named = Some(other).filter(|&other| other != asked);
                }
                let is_unknown = matches!(refusal, ShardError::OutcomeUnknown(_));
                error = worse(error, refusal);
                if named.is_some() && !std::mem::replace(&mut followed, true) {
                    continue;
                }
                // It took long to find out, and now somebody else leads: no time to wait for anybody.
                if is_unknown && leadership.borrow().leader.is_some_and(|now| now != asked) {
                    continue;
                }
            }
            // Leadership shows before the duties are taken up, so a change is not all to wait for.
            let change = async {
                tokio::select! {
                    changed = leadership.changed() => changed,
                    changed = duties.changed() => changed,
                }
            };
            let pause = if was_asked { SEND_PAUSE } else { LEADER_LOOK };
            let soon = Instant::now() + pause;
            let has_stopped = tokio::time::timeout_at(soon.min(until), change).await;
            if has_stopped.is_ok_and(|changed| changed.is_err()) {
                let stopped = ShardError::Unavailable(format!("shard {shard} has stopped here"));
                return Err(worse(error, stopped));
            }
            if Instant::now() >= until || self.is_in_vain(began) {
                return Err(error);
            }
        }
    }

    /// Waits for the answer of the node that leads, but not much longer than it does: one that is
    /// frozen or cut off would hold its callers for as long as they wait. What may be sent again is sent
    /// to the next leader at once; of anything else the old one may still say what became of it.
    async fn unless_it_moves(
        &self,
        shard: ShardId,
        asked: NodeId,
        call: &Call,
        answer: impl Future<Output = Result<Answer, ShardError>>,
    ) -> Result<Answer, ShardError> {
        let mut leadership = self.host.leaders().watch(shard);
        let before = *leadership.borrow_and_update();
        let patience = if call.is_safe_to_repeat() { MOVED_WAIT } else { MOVED_WAIT_UNSAFE };
        let moves = async {
            loop {
                let has_moved = |now: &Leader| *now != before && now.leader != Some(asked);
                if leadership.wait_for(has_moved).await.is_err() {
                    // The node stops, which ends the call as well.
                    return std::future::pending().await;
                }
                let back = leadership.wait_for(|now| !has_moved(now));
                if tokio::time::timeout(patience, back).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = moves => {
                let text = format!("node {asked} leads shard {shard} no longer");
                Err(ShardError::OutcomeUnknown(text))
            }
            () = self.silence_of(asked) => {
                Err(ShardError::OutcomeUnknown(format!("node {asked} is silent")))
            }
        }
    }

    /// Returns when another node has not been heard of for too long. Not of one that was never heard of:
    /// it may have been found in other ways.
    async fn silence_of(&self, node: NodeId) {
        if node == self.host.node() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(SILENT_LOOK).await;
            if self.host.sightings().silent_for(node).is_some_and(|time| time >= SILENT_MAX) {
                return;
            }
        }
    }

    /// Sends a call to another node, and waits as long as its caller does.
    async fn forward(
        &self,
        leader: NodeId,
        shard: ShardId,
        call: &Call,
        began: Instant,
    ) -> Result<Answer, ShardError> {
        let call = call.clone().after(began.elapsed());
        let longest = self.host.config().call_wait;
        let timeout = match (&call, call.patience()) {
            // It is held for as long, and then answered.
            (Call::Read(ReadCall::History { .. }), Some(wait)) => wait + longest,
            (_, patience) => patience.unwrap_or(longest.saturating_sub(began.elapsed())),
        };
        let meta_version = self.meta().state().version;
        self.host.peer().call(leader, Forwarded { shard, timeout, meta_version, call }).await
    }

    /// Answers what another node asks, as bytes.
    pub fn answer_bytes<'a>(&'a self, from: NodeId, request: &'a [u8]) -> BoxFuture<'a, Bytes> {
        Box::pin(async move {
            let answer = match PeerRequest::decode(request) {
                Ok(PeerRequest::Call(call)) => PeerAnswer::Call(self.answer_peer(call).await),
                Ok(PeerRequest::Deliver { poll, delivery }) => {
                    PeerAnswer::Deliver(self.accept_delivery(poll, delivery))
                }
                Ok(PeerRequest::Node(call)) => PeerAnswer::Node(self.answer_node(from, call).await),
                Err(error) => PeerAnswer::not_understood(&error),
            };
            answer.encode()
        })
    }

    /// Answers a call that another node sent here. Nobody waits for the answer any more when its
    /// timeout is over.
    ///
    /// # Errors
    /// What the shard answers; `NotLeader` when this node does not lead it.
    // INVARIANT: a call makes one hop. Two nodes that each think that the other leads would send it to
    // and fro.
    pub async fn answer_peer(&self, forwarded: Forwarded) -> Result<Answer, ShardError> {
        let Forwarded { shard, timeout, meta_version, call } = forwarded;
        if !self.host.has(shard) {
            return Err(ShardError::Unavailable(format!("this node has no shard {shard}")));
        }
        let Some(serving) = self.host.deciding(shard) else {
            let leader = self.host.leaders().leader(shard);
            let leader = leader.filter(|&leader| leader != self.host.node());
            return Err(ShardError::NotLeader { shard, leader });
        };
        let answered = tokio::time::timeout(timeout, async {
            // What its sender knows of namespaces the call relies on.
            self.meta().see(meta_version).await?;
            serving.answer(call).await
        });
        answered.await.unwrap_or_else(|_| {
            let text = format!("it took longer than {} ms", timeout.as_millis());
            Err(ShardError::OutcomeUnknown(text))
        })
    }

    /// Hands a task that another node sent to one of this node's polls.
    pub fn accept_delivery(&self, poll: PollId, delivery: Delivery) -> Receipt {
        self.host.polls().deliver(poll, delivery)
    }

    /// Tells a shard's leader something whose loss costs latency only.
    pub(crate) fn send(&self, shard: ShardId, call: Call) {
        match self.host.serving(shard) {
            Some(leader) => leader.post(call),
            None => self.insist(shard, call),
        }
    }

    /// Tells a queue that a poll of this node has ended without a task.
    pub(crate) fn withdraw_poll(&self, queue: &QueueKey, poll: PollId) {
        let shard = self.shard_of_queue(queue);
        let node = self.host.node();
        let call = Call::from(QueueCall::WithdrawPoll { queue: queue.clone(), node, poll });
        if let Some(leader) = self.host.serving(shard) {
            return leader.post(call);
        }
        // A node that stops waits for it.
        let (cluster, withdrawing) = (self.clone(), self.host.polls().withdraw());
        tokio::spawn(async move {
            cluster.send_until_taken(shard, call).await;
            drop(withdrawing);
        });
    }

    /// Tells a shard's leader something whose loss nothing else would repair.
    pub(crate) fn insist(&self, shard: ShardId, call: Call) {
        let cluster = self.clone();
        tokio::spawn(async move { cluster.send_until_taken(shard, call).await });
    }

    /// The same after a pause: what was sent failed at once and may well do so again.
    pub(crate) fn insist_again(&self, shard: ShardId, call: Call) {
        let cluster = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SEND_PAUSE).await;
            cluster.send_until_taken(shard, call).await;
        });
    }

    /// Sends until somebody takes it, or for as long as that may be of use.
    async fn send_until_taken(&self, shard: ShardId, call: Call) {
        let until = Instant::now() + self.host.config().insist_wait;
        let error = loop {
            // The leader here takes it also while it is cut off: what it proposed before may be committed
            // yet, and a ticket that is given up meanwhile leaves its attempt to nobody.
            let answered = match self.host.serving(shard) {
                Some(leader) => leader.answer(call.clone()).await,
                None => self.ask(shard, call.clone()).await,
            };
            match answered {
                Ok(_) => return,
                Err(error) if error.is_retriable() && Instant::now() < until => {
                    tokio::time::sleep(SEND_PAUSE).await;
                }
                Err(error) => break error,
            }
        };
        tracing::debug!(%shard, %error, "a call to another node was lost");
        if let Call::Workflow(WorkflowCall::Ticket(ticket)) = call {
            // The pair goes back to where it was made.
            self.deliver(ticket.node, ticket.poll, Delivery::Again);
            self.offer(ticket.offer);
        }
    }

    pub(crate) fn offer(&self, offer: Offer) {
        self.send_to_queue(QueueCall::Offer(offer));
    }

    /// Whether another node owns this queue.
    pub(crate) fn is_elsewhere(&self, queue: &QueueKey) -> bool {
        self.host.serving(self.shard_of_queue(queue)).is_none()
    }

    /// The ticket of a task that is not committed yet, if a poll waits for it in a queue that this node
    /// owns. Otherwise it is offered once it is committed.
    pub(crate) fn meet(&self, offer: Offer) -> Option<Ticket> {
        let owner = self.host.serving(self.shard_of_queue(&offer.queue))?;
        let poll = owner.take_poll(&offer.queue, &offer.class.version)?;
        Some(Ticket::new(offer, poll))
    }

    /// Tells a queue something whose loss costs latency only.
    pub(crate) fn send_to_queue(&self, call: QueueCall) {
        self.send(self.shard_of_queue(call.queue()), call.into());
    }

    /// Hands something to a poll, whether it is still there or not.
    pub(crate) fn deliver(&self, node: NodeId, poll: PollId, delivery: Delivery) {
        if node == self.host.node() {
            // A poll that has gone needs nothing any more.
            let _ = self.host.polls().deliver(poll, delivery);
            return;
        }
        let peer = Arc::clone(self.host.peer());
        tokio::spawn(async move { peer.deliver(node, poll, delivery).await });
    }

    /// Hands a task to a poll.
    pub(crate) async fn deliver_to(
        &self,
        node: NodeId,
        poll: PollId,
        delivery: Delivery,
    ) -> Receipt {
        if node == self.host.node() {
            return self.accept_delivery(poll, delivery);
        }
        self.host.peer().deliver(node, poll, delivery).await
    }

    /// The same for an attempt of an activity, which at most one worker may be given: where the poll
    /// is known not to have it, `undelivered` goes to its shard. A node that does not answer is asked
    /// again; where nobody knows, the attempt is left to its timeout (D8, P3).
    pub(crate) async fn deliver_attempt(
        &self,
        (node, poll): (NodeId, PollId),
        delivery: Delivery,
        undelivered: (ShardId, WorkflowCall),
    ) {
        if node == self.host.node() {
            return self.settle_attempt(self.accept_delivery(poll, delivery), undelivered);
        }
        let until = Instant::now() + self.host.config().insist_wait;
        let receipt = self.deliver_to(node, poll, delivery.clone()).await;
        if receipt != Receipt::Unreachable {
            return self.settle_attempt(receipt, undelivered);
        }
        // Not here: the workflow's actor goes on meanwhile.
        let cluster = self.clone();
        tokio::spawn(async move {
            let mut receipt = receipt;
            while receipt == Receipt::Unreachable && Instant::now() < until {
                tokio::time::sleep(SEND_PAUSE).await;
                receipt = cluster.deliver_to(node, poll, delivery.clone()).await;
            }
            cluster.settle_attempt(receipt, undelivered);
        });
    }

    fn settle_attempt(&self, receipt: Receipt, (shard, call): (ShardId, WorkflowCall)) {
        match receipt {
            Receipt::Taken => {}
            Receipt::Gone => self.insist(shard, call.into()),
            Receipt::Unknown | Receipt::Unreachable => {
                tracing::debug!(%shard, ?receipt, "an attempt is left to its timeout");
            }
        }
    }

    pub(crate) fn wrong_answer<T>(&self) -> Result<T, ShardError> {
        Err(ShardError::Internal("a call was answered with something else".into()))
    }
}
