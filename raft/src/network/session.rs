//! An append session of this node's leadership: entries to one follower, many requests at once,
//! answered in order.
//!
//! What all groups have under way to one node is bounded in bytes, so that the oldest request
//! never waits long behind others on the way, and silence means that something is wrong.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use openraft::RPCTypes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Link, RpcError, does_not_fit, last_of, network, unreachable};
use crate::error::TransportError;
use crate::frame::{Body, Frame, is_append_answer};
use crate::switch::{OpenSession, SessionAnswer};
use crate::transport::Lane;
use crate::types::{AppendRequest, AppendResult, LogId};
use crate::wire::entry_to_record;

/// How long a commit that comes without entries waits for some that tell of it, too. A follower only
/// applies it later, and is spared a frame and its answer for each entry.
const COMMIT_WAITS: Duration = Duration::from_millis(5);
/// How long to wait with a frame for which the transport has no room.
const BUSY_FOR: Duration = Duration::from_millis(5);
/// Bytes of a request beside its entries, roughly.
const REQUEST_BYTES: usize = 128;

/// Entry requests on their way to one follower.
pub(super) struct Session<'s, S> {
    link: &'s Link,
    /// `None` once it has ended.
    input: Option<S>,
    /// `None` only while it is dropped.
    open: Option<(OpenSession, mpsc::UnboundedReceiver<SessionAnswer>)>,
    under_way: VecDeque<UnderWay>,
    next: Next,
    sequence: u64,
    /// When an answer came last, or something went out and there was none to wait for.
    progress: Instant,
}

/// A request without an answer. Its room on the way is given back with it.
struct UnderWay {
    sequence: u64,
    prev: Option<LogId>,
    last: Option<LogId>,
    _room: OwnedSemaphorePermit,
}

