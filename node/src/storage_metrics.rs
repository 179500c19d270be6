//! Shows what a node's storage takes up on the disk, and what its snapshots come to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use piton_raft::{DamageStats, LOG_DIRECTORY, SNAPSHOT_DIRECTORY, SnapshotStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::storage::STORE_DIRECTORY;

/// The unit of what a file takes up.
const BLOCK_BYTES: u64 = 512;

/// Sizes of the parts of a data directory.
pub(crate) struct StorageSizes([(PathBuf, Gauge); 3]);

impl StorageSizes {
    pub(crate) fn register(directory: &Path, registry: &mut Registry) -> Self {
        let parts = [
            (LOG_DIRECTORY, "log_disk_bytes", "What the log takes up, with what is kept for it"),
            (SNAPSHOT_DIRECTORY, "snapshot_disk_bytes", "What the snapshots take up"),
            (STORE_DIRECTORY, "store_disk_bytes", "What the store takes up"),
        ];
        Self(parts.map(|(part, name, help)| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            (directory.join(part), gauge)
        }))
    }

    /// Looks how large they are. Blocks on the disk.
    pub(crate) fn look(&self) {
        for (path, gauge) in &self.0 {
            match bytes_below(path) {
                Ok(bytes) => drop(gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX))),
                Err(error) => tracing::debug!(path = %path.display(), %error, "not measured"),
            }
        }
    }
}

/// What the files take up, with those of the directories in it. One that goes meanwhile counts for nothing.
fn bytes_below(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()).unwrap_or(0),
            Ok(found) => found.blocks() * BLOCK_BYTES,
            Err(_) => 0,
        };
    }
    Ok(bytes)
}

/// Reads the snapshots' counters at each scrape.
#[derive(Debug)]
pub(crate) struct SnapshotCollector(pub(crate) Arc<SnapshotStats>);

impl Collector for SnapshotCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let SnapshotStats { taken, taken_bytes, installed, installed_bytes } = &*self.0;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, counter) in [
            ("snapshots_taken", "Snapshots taken here, of which the log is purged", taken),
            ("snapshots_taken_bytes", "Bytes of their files", taken_bytes),
            ("snapshots_installed", "Snapshots of other nodes that replaced a state", installed),
            ("snapshots_installed_bytes", "Bytes of their files", installed_bytes),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, u64, f64>(&read(counter), None)?;
        }
        Ok(())
    }
}

/// Reads what is counted of damage at each scrape.
#[derive(Debug)]
pub(crate) struct DamageCollector(pub(crate) Arc<DamageStats>);

impl Collector for DamageCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let DamageStats { scrubbed_bytes, found, refilled } = &*self.0;
        for (name, help, counter) in [
            ("scrubbed_bytes", "Bytes of log and snapshots read to find damage", scrubbed_bytes),
            ("damage_found", "How often something on the disk was found damaged", found),
            ("damage_refilled", "Damaged groups that other nodes were to fill anew", refilled),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, u64, f64>(&counter.load(Ordering::Relaxed), None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_all_files_below_each_part() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = StorageSizes::register(directory.path(), &mut Registry::default());
        let shown = || sizes.0.each_ref().map(|(_, gauge)| gauge.get());
        sizes.look();
        assert_eq!(shown(), [0; 3], "nothing is there yet");
        let write = |path: &str, bytes: usize| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![7; bytes]).unwrap();
            // Some file systems give room only when it is needed.
            fs::File::open(&path).unwrap().sync_all().unwrap();
        };
        write("log/1", 100_000);
        write("log/2", 100_000);
        write("store/redb/store.redb", 300_000);
        sizes.look();
        let [log, snapshots, store] = shown();
        assert!((200_000..280_000).contains(&log), "{log}");
        assert_eq!(snapshots, 0);
        assert!((300_000..380_000).contains(&store), "{store}");
    }
}
