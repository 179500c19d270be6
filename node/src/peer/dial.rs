//! Keeps the connections that this node makes: one for each lane to each member.
//!
//! Each side makes the connections for what it sends, so that each sees for itself whether the other
//! can be reached, and no side waits for the other to call. What comes back on such a connection
//! are answers to pings and requests, nothing else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use piton_raft::NodeId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use super::address::PeerAddress;
use super::calls::outcome;
use super::frame::{Frame, FrameError, FrameReader, Kind};
use super::hello::{self, Hello, HelloError, Refusal, Welcome};
use super::lane::PeerLane;
use super::link::Link;
use super::member::Member;
use super::metrics::Counted;
use super::net::{Shared, Timing};
use super::queue::Queue;
use super::tls::{self, Stream};

/// A connection that held so long is made anew at once; one that never holds is left alone longer
/// and longer.
const HELD_AFTER: Duration = Duration::from_secs(1);
/// Pongs, on a lane that carries nothing else back.
const PONG_BYTES_MAX: usize = 64;
const PONG_READ_BYTES: usize = 512;

/// Why a member cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("connect to {address}: {source}")]
    Connect { address: PeerAddress, source: io::Error },
    #[error("secure the connection to {address}: {source}")]
    Secure { address: PeerAddress, source: io::Error },
    #[error("greet {address}: {source}")]
    Greet { address: PeerAddress, source: HelloError },
    #[error("{address} refuses ({kind}): {reason}")]
    Refused { address: PeerAddress, kind: String, reason: String },
    #[error("{address} is node {node}, and node {expected} was expected")]
    OtherNode { address: PeerAddress, node: NodeId, expected: NodeId },
    #[error("{address} chose version {version} of the peer protocol, which is not spoken here")]
    Version { address: PeerAddress, version: u32 },
    #[error("{address} did not answer in time")]
    Timeout { address: PeerAddress },
}

