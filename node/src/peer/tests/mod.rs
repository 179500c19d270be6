//! Networks of several nodes in one process, connected over loopback.

mod calls;
mod faults;
mod frames;
mod handshake;
mod lanes;
mod proxy;
mod raft;
mod secure;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use piton_raft::{Inbox, Lane, NodeId, Transport, TransportError};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::runtime::{Handle, Runtime};

use self::proxy::Proxy;
use super::*;

const CLUSTER: &str = "8c2b6b5e";
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a state.
pub(super) async fn await_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        tokio::task::yield_now().await;
        tick().await;
    }
}

/// Lets others run.
pub(super) async fn tick() {
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    ticks.tick().await;
    ticks.tick().await;
}

pub(super) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Keeps what arrived, in order.
#[derive(Default)]
pub(super) struct Record {
    frames: Mutex<Vec<(NodeId, Bytes)>>,
    count: AtomicUsize,
    /// Connections to others that it was told have ended, and from others that have ended or begun.
    ended: Mutex<BTreeSet<(NodeId, Lane)>>,
    changed: Mutex<Vec<(NodeId, Lane)>>,
}

impl Inbox for Record {
    fn receive(&self, from: NodeId, frame: Bytes) {
        self.frames.lock().push((from, frame));
        self.count.fetch_add(1, Ordering::Release);
    }

    fn sent_is_lost(&self, to: NodeId, lane: Lane) {
        self.ended.lock().insert((to, lane));
    }

    fn answers_are_lost(&self, from: NodeId, lane: Lane) {
        self.changed.lock().push((from, lane));
    }
}

impl Record {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> Vec<(NodeId, Bytes)> {
        self.count.store(0, Ordering::Release);
        std::mem::take(&mut *self.frames.lock())
    }
}

/// A node's network, with a small runtime for Raft as in a real node.
pub(super) struct TestNode {
    pub(super) id: NodeId,
    pub(super) net: PeerNet,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) inbox: Arc<Record>,
    pub(super) lost: Arc<Mutex<Vec<NodeId>>>,
    /// Why others said that this node is no member any more.
    pub(super) unwanted: Arc<Mutex<Vec<String>>>,
    registry: Registry,
    raft: Option<Runtime>,
}

/// Parts that a test may change before the start.
pub(super) struct Plan {
    pub(super) id: u64,
    pub(super) cluster: String,
    pub(super) config: PeerConfig,
    pub(super) timing: Timing,
    pub(super) unix_nanos: UnixNanos,
    /// Once it is known where it listens.
    listener: Option<std::net::TcpListener>,
}

pub(super) fn plan(id: u64) -> Plan {
    let config = PeerConfig { port: 0, ..PeerConfig::default() };
    let (cluster, timing) = (CLUSTER.to_owned(), Timing::default());
    Plan { id, cluster, config, timing, unix_nanos: system_clock(), listener: None }
}

impl Plan {
    pub(super) fn start(self) -> TestNode {
        self.try_start().unwrap()
    }

    /// Has others call it through a proxy, which is where it says that it is.
    async fn behind_proxy(mut self) -> (Plan, Proxy) {
        let listener = listen(&self.config).unwrap();
        let proxy = Proxy::before(listener.local_addr().unwrap()).await;
        self.config.advertised = proxy.address.to_string();
        self.listener = Some(listener);
        (self, proxy)
    }

    pub(super) fn try_start(self) -> Result<TestNode, PeerError> {
        let listener = match self.listener {
            Some(listener) => listener,
            None => listen(&self.config)?,
        };
        let raft = tokio::runtime::Builder::new_multi_thread();
        let raft = { raft }.worker_threads(1).enable_all().build().unwrap();
        let lost = Arc::new(Mutex::new(Vec::new()));
        let peer_lost: PeerLost = {
            let lost = Arc::clone(&lost);
            Arc::new(move |node| lost.lock().push(node))
        };
        let unwanted = Arc::new(Mutex::new(Vec::new()));
        let parts = Parts {
            node: NodeId(self.id),
            cluster: self.cluster,
            feature_level: 7,
            config: self.config,
            listener,
            timing: self.timing,
            raft: raft.handle().clone(),
            main: Handle::current(),
            peer_lost,
            unwanted: {
                let unwanted = Arc::clone(&unwanted);
                Arc::new(move |why| unwanted.lock().push(why.to_owned()))
            },
            unix_nanos: self.unix_nanos,
        };
        let mut registry = Registry::with_prefix("piton");
        let net = match PeerNet::start(parts, &mut registry) {
            Ok(net) => net,
            Err(error) => {
                raft.shutdown_background();
                return Err(error);
            }
        };
        let (transport, inbox) = (net.transport(), Arc::new(Record::default()));
        transport.listen(inbox.clone());
        Ok(TestNode {
            id: NodeId(self.id),
            net,
            transport,
            inbox,
            lost,
            unwanted,
            registry,
            raft: Some(raft),
        })
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(raft) = self.raft.take() {
            raft.shutdown_background();
        }
    }
}

