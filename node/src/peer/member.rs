//! What this node knows of one other member of the cluster.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use piton_raft::NodeId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::address::PeerAddress;
use super::calls::Admission;
use super::fate::Fate;
use super::inbound::Inbound;
use super::lane::PeerLane;
use super::link::Link;
use super::net::Shared;

/// What ends by itself within so long is no trouble: a node starts, or was added a moment ago.
pub(super) const PASSING: Duration = Duration::from_secs(5);
/// Nothing was measured yet.
const UNKNOWN: i64 = i64::MIN;

/// Where a member may be. Others may know of a move that it could not tell here, and it may have moved
/// since they last heard of it: so both are tried in turn.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// What the cluster has recorded.
    told: PeerAddress,
    /// What the member said itself when it last called.
    said: Option<PeerAddress>,
}

impl Addresses {
    pub(super) fn to_try(&self, attempt: usize) -> &PeerAddress {
        match &self.said {
            Some(said) if attempt.is_multiple_of(2) => said,
            _ => &self.told,
        }
    }
}

pub(super) struct Member {
    pub(super) node: NodeId,
    pub(super) addresses: watch::Sender<Addresses>,
    links: [RwLock<Option<Arc<Link>>>; 4],
    /// When it last answered a ping, in nanoseconds since this node started; 0 is never.
    heard: AtomicU64,
    round_trip: AtomicU64,
    round_trip_gauge: Gauge<f64, AtomicU64>,
    /// Its clock less ours, in nanoseconds.
    clock_offset: AtomicI64,
    pub(super) feature_level: AtomicU32,
    pub(super) fate: Mutex<Fate>,
    /// Changes when it has not answered for so long that all connections are given up.
    pub(super) silenced: watch::Sender<()>,
    /// Since when it could not be reached, and why, as far as that was logged since it last could.
    trouble: Mutex<(Option<Instant>, BTreeSet<String>)>,
    pub(super) admission: Admission,
    /// ORDER: held while a connection of it is admitted, until those that it replaces have ended.
    pub(super) inbound: tokio::sync::Mutex<Inbound>,
    /// What keeps the connections to it.
    pub(super) dialling: Mutex<Vec<JoinHandle<()>>>,
}

impl Member {
    pub(super) fn new(net: &Shared, node: NodeId, address: PeerAddress) -> Member {
        Member {
            node,
            addresses: watch::Sender::new(Addresses { told: address, said: None }),
            links: Default::default(),
            heard: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
            round_trip_gauge: net.metrics.round_trip(node),
            clock_offset: AtomicI64::new(UNKNOWN),
            feature_level: AtomicU32::new(0),
            fate: Mutex::default(),
            silenced: watch::Sender::new(()),
            trouble: Mutex::default(),
            admission: Admission::new(&net.config, net.metrics.calls_under_way.clone()),
            inbound: tokio::sync::Mutex::default(),
            dialling: Mutex::default(),
        }
    }

    /// The cluster has it recorded there.
    pub(super) fn told_of(&self, address: PeerAddress) {
        self.addresses.send_if_modified(|now| {
            let is_other = now.told != address;
            now.told = address;
            is_other
        });
    }

    /// It called, and said where it is.
    pub(super) fn says(&self, address: &str) {
        let Ok(address) = address.parse::<PeerAddress>() else { return };
        self.addresses.send_if_modified(|now| now.said.replace(address.clone()) != Some(address));
    }

    /// The connection for a lane, if the member can be reached.
    pub(super) fn link(&self, net: &Shared, lane: PeerLane) -> Option<Arc<Link>> {
        let link = self.links[lane.number()].read().clone()?;
        self.is_heard(net).then_some(link)
    }

    pub(super) fn set_link(&self, lane: PeerLane, link: Option<Arc<Link>>) {
        *self.links[lane.number()].write() = link;
    }

    /// Whether it answered a ping a moment ago.
    pub(super) fn is_heard(&self, net: &Shared) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let silent = net.nanos().saturating_sub(heard);
        heard != 0 && Duration::from_nanos(silent) < net.timing.silent_after
    }

    /// It is there: it took part in a handshake, or answered a ping.
    pub(super) fn hear(&self, net: &Shared) {
        self.heard.store(net.nanos().max(1), Ordering::Relaxed);
    }

    /// A ping came back that was sent at `sent`, and what its clock showed in between.
    pub(super) fn pong(&self, net: &Shared, sent: u64, its_clock: Option<u64>) {
        self.hear(net);
        let round_trip = net.nanos().saturating_sub(sent);
        self.round_trip.store(round_trip.max(1), Ordering::Relaxed);
        self.round_trip_gauge.set(Duration::from_nanos(round_trip).as_secs_f64());
        if let Some(its_clock) = its_clock {
            let ours = (net.unix_nanos)().saturating_sub(round_trip / 2);
            let offset = i128::from(its_clock) - i128::from(ours);
            let offset = offset.clamp(i128::from(UNKNOWN + 1), i128::from(i64::MAX));
            self.clock_offset.store(offset as i64, Ordering::Relaxed);
        }
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        let nanos = self.round_trip.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    pub(super) fn clock_offset(&self) -> Option<i64> {
        let nanos = self.clock_offset.load(Ordering::Relaxed);
        (nanos != UNKNOWN).then_some(nanos)
    }

    pub(super) fn broke(&self, lane: PeerLane) {
        self.fate.lock().broke(lane, Instant::now());
    }

    pub(super) fn connected(&self, lane: PeerLane) {
        self.fate.lock().connected(lane);
        if lane == PeerLane::Urgent {
            *self.trouble.lock() = Default::default();
        }
    }

    /// Whether the member could not be reached for some time, and this was not logged yet since it last
    /// could.
    pub(super) fn is_news(&self, reason: &str) -> bool {
        /// Reasons are few; what makes them many is not worth its room.
        const REASONS_MAX: usize = 16;
        let (since, logged) = &mut *self.trouble.lock();
        let lasts = since.get_or_insert_with(Instant::now).elapsed();
        lasts >= PASSING && logged.len() < REASONS_MAX && logged.insert(reason.to_owned())
    }

    /// Ends all connections with it.
    pub(super) async fn close(&self) {
        let dialling = std::mem::take(&mut *self.dialling.lock());
        for task in &dialling {
            task.abort();
        }
        for task in dialling {
            // An abort is what was asked for.
            let _ = task.await;
        }
        self.inbound.lock().await.close().await;
    }
}