impl DialError {
    /// Nothing listens there.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Connect { source, .. }
            if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Read(#[from] FrameError),
    #[error("the connection broke: {0}")]
    Write(#[from] io::Error),
    #[error("it has not answered for too long")]
    Silent,
}

/// Keeps one connection, until it is aborted.
pub(super) async fn keep(net: Arc<Shared>, member: Arc<Member>, lane: PeerLane) {
    let mut backoff = Backoff::new(&net.timing);
    let mut addresses = member.addresses.subscribe();
    let (mut attempt, mut reached) = (0, None);
    let metrics = net.metrics.lane(lane);
    let mut connecting = Counted::new(&metrics.connecting);
    let mut was_connected = false;
    loop {
        if addresses.has_changed().is_ok_and(|changed| changed) {
            attempt = 0;
        }
        let target = addresses.borrow_and_update().to_try(attempt).clone();
        match dial(&net, &target, &hello_to(&net, &member, lane)).await {
            Ok((stream, welcome)) => {
                drop(connecting);
                if std::mem::replace(&mut was_connected, true) {
                    metrics.reconnects.inc();
                }
                member.feature_level.store(welcome.feature_level, Ordering::Relaxed);
                reached = Some(target);
                let since = Instant::now();
                let ended = converse(&net, &member, lane, stream).await;
                if lane == PeerLane::Urgent {
                    tracing::info!(peer = %member.node, reason = %ended, "peer's connection ended");
                } else {
                    tracing::debug!(peer = %member.node, %lane, reason = %ended, "lane ended");
                }
                connecting = Counted::new(&metrics.connecting);
                if since.elapsed() >= HELD_AFTER {
                    backoff.reset();
                    continue;
                }
            }
            Err(error) => {
                metrics.connect_failures.inc();
                attempt += 1;
                // Nothing listens where it never was: that says nothing of its process.
                let is_refused = error.is_refused() && reached.as_ref() == Some(&target);
                if is_refused && member.fate.lock().refused(lane, Instant::now()) {
                    tracing::warn!(peer = %member.node, "peer's process is gone");
                    (net.peer_lost)(member.node);
                }
                if let DialError::Refused { kind, reason, .. } = &error
                    && kind == Refusal::REMOVED
                {
                    (net.unwanted)(reason);
                }
                let reason = error.to_string();
                tracing::debug!(peer = %member.node, %lane, %reason, "peer was not reached");
                if member.is_news(&reason) {
                    tracing::warn!(peer = %member.node, %reason, "peer cannot be reached");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            changed = addresses.changed() => {
                if changed.is_err() {
                    return;
                }
                attempt = 0;
            }
        }
    }
}

fn hello_to(net: &Shared, member: &Member, lane: PeerLane) -> Hello {
    Hello {
        lowest_version: *hello::VERSIONS.start(),
        highest_version: *hello::VERSIONS.end(),
        cluster: net.here.cluster.clone(),
        node: net.here.node.0,
        target: member.node.0,
        incarnation: net.incarnation,
        epoch: net.next_epoch.fetch_add(1, Ordering::Relaxed),
        lane: lane.number() as u32,
        feature_level: net.feature_level,
        unix_nanos: (net.unix_nanos)(),
        stranger: false,
        address: net.here.address.clone(),
    }
}

/// Connects, and says hello.
///
/// # Errors
/// When that takes too long, or the other side is not who is wanted.
async fn dial(
    net: &Shared,
    address: &PeerAddress,
    hello: &Hello,
) -> Result<(Stream, Welcome), DialError> {
    let greeted = greet(&net.security, address, hello);
    match tokio::time::timeout(net.timing.handshake_max, greeted).await {
        Ok(greeted) => greeted,
        Err(_) => Err(DialError::Timeout { address: address.clone() }),
    }
}

/// The same without a limit, also for a node that is no member yet.
///
/// # Errors
/// When the other side cannot be reached, or is not who is wanted.
pub(super) async fn greet(
    security: &tls::Security,
    address: &PeerAddress,
    hello: &Hello,
) -> Result<(Stream, Welcome), DialError> {
    let tcp = connect(security, address)
        .await
        .map_err(|source| DialError::Connect { address: address.clone(), source })?;
    let mut stream = security
        .connect(address.host(), tcp)
        .await
        .map_err(|source| DialError::Secure { address: address.clone(), source })?;
    let greet_error = |source| DialError::Greet { address: address.clone(), source };
    hello::write(&mut stream, hello).await.map_err(|error| greet_error(error.into()))?;
    let welcome: Welcome = hello::read(&mut stream).await.map_err(greet_error)?;
    if !welcome.refusal.is_empty() {
        let Welcome { refusal: reason, refusal_kind: kind, .. } = welcome;
        return Err(DialError::Refused { address: address.clone(), kind, reason });
    }
    if !hello::VERSIONS.contains(&welcome.version) {
        return Err(DialError::Version { address: address.clone(), version: welcome.version });
    }
    if !hello.stranger && welcome.node != hello.target {
        let (node, expected) = (NodeId(welcome.node), NodeId(hello.target));
        return Err(DialError::OtherNode { address: address.clone(), node, expected });
    }
    Ok((stream, welcome))
}

async fn connect(security: &tls::Security, address: &PeerAddress) -> io::Result<TcpStream> {
    let found = tokio::net::lookup_host((address.host(), address.port())).await?;
    let found: Vec<SocketAddr> = found.collect();
    for address in &found {
        security.check(*address)?;
    }
    let tcp = TcpStream::connect(found.as_slice()).await?;
    tls::tune(&tcp)?;
    Ok(tcp)
}

/// Sends what is queued, and takes what comes back, until the connection ends.
async fn converse(net: &Shared, member: &Member, lane: PeerLane, stream: Stream) -> Ended {
    let metrics = net.metrics.lane(lane);
    let bytes_max = net.config.queue_bytes_max(lane);
    let queue = Queue::new(bytes_max, lane.frame_bytes_max(), metrics.queue_bytes.clone());
    let open = Open { net, member, lane, link: Arc::new(Link::new(queue)) };
    let _connected = Counted::new(&metrics.connected);
    if lane == PeerLane::Urgent {
        member.hear(net);
    }
    // ORDER: before it may be lost again.
    member.connected(lane);
    member.set_link(lane, Some(Arc::clone(&open.link)));
    if lane == PeerLane::Urgent {
        tracing::info!(peer = %member.node, "peer is connected");
    }
    let (reader, mut writer) = tokio::io::split(stream);
    let mut silenced = member.silenced.subscribe();
    tokio::select! {
        written = open.link.queue.write_to(&mut writer, metrics) => match written {
            // Only the end of a connection closes its queue.
            Ok(()) => Ended::Read(FrameError::Closed),
            Err(error) => Ended::Write(error),
        },
        ended = listen(net, member, lane, reader, &open.link) => ended,
        _ = silenced.changed() => Ended::Silent,
    }
}

/// Takes the connection away from those who send, whichever way it ends.
struct Open<'m> {
    net: &'m Shared,
    member: &'m Member,
    lane: PeerLane,
    link: Arc<Link>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.member.set_link(self.lane, None);
        self.link.close();
        self.net.tell_raft(self.lane, |raft, lane| raft.sent_is_lost(self.member.node, lane));
        self.member.broke(self.lane);
    }
}

async fn listen(
    net: &Shared,
    member: &Member,
    lane: PeerLane,
    reader: impl AsyncRead + Unpin,
    link: &Link,
) -> Ended {
    let (read_bytes, length_max) = match lane {
        PeerLane::Calls => (lane.read_bytes(), lane.frame_bytes_max()),
        PeerLane::Urgent | PeerLane::Entries | PeerLane::Bulk => (PONG_READ_BYTES, PONG_BYTES_MAX),
    };
    let mut reader = FrameReader::new(reader, read_bytes, length_max);
    let mut pings = tokio::time::interval(net.timing.ping_every);
    // A node that was held up itself does not make up for pings that it has not sent.
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pinging = Pinging::default();
    let metrics = net.metrics.lane(lane);
    loop {
        let frame = tokio::select! {
            biased;
            frame = reader.next() => frame,
            _ = pings.tick(), if lane == PeerLane::Urgent => {
                if pinging.ping(net, member, link) {
                    continue;
                }
                member.silenced.send_replace(());
                return Ended::Silent;
            }
        };
        metrics.received_bytes.inc_by(reader.take_bytes());
        let Frame { kind, number, mut payload } = match frame {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        metrics.received_frames.inc();
        match (lane, kind) {
            (PeerLane::Urgent, Kind::Pong) => {
                pinging.unanswered = 0;
                member.pong(net, number, payload.try_get_u64_le().ok());
            }
            (PeerLane::Calls, _) => match outcome(kind, payload) {
                Some(outcome) => link.answered(number, outcome),
                None => return FrameError::Misplaced(kind).into(),
            },
            _ => return FrameError::Misplaced(kind).into(),
        }
    }
}

/// Pings that were sent and not answered. They are counted, and time is not taken: while this node
/// itself stands still, nobody fails to answer.
#[derive(Default)]
struct Pinging {
    unanswered: u32,
    silent: bool,
}

impl Pinging {
    /// Sends another. `false` when so many are not answered that the member is given up.
    fn ping(&mut self, net: &Shared, member: &Member, link: &Link) -> bool {
        let Timing { ping_every, dropped_after, .. } = net.timing;
        if ping_every * self.unanswered >= dropped_after {
            return false;
        }
        let silent = !member.is_heard(net);
        if silent != std::mem::replace(&mut self.silent, silent) {
            if silent {
                tracing::warn!(peer = %member.node, "peer does not answer");
            } else {
                tracing::info!(peer = %member.node, "peer answers again");
            }
        }
        self.unanswered += 1;
        // A queue that is full is written as fast as the peer takes it, and the next ping may fit.
        let _ = link.queue.push(Frame::numbered(Kind::Ping, net.nanos(), Bytes::new()));
        true
    }
}

/// How long to wait before the next attempt.
struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
    random: SmallRng,
}

impl Backoff {
    fn new(timing: &Timing) -> Self {
        let (least, most) = (timing.backoff_min, timing.backoff_max);
        Self { least, most, next: least, random: SmallRng::from_os_rng() }
    }

    fn reset(&mut self) {
        self.next = self.least;
    }

    /// Between a half and the whole of it, so that nodes which lost each other at one moment do not
    /// all call at one moment.
    fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.most);
        whole.mul_f64(self.random.random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_to_connect_become_rarer_up_to_a_second_and_differ() {
        let mut backoff = Backoff::new(&Timing::default());
        let pauses: Vec<Duration> = (0..10).map(|_| backoff.next()).collect();
        for (number, pause) in pauses.iter().enumerate() {
            let whole = Duration::from_millis((20 << number).min(1_000));
            assert!((whole / 2..=whole).contains(pause), "{number}: {pause:?}");
        }
        let another: Vec<Duration> = {
            let mut backoff = Backoff::new(&Timing::default());
            (0..10).map(|_| backoff.next()).collect()
        };
        assert_ne!(pauses, another);
    }
}
