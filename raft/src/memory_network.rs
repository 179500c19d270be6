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
    /// When the last delayed frame of a lane arrives: none may overtake it.
    last_due: HashMap<(NodeId, NodeId, Lane), Instant>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    carrier_runs: bool,
    sent: u64,
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

    /// Cuts the link between two nodes, in both directions.
    pub fn cut(&self, one: NodeId, other: NodeId) {
        let mut state = self.inner.state.lock();
        state.cut.insert((one, other));
        state.cut.insert((other, one));
    }

    /// Cuts one direction only.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.inner.state.lock().cut.insert((from, to));
    }

    /// Cuts all links of a node that has joined.
    pub fn isolate(&self, node: NodeId) {
        let mut state = self.inner.state.lock();
        let others: Vec<NodeId> = state.inboxes.keys().copied().collect();
        for other in others {
            state.cut.insert((node, other));
            state.cut.insert((other, node));
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

    /// Takes a node off the network, as if its process had ended.
    pub fn remove(&self, node: NodeId) {
        self.inner.state.lock().inboxes.remove(&node);
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

    fn send(&self, to: NodeId, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        let from = self.node;
        let inbox = {
            let mut state = self.network.state.lock();
            state.sent += 1;
            if state.cut.contains(&(from, to)) {
                return Err(TransportError::Unreachable);
            }
            let Some(inbox) = state.inboxes.get(&to).cloned() else {
                return Err(TransportError::Unreachable);
            };
            let now = Instant::now();
            let delay = state.delays.get(&(from, to)).copied().unwrap_or_default();
            let last_due = state.last_due.get(&(from, to, lane)).copied();
            let due = last_due.map_or(now + delay, |last| last.max(now + delay));
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
