//! Nodes of one process, connected in memory; links can be cut and slowed. For tests, here and in
//! the crates above.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::config::NodeId;
use crate::error::TransportError;
use crate::transport::{Inbox, Lane, Transport};

/// A network between nodes of this process. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    inner: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    inboxes: BTreeMap<NodeId, Arc<dyn Inbox>>,
    /// Links that carry nothing, by direction.
    cut: HashSet<(NodeId, NodeId)>,
    delays: HashMap<(NodeId, NodeId), Duration>,
    /// Bytes per second that a link carries.
    rates: HashMap<(NodeId, NodeId), u64>,
    /// When what was sent has left, where there is a rate.
    free_at: HashMap<(NodeId, NodeId), Instant>,
    carried: HashMap<(NodeId, NodeId, Lane), u64>,
    /// When the last delayed frame of a lane arrives: none may overtake it.
    last_due: HashMap<(NodeId, NodeId, Lane), Instant>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    carrier_runs: bool,
    sent: u64,
    refused: u64,
}

/// A frame under way, ordered by arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: Instant,
    number: u64,
    from: NodeId,
    to: NodeId,
    frame: Bytes,
}

impl MemoryNetwork {
    /// A network without nodes.
    pub fn new() -> MemoryNetwork {
        MemoryNetwork::default()
    }

    /// What the groups of `node` send through. They join when they open; a node that opens again
    /// under the same id takes the place of the former.
    pub fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        Arc::new(MemoryTransport { network: self.inner.clone(), node })
    }

    /// Cuts the link between two nodes, in both directions. What is on its way is lost.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        let mut state = self.inner.state.lock();
        state.cut(one, other);
        state.cut(other, one);
    }

    /// Cuts one direction only.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.inner.state.lock().cut(from, to);
    }

    /// Cuts all links of a node that has joined.
    pub fn isolate(&self, node: NodeId) {
        let mut state = self.inner.state.lock();
        let others: Vec<NodeId> = state.inboxes.keys().copied().collect();
        for other in others {
            state.cut(node, other);
            state.cut(other, node);
        }
    }

    /// Heals the link between two nodes.
    pub fn heal(&self, one: NodeId, other: NodeId) {
        let mut state = self.inner.state.lock();
        state.cut.remove(&(one, other));
        state.cut.remove(&(other, one));
    }

    /// Heals all links.
    pub fn heal_all(&self) {
        self.inner.state.lock().cut.clear();
    }

    /// Lets every frame from one node to another take this long.
    pub fn delay(&self, from: NodeId, to: NodeId, delay: Duration) {
        self.inner.state.lock().delays.insert((from, to), delay);
    }

    /// Lets a link carry no more than so many bytes per second. Urgent frames go past the others.
    pub fn limit(&self, from: NodeId, to: NodeId, bytes_per_second: u64) {
        self.inner.state.lock().rates.insert((from, to), bytes_per_second);
    }

    /// Bytes handed to a lane of a link so far.
    pub fn bytes_sent(&self, from: NodeId, to: NodeId, lane: Lane) -> u64 {
        self.inner.state.lock().carried.get(&(from, to, lane)).copied().unwrap_or(0)
    }

    /// Takes a node off the network, as if its process had ended.
    pub fn remove(&self, node: NodeId) {
        self.inner.state.lock().inboxes.remove(&node);
    }

    /// Ends the connections from a node to another one, and has new ones begin. What is on its way is
    /// lost.
    pub fn reconnect(&self, from: NodeId, to: NodeId) {
        let [sender, receiver] = {
            let mut state = self.inner.state.lock();
            state.lose(from, to);
            state.cut.remove(&(from, to));
            [from, to].map(|node| state.inboxes.get(&node).cloned())
        };
        for lane in [Lane::Urgent, Lane::Entries, Lane::Bulk] {
            sender.iter().for_each(|inbox| inbox.sent_is_lost(to, lane));
            receiver.iter().for_each(|inbox| inbox.answers_are_lost(from, lane));
        }
    }

    /// Frames that were made ready for a node that cannot be reached.
    pub fn frames_refused(&self) -> u64 {
        self.inner.state.lock().refused
    }

    /// Frames handed to the network so far.
    pub fn frames_sent(&self) -> u64 {
        self.inner.state.lock().sent
    }
}

