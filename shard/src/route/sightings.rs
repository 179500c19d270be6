//! What the nodes said of themselves last, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_raft::NodeId;
use tokio::time::Instant;

use crate::message::NodeStatus;

/// A node that has been silent for so long gets nothing new.
pub(crate) const SILENT: Duration = Duration::from_secs(5);

/// What was last heard of a node.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub status: Arc<NodeStatus>,
    /// When it came in.
    pub heard: Instant,
}

/// The last sighting of each node.
pub(crate) struct Sightings {
    /// When this node began to listen.
    since: Instant,
    nodes: Mutex<BTreeMap<NodeId, Sighting>>,
}

impl Default for Sightings {
    fn default() -> Self {
        Self { since: Instant::now(), nodes: Mutex::default() }
    }
}

impl Sightings {
    /// When a node was last heard of: at the soonest when this one began to listen.
    pub(crate) fn last_heard(&self, node: NodeId) -> Instant {
        self.nodes.lock().get(&node).map_or(self.since, |sighting| sighting.heard)
    }

    /// How long ago a node was last heard of, if it was.
    pub(crate) fn silent_for(&self, node: NodeId) -> Option<Duration> {
        self.nodes.lock().get(&node).map(|sighting| sighting.heard.elapsed())
    }

    /// A node has said how it is. Nothing is kept of those that are no `members`.
    pub(crate) fn hear(&self, status: NodeStatus, members: &BTreeSet<NodeId>) {
        let sighting = Sighting { status: Arc::new(status), heard: Instant::now() };
        let mut nodes = self.nodes.lock();
        nodes.insert(sighting.status.node, sighting);
        nodes.retain(|node, _| members.contains(node));
    }

    pub(crate) fn all(&self) -> BTreeMap<NodeId, Sighting> {
        self.nodes.lock().clone()
    }
}