impl TestNode {
    pub(super) fn address(&self) -> PeerAddress {
        self.net.address().into()
    }

    pub(super) fn raft(&self) -> Handle {
        self.raft.as_ref().map(|raft| raft.handle().clone()).unwrap()
    }

    /// Sets who its peers are, and where.
    pub(super) fn knows(&self, peers: &[(NodeId, SocketAddr)]) {
        let peers = peers.iter().map(|&(node, address)| (node, address.into()));
        self.net.set_peers(peers.collect(), BTreeSet::new());
    }

    pub(super) fn send(&self, to: &TestNode, lane: Lane, frame: impl Into<Bytes>) {
        self.try_send(to, lane, frame).unwrap();
    }

    pub(super) fn try_send(
        &self,
        to: &TestNode,
        lane: Lane,
        frame: impl Into<Bytes>,
    ) -> Result<(), TransportError> {
        self.transport.send(to.id, lane, frame.into())
    }

    pub(super) fn reaches(&self, peer: NodeId) -> bool {
        PeerLane::ALL.into_iter().all(|lane| self.net.is_connected(peer, lane))
    }

    /// The value of a metric, with its labels as they are written.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(super) fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    pub(super) fn refused(&self, reason: &str) -> f64 {
        self.metric(&format!("piton_peer_refused_handshakes_total{{reason=\"{reason}\"}}"))
    }
}

/// Nodes that know each other, and are connected.
pub(super) async fn connected<const N: usize>(plans: [Plan; N]) -> [TestNode; N] {
    let nodes = plans.map(Plan::start);
    introduce(&nodes).await;
    nodes
}

pub(super) async fn introduce(nodes: &[TestNode]) {
    let all: Vec<_> = nodes.iter().map(|node| (node.id, node.net.address())).collect();
    nodes.iter().for_each(|node| node.knows(&all));
    await_until("all are connected with all", || {
        let pairs = nodes.iter().flat_map(|one| nodes.iter().map(move |other| (one, other)));
        pairs.filter(|(one, other)| one.id != other.id).all(|(one, other)| one.reaches(other.id))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_peers_is_documented() {
    const METRICS: &str = include_str!("../../../../docs/metrics.md");
    let [one, other] = connected([plan(1), plan(2)]).await;
    one.send(&other, Lane::Urgent, "frame");
    await_until("a ping came back", || one.net.round_trip(other.id).is_some()).await;
    let _ = raw(other.net.address(), b"GET / HTTP/1.1\r\n\r\n").await;
    await_until("it is refused", || other.refused("no_hello") > 0.0).await;
    let text = format!("{}{}", one.metrics(), other.metrics());
    let lines = text.lines().filter(|line| line.starts_with("piton_"));
    let names: BTreeMap<&str, ()> =
        lines.filter_map(|line| Some((line.split(['{', ' ']).next()?, ()))).collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names.into_keys() {
        let is_listed = ["`", "{"].iter().any(|end| METRICS.contains(&format!("`{name}{end}")));
        assert!(is_listed, "docs/metrics.md does not list {name}");
    }
    let promised = METRICS.split('`').filter(|word| word.starts_with("piton_peer_"));
    for name in promised.filter_map(|word| word.split('{').next()) {
        assert!(text.contains(&format!("\n{name}")), "{name} is documented and not there:\n{text}");
    }
}

/// Says something to a port as it is, and returns what comes back until the other side closes.
pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut back = Vec::new();
    // A reset is an end, too.
    let _ = in_time("the other side closes", stream.read_to_end(&mut back)).await;
    back
}
