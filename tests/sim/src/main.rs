//! Whole nodes in one thread and virtual time: shards, Raft, log and table as they are, network,
//! disks and clocks that fail by a seed. A run is named by its seed and repeats exactly.
//!
//! `world` holds the nodes, `bring_up` starts one, `life` is what one life of it may touch, `network`
//! what goes between them; `workload` and `worker` are clients and workers, `client` is what they ask;
//! `ledger` is what they were answered, `auditor` holds the histories against it; `faults` is what goes
//! wrong, and `operator` what is changed meanwhile.

#![expect(clippy::print_stdout, reason = "a command line tool")]

mod auditor;
mod bring_up;
mod chance;
mod client;
mod damage;
mod entropy;
mod faults;
mod ledger;
mod life;
mod network;
mod operator;
mod peer;
mod replicas;
mod staged;
mod timers;
mod trace;
mod witness;
mod worker;
mod workload;
mod world;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use piton_tests::audit::Broken;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::chance::Chance;
use crate::client::Client;
use crate::faults::Fault;
use crate::ledger::Ledger;
use crate::trace::Trace;
use crate::world::{World, in_ms};

/// Seeds that once failed, one a line; always run first.
const KEPT: &str = include_str!("../seeds.txt");
const DRIVERS: usize = 6;
const WORKERS: usize = 5;
const FAULTS: u64 = 4;
/// A run takes seconds; one that takes this long is stuck.
const WALL_TIME_MAX: Duration = Duration::from_secs(300);

const PASSED: u8 = 0;
const FAILED: u8 = 1;
const UNKNOWN: u8 = 3;

#[derive(Parser)]
struct Options {
    /// How many seeds to run, beside those that once failed.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this one seed in this process.
    #[arg(long)]
    one: Option<u64>,
    /// How many faults each run has.
    #[arg(long, default_value_t = FAULTS)]
    faults: u64,
    /// Print what happens, in one seed's run.
    #[arg(long)]
    print: bool,
    /// Print the nodes' own log, in one seed's run.
    #[arg(long)]
    log: Option<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.one {
        Some(seed) => ExitCode::from(run_one(seed, &options)),
        None => match run_many(&options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                println!("{error:#}");
                ExitCode::from(2)
            }
        },
    }
}

/// The first word of each line.
fn seeds_in(list: &str) -> impl Iterator<Item = u64> {
    list.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok())
}

/// Runs each seed in a process of its own, so that nothing of one run reaches the next, and as many at
/// a time as there are processors.
fn run_many(options: &Options) -> Result<bool> {
    let kept = seeds_in(KEPT);
    let mut seeds: Vec<u64> = kept.chain(options.from..options.from + options.seeds).collect();
    // The first one runs twice, which shows that a seed repeats its run.
    seeds.insert(0, *seeds.first().context("no seeds")?);
    let (mut passed, mut failed, mut unknown) = (0, 0, 0);
    let mut first = None;
    for_each_in_order(&seeds, options, |seed, ended| {
        let (code, output) = ended?;
        let Some(repeats) = first.as_ref().map(|first| *first == output) else {
            first = Some(output);
            return Ok(());
        };
        // From the third on there is nothing to compare with.
        let repeats = repeats || passed + failed + unknown > 0;
        print!("{output}");
        if !repeats {
            println!("   seed {seed} does not repeat");
        }
        match code {
            PASSED if repeats => passed += 1,
            UNKNOWN if repeats => unknown += 1,
            _ => failed += 1,
        }
        Ok(())
    })?;
    println!("{passed} passed, {failed} failed, {unknown} unknown (counts as failed)");
    Ok(failed == 0 && unknown == 0 && passed > 0)
}

type Ended = Result<(u8, String)>;

fn for_each_in_order(
    seeds: &[u64],
    options: &Options,
    mut look: impl FnMut(u64, Ended) -> Result<()>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let (next, tell) = (&next, tell.clone());
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seeds.get(index) else { return };
                    if tell.send((index, child(*seed, options))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        let mut early = BTreeMap::new();
        for (seed, index) in seeds.iter().zip(0..) {
            let ended = loop {
                if let Some(ended) = early.remove(&index) {
                    break ended;
                }
                let (index, ended): (usize, Ended) = told.recv().context("a thread ended")?;
                early.insert(index, ended);
            };
            look(*seed, ended)?;
        }
        Ok(())
    })
}

fn child(seed: u64, options: &Options) -> Result<(u8, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--one", &seed.to_string(), "--faults", &options.faults.to_string()]);
    let output = command.output().context("run a seed")?;
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED);
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if code != PASSED && code != UNKNOWN {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    Ok((code, text))
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn run_one(seed: u64, options: &Options) -> u8 {
    println!("seed {seed}");
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
    if let Some(filter) = &options.log {
        tracing_subscriber::fmt()
            .with_env_filter(filter.as_str())
            .without_time()
            .with_writer(std::io::stdout)
            .init();
    }
    let (_ended, end) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if end.recv_timeout(WALL_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            println!("   FAILED A6: the run does not end");
            std::process::exit(i32::from(FAILED));
        }
    });
    entropy::seed(seed);
    // A thread of its own: in this one random numbers have been drawn already.
    let run = || piton_raft::sim::run(seed, simulate(seed, options));
    let outcome = std::thread::scope(|scope| scope.spawn(run).join());
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("the run panicked")));
    let mut code = match outcome {
        Ok(unknown) if unknown.is_empty() => PASSED,
        Ok(unknown) => {
            println!("   unknown (A10): {unknown:?} hit nobody");
            UNKNOWN
        }
        Err(error) => {
            println!("   FAILED {error:#}");
            FAILED
        }
    };
    let panics = PANICS.load(Ordering::Relaxed);
    if panics > 0 {
        println!("   FAILED: {panics} panics");
        code = FAILED;
    }
    code
}

