//! The network between nodes. Raft's frames keep the order of their lane, as over a stream, but may
//! be lost or late; calls between shards may also be repeated and overtake each other. Links can be
//! cut, in one direction or both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use piton_raft::{Inbox, Lane, NodeId, Transport, TransportError};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::chance::Chance;
use crate::life::Life;
use crate::trace::Trace;

/// What is shorter on the lane of snapshots announces or answers.
const PART_BYTES_MIN: usize = 1 << 10;

/// What the network does to messages, beyond cut links.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Messages of a hundred that are lost.
    pub(crate) lost_percent: u64,
    /// The longest delay, beyond the usual two milliseconds.
    pub(crate) delay_ms_max: u64,
    /// Calls between shards of a hundred that arrive twice.
    pub(crate) repeated_percent: u64,
}

/// What the network has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) lost: u64,
    pub(crate) delayed: u64,
    pub(crate) repeated: u64,
    pub(crate) cut: u64,
}

/// What becomes of one message.
pub(crate) struct Way {
    pub(crate) arrives: bool,
    pub(crate) at: Instant,
    pub(crate) again_at: Option<Instant>,
}

/// The network of one run. Clones share it.
#[derive(Clone)]
pub(crate) struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    sent: Notify,
    /// Told of each part of a snapshot that arrives, and where.
    parts: OnceLock<Box<dyn Fn(NodeId) + Send + Sync>>,
    trace: Trace,
    chance: Chance,
}

#[derive(Default)]
struct State {
    inboxes: BTreeMap<NodeId, (Arc<Life>, Arc<dyn Inbox>)>,
    under_way: BTreeMap<(Instant, u64), Frame>,
    last_at: BTreeMap<(NodeId, NodeId, Lane), Instant>,
    number: u64,
    cut: BTreeSet<(NodeId, NodeId)>,
    weather: Weather,
    done: Done,
}

struct Frame {
    from: NodeId,
    to: NodeId,
    lane: Lane,
    bytes: Bytes,
}

impl Network {
    pub(crate) fn start(trace: Trace, chance: Chance) -> Self {
        let state = Mutex::new(State::default());
        let shared =
            Arc::new(Shared { state, sent: Notify::new(), parts: OnceLock::new(), trace, chance });
        tokio::spawn(Arc::clone(&shared).carry());
        Self { shared }
    }

    pub(crate) fn transport(&self, life: &Arc<Life>) -> Arc<dyn Transport> {
        Arc::new(NodeTransport { shared: Arc::clone(&self.shared), life: Arc::clone(life) })
    }

    /// From now on `tell` hears of each part of a snapshot that arrives.
    pub(crate) fn tell_of_parts(&self, tell: impl Fn(NodeId) + Send + Sync + 'static) {
        let is_first = self.shared.parts.set(Box::new(tell)).is_ok();
        assert!(is_first, "a network has one world");
    }

    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.shared.state.lock().cut.contains(&(from, to))
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.shared.state.lock().weather = weather;
    }

    pub(crate) fn done(&self) -> Done {
        self.shared.state.lock().done
    }

    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.shared.state.lock().cut.insert((from, to));
    }

    pub(crate) fn heal_all(&self) {
        let mut state = self.shared.state.lock();
        state.cut.clear();
        state.weather = Weather::default();
    }

    /// A node's process has ended. Whom its links lead to is told that its connections have, too.
    pub(crate) fn remove(&self, node: NodeId) {
        let others: Vec<Arc<dyn Inbox>> = {
            let mut state = self.shared.state.lock();
            state.inboxes.remove(&node);
            let is_told = |other: NodeId| {
                !state.cut.contains(&(node, other)) && !state.cut.contains(&(other, node))
            };
            let others = state
                .inboxes
                .iter()
                .filter(|(other, (life, _))| is_told(**other) && life.is_alive());
            others.map(|(_, (_, inbox))| Arc::clone(inbox)).collect()
        };
        for inbox in others {
            for lane in [Lane::Urgent, Lane::Entries, Lane::Bulk] {
                inbox.sent_is_lost(node, lane);
                inbox.answers_are_lost(node, lane);
            }
        }
    }

    /// The way of a call between shards, which keeps no order.
    pub(crate) fn way(&self, from: NodeId, to: NodeId) -> Way {
        let mut state = self.shared.state.lock();
        let arrives = state.passes(from, to, &self.shared.chance);
        let at = state.arrival(&self.shared.chance);
        let is_repeated =
            from != to && self.shared.chance.percent(state.weather.repeated_percent) && arrives;
        state.done.repeated += u64::from(is_repeated);
        let again_at = is_repeated.then(|| {
            let later = Duration::from_millis(self.shared.chance.between(1, 200));
            Instant::now() + later
        });
        Way { arrives, at, again_at }
    }
}

