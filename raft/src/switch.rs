//! Where frames come in and go out: pairs answers with requests, and hands requests to their group.
//!
//! Owns the requests and append sessions under way. Nothing here waits for storage: what may is
//! spawned onto Raft's runtime or onto its blocking threads.

mod session;
mod transfer;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesResponse, StreamAppendError};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::config::NodeId;
use crate::error::TransportError;
use crate::execution;
use crate::frame::{Answer, Body, Frame, Request};
use crate::log::{GroupId, Log};
use crate::snapshot::Snapshots;
use crate::transport::{Inbox, Lane, Transport};
use crate::types::Raft;

use session::InboundSession;
pub(crate) use session::{OpenSession, SessionAnswer};
use transfer::{Transfers, install};

/// Bytes of entries that may be under way to one node, over all groups. On a link of 10 MB/s the
/// oldest of them is answered within a leader's patience.
const WINDOW_BYTES: usize = 8 << 20;
/// Room in the window is given out by this many bytes.
const WINDOW_UNIT: usize = 1024;

/// A group that runs on this node, as its peers see it.
pub(crate) struct Member {
    pub(crate) raft: Raft,
    pub(crate) snapshots: Arc<Snapshots>,
    log: Log,
    transfers: Transfers,
}

impl Member {
    pub(crate) fn new(raft: Raft, snapshots: Arc<Snapshots>, log: Log) -> Member {
        Member { raft, snapshots, log, transfers: Mutex::new(HashMap::new()) }
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
    pub(crate) fn remove(&self, group: GroupId) {
        if let Some(member) = self.members.write().remove(&group) {
            member.transfers.lock().clear();
        }
        self.inbound.lock().retain(|(of, _), _| *of != group);
    }

    /// Frames of all groups are refused from now on.
    pub(crate) fn clear(&self) {
        for (_, member) in self.members.write().drain() {
            member.transfers.lock().clear();
        }
        self.inbound.lock().clear();
        self.sessions.lock().clear();
        self.questions.lock().clear();
    }

    pub(crate) fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
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
            | Request::Transfer(_) => Lane::Urgent,
        };
        let is_trial = matches!(request, Request::PreVote(_));
        let answer = match (self.member(group), request) {
            (None, _) => Answer::Refused,
            (Some(member), Request::SnapshotBegin { name }) => {
                self.clone().begin_transfer(from, group, member, name).await
            }
            (Some(member), request) => answer(member, from, request).await,
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
        let Frame { group, number, body } = match Frame::decode(frame) {
            Ok(frame) => frame,
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

async fn answer(member: Arc<Member>, from: NodeId, request: Request) -> Answer {
    match request {
        Request::Heartbeat(request) => {
            let prev = request.prev_log_id;
            match member.raft.append_entries(request).await {
                Ok(response) => match (response, prev) {
                    (AppendEntriesResponse::HigherVote(vote), _) => {
                        Answer::Append(Err(StreamAppendError::HigherVote(vote)))
                    }
                    (AppendEntriesResponse::Conflict, Some(prev)) => {
                        Answer::Append(Err(StreamAppendError::Conflict(prev)))
                    }
                    (AppendEntriesResponse::PartialSuccess(matching), _) => {
                        Answer::Append(Ok(matching))
                    }
                    (AppendEntriesResponse::Success | AppendEntriesResponse::Conflict, _) => {
                        Answer::Append(Ok(prev))
                    }
                },
                Err(_) => Answer::Refused,
            }
        }
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
            Answer::Snapshot(install(&member, from, name, vote))
        }
        // These are taken before.
        Request::SnapshotBegin { .. } | Request::SnapshotPart { .. } => Answer::Refused,
    }
}
