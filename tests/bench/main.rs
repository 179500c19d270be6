//! A minimal raw-gRPC load generator: one-activity workflows against a running server.
//!
//! Starter and worker are one process on one thread, with long polls outstanding, so that the
//! figures are the server's. Beside them stand what the disk and the generator itself cost, without
//! which they mean nothing.
//!
//! ```text
//! cargo run --release -p piton-tests --bin piton-bench -- \
//!     --address 127.0.0.1:7233 --http 127.0.0.1:8233 --pid PID --data-dir piton-data
//! ```
#![expect(clippy::print_stdout, reason = "a command line tool")]

mod generator;
mod measure;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::generator::{Generator, Plan, Sample};
use crate::measure::{Counters, DiskLatency, Switches, cpu_of};

#[derive(Parser)]
#[command(about = "One-activity workflows per second, their latency, and what they cost")]
struct Arguments {
    /// The server's gRPC address.
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    /// The server's HTTP address; its /metrics tell the commits.
    #[arg(long)]
    http: Option<String>,
    /// The server's process, for its CPU time and its threads' switches.
    #[arg(long)]
    pid: Option<u32>,
    /// A directory on the file system of the server's data, for the disk's own latency.
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Workflows in progress at the same time, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    concurrency: Vec<usize>,
    /// Seconds measured per row.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds before that, not measured.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Take the worker's answer for the end, instead of a long poll for the close event.
    #[arg(long)]
    no_result_poll: bool,
}

/// One row of the table.
struct Row {
    concurrency: usize,
    sample: Sample,
    server: Option<Cost>,
    own_cpu: Duration,
    counters: Option<Counters>,
    disk: DiskLatency,
}

/// What the server's process has taken.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    switches: Switches,
}

impl Cost {
    fn of(pid: u32) -> Result<Cost> {
        Ok(Cost { cpu: cpu_of(pid)?, switches: Switches::of(pid)? })
    }

    fn since(self, before: Cost) -> Cost {
        let cpu = self.cpu.saturating_sub(before.cpu);
        Cost { cpu, switches: self.switches.since(before.switches) }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!("{HEAD}");
    for &concurrency in &arguments.concurrency {
        println!("{}", row(&arguments, concurrency).await?);
    }
    println!(
        "each workflow: {} RPCs; fdatasync: 4 KiB appended and synced, on an otherwise idle disk",
        if arguments.no_result_poll { 7 } else { 8 }
    );
    Ok(())
}

async fn row(arguments: &Arguments, concurrency: usize) -> Result<Row> {
    let plan = Plan {
        address: arguments.address.clone(),
        namespace: arguments.namespace.clone(),
        concurrency,
        poll_result: !arguments.no_result_poll,
    };
    let disk = DiskLatency::measure(&arguments.data_dir)?;
    let mut generator = Generator::start(plan).await?;
    generator.run(Duration::from_secs(arguments.warmup)).await?;
    let read_counters = || match &arguments.http {
        Some(http) => Counters::read(http).map(Some).context("read /metrics"),
        None => Ok(None),
    };
    let counters_before = read_counters()?;
    let server_before = arguments.pid.map(Cost::of).transpose()?;
    let own_before = cpu_of(std::process::id())?;
    let sample = generator.run(Duration::from_secs(arguments.seconds)).await?;
    let own_cpu = cpu_of(std::process::id())?.saturating_sub(own_before);
    let server = match (arguments.pid, server_before) {
        (Some(pid), Some(before)) => Some(Cost::of(pid)?.since(before)),
        _ => None,
    };
    let counters = match (read_counters()?, counters_before) {
        (Some(after), Some(before)) => Some(after.since(&before)),
        _ => None,
    };
    generator.stop();
    Ok(Row { concurrency, sample, server, own_cpu, counters, disk })
}

const HEAD: &str = "\
| at once | workflows/s | p50 ms | p99 ms | server CPU ms each | generator CPU ms each \
| switches each | of them involuntary | transitions each | entries each \
| fdatasync p50, p99 ms | RPCs refused |
|---|---|---|---|---|---|---|---|---|---|---|---|";

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Row { concurrency, sample, server, own_cpu, counters, disk } = self;
        let count = sample.latencies.len().max(1) as f64;
        let each = |cpu: Duration| format!("{:.3}", millis(cpu) / count);
        let unknown = || "–".to_owned();
        let per = |total: f64| format!("{:.2}", total / count);
        write!(
            f,
            "| {concurrency} | {:.0} | {:.2} | {:.2} | {} | {} | {} | {} | {} | {} | {:.2}, {:.2} | {} |",
            sample.latencies.len() as f64 / sample.took.as_secs_f64(),
            millis(sample.percentile(50)),
            millis(sample.percentile(99)),
            server.map_or_else(unknown, |server| each(server.cpu)),
            each(*own_cpu),
            server.map_or_else(unknown, |server| {
                let Switches { voluntary, involuntary } = server.switches;
                per((voluntary + involuntary) as f64)
            }),
            server.map_or_else(unknown, |server| per(server.switches.involuntary as f64)),
            counters.as_ref().map_or_else(unknown, |counters| per(counters.transitions)),
            counters.as_ref().map_or_else(unknown, |counters| per(counters.entries)),
            millis(disk.p50),
            millis(disk.p99),
            sample.refused,
        )
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