/// One run. Answers the faults that hit nobody.
async fn simulate(seed: u64, options: &Options) -> Result<Vec<Fault>> {
    let trace = Trace::begin(options.print);
    let chance = Chance::new(seed);
    let world =
        World::new(seed, if is_founded_by_one(seed) { 1 } else { nodes(seed) }, trace, &chance);
    let outcome = live(seed, options, &world, &chance).await;
    // What was seen on the way says more than that the run did not come to its end.
    let seen = world.witness().broken();
    match outcome {
        outcome if seen.is_empty() => outcome,
        Ok(_) => bail!("{}", seen.join("\n   FAILED ")),
        Err(error) => Err(error.context(seen.join("\n   FAILED "))),
    }
}

fn nodes(seed: u64) -> u64 {
    if seed % 4 == 3 { 5 } else { 3 }
}

/// Whether the others join, as in a cluster of users; else all found it at once.
fn is_founded_by_one(seed: u64) -> bool {
    seed / 4 % 2 == 1
}

/// Brings the cluster up.
async fn found(seed: u64, world: &World, chance: &Chance) -> Result<()> {
    for node in world.nodes_to_found() {
        world.start(node).await?;
    }
    await_until("A6: the cluster does not come up", async || world.is_ready()).await?;
    // Replicas are only moved where not every node is to have one.
    let replicas = if is_founded_by_one(seed) { 3 } else { nodes(seed) as u32 };
    await_until("A6: no namespace", async || world.bootstrap(replicas).await).await?;
    for _ in world.nodes().len() as u64..nodes(seed) {
        operator::join(world, chance).await?;
    }
    operator::until_whole(world, chance).await?;
    await_until("A6: the cluster does not come up", async || world.is_ready()).await
}

async fn live(seed: u64, options: &Options, world: &World, chance: &Chance) -> Result<Vec<Fault>> {
    found(seed, world, chance).await?;
    let ledger = Ledger::default();
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn_local(worker::work_on_workflows(Client::new(world, chance), ledger.clone()));
        workers.spawn_local(worker::work_on_activities(Client::new(world, chance), ledger.clone()));
    }
    let (stop, stopped) = watch::channel(false);
    let mut drivers = JoinSet::new();
    for _ in 0..DRIVERS {
        let client = Client::new(world, chance);
        drivers.spawn_local(workload::drive(client, ledger.clone(), stopped.clone()));
    }
    sleep_until(in_ms(1_500)).await;

    let plan = faults::plan(seed, chance, options.faults);
    let changes = operator::plan(seed, chance);
    println!("   {} nodes, {plan:?}, {changes:?}", world.nodes().len());
    let mut operator = JoinSet::new();
    operator.spawn_local(operator::work(world.clone(), chance.fork(), changes));
    let mut missed = Vec::new();
    for fault in plan {
        if !faults::inflict(world, chance, fault).await? {
            missed.push(fault);
        }
    }
    finish_changes(world, &mut operator).await?;
    // What a fault left behind may still bring a node down.
    sleep_until(in_ms(1_000)).await;
    faults::restart(world).await?;

    stop.send_replace(true);
    while let Some(driver) = drivers.join_next().await {
        driver.context("a client")?;
    }
    let healed = await_until("A6: the cluster does not heal", async || world.is_ready()).await;
    healed.map_err(|error| anyhow!("{error:#}:\n      {}", world.eyes()))?;
    let client = Client::new(world, chance);
    let open = workload::finish(&client, &ledger).await;
    let mut broken = auditor::audit(world, &client, &ledger).await;
    let open = open.into_iter().map(|open| Broken::new(format!("A6: does not end: {open}")));
    broken.extend(open);
    workers.abort_all();
    while workers.join_next().await.is_some() {}
    let trace = world.trace();
    let (hash, notes) = trace.hash();
    println!("   trace {hash:016x}, {notes} notes, {} ms", trace.now_ms());
    let broken: Vec<String> = broken.iter().map(Broken::to_string).collect();
    ensure!(broken.is_empty(), "{}", broken.join("\n   FAILED "));
    Ok(missed)
}

/// Waits for what is still to be changed, and starts meanwhile whatever comes down.
async fn finish_changes(world: &World, operator: &mut JoinSet<Result<()>>) -> Result<()> {
    loop {
        tokio::select! {
            biased;
            done = operator.join_next() => match done {
                Some(done) => done.context("an operator")??,
                None => return Ok(()),
            },
            () = sleep_until(in_ms(200)) => faults::restart(world).await?,
        }
    }
}

async fn await_until(what: &str, mut look: impl AsyncFnMut() -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while !look().await {
        ensure!(Instant::now() < end, "{what}");
        sleep_until(in_ms(10)).await;
    }
    Ok(())
}