impl State {
    fn passes(&mut self, from: NodeId, to: NodeId, chance: &Chance) -> bool {
        if self.cut.contains(&(from, to)) {
            self.done.cut += 1;
            return false;
        }
        let is_lost = from != to && chance.percent(self.weather.lost_percent);
        self.done.lost += u64::from(is_lost);
        !is_lost
    }

    fn arrival(&mut self, chance: &Chance) -> Instant {
        let mut delay = chance.between(1, 3);
        if self.weather.delay_ms_max > 0 && chance.percent(50) {
            delay += chance.below(self.weather.delay_ms_max);
            self.done.delayed += 1;
        }
        Instant::now() + Duration::from_millis(delay)
    }
}

impl Shared {
    /// Hands over what is due, in the order of arrival.
    async fn carry(self: Arc<Self>) {
        loop {
            let first = self.state.lock().under_way.keys().next().map(|(at, _)| *at);
            let Some(at) = first else {
                self.sent.notified().await;
                continue;
            };
            if at > Instant::now() {
                tokio::select! {
                    biased;
                    () = self.sent.notified() => {}
                    () = sleep_until(at) => {}
                }
                continue;
            }
            let (frame, inbox) = {
                let mut state = self.state.lock();
                let Some((_, frame)) = state.under_way.pop_first() else { continue };
                let is_cut = state.cut.contains(&(frame.from, frame.to));
                state.done.cut += u64::from(is_cut);
                let inbox = state.inboxes.get(&frame.to).cloned();
                (frame, inbox.filter(|(life, _)| !is_cut && life.is_alive()))
            };
            let Some((_, inbox)) = inbox else { continue };
            let Frame { from, to, lane, bytes } = frame;
            self.trace.note(format_args!("{from} > {to} {lane:?} {}", bytes.len()));
            let is_part = lane == Lane::Bulk && bytes.len() > PART_BYTES_MIN;
            inbox.receive(from, bytes);
            if let Some(tell) = self.parts.get().filter(|_| is_part) {
                tell(to);
            }
        }
    }
}

struct NodeTransport {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

impl Transport for NodeTransport {
    fn listen(&self, inbox: Arc<dyn Inbox>) {
        let mut state = self.shared.state.lock();
        if self.life.is_alive() {
            state.inboxes.insert(self.life.node, (Arc::clone(&self.life), inbox));
        }
    }

    fn send(&self, to: NodeId, lane: Lane, bytes: Bytes) -> Result<(), TransportError> {
        let from = self.life.node;
        let mut state = self.shared.state.lock();
        if !self.life.is_alive() || !state.inboxes.contains_key(&to) {
            return Err(TransportError::Unreachable);
        }
        if !state.passes(from, to, &self.shared.chance) {
            return Ok(());
        }
        let at = state.arrival(&self.shared.chance);
        let last = state.last_at.entry((from, to, lane)).or_insert(at);
        *last = at.max(*last);
        let at = *last;
        state.number += 1;
        let number = state.number;
        state.under_way.insert((at, number), Frame { from, to, lane, bytes });
        drop(state);
        self.shared.sent.notify_one();
        Ok(())
    }
}
