//! What is counted of the connections between nodes. Registered only where there are some to be:
//! a node that is not configured for a cluster shows none of it.

use std::sync::atomic::AtomicU64;

use piton_raft::NodeId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::lane::PeerLane;

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    lane: &'static str,
    state: &'static str,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

/// What is counted of one lane to and from all peers.
pub(super) struct LaneMetrics {
    pub(super) sent_bytes: Counter,
    pub(super) sent_frames: Counter,
    pub(super) writes: Counter,
    pub(super) received_bytes: Counter,
    pub(super) received_frames: Counter,
    pub(super) queue_bytes: Gauge,
    pub(super) reconnects: Counter,
    pub(super) connect_failures: Counter,
    /// Lanes that have no connection at the moment.
    pub(super) connecting: Gauge,
    /// Connections that this node made.
    pub(super) connected: Gauge,
    /// Connections that other nodes made.
    pub(super) accepted: Gauge,
}

/// What is counted of all peers.
pub(super) struct PeerMetrics {
    lanes: [LaneMetrics; 4],
    round_trip: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    refused: Family<ReasonLabel, Counter>,
    pub(super) calls_under_way: Gauge,
}

impl PeerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let connections = Family::<StateLabels, Gauge>::default();
        let mut counter = |name, help| {
            let family = Family::<LaneLabel, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let sent_bytes = counter("peer_sent_bytes", "Bytes of frames sent to other nodes");
        let sent_frames = counter("peer_sent_frames", "Frames sent to other nodes");
        let writes = counter("peer_writes", "Batches of frames written, one flush each");
        let received_bytes = counter("peer_received_bytes", "Bytes received from other nodes");
        let received_frames = counter("peer_received_frames", "Frames received from other nodes");
        let reconnects = counter("peer_reconnects", "Connections to other nodes made anew");
        let connect_failures =
            counter("peer_connect_failures", "Attempts to connect to other nodes that failed");
        let queue_bytes = Family::<LaneLabel, Gauge>::default();
        registry.register(
            "peer_queue_bytes",
            "Bytes of frames that wait to be sent, or are being sent",
            queue_bytes.clone(),
        );
        registry.register(
            "peer_connections",
            "Connections with other nodes, made (connected), to be made (connecting), taken (accepted)",
            connections.clone(),
        );
        let (round_trip, refused, calls_under_way) =
            (Family::default(), Family::default(), Gauge::default());
        registry.register(
            "peer_round_trip_seconds",
            "Time that the last ping took there and back",
            round_trip.clone(),
        );
        registry.register(
            "peer_refused_handshakes",
            "Connections of other nodes that were refused",
            refused.clone(),
        );
        registry.register(
            "peer_calls_under_way",
            "Requests of other nodes that are being answered",
            calls_under_way.clone(),
        );
        let lanes = PeerLane::ALL.map(|lane| {
            let label = LaneLabel { lane: lane.name() };
            let state =
                |state| connections.get_or_create_owned(&StateLabels { lane: lane.name(), state });
            LaneMetrics {
                sent_bytes: sent_bytes.get_or_create_owned(&label),
                sent_frames: sent_frames.get_or_create_owned(&label),
                writes: writes.get_or_create_owned(&label),
                received_bytes: received_bytes.get_or_create_owned(&label),
                received_frames: received_frames.get_or_create_owned(&label),
                queue_bytes: queue_bytes.get_or_create_owned(&label),
                reconnects: reconnects.get_or_create_owned(&label),
                connect_failures: connect_failures.get_or_create_owned(&label),
                connecting: state("connecting"),
                connected: state("connected"),
                accepted: state("accepted"),
            }
        });
        Self { lanes, round_trip, refused, calls_under_way }
    }

    pub(super) fn lane(&self, lane: PeerLane) -> &LaneMetrics {
        &self.lanes[lane.number()]
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn round_trip(&self, peer: NodeId) -> Gauge<f64, AtomicU64> {
        self.round_trip.get_or_create_owned(&PeerLabel::of(peer))
    }

    pub(super) fn forget(&self, peer: NodeId) {
        self.round_trip.remove(&PeerLabel::of(peer));
    }
}

impl PeerLabel {
    /// As `node.toml` has it.
    fn of(peer: NodeId) -> Self {
        Self { peer: format!("{:016x}", peer.0) }
    }
}

/// Counts one in for as long as it lives.
pub(super) struct Counted(Gauge);

impl Counted {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
