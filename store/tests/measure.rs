//! First figures, by hand: `cargo test --release -p piton-store --test measure -- --ignored
//! --nocapture`. Checkpoints of one table over sled, and reads beside them.

#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use piton_store::{CheckpointReport, KeyRange, Mark, Order, Store, Table, Write, sled};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

const CACHE_BYTES: u64 = 128 * 1024 * 1024;

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// Checkpoints of `rows` random rows each; a thread reads random rows meanwhile.
fn measure(value_bytes: usize, rows: usize, checkpoints: u64) {
    let dir = tempfile::tempdir().expect("a directory for the figures");
    let (store, _) = sled::open_or_rebuild(dir.path(), "boot", CACHE_BYTES).expect("a store");
    let store = Arc::new(store);
    let table = Table::open(store.clone(), 1).expect("a table");
    let done = AtomicBool::new(false);
    let mut random = SmallRng::seed_from_u64(1);
    let (mut times, mut applies) = (Vec::new(), Vec::new());
    let mut reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut random = SmallRng::seed_from_u64(2);
            let mut reads = Vec::new();
            while !done.load(Ordering::Acquire) {
                let key = random.random_range(0..100_000_u64).to_be_bytes();
                let started = Instant::now();
                if random.random_bool(0.1) {
                    let range = KeyRange::from(&key);
                    std::hint::black_box(table.scan(range, Order::Ascending, 20).expect("rows"));
                } else {
                    std::hint::black_box(table.get(&key).expect("a row"));
                }
                reads.push(started.elapsed());
                std::thread::yield_now();
            }
            reads
        });
        for index in 1..=checkpoints {
            let writes = (0..rows).map(|_| {
                let mut value = vec![0; value_bytes];
                random.fill_bytes(&mut value);
                let key = random.random_range(0..100_000_u64);
                Write::put(key.to_be_bytes().to_vec(), value)
            });
            let writes: Vec<Write> = writes.collect();
            let started = Instant::now();
            table.apply(writes, Mark { index, bytes: Default::default() });
            applies.push(started.elapsed());
            let started = Instant::now();
            let report = table.checkpoint(index).expect("a checkpoint");
            assert!(matches!(report, CheckpointReport::Written { .. }));
            times.push(started.elapsed());
        }
        done.store(true, Ordering::Release);
        reader.join().expect("the reader")
    });
    times.sort();
    reads.sort();
    applies.sort();
    let total: Duration = times.iter().sum();
    println!(
        "values of {value_bytes} B, {rows} rows a checkpoint: {:.0} rows/s; checkpoint p50 {:?} \
         max {:?}; apply p50 {:?}; {} reads p50 {:?} p99 {:?} max {:?}; disk {} MiB",
        (rows as u64 * checkpoints) as f64 / total.as_secs_f64(),
        quantile(&times, 0.5),
        quantile(&times, 1.0),
        quantile(&applies, 0.5),
        reads.len(),
        quantile(&reads, 0.5),
        quantile(&reads, 0.99),
        quantile(&reads, 1.0),
        store.bytes_on_disk().expect("a size") >> 20,
    );
}

#[test]
#[ignore = "prints figures, checks nothing; run by hand on a quiet machine"]
fn checkpoint_and_read_times() {
    measure(200, 10_000, 20);
    measure(1_000, 1_000, 50);
    measure(1_000, 10_000, 20);
    measure(5_000, 2_000, 20);
}
