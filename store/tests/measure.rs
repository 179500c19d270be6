//! The engines side by side, by hand: `cargo test --release -p piton-store --test measure --
//! --ignored --nocapture`. Prints the tables of docs/benchmarks.md; checks nothing.
//!
//! One table of a group is filled and overwritten at random by checkpoints of 256 rows, each synced,
//! while one thread reads at random. Then the store is opened again, once as a killed process
//! leaves it (a copy of the files taken while they are open) and once closed.

#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use piton_store::{
    CheckpointReport, EngineKind, KeyRange, Mark, Opened, Order, Store, Table, Write,
    open_or_rebuild,
};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// As a node's default.
const CACHE_BYTES: u64 = 64 << 20;
const CHECKPOINT_ROWS: usize = 256;

/// What is written.
#[derive(Clone, Copy)]
struct Load {
    value_bytes: usize,
    keys: u64,
    checkpoints: u64,
}

/// What the reader met.
#[derive(Default)]
struct Reads {
    gets: Vec<Duration>,
    scans: Vec<Duration>,
}

fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Reads rows at random, and a range of 20 each tenth time, until `done`.
fn read(table: &Table, keys: u64, done: &AtomicBool) -> Reads {
    let mut random = SmallRng::seed_from_u64(2);
    let mut reads = Reads::default();
    while !done.load(Ordering::Acquire) {
        let key = random.random_range(0..keys).to_be_bytes();
        let started = Instant::now();
        if random.random_bool(0.1) {
            let range = KeyRange::from(&key);
            std::hint::black_box(table.scan(range, Order::Ascending, 20).expect("rows"));
            reads.scans.push(started.elapsed());
        } else {
            std::hint::black_box(table.get(&key).expect("a row"));
            reads.gets.push(started.elapsed());
        }
        std::thread::yield_now();
    }
    reads
}

/// Writes the load; how long each checkpoint took.
fn write(table: &Table, load: Load) -> Vec<Duration> {
    let mut random = SmallRng::seed_from_u64(1);
    let mut times = Vec::new();
    for index in 1..=load.checkpoints {
        let writes = (0..CHECKPOINT_ROWS).map(|_| {
            let mut value = vec![0; load.value_bytes];
            random.fill_bytes(&mut value);
            Write::put(random.random_range(0..load.keys).to_be_bytes().to_vec(), value)
        });
        table.apply(writes.collect(), Mark { index, bytes: Default::default() });
        let started = Instant::now();
        let report = table.checkpoint(index).expect("a checkpoint");
        assert!(matches!(report, CheckpointReport::Written { .. }));
        times.push(started.elapsed());
    }
    times
}

fn live_bytes(store: &dyn Store) -> u64 {
    let mut start = vec![0];
    let mut bytes = 0;
    loop {
        let rows = store.scan(KeyRange::from(&start), Order::Ascending, 4_096).expect("rows");
        let Some(last) = rows.last() else { return bytes };
        start = [&last.key[..], &[0]].concat();
        bytes += rows.iter().map(|row| (row.key.len() + row.value.len()) as u64).sum::<u64>();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(path, target).expect("a copy");
        }
    }
}

/// How long it takes to open and to read one row.
fn reopen(engine: EngineKind, dir: &Path, checkpoints: u64) -> Duration {
    let started = Instant::now();
    let (store, opened) = open_or_rebuild(engine, dir, CACHE_BYTES).expect("a store");
    assert_eq!(opened, Opened::Kept);
    let table = Table::open(store, 1).expect("a table");
    assert_eq!(table.checkpointed(), Some(checkpoints));
    started.elapsed()
}

