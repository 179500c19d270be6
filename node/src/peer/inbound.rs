//! Connections that other nodes made: which of them count, and what arrives on them.
//!
//! INVARIANT: what an older process of a node sent is never delivered after what a newer one sent,
//! and nothing of a replaced connection after anything of the one that replaced it. A connection is
//! admitted only when those that it replaces have ended, reader and all, so that nobody has to look
//! at each frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;

use super::calls;
use super::frame::{Frame, FrameError, FrameReader, Kind};
use super::hello::{Hello, Refusal};
use super::lane::PeerLane;
use super::member::Member;
use super::metrics::Counted;
use super::net::Shared;
use super::queue::{NotQueued, Queue};
use super::tls::{self, Stream};

/// Earlier processes of a node that are remembered: those that may still try to connect.
const OLDER_MAX: usize = 64;
/// Pongs that wait to be sent.
const PONGS_BYTES_MAX: usize = 16 << 10;

/// The connections that one member made.
#[derive(Default)]
pub(super) struct Inbound {
    incarnation: Option<u64>,
    older: VecDeque<u64>,
    lanes: [LaneIn; 4],
}

#[derive(Default)]
struct LaneIn {
    epoch: Option<u64>,
    task: Option<JoinHandle<()>>,
}

impl LaneIn {
    /// # Cancel safety
    /// What has not ended by then stays to be ended by the next call.
    async fn end(&mut self) {
        if let Some(task) = &mut self.task {
            task.abort();
            // An abort is what was asked for.
            let _ = task.await;
        }
        self.task = None;
    }
}

impl Inbound {
    /// Makes room for a connection: when this returns, those that it replaces have ended.
    ///
    /// # Errors
    /// When it is itself replaced already.
    ///
    /// # Cancel safety
    /// The connection does not count then, though some that it would have replaced have ended.
    pub(super) async fn admit(&mut self, hello: &Hello, lane: PeerLane) -> Result<(), Refusal> {
        let node = hello.node();
        if self.incarnation != Some(hello.incarnation) {
            if self.older.contains(&hello.incarnation) {
                return Err(Refusal::OlderProcess { node });
            }
            self.close().await;
            if let Some(older) = self.incarnation.replace(hello.incarnation) {
                self.older.push_back(older);
                if self.older.len() > OLDER_MAX {
                    self.older.pop_front();
                }
            }
        }
        let now = &mut self.lanes[lane.number()];
        if now.epoch.is_some_and(|epoch| hello.epoch <= epoch) {
            return Err(Refusal::OlderConnection { node, lane });
        }
        now.end().await;
        now.epoch = Some(hello.epoch);
        Ok(())
    }

    /// Keeps what serves a connection that was admitted.
    pub(super) fn keep(&mut self, lane: PeerLane, task: JoinHandle<()>) {
        self.lanes[lane.number()].task = Some(task);
    }

    /// Ends all connections.
    pub(super) async fn close(&mut self) {
        for lane in &mut self.lanes {
            lane.end().await;
            lane.epoch = None;
        }
    }
}

/// Serves a connection that was admitted, until it ends.
pub(super) fn serve(
    net: &Arc<Shared>,
    member: &Arc<Member>,
    lane: PeerLane,
    stream: Stream,
) -> JoinHandle<()> {
    // Requests are answered on the main runtime, where what answers them lives. Raft's frames are
    // for Raft's own.
    let runtime = if lane == PeerLane::Calls { &net.main } else { &net.raft };
    let (net, member) = (Arc::clone(net), Arc::clone(member));
    runtime.spawn(async move {
        let ended = converse(&net, &member, lane, stream).await;
        let peer = member.node;
        match ended {
            FrameError::Closed | FrameError::Io(_) => {
                tracing::debug!(%peer, %lane, reason = %ended, "peer's connection ended");
            }
            _ => tracing::warn!(%peer, %lane, reason = %ended, "peer's connection was closed"),
        }
    })
}

