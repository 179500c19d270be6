//! Where frames come in and go out: pairs answers with requests, and hands requests to their group.
//!
//! Owns the requests and append sessions under way. Nothing here waits for storage: what may is
//! spawned onto Raft's runtime or onto its blocking threads.

mod session;
mod transfer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesResponse, StreamAppendError};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::config::NodeId;
use crate::error::TransportError;
use crate::execution;
use crate::frame::{Answer, Body, Frame, Request};
use crate::log::{GroupId, Log};
use crate::log_store::LogStore;
use crate::snapshot::Snapshots;
use crate::transport::{Inbox, Lane, Transport};
use crate::types::{AppendRequest, LogId, Raft, TypeConfig, term_of};

use session::InboundSession;
pub(crate) use session::{OpenSession, SessionAnswer};
use transfer::{Transfers, install};

/// Bytes of entries that may be under way to one node, over all groups. On a link of 10 MB/s the
/// oldest of them is answered within a leader's patience.
const WINDOW_BYTES: usize = 8 << 20;
/// How long who is asked for a lost peer waits for the same news.
const LOST_PATIENCE: Duration = Duration::from_millis(100);
/// Room in the window is given out by this many bytes.
const WINDOW_UNIT: usize = 1024;

/// A group that runs on this node, as its peers see it.
pub(crate) struct Member {
    pub(crate) raft: Raft,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) store: LogStore,
    log: Log,
    /// A log that has not completed a sync for this long is of no use to a leader.
    stall_limit: Duration,
    transfers: Transfers,
}

impl Member {
    pub(crate) fn new(
        raft: Raft,
        snapshots: Arc<Snapshots>,
        store: LogStore,
        log: Log,
        stall_limit: Duration,
    ) -> Member {
        let transfers = Transfers::new();
        Member { raft, snapshots, store, log, stall_limit, transfers }
    }

    /// Waits until nothing of it is under way any more, once it was removed and has stopped.
    pub(crate) async fn ended(&self) {
        self.transfers.ended().await;
    }
}

/// Why a question got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    Unreachable,
    Timeout,
    Refused,
}

/// The switch of one node.
pub(crate) struct Switch {
    node: NodeId,
    transport: Arc<dyn Transport>,
    runtime: Handle,
    members: RwLock<HashMap<GroupId, Arc<Member>>>,
    questions: Mutex<BTreeMap<u64, (NodeId, oneshot::Sender<Answer>)>>,
    sessions: Mutex<BTreeMap<u64, (NodeId, mpsc::UnboundedSender<SessionAnswer>)>>,
    inbound: Mutex<BTreeMap<(GroupId, NodeId), InboundSession>>,
    /// Room for entries on the way to each node.
    windows: Mutex<BTreeMap<NodeId, Arc<Semaphore>>>,
    /// Nodes whose process is gone, as far as this one can see: nothing has come from them since.
    lost: watch::Sender<BTreeSet<NodeId>>,
    next_number: AtomicU64,
}

