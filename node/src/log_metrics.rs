//! Shows the counters that the node's log keeps by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use piton_raft::Log;
use piton_raft::log::SYNC_BUCKETS_MICROS;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

const SECOND_MICROS: f64 = 1_000_000.0;

/// Reads the log's counters at each scrape.
pub(crate) struct LogCollector(pub(crate) Log);

impl std::fmt::Debug for LogCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogCollector")
    }
}

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.0.stats();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, counter) in [
            (
                "log_batches",
                "Batches of the node's log made durable, one sync each",
                &stats.batches,
            ),
            ("log_records", "Records in those batches", &stats.records),
            ("log_bytes", "Bytes in those batches", &stats.bytes),
            ("log_segments", "Log segments begun", &stats.segments),
            ("log_segments_freed", "Log segments freed", &stats.segments_freed),
            (
                "log_rewritten",
                "Entries written again so that a segment could be freed",
                &stats.rewritten,
            ),
        ] {
            let kind = MetricType::Counter;
            encoder
                .encode_descriptor(name, help, None, kind)?
                .encode_counter::<NoLabelSet, u64, f64>(&read(counter), None)?;
        }
        let bounds = SYNC_BUCKETS_MICROS.iter().map(|&micros| micros as f64 / SECOND_MICROS);
        let counts = stats.sync_buckets.iter().map(read);
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = read(&stats.sync_micros) as f64 / SECOND_MICROS;
        let (name, help) = ("log_sync_duration_seconds", "Time for one sync of the node's log");
        encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}
