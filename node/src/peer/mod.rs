//! The network between the nodes of a cluster: carries Raft's frames, and requests between shards
//! with their answers. Knows nodes, lanes and bytes, and never what they say.
//!
//! Length-prefixed frames over TCP, within TLS in which both sides show a certificate of the
//! cluster's CA ([0008](../../../docs/decisions/0008-frames-between-nodes.md)). Each node makes one
//! connection for each lane to each other node, for what it sends itself ([`dial`](self)); on it
//! come back answers to pings and requests. So a snapshot never holds up a heartbeat, and each side
//! sees for itself whether the other can be reached.
//!
//! What is promised to those who send: nothing waits; a frame is queued for a connection that there
//! is, or refused at once; it arrives at most once, in the order of its lane, or not at all; and it
//! dies with the connection that it was queued for.
//!
//! Read in this order: `lane`, `frame`, `hello` (what is said), `link` and `queue` (sending),
//! `dial` and `fate` (connections that this node makes), `accept` and `inbound` (those of others),
//! `calls` (requests and answers), `join` (who is no member yet).

mod accept;
mod address;
mod calls;
mod dial;
mod fate;
mod frame;
mod hello;
mod inbound;
mod join;
mod lane;
mod link;
mod member;
mod metrics;
mod net;
mod queue;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use piton_raft::{NodeId, Transport};
use prometheus_client::registry::Registry;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub use address::PeerAddress;
pub use calls::{Answerer, AskError, NotSent, Unknown};
pub use hello::Refusal;
pub use join::Stranger;
pub use lane::PeerLane;
pub use net::{PeerLost, Timing, UnixNanos, Unwanted, system_clock};
pub use tls::TlsError;
pub(crate) use tls::is_loopback;

use crate::config::{ConfigError, PeerConfig};
use hello::Here;
use member::Member;
use metrics::PeerMetrics;
use net::{PeerTransport, Shared};
use tls::Security;