async fn converse(
    net: &Arc<Shared>,
    member: &Arc<Member>,
    lane: PeerLane,
    mut stream: Stream,
) -> FrameError {
    if lane == PeerLane::Calls
        && let Err(error) = tls::rehome(&mut stream)
    {
        return error.into();
    }
    let metrics = net.metrics.lane(lane);
    let _accepted = Counted::new(&metrics.accepted);
    let bytes_max = match lane {
        PeerLane::Calls => net.config.queue_bytes_max(lane),
        PeerLane::Urgent | PeerLane::Entries | PeerLane::Bulk => PONGS_BYTES_MAX,
    };
    let queue = Queue::new(bytes_max, lane.frame_bytes_max(), metrics.queue_bytes.clone());
    let open = Open { net, member, lane, queue: Arc::new(queue) };
    // Since the last one ended.
    net.tell_raft(lane, |raft, lane| raft.answers_are_lost(member.node, lane));
    let (reader, mut writer) = tokio::io::split(stream);
    tokio::select! {
        written = open.queue.write_to(&mut writer, metrics) => match written {
            // Only the end of a connection closes its queue.
            Ok(()) => FrameError::Closed,
            Err(error) => error.into(),
        },
        ended = listen(net, member, lane, reader, &open.queue) => ended,
    }
}

/// Lets go of those who wait to send an answer, or for one, whichever way the connection ends.
struct Open<'m> {
    net: &'m Shared,
    member: &'m Member,
    lane: PeerLane,
    queue: Arc<Queue>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.queue.close();
        self.net.tell_raft(self.lane, |raft, lane| raft.answers_are_lost(self.member.node, lane));
    }
}

async fn listen(
    net: &Arc<Shared>,
    member: &Arc<Member>,
    lane: PeerLane,
    reader: impl AsyncRead + Unpin,
    queue: &Arc<Queue>,
) -> FrameError {
    let mut reader = FrameReader::new(reader, lane.read_bytes(), lane.frame_bytes_max());
    let metrics = net.metrics.lane(lane);
    loop {
        // A lane with pings is never silent. The others end with keepalive, or with the peer's next
        // connection.
        let frame = match lane {
            PeerLane::Urgent => in_time(net.timing.dropped_after, reader.next()).await,
            PeerLane::Entries | PeerLane::Bulk | PeerLane::Calls => reader.next().await,
        };
        metrics.received_bytes.inc_by(reader.take_bytes());
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        metrics.received_frames.inc();
        if let Err(error) = deliver(net, member, lane, frame, queue).await {
            return error;
        }
    }
}

async fn in_time(
    limit: Duration,
    next: impl Future<Output = Result<Frame, FrameError>>,
) -> Result<Frame, FrameError> {
    let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut).into();
    tokio::time::timeout(limit, next).await.unwrap_or_else(|_| Err(timed_out()))
}

async fn deliver(
    net: &Arc<Shared>,
    member: &Arc<Member>,
    lane: PeerLane,
    frame: Frame,
    queue: &Arc<Queue>,
) -> Result<(), FrameError> {
    match (lane, frame.kind) {
        (PeerLane::Calls, Kind::Request) => {
            let answerer = net.answerer.read().clone();
            let taken = calls::take(
                answerer.as_ref(),
                &member.admission,
                &net.main,
                queue,
                member.node,
                frame,
            );
            taken.await.map_err(|_: NotQueued| FrameError::Closed)
        }
        (PeerLane::Urgent, Kind::Ping) => {
            let clock = Bytes::copy_from_slice(&(net.unix_nanos)().to_le_bytes());
            // A peer that does not read its pongs is not there.
            let _ = queue.push(Frame::numbered(Kind::Pong, frame.number, clock));
            Ok(())
        }
        (PeerLane::Urgent | PeerLane::Entries | PeerLane::Bulk, Kind::Data) => {
            // Before Raft listens, or after it has stopped, nobody misses the frame.
            let inbox = net.inbox.read().clone();
            if let Some(inbox) = inbox {
                inbox.receive(member.node, frame.payload);
            }
            Ok(())
        }
        (_, kind) => Err(FrameError::Misplaced(kind)),
    }
}
