//! Append sessions: entries that come in order, each answered when it is durable. One of this node's
//! leaderships sends in an [`OpenSession`]; one of a leader elsewhere is served here.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use super::{Member, Switch};
use crate::config::NodeId;
use crate::frame::{Body, Frame};
use crate::log::GroupId;
use crate::transport::Lane;
use crate::types::{AppendRequest, AppendResult};

/// An append session of a leader elsewhere.
pub(super) struct InboundSession {
    number: u64,
    next: u64,
    requests: mpsc::UnboundedSender<AppendRequest>,
}

/// What comes back in an append session: the sequence number, and `None` when it is over.
pub(crate) type SessionAnswer = (u64, Option<AppendResult>);

/// An append session of this node's leadership; its answers come until it is dropped.
pub(crate) struct OpenSession {
    switch: Arc<Switch>,
    pub(crate) number: u64,
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.switch.sessions.lock().remove(&self.number);
    }
}

impl Switch {
    /// Opens an append session with `to`; its answers come through the receiver.
    pub(crate) fn open_session(
        self: &Arc<Self>,
        to: NodeId,
    ) -> (OpenSession, mpsc::UnboundedReceiver<SessionAnswer>) {
        let number = self.number();
        let (tx, rx) = mpsc::unbounded_channel();
        self.sessions.lock().insert(number, (to, tx));
        (OpenSession { switch: self.clone(), number }, rx)
    }

    pub(super) fn append(
        self: Arc<Self>,
        from: NodeId,
        group: GroupId,
        number: u64,
        sequence: u64,
        request: AppendRequest,
    ) {
        let mut inbound = self.inbound.lock();
        if sequence == 0
            && let Some(member) = self.member(group)
        {
            let (requests, rx) = mpsc::unbounded_channel();
            let session = InboundSession { number, next: 0, requests };
            inbound.insert((group, from), session);
            self.runtime.spawn(self.clone().serve_session(from, group, number, member, rx));
        }
        let taken = match inbound.get_mut(&(group, from)) {
            Some(session) if session.number == number && session.next == sequence => {
                session.next += 1;
                session.requests.send(request).is_ok()
            }
            _ => false,
        };
        if !taken {
            // A frame was lost, or the group does not run here: the leader begins a new session.
            if inbound.get(&(group, from)).is_some_and(|session| session.number == number) {
                inbound.remove(&(group, from));
            }
            drop(inbound);
            let body = Body::Appended { sequence, result: None };
            self.reply(from, Lane::Entries, &Frame { group, number, body });
        }
    }

    async fn serve_session(
        self: Arc<Self>,
        from: NodeId,
        group: GroupId,
        number: u64,
        member: Arc<Member>,
        requests: mpsc::UnboundedReceiver<AppendRequest>,
    ) {
        let requests = stream::unfold(requests, async |mut requests| {
            requests.recv().await.map(|request| (request, requests))
        });
        let mut results = std::pin::pin!(member.raft.stream_append(Box::pin(requests)));
        let mut sequence = 0;
        while let Some(result) = results.next().await {
            let result = result.ok();
            let over = !matches!(result, Some(Ok(_)));
            let body = Body::Appended { sequence, result };
            self.reply(from, Lane::Entries, &Frame { group, number, body });
            sequence += 1;
            if over {
                break;
            }
        }
        let mut inbound = self.inbound.lock();
        if inbound.get(&(group, from)).is_some_and(|session| session.number == number) {
            inbound.remove(&(group, from));
        }
    }
}
