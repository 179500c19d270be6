//! Which nodes belong to the cluster just now. All who ask the cluster share it, so that they turn to
//! a node that has joined, and away from one that was removed.

use std::sync::Arc;

use parking_lot::Mutex;

/// Clones share it. It is never empty.
#[derive(Clone, Debug)]
pub(crate) struct Members(Arc<Mutex<Vec<usize>>>);

impl Members {
    pub(crate) fn of_first(count: usize) -> Self {
        Self(Arc::new(Mutex::new((0..count).collect())))
    }

    pub(crate) fn all(&self) -> Vec<usize> {
        self.0.lock().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Who counts through all positions comes by each member again and again.
    pub(crate) fn at(&self, position: usize) -> usize {
        let members = self.0.lock();
        members[position % members.len()]
    }

    pub(crate) fn add(&self, node: usize) {
        self.0.lock().push(node);
    }

    pub(crate) fn remove(&self, node: usize) {
        self.0.lock().retain(|member| *member != node);
    }
}