impl Switch {
    pub(crate) fn new(
        node: NodeId,
        transport: Arc<dyn Transport>,
        runtime: Handle,
        first_number: u64,
    ) -> Arc<Switch> {
        Arc::new(Switch {
            node,
            transport,
            runtime,
            members: RwLock::new(HashMap::new()),
            questions: Mutex::new(BTreeMap::new()),
            sessions: Mutex::new(BTreeMap::new()),
            inbound: Mutex::new(BTreeMap::new()),
            windows: Mutex::new(BTreeMap::new()),
            lost: watch::Sender::new(BTreeSet::new()),
            next_number: AtomicU64::new(first_number),
        })
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// From now on frames of this group are handed to it.
    pub(crate) fn add(&self, group: GroupId, member: Arc<Member>) {
        self.members.write().insert(group, member);
    }

    /// Frames of this group are refused from now on.
    pub(crate) fn remove(&self, group: GroupId) -> Option<Arc<Member>> {
        let removed = self.members.write().remove(&group);
        if let Some(member) = &removed {
            member.transfers.close();
        }
        self.inbound.lock().retain(|(of, _), _| *of != group);
        removed
    }

    /// Frames of all groups are refused from now on.
    pub(crate) fn clear(&self) -> Vec<Arc<Member>> {
        let removed: Vec<_> = self.members.write().drain().map(|(_, member)| member).collect();
        for member in &removed {
            member.transfers.close();
        }
        self.inbound.lock().clear();
        self.sessions.lock().clear();
        self.questions.lock().clear();
        removed
    }

    pub(crate) fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// A node's process is gone, as far as this one can see.
    pub(crate) fn lose(&self, peer: NodeId) {
        self.lost.send_modify(|lost| {
            lost.insert(peer);
        });
    }

    pub(crate) fn is_lost(&self, peer: NodeId) -> bool {
        self.lost.borrow().contains(&peer)
    }

    /// The same for one who asks, which may have heard of it first.
    async fn is_lost_soon(&self, peer: NodeId) -> bool {
        let mut lost = self.lost.subscribe();
        let told = lost.wait_for(|lost| lost.contains(&peer));
        tokio::time::timeout(LOST_PATIENCE, told).await.is_ok()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Whether there is a connection to a node.
    pub(crate) fn is_connected(&self, to: NodeId, lane: Lane) -> bool {
        self.transport.is_connected(to, lane)
    }

    /// Waits for room on the way to a node; `None`: this node stops. Who waits longest is served
    /// first.
    pub(crate) fn room(
        &self,
        to: NodeId,
        bytes: usize,
    ) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let all = WINDOW_BYTES / WINDOW_UNIT;
        // What is larger than all there is goes alone.
        let units = u32::try_from(bytes.div_ceil(WINDOW_UNIT).min(all)).unwrap_or(u32::MAX);
        let mut windows = self.windows.lock();
        let window = windows.entry(to).or_insert_with(|| Arc::new(Semaphore::new(all)));
        let room = Arc::clone(window).acquire_many_owned(units);
        async move { room.await.ok() }
    }

    fn send(&self, to: NodeId, lane: Lane, frame: &Frame) -> Result<(), TransportError> {
        // Nothing is encoded for a node that is not there.
        if !self.is_connected(to, lane) {
            return Err(TransportError::Unreachable);
        }
        self.send_encoded(to, lane, frame.encode())
    }

    pub(crate) fn send_encoded(
        &self,
        to: NodeId,
        lane: Lane,
        frame: Bytes,
    ) -> Result<(), TransportError> {
        self.transport.send(to, lane, frame)
    }

    /// Sends a question; its answer can be waited for.
    pub(crate) fn question(
        self: &Arc<Self>,
        to: NodeId,
        lane: Lane,
        group: GroupId,
        request: Request,
    ) -> Result<Question, TransportError> {
        let number = self.number();
        let (tx, answer) = oneshot::channel();
        self.questions.lock().insert(number, (to, tx));
        let question = Question { switch: self.clone(), number, answer };
        let frame = Frame { group, number, body: Body::Request(request) };
        self.send(to, lane, &frame).map(|()| question)
    }

    /// Asks a node and waits for its answer.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        to: NodeId,
        lane: Lane,
        group: GroupId,
        request: Request,
        limit: Duration,
    ) -> Result<Answer, Unanswered> {
        let question = self.question(to, lane, group, request);
        let question = question.map_err(|_| Unanswered::Unreachable)?;
        match tokio::time::timeout(limit, question.answer()).await {
            Ok(Some(Answer::Refused)) => Err(Unanswered::Refused),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Unanswered::Unreachable),
            Err(_) => Err(Unanswered::Timeout),
        }
    }

    fn member(&self, group: GroupId) -> Option<Arc<Member>> {
        self.members.read().get(&group).cloned()
    }

    fn reply(&self, to: NodeId, lane: Lane, frame: &Frame) {
        // A lost answer is asked for again.
        let _ = self.send(to, lane, frame);
    }

    async fn answer(self: Arc<Self>, from: NodeId, group: GroupId, number: u64, request: Request) {
        let lane = match &request {
            Request::SnapshotBegin { .. }
            | Request::SnapshotPart { .. }
            | Request::SnapshotInstall { .. } => Lane::Bulk,
            Request::Heartbeat(_)
            | Request::Vote(_)
            | Request::PreVote(_)
            | Request::Transfer(_)
            | Request::PeerLost { .. } => Lane::Urgent,
        };
        let is_trial = matches!(request, Request::PreVote(_));
        let answer = match (self.member(group), request) {
            (None, _) => Answer::Refused,
            (Some(member), Request::SnapshotBegin { name }) => {
                self.clone().begin_transfer(from, group, member, name).await
            }
            (Some(_), Request::PeerLost { peer }) => {
                Answer::PeerLost(self.is_lost_soon(peer).await)
            }
            (Some(member), request) => answer(group, member, from, request).await,
        };
        let is_vote = matches!(&answer, Answer::Vote(vote) if vote.vote_granted) && !is_trial;
        self.reply(from, lane, &Frame { group, number, body: Body::Answer(answer) });
        if is_vote {
            execution::failpoint(self.node, group, "after vote");
        }
    }
}

