//! Append sessions: entries that come in order, each answered when it is durable. One of this node's
//! leaderships sends in an [`OpenSession`]; one of a leader elsewhere is served here.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use tokio::sync::{mpsc, watch};

use super::{Member, Switch};
use crate::config::NodeId;
use crate::frame::{Body, Frame};
use crate::log::{GroupId, Log};
use crate::transport::Lane;
use crate::types::{AppendRequest, AppendResult};
use crate::wire::entry_to_record;

/// An append session of a leader elsewhere.
pub(super) struct InboundSession {
    number: u64,
    next: u64,
    requests: mpsc::UnboundedSender<AppendRequest>,
    /// Ends the session's task when dropped.
    _ends: watch::Sender<()>,
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
            let (ends, mut ended) = watch::channel(());
            let session = InboundSession { number, next: 0, requests, _ends: ends };
            inbound.insert((group, from), session);
            let requests = until_ended(rx, ended.clone(), member.log.clone());
            let serving = self.clone().serve_session(from, group, number, member, requests);
            // What it was not answered goes with it: the leader sends it again, in another session.
            self.runtime.spawn(async move {
                tokio::select! {
                    biased;
                    _ = ended.changed() => {}
                    () = serving => {}
                }
            });
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
        requests: impl Stream<Item = AppendRequest> + Send + 'static,
    ) {
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

/// The requests of a session until it ends. Openraft keeps what it is given, also while its log waits
/// for room: the rest stays here meanwhile, and goes with the session.
fn until_ended(
    requests: mpsc::UnboundedReceiver<AppendRequest>,
    ended: watch::Receiver<()>,
    log: Log,
) -> impl Stream<Item = AppendRequest> {
    stream::unfold((requests, ended, log), async |(mut requests, mut ended, log)| {
        let next = async {
            let request = requests.recv().await?;
            let bytes = request.entries.iter().map(|entry| entry_to_record(entry).len()).sum();
            drop(log.room(bytes).await);
            Some(request)
        };
        let request = tokio::select! {
            biased;
            _ = ended.changed() => None,
            request = next => request,
        };
        Some((request?, (requests, ended, log)))
    })
}