struct MemoryTransport {
    network: Arc<Shared>,
    node: NodeId,
}

impl Transport for MemoryTransport {
    fn listen(&self, inbox: Arc<dyn Inbox>) {
        self.network.state.lock().inboxes.insert(self.node, inbox);
    }

    fn is_connected(&self, to: NodeId, _: Lane) -> bool {
        let state = self.network.state.lock();
        state.inboxes.contains_key(&to) && !state.cut.contains(&(self.node, to))
    }

    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        let from = self.node;
        let inbox = {
            let mut state = self.network.state.lock();
            state.sent += 1;
            let inbox = state.inboxes.get(&to).cloned();
            let Some(inbox) = inbox.filter(|_| !state.cut.contains(&(from, to))) else {
                state.refused += 1;
                return Err(TransportError::Unreachable);
            };
            let now = Instant::now();
            *state.carried.entry((from, to, lane)).or_default() += frame.len() as u64;
            let delay = state.delays.get(&(from, to)).copied().unwrap_or_default();
            let arrives = state.leaves_at(from, to, lane, frame.len(), now) + delay;
            let last_due = state.last_due.get(&(from, to, lane)).copied();
            let due = last_due.map_or(arrives, |last| last.max(arrives));
            if due > now {
                state.last_due.insert((from, to, lane), due);
                let number = state.sent;
                state.delayed.push(Reverse(Delayed { due, number, from, to, frame }));
                self.network.start_carrier(&mut state);
                self.network.changed.notify_one();
                return Ok(());
            }
            inbox
        };
        // Without the lock: the inbox may well answer at once.
        inbox.receive(from, frame);
        Ok(())
    }
}

impl State {
    fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
        self.lose(from, to);
    }

    /// What is on its way is lost.
    fn lose(&mut self, from: NodeId, to: NodeId) {
        self.delayed.retain(|Reverse(delayed)| (delayed.from, delayed.to) != (from, to));
        self.last_due.retain(|(of, at, _), _| (*of, *at) != (from, to));
        self.free_at.remove(&(from, to));
    }

    /// When the last byte of a frame is on its way.
    fn leaves_at(
        &mut self,
        from: NodeId,
        to: NodeId,
        lane: Lane,
        bytes: usize,
        now: Instant,
    ) -> Instant {
        let Some(rate) = self.rates.get(&(from, to)).filter(|_| lane != Lane::Urgent) else {
            return now;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / *rate as f64);
        let free_at = self.free_at.entry((from, to)).or_insert(now);
        *free_at = (*free_at).max(now) + takes;
        *free_at
    }
}

impl Shared {
    fn start_carrier(self: &Arc<Self>, state: &mut State) {
        if !state.carrier_runs {
            state.carrier_runs = true;
            let shared = Arc::downgrade(self);
            thread::spawn(move || carry(&shared));
        }
    }
}

/// Delivers delayed frames when they are due, until the network is gone or idle for a while.
fn carry(shared: &Weak<Shared>) {
    const IDLE: Duration = Duration::from_millis(200);
    while let Some(shared) = shared.upgrade() {
        let mut state = shared.state.lock();
        let Some(Reverse(first)) = state.delayed.peek() else {
            if shared.changed.wait_for(&mut state, IDLE).timed_out() && state.delayed.is_empty() {
                state.carrier_runs = false;
                return;
            }
            continue;
        };
        let due = first.due;
        if due > Instant::now() {
            shared.changed.wait_until(&mut state, due);
            continue;
        }
        let Some(Reverse(delayed)) = state.delayed.pop() else { continue };
        let Delayed { from, to, frame, .. } = delayed;
        let inbox = state.inboxes.get(&to).cloned();
        let inbox = inbox.filter(|_| !state.cut.contains(&(from, to)));
        drop(state);
        if let Some(inbox) = inbox {
            inbox.receive(from, frame);
        }
    }
}
