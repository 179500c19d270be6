//! This node's way into the cluster: finds the leader of what a request is for, here or elsewhere.
//! Step 2 of a request's way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use piton_core::effect::QueueName;
use piton_core::id::{NamespaceId, RunId, ShardId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::placement;
use piton_core::proto::common::WorkerVersionStamp;
pub use piton_core::proto::query::WorkflowQuery;
use piton_core::time::Span;
use piton_raft::NodeId;
use tokio::time::Instant;

use crate::error::{MetaError, ShardError};
use crate::message::{
    Answer, Call, Delivery, Forwarded, NodeAnswer, NodeCall, NodeStatus, Offer, PeerAnswer,
    PeerRequest, PollId, QueueCall, QueueKey, ReadCall, Receipt, Ticket, WorkflowCall,
};
use crate::meta::Meta;
use crate::route::host::ShardHost;
use crate::route::leaders::Leader;
use crate::route::sightings::Sighting;

/// How long to wait before a call that another node did not take is sent again.
const SEND_PAUSE: Duration = Duration::from_millis(20);

/// How often a request that waits for a shard's leader looks again.
const LEADER_LOOK: Duration = Duration::from_millis(5);

/// Whether a call that another node did not answer, or refused, is sent again.
fn may_send_again(call: &Call, error: &ShardError) -> bool {
    let is_unknown = matches!(error, ShardError::OutcomeUnknown(_));
    error.is_passing() || is_unknown && call.is_safe_to_repeat()
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

    /// How long a namespace keeps closed runs.
    pub(crate) fn retention_of(&self, namespace: &NamespaceId) -> Span {
        let default = || Span::of_limit_ms(self.limits().retention_ms_default);
        self.meta().namespace_by_id(namespace).map_or_else(default, |n| n.retention)
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
    /// none. A call that another node has certainly not carried out, or may carry out twice, is sent
    /// again, to whoever leads by then.
    pub(crate) async fn ask(&self, shard: ShardId, call: Call) -> Result<Answer, ShardError> {
        if let Some(leader) = self.host.serving(shard) {
            return leader.answer(call).await;
        }
        let mut leadership = self.host.leaders().watch(shard);
        let began = Instant::now();
        let until = began + self.host.config().leader_wait;
        let mut error = ShardError::Unavailable(format!("shard {shard} has no leader"));
        // Whom the last refusal named: it may know of a newer leader than this node does.
        let (mut named, mut followed) = (None, false);
        loop {
            if let Some(leader) = self.host.serving(shard) {
                let answer = leader.answer(call.after(began.elapsed())).await;
                return answer.map_err(|later| worse(error, later));
            }
            let known = leadership.borrow_and_update().leader;
            let leader = named.take().or(known).filter(|&leader| leader != self.host.node());
            if let Some(leader) = leader {
                let refusal = match self.forward(leader, shard, &call, began).await {
                    Err(refusal) if may_send_again(&call, &refusal) => refusal,
                    settled => return settled.map_err(|later| worse(error, later)),
                };
                if let ShardError::NotLeader { leader: Some(other), .. } = refusal {
                    named = Some(other).filter(|&other| other != leader);
                }
                error = worse(error, refusal);
                if named.is_some() && !std::mem::replace(&mut followed, true) {
                    continue;
                }
            }
            // Leadership shows before the duties are taken up, so a change is not all to wait for.
            let change = leadership.changed();
            let pause = if leader.is_none() { LEADER_LOOK } else { SEND_PAUSE };
            let soon = Instant::now() + pause;
            let has_stopped = tokio::time::timeout_at(soon.min(until), change).await;
            if has_stopped.is_ok_and(|changed| changed.is_err()) {
                let stopped = ShardError::Unavailable(format!("shard {shard} has stopped here"));
                return Err(worse(error, stopped));
            }
            if Instant::now() >= until {
                return Err(error);
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
    pub async fn answer_bytes(&self, request: &[u8]) -> Bytes {
        let answer = match PeerRequest::decode(request) {
            Ok(PeerRequest::Call(call)) => PeerAnswer::Call(self.answer_peer(call).await),
            Ok(PeerRequest::Deliver { poll, delivery }) => {
                PeerAnswer::Deliver(self.accept_delivery(poll, delivery))
            }
            Ok(PeerRequest::Node(call)) => PeerAnswer::Node(self.answer_node(call).await),
            Err(error) => PeerAnswer::not_understood(&error),
        };
        answer.encode()
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
        let Some(serving) = self.host.serving(shard) else {
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

    /// Answers what another node, or this one, asks of this node.
    ///
    /// # Errors
    /// See [`MetaError`].
    pub async fn answer_node(&self, call: NodeCall) -> Result<NodeAnswer, MetaError> {
        match call {
            NodeCall::Meta(call) => self.meta().answer(call).await.map(NodeAnswer::Version),
            NodeCall::Status(status) => {
                self.hear(*status);
                Ok(NodeAnswer::Done)
            }
            NodeCall::Lead { shard, to } => {
                if let Some(replica) = self.host.replica(shard) {
                    replica.group.transfer_leader(to).await;
                }
                Ok(NodeAnswer::Done)
            }
        }
    }

    /// Asks a node something that is not about its shards, this one among them.
    ///
    /// # Errors
    /// What it answers; see [`MetaError`].
    pub async fn ask_node(&self, node: NodeId, call: NodeCall) -> Result<NodeAnswer, MetaError> {
        if node == self.host.node() {
            return self.answer_node(call).await;
        }
        self.host.peer().node(node, call).await
    }

    /// Takes a snapshot of this node's replica of a shard, and says up to which index it holds.
    ///
    /// # Errors
    /// When there is none, or it cannot be taken.
    pub async fn snapshot(&self, shard: ShardId) -> Result<u64, ShardError> {
        let replica = self.host.replica(shard);
        let replica = replica
            .ok_or_else(|| ShardError::Unavailable(format!("this node has no shard {shard}")))?;
        let taken = replica.group.snapshot_now().await;
        taken.map_err(|error| ShardError::Unavailable(error.to_string()))
    }

    /// A node has said how it is: with it comes who leads.
    pub(crate) fn hear(&self, status: NodeStatus) {
        for (shard, replica) in status.shards.iter().filter(|(_, replica)| replica.serves) {
            let now = Leader { term: replica.term, leader: Some(status.node) };
            self.host.leaders().hear(*shard, now);
        }
        self.host.sightings().hear(status);
    }

    /// What the nodes of the cluster said of themselves last.
    pub fn sightings(&self) -> BTreeMap<NodeId, Sighting> {
        self.host.sightings().all()
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

    /// Sends until somebody takes it, or for as long as a request waits for a leader.
    async fn send_until_taken(&self, shard: ShardId, call: Call) {
        let until = Instant::now() + self.host.config().leader_wait;
        let error = loop {
            match self.ask(shard, call.clone()).await {
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
        let until = Instant::now() + self.host.config().leader_wait;
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
