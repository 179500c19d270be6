//! How much room there is on the node's disk, as whoever looks after it last saw it. Where it runs
//! short, requests that write are refused and reads go on; what is under way has the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by who looks and who asks; there is room until somebody says otherwise.
#[derive(Clone, Debug)]
pub struct Room {
    free_bytes: Arc<AtomicU64>,
    is_short: Arc<AtomicBool>,
    /// The store met a full disk, whatever was measured: a quota, or somebody who was faster.
    has_refused: Arc<AtomicBool>,
}

impl Default for Room {
    fn default() -> Self {
        let free_bytes = Arc::new(AtomicU64::new(u64::MAX));
        Self { free_bytes, is_short: Arc::default(), has_refused: Arc::default() }
    }
}

impl Room {
    /// Says how much is free, and whether that is too little for new work.
    pub fn set(&self, free_bytes: u64, is_short: bool) {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        self.is_short.store(is_short, Ordering::Relaxed);
    }

    /// Whether new work is to be refused.
    pub(crate) fn is_short(&self) -> bool {
        self.is_measured_short() || self.has_refused.load(Ordering::Relaxed)
    }

    /// Whether too little was free when somebody last looked.
    pub fn is_measured_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Says whether the disk refused what the store wrote last; answers whether that is news.
    pub(crate) fn set_refused(&self, has_refused: bool) -> bool {
        self.has_refused.swap(has_refused, Ordering::Relaxed) != has_refused
    }

    /// Whether the store can take so many bytes: an engine needs more than what it is given, and one
    /// that meets a full disk has to be opened again, or built anew.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        const FLOOR_BYTES: u64 = 8 << 20;
        let needed = (bytes as u64).saturating_mul(2).saturating_add(FLOOR_BYTES);
        self.free_bytes.load(Ordering::Relaxed) >= needed
    }
}
