//! `cargo xtask chaos`: real processes of the server, a workload, faults as drawn from a seed, and an
//! auditor at the end (A1 to A10; see `piton_tests::audit`). Of the server it knows the public API,
//! its flags, and the metric that tells who leads a shard.
//!
//! Read in this order: `cluster` and `proxy` (who is hurt), `client` and `journal` (how is asked, and
//! what is remembered), `orders`, `worker`, `probes`, `registers` (the workload), `nemesis`, `audit`,
//! `linear`, `report`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod audit;
mod certificates;
mod chart;
mod client;
mod cluster;
mod figures;
mod journal;
mod kinds;
mod linear;
mod load;
mod members;
mod nemesis;
mod operator;
mod orders;
mod probes;
mod proxy;
mod registers;
mod report;
mod rot;
mod storm;
mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use piton_tests::audit::Broken;
use tokio::time::Instant;

use crate::audit::Findings;
use crate::client::Client;
use crate::cluster::{Cluster, Spec, fresh_directory};
use crate::figures::Placement;
use crate::journal::Journal;
use crate::kinds::Kinds;
use crate::load::Load;
use crate::nemesis::{Fault, Nemesis, Plan};

#[derive(Parser)]
#[command(about = "Hurts a cluster of real processes under load, and audits what it did meanwhile")]
struct Options {
    /// The server's binary
    #[arg(long)]
    server: PathBuf,
    /// What nodes run instead: with disks that lose what was not synced when a node is killed, and
    /// clocks that can be set
    #[arg(long)]
    faulty: Option<PathBuf>,
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kinds of faults by commas; `all`, or `none`
    #[arg(long, default_value = "all")]
    faults: Kinds,
    /// How often each kind must have hit, at least, while calls were in flight. The run goes on for
    /// longer where that takes longer
    #[arg(long, default_value_t = 1)]
    least: usize,
    /// Seconds between two faults, on average
    #[arg(long, default_value_t = 4.0)]
    calm: f64,
    /// Seconds for which a node is away that needs a snapshot then, on average
    #[arg(long, default_value_t = 25.0)]
    away: f64,
    /// Timers that come due at once in a storm of them
    #[arg(long, default_value_t = 2_000)]
    storm_timers: u64,
    #[arg(long, default_value_t = 4)]
    shards: u32,
    /// Certificates between the nodes
    #[arg(long)]
    tls: bool,
    /// Requests that clients begin per second, beside probes and workers
    #[arg(long, default_value_t = 40)]
    rate: u32,
    #[arg(long, default_value_t = 16)]
    clients: u64,
    /// A Python that has the official SDK: workers of it take a part of the load
    #[arg(long)]
    sdk_python: Option<PathBuf>,
    /// First of four ports for each node; 0: any
    #[arg(long, default_value_t = 0)]
    ports: u16,
    #[arg(long, default_value_t = 1 << 20)]
    snapshot_log_bytes: u64,
    /// What is left of the run
    #[arg(long, default_value = "target/chaos")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.faulty.is_none() {
        options.faults = options.faults.without_faulty();
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    // Clients share this thread; proxies have the runtime's.
    let local = tokio::task::LocalSet::new();
    let ended = runtime
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(local.run_until(run(&options))));
    match ended {
        Ok(broken) => {
            let failed = usize::from(broken > 0);
            println!("{} passed, {failed} failed", 1 - failed);
            ExitCode::from(failed as u8)
        }
        Err(error) => {
            eprintln!("piton-chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Answers how many violations there were.
async fn run(options: &Options) -> Result<usize> {
    let directory = fresh_directory(&options.directory.join(format!("seed-{}", options.seed)))?;
    println!("   seed {}, {} nodes, {}", options.seed, options.nodes, directory.display());
    let spec = Spec {
        binary: fs::canonicalize(&options.server).context("--server")?,
        faulty: options.faulty.as_ref().map(fs::canonicalize).transpose().context("--faulty")?,
        directory: directory.clone(),
        nodes: options.nodes,
        shards: options.shards,
        first_port: options.ports,
        has_tls: options.tls,
        snapshot_log_bytes: options.snapshot_log_bytes,
    };
    let cluster = Cluster::found(spec).await.context("found the cluster")?;
    let journal = Journal::create(&directory.join("calls.jsonl"))?;
    let addresses: Vec<String> = (0..cluster.len()).map(|node| cluster.api(node)).collect();
    let client = Client::new(&addresses, &cluster.members, &journal)?;
    let namespace_id = probes::namespace_id(&client).await?;
    let placement = Placement { namespace_id, shards: cluster.shards() };
    let load = Load::begin(options, &cluster, &client, &placement).await?;
    let (faults, mut broken) = hurt(options, &cluster, &client).await?;
    let minutes = journal.now_us() as f64 / 60e6;
    println!("   {:7.1} s  faults are over", minutes * 60.0);
    let (registers, mut workers) = load.end().await;
    broken.extend(audit::settle(&client).await);
    broken.extend(workers.ended());
    drop(workers);
    println!("   {:7.1} s  audit", journal.now_us() as f64 / 1e6);
    let mut findings = audit::audit(&client, &journal, &faults).await;
    if broken.is_empty() {
        match audit::compare_replicas(&cluster, &client, &findings.histories).await {
            Ok(differing) => broken.extend(differing),
            Err(error) => broken.push(Broken::new(format!("A6: {error:#}"))),
        }
    }
    if options.faults.are_planned() {
        broken.extend(planned(&journal, &faults, &findings));
    }
    broken.extend(audit::check_coverage(&options.faults.0, options.least, &faults));
    broken.extend(panics(&cluster));
    findings.broken.extend(broken);
    journal.flush();
    let report = report::Run {
        title: title(options, minutes),
        journal: &journal,
        faults: &faults,
        histories: &findings.histories,
        placement: &placement,
        registers,
        broken: &findings.broken,
    };
    println!("{}", report.write(&directory)?);
    conclude(&directory, &cluster, &findings)
}

/// Lets the nemesis rage, and has the cluster whole again; else says what is broken.
async fn hurt(
    options: &Options,
    cluster: &Cluster,
    client: &Client,
) -> Result<(Vec<Fault>, Vec<Broken>)> {
    let plan = Plan {
        kinds: options.faults.0.clone(),
        least: options.least,
        calm: Duration::from_secs_f64(options.calm),
        away: Duration::from_secs_f64(options.away),
        storm_timers: options.storm_timers,
        seed: options.seed,
    };
    let mut nemesis = Nemesis::new(cluster, client, plan);
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let raged = tokio::select! {
        raged = nemesis.rage(end) => raged,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    let whole = nemesis::make_whole(cluster).await;
    let errors = [raged.err(), whole.err()].into_iter().flatten();
    let broken = errors.map(|error| Broken::new(format!("A6: {error:#}"))).collect();
    Ok((nemesis.faults, broken))
}

/// What no client may notice where all that happens is planned.
fn planned(journal: &Journal, faults: &[Fault], findings: &Findings) -> Vec<Broken> {
    let noticed = figures::noticed(faults, &journal.requests(), &journal.calls());
    let failed = noticed.iter().filter(|(_, noticed)| noticed.given_up + noticed.failed > 0);
    let failed = failed.map(|(kind, noticed)| {
        let figures::Noticed { given_up, failed, .. } = noticed;
        Broken::new(format!("{kind}: {given_up} requests and {failed} tries failed"))
    });
    failed.chain(figures::lost_tasks(&findings.histories)).collect()
}

fn panics(cluster: &Cluster) -> Vec<Broken> {
    let of = |node| {
        let panics = cluster.panics(node).into_iter();
        panics.map(move |line| Broken::new(format!("node {node} panicked: {line}")))
    };
    (0..cluster.len()).flat_map(of).collect()
}

fn title(options: &Options, minutes: f64) -> String {
    let Options { nodes, seed, shards, rate, tls, .. } = options;
    let between = if *tls { "TLS" } else { "plaintext" };
    let on = if options.faulty.is_some() { ", disks that lose what was not synced" } else { "" };
    format!(
        "Chaos: {nodes} nodes, {minutes:.1} minutes, seed {seed}, {shards} shards, {rate} requests/s, \
         {between}{on}"
    )
}

/// Keeps what explains a failure; a run without one leaves its report and the client log.
fn conclude(directory: &Path, cluster: &Cluster, findings: &Findings) -> Result<usize> {
    let Some(first) = findings.broken.first() else {
        cluster.remove_data();
        return Ok(0);
    };
    audit::keep(directory, findings)?;
    println!("   first violation: {first}\n{}", audit::around(findings, first));
    println!("   logs, client log and histories are in {}", directory.display());
    Ok(findings.broken.len())
}