/// The request that goes next.
enum Next {
    None,
    /// It tells of a commit and no more: it goes at that time, unless entries come before.
    Commit(AppendRequest, Instant),
    /// It waits for room.
    Request(AppendRequest, BoxFuture<'static, Option<OwnedSemaphorePermit>>),
    /// The transport had none: again at that time.
    Frame(Bytes, UnderWay, Instant),
}

impl<'s, S: Stream<Item = AppendRequest> + Unpin> Session<'s, S> {
    pub(super) fn open(link: &'s Link, input: S) -> Session<'s, S> {
        Session {
            link,
            input: Some(input),
            open: Some(link.switch.open_session(link.to)),
            under_way: VecDeque::new(),
            next: Next::None,
            sequence: 0,
            progress: Instant::now(),
        }
    }

    /// The next answer. `None` once the requests have ended and all answers are in: openraft waits
    /// for that end before it goes on.
    pub(super) async fn answer(&mut self) -> Option<Result<AppendResult, RpcError>> {
        loop {
            let waits = !self.under_way.is_empty();
            if !waits && matches!(self.next, Next::None) && self.input.is_none() {
                return None;
            }
            // Who waits for room alone has nobody to be impatient with: others have their turn.
            let has_sent = waits || matches!(self.next, Next::Frame(..));
            let deadline = self.progress + self.link.session_limit;
            let (_, answers) = self.open.as_mut()?;
            tokio::select! {
                biased;
                // Without a question, too: it may be that there will be no answers any more.
                answer = answers.recv() => {
                    self.progress = Instant::now();
                    return Some(self.take_answer(answer));
                }
                request = next_of(&mut self.input),
                    if self.input.is_some()
                        && matches!(self.next, Next::None | Next::Commit(..)) =>
                {
                    self.take_request(request);
                }
                room = room_for(&mut self.next) => {
                    if let Err(error) = self.send(room) {
                        return Some(Err(error));
                    }
                }
                () = sleep_until(deadline), if has_sent => {
                    let limit = self.link.session_limit;
                    return Some(Err(self.link.timeout(RPCTypes::AppendEntries, limit)));
                }
            }
        }
    }

    /// What comes after a commit that waits tells of it, too. A request that is left out needs no answer:
    /// to openraft, all up to the entry that the follower has is answered.
    fn take_request(&mut self, request: Option<AppendRequest>) {
        if request.is_none() {
            self.input = None;
        }
        let waiting = std::mem::replace(&mut self.next, Next::None);
        self.next = match (request, waiting) {
            (Some(request), Next::Commit(_, at)) if self.may_wait(&request) => {
                Next::Commit(request, at)
            }
            (Some(request), _) if self.may_wait(&request) => {
                Next::Commit(request, Instant::now() + COMMIT_WAITS)
            }
            (Some(request), _) => self.wait_for_room(request),
            (None, Next::Commit(request, _)) => self.wait_for_room(request),
            (None, nothing) => nothing,
        };
    }

    /// Whether it tells of a commit and no more. A session's first request asks what the follower has.
    fn may_wait(&self, request: &AppendRequest) -> bool {
        self.link.holds_commits && request.entries.is_empty() && self.sequence > 0
    }

    fn wait_for_room(&self, request: AppendRequest) -> Next {
        let entries = request.entries.iter().map(|entry| entry_to_record(entry).len());
        let bytes = entries.sum::<usize>() + REQUEST_BYTES;
        let room = self.link.switch.room(self.link.to, bytes);
        Next::Request(request, room.boxed())
    }

    /// Sends the next request, now that there is room on the way.
    fn send(&mut self, room: Option<OwnedSemaphorePermit>) -> Result<(), RpcError> {
        let Link { switch, to, group, .. } = self.link;
        let (frame, request) = match std::mem::replace(&mut self.next, Next::None) {
            Next::None => return Ok(()),
            Next::Commit(request, _) => {
                self.next = self.wait_for_room(request);
                return Ok(());
            }
            Next::Request(request, _) => {
                if !self.log_is_held(&request) {
                    return Err(network("the log is no longer held for it"));
                }
                if self.link.silence.holds(request.vote.leader_id.term) {
                    return Err(unreachable("no majority has answered for a while"));
                }
                // Nothing is encoded for a node that is not there.
                if !switch.is_connected(*to, Lane::Entries) {
                    return Err(unreachable("there is no connection"));
                }
                let room = room.ok_or_else(|| unreachable("the node stops"))?;
                if self.under_way.is_empty() {
                    self.progress = Instant::now();
                }
                let (sequence, prev, last) =
                    (self.sequence, request.prev_log_id, last_of(&request));
                self.sequence += 1;
                let body = Body::Append { sequence, request };
                let number = self.open.as_ref().map_or(0, |(open, _)| open.number);
                let frame = Frame { group: *group, number, body };
                (frame.encode(), UnderWay { sequence, prev, last, _room: room })
            }
            Next::Frame(frame, request, _) => (frame, request),
        };
        match switch.send_encoded(*to, Lane::Entries, frame.clone()) {
            Ok(()) => {
                self.under_way.push_back(request);
                Ok(())
            }
            Err(TransportError::Busy) => {
                self.next = Next::Frame(frame, request, Instant::now() + BUSY_FOR);
                Ok(())
            }
            Err(TransportError::Unreachable) => Err(unreachable("the frame could not be sent")),
        }
    }

    /// Whether the log still has what is not answered, or else what is sent next: openraft keeps it for as
    /// long as the session lasts, however far ahead that may be.
    fn log_is_held(&self, request: &AppendRequest) -> bool {
        let next = request.entries.first().map(|entry| entry.log_id.index);
        let oldest = self.under_way.front();
        let needed = oldest.map(|oldest| oldest.prev.map_or(0, |prev| prev.index + 1)).or(next);
        needed.is_none_or(|needed| needed >= self.link.kept_from.index())
    }

    fn take_answer(&mut self, answer: Option<SessionAnswer>) -> Result<AppendResult, RpcError> {
        match (answer, self.under_way.pop_front()) {
            (Some((sequence, Some(result))), Some(request)) if sequence == request.sequence => {
                let UnderWay { prev, last, .. } = request;
                let fits = is_append_answer(&result, self.link.switch.node(), prev, last);
                if fits { Ok(result) } else { Err(does_not_fit()) }
            }
            _ => Err(network("the session was ended")),
        }
    }
}

/// What was sent may still be on its way, and takes up room until it is answered or nothing comes
/// any more: the next session does not send behind it without end.
impl<S> Drop for Session<'_, S> {
    fn drop(&mut self) {
        let Some((open, mut answers)) = self.open.take() else { return };
        if self.under_way.is_empty() {
            return;
        }
        let (switch, to, limit) =
            (Arc::clone(&self.link.switch), self.link.to, self.link.session_limit);
        let mut under_way = std::mem::take(&mut self.under_way);
        self.link.switch.runtime().spawn(async move {
            while switch.is_connected(to, Lane::Entries)
                && let Some(last) = under_way.back().map(|request| request.sequence)
                && let Ok(Some((sequence, _))) = timeout(limit, answers.recv()).await
            {
                under_way.retain(|request| request.sequence > sequence.min(last));
            }
            drop(open);
        });
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}

/// Waits until the next request can go; for ever, if there is none.
async fn room_for(next: &mut Next) -> Option<OwnedSemaphorePermit> {
    match next {
        Next::None => std::future::pending().await,
        Next::Request(_, room) => room.await,
        Next::Commit(_, at) | Next::Frame(_, _, at) => {
            sleep_until(*at).await;
            None
        }
    }
}

#[cfg(test)]
mod tests;
