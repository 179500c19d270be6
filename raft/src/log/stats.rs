//! What the writer counts while it works; read by telemetry at any time, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the sync latency buckets in microseconds; one more bucket holds the rest.
pub const SYNC_BUCKETS_MICROS: [u64; 12] =
    [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 51_200, 204_800, 1_000_000];

/// Counters since the log was opened.
#[derive(Debug, Default)]
pub struct LogStats {
    /// Batches made durable.
    pub batches: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Bytes in them, with framing, without preallocation.
    pub bytes: AtomicU64,
    /// Segments begun.
    pub segments: AtomicU64,
    /// Segments freed.
    pub segments_freed: AtomicU64,
    /// Entries rewritten forward so that a segment could be freed.
    pub rewritten: AtomicU64,
    /// Time spent in syncs, in microseconds.
    pub sync_micros: AtomicU64,
    /// Syncs by latency; see [`SYNC_BUCKETS_MICROS`].
    pub sync_buckets: [AtomicU64; SYNC_BUCKETS_MICROS.len() + 1],
}

impl LogStats {
    pub(super) fn add(&self, counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn observe_sync(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = SYNC_BUCKETS_MICROS.partition_point(|bound| *bound < micros);
        self.sync_buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sync_micros.fetch_add(micros, Ordering::Relaxed);
    }
}
