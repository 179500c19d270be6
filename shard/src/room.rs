//! How much room there is on the node's disk, as whoever looks after it last saw it. Where it runs
//! short, requests that write are refused and reads go on; what is under way has the rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by who looks and who asks; there is room until somebody says otherwise.
#[derive(Clone, Debug)]
pub struct Room {
    free_bytes: Arc<AtomicU64>,
    is_short: Arc<AtomicBool>,
}

impl Default for Room {
    fn default() -> Self {
        Self { free_bytes: Arc::new(AtomicU64::new(u64::MAX)), is_short: Arc::default() }
    }
}

impl Room {
    /// Says how much is free, and whether that is too little for new work.
    pub fn set(&self, free_bytes: u64, is_short: bool) {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        self.is_short.store(is_short, Ordering::Relaxed);
    }

    /// Whether new work is to be refused.
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Whether the store can take so many bytes: an engine needs more than what it is given, and
    /// one that meets a full disk has to be built anew.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        const FLOOR_BYTES: u64 = 8 << 20;
        let needed = (bytes as u64).saturating_mul(2).saturating_add(FLOOR_BYTES);
        self.free_bytes.load(Ordering::Relaxed) >= needed
    }
}
