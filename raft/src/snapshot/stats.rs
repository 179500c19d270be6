//! What is counted of a node's snapshots; read by telemetry at any time, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of all groups since they were opened.
#[derive(Debug, Default)]
pub struct SnapshotStats {
    /// Snapshots taken here.
    pub taken: AtomicU64,
    /// Bytes of their files.
    pub taken_bytes: AtomicU64,
    /// Snapshots of other nodes that took the place of a group's state.
    pub installed: AtomicU64,
    /// Bytes of their files.
    pub installed_bytes: AtomicU64,
}

impl SnapshotStats {
    pub(crate) fn took(&self, bytes: u64) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn installed(&self, bytes: u64) {
        self.installed.fetch_add(1, Ordering::Relaxed);
        self.installed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
