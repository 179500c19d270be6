//! What all connections of this node share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use piton_raft::{Inbox, Lane, NodeId, Transport, TransportError};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::calls::Answerer;
use super::frame::Frame;
use super::hello::Here;
use super::lane::PeerLane;
use super::member::Member;
use super::metrics::PeerMetrics;
use super::queue::NotQueued;
use super::tls::Security;
use crate::config::PeerConfig;

/// When a peer counts as silent or gone, and how patient this node is.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How often each member is asked whether it is there.
    pub ping_every: Duration,
    /// Without an answer for so long, nothing but pings is sent to it.
    pub silent_after: Duration,
    /// Without an answer for so long, its connections are given up.
    pub dropped_after: Duration,
    /// A handshake that takes longer is given up, with the time to connect.
    pub handshake_max: Duration,
    /// The first pause between two attempts to connect, which doubles.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_millis(250),
            silent_after: Duration::from_secs(1),
            dropped_after: Duration::from_secs(5),
            handshake_max: Duration::from_secs(3),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
        }
    }
}

/// What is told when a member's process is gone.
pub type PeerLost = Arc<dyn Fn(NodeId) + Send + Sync>;

/// What is told, with the reason, when another node says that this one was removed.
pub type Unwanted = Arc<dyn Fn(&str) + Send + Sync>;

/// A wall clock, in nanoseconds since 1970.
pub type UnixNanos = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's.
pub fn system_clock() -> UnixNanos {
    Arc::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
    })
}

pub(super) struct Shared {
    pub(super) here: Here,
    pub(super) incarnation: u64,
    pub(super) feature_level: u32,
    pub(super) config: PeerConfig,
    pub(super) timing: Timing,
    pub(super) security: Security,
    pub(super) raft: Handle,
    pub(super) main: Handle,
    pub(super) peer_lost: PeerLost,
    pub(super) unwanted: Unwanted,
    pub(super) unix_nanos: UnixNanos,
    pub(super) metrics: PeerMetrics,
    pub(super) next_epoch: AtomicU64,
    pub(super) next_request: AtomicU64,
    pub(super) members: RwLock<BTreeMap<NodeId, Arc<Member>>>,
    /// Who was a member, and never will be again.
    pub(super) removed: RwLock<BTreeSet<NodeId>>,
    pub(super) inbox: RwLock<Option<Arc<dyn Inbox>>>,
    pub(super) answerer: RwLock<Option<Arc<dyn Answerer>>>,
    /// How many nodes may ask to join at once.
    pub(super) strangers: Arc<Semaphore>,
    /// Why whom was refused, since when, and whether that was logged.
    pub(super) refused: Mutex<BTreeMap<String, (Instant, bool)>>,
    pub(super) started: Instant,
}

impl Shared {
    pub(super) fn member(&self, node: NodeId) -> Option<Arc<Member>> {
        self.members.read().get(&node).cloned()
    }

    /// Whether it still is one, under the same name.
    pub(super) fn is_member(&self, member: &Arc<Member>) -> bool {
        let members = self.members.read();
        members.get(&member.node).is_some_and(|now| Arc::ptr_eq(now, member))
    }

    /// Whether a frame for this member would be queued, as far as that depends on the connection.
    pub(super) fn is_connected(&self, node: NodeId, lane: PeerLane) -> bool {
        self.member(node).is_some_and(|member| member.link(self, lane).is_some())
    }

    /// Has Raft hear what becomes of its connections.
    pub(super) fn tell_raft(&self, lane: PeerLane, tell: impl FnOnce(&dyn Inbox, Lane)) {
        let lane = match lane {
            PeerLane::Urgent => Lane::Urgent,
            PeerLane::Entries => Lane::Entries,
            PeerLane::Bulk => Lane::Bulk,
            PeerLane::Calls => return,
        };
        let inbox = self.inbox.read().clone();
        if let Some(inbox) = inbox {
            tell(&*inbox, lane);
        }
    }

    /// Nanoseconds since this node started.
    pub(super) fn nanos(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What Raft's groups send through.
pub(super) struct PeerTransport(pub(super) Arc<Shared>);

impl Transport for PeerTransport {
    fn listen(&self, inbox: Arc<dyn Inbox>) {
        *self.0.inbox.write() = Some(inbox);
    }

    fn is_connected(&self, to: NodeId, lane: Lane) -> bool {
        self.0.is_connected(to, lane.into())
    }

    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        let lane = PeerLane::from(lane);
        let link = self.0.member(to).and_then(|member| member.link(&self.0, lane));
        let link = link.ok_or(TransportError::Unreachable)?;
        let bytes = frame.len();
        link.queue.push(Frame::data(frame)).map_err(|why| match why {
            NotQueued::Closed => TransportError::Unreachable,
            NotQueued::Full => TransportError::Busy,
            NotQueued::TooLong => {
                tracing::error!(peer = %to, %lane, bytes, "frame is larger than its lane takes");
                TransportError::Busy
            }
        })
    }
}
