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
use tokio::sync::{mpsc, oneshot};

use crate::config::NodeId;
use crate::error::TransportError;
use crate::execution;
use crate::frame::{Answer, Body, Frame, Request, SnapshotAnswer};
use crate::log::{GroupId, Log};
use crate::snapshot::Snapshots;
use crate::transport::{Inbox, Lane, Transport};
use crate::types::Raft;

use session::InboundSession;
pub(crate) use session::{OpenSession, SessionAnswer};
use transfer::{Transfers, install, take_part};

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
        self.members.write().remove(&group);
        self.inbound.lock().retain(|(of, _), _| *of != group);
    }

    /// Frames of all groups are refused from now on.
    pub(crate) fn clear(&self) {
        self.members.write().clear();
        self.inbound.lock().clear();
        self.sessions.lock().clear();
        self.questions.lock().clear();
    }

    pub(crate) fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn send(&self, to: NodeId, lane: Lane, frame: &Frame) -> Result<(), TransportError> {
        self.transport.send(to, lane, frame.encode())
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
        let number = self.number();
        let (tx, rx) = oneshot::channel();
        self.questions.lock().insert(number, (to, tx));
        let _question = Question { switch: self.clone(), number };
        let frame = Frame { group, number, body: Body::Request(request) };
        self.send(to, lane, &frame).map_err(|_| Unanswered::Unreachable)?;
        match tokio::time::timeout(limit, rx).await {
            Ok(Ok(Answer::Refused)) => Err(Unanswered::Refused),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Unanswered::Unreachable),
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
            Request::SnapshotPart { .. } | Request::SnapshotInstall { .. } => Lane::Bulk,
            Request::Heartbeat(_)
            | Request::Vote(_)
            | Request::PreVote(_)
            | Request::Transfer(_) => Lane::Urgent,
        };
        let is_trial = matches!(request, Request::PreVote(_));
        let answer = match self.member(group) {
            Some(member) => answer(member, from, request).await,
            None => Answer::Refused,
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

/// Forgets a question when nobody waits for its answer any more.
struct Question {
    switch: Arc<Switch>,
    number: u64,
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
        Request::SnapshotPart { transfer, offset, part } => {
            blocking(move || take_part(&member, from, transfer, offset, &part)).await
        }
        Request::SnapshotInstall { transfer, bytes, vote } => {
            blocking(move || install(member, from, transfer, bytes, vote)).await
        }
    }
}

async fn blocking(work: impl FnOnce() -> SnapshotAnswer + Send + 'static) -> Answer {
    match execution::blocking(work).await {
        Ok(answer) => Answer::Snapshot(answer),
        Err(_) => Answer::Refused,
    }
}