/// Why the network does not start.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("secure connections between nodes")]
    Tls(#[from] TlsError),
    #[error("listen on {address} for other nodes")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("wait for other nodes to connect")]
    Register(#[source] io::Error),
}

/// What a network is made of.
pub struct Parts {
    pub node: NodeId,
    pub cluster: String,
    /// What this build can read and write, told to the others.
    pub feature_level: u32,
    pub config: PeerConfig,
    /// From [`listen`].
    pub listener: std::net::TcpListener,
    pub timing: Timing,
    /// Carries all but requests. Nothing on it may wait for the disk or for the API.
    pub raft: Handle,
    /// Carries requests, and answers them.
    pub main: Handle,
    /// Told when a member's process is gone: every connection to it broke, and new ones are refused.
    /// Called on a runtime, so it must not wait.
    pub peer_lost: PeerLost,
    /// Told when another node says that this one was removed from the cluster. It must not wait either.
    pub unwanted: Unwanted,
    pub unix_nanos: UnixNanos,
}

/// The network of one node. Dropping it ends all connections.
pub struct PeerNet {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl PeerNet {
    /// Lets other nodes in. There are no members until they are set, nobody answers requests
    /// until [`PeerNet::answer_with`], and Raft's frames are dropped until it listens.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn start(parts: Parts, registry: &mut Registry) -> Result<PeerNet, PeerError> {
        parts.config.check()?;
        let security = Security::load(&parts.config)?;
        let (listener, address) = register(parts.listener, &parts.raft)?;
        let told = parts.config.told(address);
        let shared = Arc::new(Shared {
            here: Here { node: parts.node, cluster: parts.cluster, address: told },
            incarnation: SmallRng::from_os_rng().random(),
            feature_level: parts.feature_level,
            metrics: PeerMetrics::register(registry),
            config: parts.config,
            timing: parts.timing,
            security,
            raft: parts.raft,
            main: parts.main,
            peer_lost: parts.peer_lost,
            unwanted: parts.unwanted,
            unix_nanos: parts.unix_nanos,
            next_epoch: AtomicU64::new(1),
            next_request: AtomicU64::new(1),
            members: Default::default(),
            removed: Default::default(),
            inbox: Default::default(),
            answerer: Default::default(),
            strangers: Arc::new(Semaphore::new(join::STRANGERS_MAX)),
            refused: Default::default(),
            started: Instant::now(),
        });
        let accepting = shared.raft.spawn(accept::accept(Arc::clone(&shared), listener));
        Ok(PeerNet { shared, address, accepting: Mutex::new(Some(accepting)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What Raft's groups send through.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(PeerTransport(Arc::clone(&self.shared)))
    }

    /// Who answers requests of other nodes from now on.
    pub fn answer_with(&self, answerer: Arc<dyn Answerer>) {
        *self.shared.answerer.write() = Some(answerer);
    }

    /// The members of the cluster from now on. Those that are not among them any more are
    /// disconnected, in both directions; this node itself may be among them. A new address is used
    /// from the next attempt to connect on, which comes at once where there is no connection. What a
    /// member says of itself when it calls is used as well. Who was removed is told so when it calls.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, PeerAddress>, removed: BTreeSet<NodeId>) {
        let shared = &self.shared;
        // ORDER: before it is no member any more, so that it is told nothing less.
        *shared.removed.write() = removed;
        let mut members = shared.members.write();
        let gone: Vec<NodeId> =
            members.keys().filter(|node| !peers.contains_key(node)).copied().collect();
        for member in gone.iter().filter_map(|node| members.remove(node)) {
            shared.metrics.forget(member.node);
            shared.raft.spawn(async move { member.close().await });
        }
        for (node, address) in peers {
            if node == shared.here.node {
                continue;
            }
            if let Some(member) = members.get(&node) {
                member.told_of(address);
                continue;
            }
            let member = Arc::new(Member::new(shared, node, address));
            let dialling = PeerLane::ALL.map(|lane| {
                let runtime = if lane == PeerLane::Calls { &shared.main } else { &shared.raft };
                runtime.spawn(dial::keep(Arc::clone(shared), Arc::clone(&member), lane))
            });
            *member.dialling.lock() = dialling.into();
            members.insert(node, member);
        }
    }

    /// Sends a request to a member and waits for its answer. Requests to one member arrive in the
    /// order in which this was first polled.
    ///
    /// # Errors
    /// [`AskError::NotSent`] when the member has not seen the request, [`AskError::Unknown`] when it
    /// may have.
    ///
    /// # Cancel safety
    /// Dropping it forgets the answer. The request may be carried out all the same.
    pub async fn ask(
        &self,
        node: NodeId,
        request: Bytes,
        limit: Duration,
    ) -> Result<Bytes, AskError> {
        let member = self.shared.member(node);
        let link = member.and_then(|member| member.link(&self.shared, PeerLane::Calls));
        let link = link.ok_or(AskError::NotSent(NotSent::NoConnection))?;
        let number = self.shared.next_request.fetch_add(1, Ordering::Relaxed);
        calls::ask(&link, number, request, limit).await
    }

    /// Whether a frame for this member would be queued, as far as that depends on the connection. To
    /// be asked before something large is encoded.
    pub fn is_connected(&self, node: NodeId, lane: PeerLane) -> bool {
        self.shared.is_connected(node, lane)
    }

    /// How long the last ping took, there and back.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.shared.member(node)?.round_trip()
    }

    /// A member's clock less this node's, in nanoseconds; exact to half the round trip.
    pub fn clock_offset(&self, node: NodeId) -> Option<i64> {
        self.shared.member(node)?.clock_offset()
    }

    /// What a member's build can read and write; `None` before it was first reached.
    pub fn feature_level(&self, node: NodeId) -> Option<u32> {
        let level = self.shared.member(node)?.feature_level.load(Ordering::Relaxed);
        (level > 0).then_some(level)
    }

    /// Ends all connections; when this returns, nothing is delivered any more and the port is free.
    pub async fn stop(&self) {
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // An abort is what was asked for.
            let _ = accepting.await;
        }
        let members = std::mem::take(&mut *self.shared.members.write());
        for member in members.into_values() {
            member.close().await;
        }
        // Who answers asks through this network, so that each would keep the other.
        *self.shared.answerer.write() = None;
    }
}

impl Drop for PeerNet {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().take() {
            accepting.abort();
        }
        let members = std::mem::take(&mut *self.shared.members.write());
        for member in members.into_values() {
            self.shared.raft.spawn(async move { member.close().await });
        }
    }
}

/// Takes the port. Who connects waits until the network starts.
///
/// # Errors
/// See [`PeerError`].
pub fn listen(config: &PeerConfig) -> Result<std::net::TcpListener, PeerError> {
    config.check()?;
    let address = config.listen();
    std::net::TcpListener::bind(address).map_err(|source| PeerError::Listen { address, source })
}

/// Has the runtime that will be woken by it wait for who connects.
fn register(
    listener: std::net::TcpListener,
    raft: &Handle,
) -> Result<(TcpListener, SocketAddr), PeerError> {
    let address = listener.local_addr().map_err(PeerError::Register)?;
    listener.set_nonblocking(true).map_err(PeerError::Register)?;
    let _guard = raft.enter();
    Ok((TcpListener::from_std(listener).map_err(PeerError::Register)?, address))
}
