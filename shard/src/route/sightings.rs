//! What the nodes said of themselves last, and when.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use piton_raft::NodeId;
use tokio::time::Instant;

use crate::message::NodeStatus;

/// What was last heard of a node.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub status: Arc<NodeStatus>,
    /// When it came in.
    pub heard: Instant,
}

/// The last sighting of each node.
#[derive(Default)]
pub(crate) struct Sightings {
    nodes: Mutex<BTreeMap<NodeId, Sighting>>,
}

impl Sightings {
    pub(crate) fn hear(&self, status: NodeStatus) {
        let sighting = Sighting { status: Arc::new(status), heard: Instant::now() };
        self.nodes.lock().insert(sighting.status.node, sighting);
    }

    pub(crate) fn all(&self) -> BTreeMap<NodeId, Sighting> {
        self.nodes.lock().clone()
    }
}