/// What a transport holds of a switch. A transport may outlive the node, and must not keep it.
pub(crate) struct SwitchInbox(pub(crate) std::sync::Weak<Switch>);

impl Inbox for SwitchInbox {
    fn receive(&self, from: NodeId, frame: Bytes) {
        let Some(switch) = self.0.upgrade() else { return };
        if switch.is_lost(from) {
            switch.lost.send_modify(|lost| {
                lost.remove(&from);
            });
        }
        let Frame { group, number, body } = match Frame::decode(frame) {
            Ok(frame) if frame.may_come_from(from) => frame,
            Ok(_) => {
                tracing::warn!(node = %switch.node, %from, "frame dropped: nobody may say that");
                return;
            }
            Err(error) => {
                tracing::warn!(node = %switch.node, %from, %error, "frame dropped");
                return;
            }
        };
        match body {
            Body::Append { sequence, request } => {
                switch.append(from, group, number, sequence, request);
            }
            Body::Appended { sequence, result } => {
                execution::failpoint(switch.node, group, "after replicate");
                if let Some((to, answers)) = switch.sessions.lock().get(&number)
                    && *to == from
                {
                    // The session's end was reached before it was taken off the list.
                    let _ = answers.send((sequence, result));
                }
            }
            // These must not overtake each other.
            Body::Request(Request::SnapshotPart { index, offset, part }) => {
                switch.take_part(from, group, number, index, offset, part);
            }
            Body::Request(request) => {
                let runtime = switch.runtime.clone();
                runtime.spawn(switch.answer(from, group, number, request));
            }
            Body::Answer(answer) => {
                let mut questions = switch.questions.lock();
                if questions.get(&number).is_some_and(|(to, _)| *to == from)
                    && let Some((_, question)) = questions.remove(&number)
                {
                    // Nobody waits any more.
                    let _ = question.send(answer);
                }
            }
        }
    }

    fn sent_is_lost(&self, peer: NodeId, lane: Lane) {
        let Some(switch) = self.0.upgrade().filter(|_| lane == Lane::Entries) else { return };
        // They end, and the next ones send it again as soon as there is a connection.
        switch.sessions.lock().retain(|_, (to, _)| *to != peer);
    }

    fn answers_are_lost(&self, peer: NodeId, lane: Lane) {
        let Some(switch) = self.0.upgrade().filter(|_| lane == Lane::Entries) else { return };
        // They end, too; but what they have sent is on its way, and takes up room until it is answered.
        for (_, session) in switch.sessions.lock().values().filter(|(to, _)| *to == peer) {
            // It has ended by itself.
            let _ = session.send((0, None));
        }
    }
}

