//! How fast the log is on this machine: durable appends from a closed loop of threads, beside the
//! bare cost of writing and syncing a file. Ignored by default, since figures are no test:
//! `cargo test --profile ci -p piton-raft --test log_speed -- --ignored --nocapture`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use piton_raft::log::{Disk, EntryRecord, GroupId, Log, LogConfig, RealDisk};

const RUN: Duration = Duration::from_secs(3);

/// Latencies of 300 bytes written and synced one after the other in a file that is zero-filled.
fn bare_sync(dir: &Path) -> Vec<Duration> {
    let file = RealDisk.create(&dir.join("bare")).expect("create");
    file.write_at(&vec![0; 4 << 20], 0).expect("fill");
    file.sync().expect("sync");
    let sync = |at: u64| {
        let begin = Instant::now();
        file.write_at(&[7; 300], at * 300).expect("write");
        file.sync().expect("sync");
        begin.elapsed()
    };
    (0..2000).map(sync).collect()
}

/// Appends until the time is over; returns how long each took.
fn client(log: &Log, group: GroupId, bytes: &Bytes) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let begin = Instant::now();
    let mut index = log.state(group).last.map_or(1, |last| last.index + 1);
    while begin.elapsed() < RUN {
        let asked = Instant::now();
        let (tx, rx) = mpsc::channel();
        let entry = EntryRecord { index, term: 1, bytes: bytes.clone() };
        log.append(group, vec![entry], move |outcome| tx.send(outcome).expect("a client waits"));
        rx.recv().expect("an answer").expect("append");
        latencies.push(asked.elapsed());
        index += 1;
        if index.is_multiple_of(10_000) {
            log.purge(group, index - 1000, Bytes::new(), |_| {});
        }
    }
    latencies
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

#[test]
#[ignore = "prints figures of this machine; run by hand"]
#[expect(clippy::print_stderr, reason = "the figures are the point")]
fn durable_appends_per_second_at_several_concurrencies() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut bare = bare_sync(dir.path());
    bare.sort();
    eprintln!(
        "bare sync of 300 B: p50 {:?} p99 {:?}",
        percentile(&bare, 50),
        percentile(&bare, 99)
    );
    for (clients, size) in [(1, 256), (4, 256), (16, 256), (64, 256), (64, 2048)] {
        let path = dir.path().join(format!("log-{clients}-{size}"));
        let open = || Log::open(Arc::new(RealDisk), path.clone(), LogConfig::default());
        let (log, _) = open().expect("open");
        let bytes = Bytes::from(vec![7; size]);
        let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
            let (log, bytes) = (&log, &bytes);
            let client = |group| scope.spawn(move || client(log, GroupId(group), bytes));
            let clients: Vec<_> = (0..clients).map(client).collect();
            clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
        });
        latencies.sort();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = log.stats();
        eprintln!(
            "{clients} clients, {size} B: {}/s, p50 {:?} p99 {:?}, {:.1} records a batch, {:.2} \
             bytes of log per byte of payload",
            latencies.len() as u64 / RUN.as_secs(),
            percentile(&latencies, 50),
            percentile(&latencies, 99),
            load(&stats.records) as f64 / load(&stats.batches) as f64,
            load(&stats.bytes) as f64 / (latencies.len() * size) as f64,
        );
        log.shutdown();
        let begin = Instant::now();
        let (_, recovered) = open().expect("open again");
        eprintln!("  opened again in {:?} with {} entries", begin.elapsed(), recovered.entries);
    }
}
