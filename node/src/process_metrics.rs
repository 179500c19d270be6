//! What the process itself takes, and which build it is. Read at each scrape; on systems without
//! `/proc` only the build is shown.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Registers the build's version and the process's figures.
pub(crate) fn register(registry: &mut Registry) {
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Which build this is", build);
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, figure) in [
            ("process_resident_memory_bytes", "Memory of the process", resident_bytes()),
            ("process_open_handles", "Files and connections that are open", open_handles()),
        ] {
            let Some(figure) = figure else { continue };
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(figure).unwrap_or(i64::MAX)).encode(encoder)?;
        }
        Ok(())
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024)
}

fn open_handles() -> Option<u64> {
    // The folder that is read is one of them.
    let handles = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(handles.saturating_sub(1))
}