fn measure(engine: EngineKind, load: Load) {
    let dir = tempfile::tempdir().expect("a directory for the figures");
    let live = dir.path().join("live");
    let (store, _) = open_or_rebuild(engine, &live, CACHE_BYTES).expect("a store");
    let table = Table::open(Arc::clone(&store), 1).expect("a table");
    let done = AtomicBool::new(false);
    let (mut times, mut reads) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&table, load.keys, &done));
        let times = write(&table, load);
        done.store(true, Ordering::Release);
        (times, reader.join().expect("the reader"))
    });
    let total: Duration = times.iter().sum();
    let disk = store.bytes_on_disk().expect("a size");
    let bytes = live_bytes(&*store);
    let killed = dir.path().join("killed");
    copy(&live, &killed);
    drop((table, store));
    let after_kill = reopen(engine, &killed, load.checkpoints);
    let after_close = reopen(engine, &live, load.checkpoints);
    println!(
        "| {} | {} B | {:.0} | {:.1} / {:.1} | {:.0} | {:.0} / {:.0} | {:.0} / {:.0} | {} / {} = {:.2} | {:.0} / {:.0} |",
        engine.name(),
        load.value_bytes,
        (CHECKPOINT_ROWS as u64 * load.checkpoints) as f64 / total.as_secs_f64(),
        milliseconds(quantile(&mut times, 0.5)),
        milliseconds(quantile(&mut times, 0.99)),
        (reads.gets.len() + reads.scans.len()) as f64 / total.as_secs_f64(),
        microseconds(quantile(&mut reads.gets, 0.5)),
        microseconds(quantile(&mut reads.gets, 0.99)),
        microseconds(quantile(&mut reads.scans, 0.5)),
        microseconds(quantile(&mut reads.scans, 0.99)),
        disk >> 20,
        bytes >> 20,
        disk as f64 / bytes as f64,
        milliseconds(after_close),
        milliseconds(after_kill),
    );
}

/// Deletes nine of ten rows and has the store give space back.
fn measure_compaction(engine: EngineKind, load: Load) {
    let dir = tempfile::tempdir().expect("a directory for the figures");
    let (store, _) = open_or_rebuild(engine, dir.path(), CACHE_BYTES).expect("a store");
    let table = Table::open(Arc::clone(&store), 1).expect("a table");
    write(&table, load);
    let gone = (0..load.keys).filter(|key| !key.is_multiple_of(10));
    let gone = gone.map(|key| Write::delete(key.to_be_bytes().to_vec()));
    let index = load.checkpoints + 1;
    table.apply(gone.collect(), Mark { index, bytes: Default::default() });
    table.checkpoint(index).expect("a checkpoint");
    let started = Instant::now();
    let compacted = store.compact(&|| true).expect("a working store").expect("it is worth it");
    println!(
        "| {} | {} | {} | {} | {:.0} |",
        engine.name(),
        live_bytes(&*store) >> 20,
        compacted.before >> 20,
        compacted.after >> 20,
        milliseconds(started.elapsed()),
    );
}

/// What one small synced write costs here.
fn fdatasync() {
    let dir = tempfile::tempdir().expect("a directory for the figures");
    let mut file = File::create(dir.path().join("file")).expect("a file");
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            file.write_all(&[7; 4_096]).expect("a write");
            let started = Instant::now();
            file.sync_data().expect("a sync");
            started.elapsed()
        })
        .collect();
    println!(
        "fdatasync after an append of 4 KiB: p50 {:.0} us, p99 {:.0} us",
        microseconds(quantile(&mut times, 0.5)),
        microseconds(quantile(&mut times, 0.99)),
    );
}

#[test]
#[ignore = "prints figures, checks nothing; run by hand on a quiet machine"]
fn engines_side_by_side() {
    fdatasync();
    println!(
        "| engine | values | rows/s | checkpoint p50 / p99 ms | reads/s | get p50 / p99 us | scan p50 / p99 us | disk / live MiB | open closed / killed ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for load in [
        Load { value_bytes: 200, keys: 200_000, checkpoints: 1_000 },
        Load { value_bytes: 1_000, keys: 100_000, checkpoints: 1_000 },
        Load { value_bytes: 5_000, keys: 40_000, checkpoints: 400 },
    ] {
        for engine in EngineKind::ALL {
            measure(engine, load);
        }
    }
    println!("| engine | live MiB | files before | files after | ms |");
    println!("|---|---|---|---|---|");
    for engine in EngineKind::ALL {
        measure_compaction(engine, Load { value_bytes: 5_000, keys: 40_000, checkpoints: 400 });
    }
    fdatasync();
}