/// A question under way; forgotten when nobody waits for its answer any more.
pub(crate) struct Question {
    switch: Arc<Switch>,
    number: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Question {
    /// Its answer; `None`: there will be none.
    pub(crate) async fn answer(mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.switch.questions.lock().remove(&self.number);
    }
}

async fn answer(group: GroupId, member: Arc<Member>, from: NodeId, request: Request) -> Answer {
    let below_floor = match &request {
        Request::Vote(request) | Request::PreVote(request) => {
            member.refuse_below_floor(request).map(Answer::Vote)
        }
        Request::Transfer(_) => (!member.store.may_stand()).then_some(Answer::Refused),
        _ => None,
    };
    if let Some(refusal) = below_floor {
        return refusal;
    }
    match request {
        Request::Heartbeat(request) => heartbeat(group, &member, request).await,
        Request::Vote(request) => {
            member.raft.vote(request).await.map_or(Answer::Refused, Answer::Vote)
        }
        Request::PreVote(request) => {
            member.raft.pre_vote(request).await.map_or(Answer::Refused, Answer::Vote)
        }
        Request::Transfer(request) => member
            .raft
            .handle_transfer_leader(request)
            .await
            .map_or(Answer::Refused, Answer::Transfer),
        Request::SnapshotInstall { name, vote } => {
            Answer::Snapshot(install(&member, from, name, vote).await)
        }
        // These are taken before.
        Request::SnapshotBegin { .. } | Request::SnapshotPart { .. } | Request::PeerLost { .. } => {
            Answer::Refused
        }
    }
}

/// Answers a heartbeat once this member follows the leader, without waiting for what its log has yet
/// to write: openraft answers when all that it has accepted is durable, and a read-index round would
/// wait for a disk that it does not need. The leader takes the answer for no more than that this
/// member has voted for nobody since; what entries it has, the append session tells. While the log is
/// stalled it waits all the same: a leader without a quorum of disks should know it.
async fn heartbeat(group: GroupId, member: &Member, request: AppendRequest) -> Answer {
    let (vote, prev) = (request.vote, request.prev_log_id);
    let mut appended = std::pin::pin!(member.raft.append_entries(request));
    // ORDER: it goes to openraft's core after the heartbeat, and so tells what that came to.
    let follows = async {
        let (tx, rx) = oneshot::channel();
        let ask = member.raft.external_request(move |state| {
            // Nobody waits, if the heartbeat was answered at once.
            let _ = tx.send(*state.vote_ref() == vote);
        });
        ask.await.is_ok() && rx.await.unwrap_or(false)
    };
    let follows = tokio::select! {
        biased;
        response = &mut appended => return heartbeat_answer(response, prev),
        follows = follows => follows,
    };
    let has_prev = prev.is_none_or(|prev| member.log.holds(group, prev.index, term_of(&prev)));
    let goes_on = member.log.stalled_for() <= member.stall_limit;
    if follows && has_prev && goes_on {
        return Answer::Append(Ok(prev));
    }
    heartbeat_answer(appended.await, prev)
}

fn heartbeat_answer<E>(
    response: Result<AppendEntriesResponse<TypeConfig>, E>,
    prev: Option<LogId>,
) -> Answer {
    match (response, prev) {
        (Err(_), _) => Answer::Refused,
        (Ok(AppendEntriesResponse::HigherVote(vote)), _) => {
            Answer::Append(Err(StreamAppendError::HigherVote(vote)))
        }
        (Ok(AppendEntriesResponse::Conflict), Some(prev)) => {
            Answer::Append(Err(StreamAppendError::Conflict(prev)))
        }
        (Ok(AppendEntriesResponse::PartialSuccess(matching)), _) => Answer::Append(Ok(matching)),
        (Ok(AppendEntriesResponse::Success | AppendEntriesResponse::Conflict), _) => {
            Answer::Append(Ok(prev))
        }
    }
}

#[cfg(test)]
mod tests;
