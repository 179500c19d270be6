//! `cargo xtask soak`: the seed suite over and over against one server that it has killed again and
//! again, for as long as asked. What the server takes of memory, file handles and disk must not grow.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::Workspace;
use crate::report::{Log, Report, Tally};
use crate::server::Server;
use crate::suites::{self, Run, Suite};

/// What is closed is deleted soon, and logs are freed early, so that the disk can come to rest.
const SHORT: &[(&str, &str)] = &[
    ("PITON_LIMIT", "retention_ms_default=60000,request_id_ms_min=60000"),
    ("PITON_SNAPSHOT_LOG_BYTES", "524288"),
];
const SAMPLE: Duration = Duration::from_secs(2);
/// The first rounds fill caches and the log's first segments.
const WARM_UP_ROUNDS: usize = 3;
const ROUNDS_MIN: usize = 8;
/// The last rounds may take this much more than those after the warm-up: noise, not growth.
const GROWTH_PERCENT_MAX: u64 = 15;

pub(crate) fn parse(rest: &[String]) -> Result<Duration> {
    match rest {
        [] => Ok(Duration::from_secs(3_600)),
        [flag, minutes] if flag == "--minutes" => {
            Ok(Duration::from_secs(60 * minutes.parse::<u64>().context("--minutes N")?))
        }
        _ => bail!("soak takes only --minutes N"),
    }
}

pub(crate) fn run(workspace: &Workspace, report: &mut Report, duration: Duration) {
    if workspace.seed_suite().is_none() {
        println!("== soak: left out, ../shared is not there");
        return;
    }
    if suites::build_server(workspace, report, "release") {
        let server_log = report.logs().join("soak-server.log");
        report.step("soak", |log| soak(workspace, &server_log, duration, log));
    }
}

/// What a server takes. Of a round: the most that was seen, and the disk at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    rss_bytes: u64,
    handles: u64,
    disk_bytes: u64,
}

fn soak(
    workspace: &Workspace,
    server_log: &Path,
    duration: Duration,
    log: &mut Log,
) -> Result<Tally> {
    let binary = workspace.target.join("release").join("piton");
    let run = Run {
        suite: Suite::Seed,
        label: "soak",
        binary: &binary,
        nodes: 1,
        environment: SHORT,
        full: false,
        filter: &[],
        quiet: true,
    };
    let server = suites::start_server(workspace, &run, server_log)?;
    let end = Instant::now() + duration;
    let (mut sum, mut rounds) = (Tally::default(), Vec::new());
    while Instant::now() < end || rounds.len() < ROUNDS_MIN {
        let (tally, usage) = round(workspace, &run, &server, log)?;
        sum.passed += tally.passed;
        sum.failed += tally.failed;
        rounds.push(usage);
        println!(
            "   round {}: {} passed, {} failed; RSS {} MiB, {} handles, {} MiB on disk",
            rounds.len(),
            tally.passed,
            tally.failed,
            usage.rss_bytes >> 20,
            usage.handles,
            usage.disk_bytes >> 20
        );
    }
    for (what, of) in [
        ("RSS", (|usage| usage.rss_bytes) as fn(&Usage) -> u64),
        ("file handles", |usage| usage.handles),
        ("disk", |usage| usage.disk_bytes),
    ] {
        let values: Vec<u64> = rounds.iter().map(of).collect();
        match growth(&values) {
            Ok(()) => sum.passed += 1,
            Err(why) => {
                println!("   {what} grows: {why}");
                sum.failed += 1;
            }
        }
    }
    Ok(sum)
}

/// Runs the suite once, and looks at the server meanwhile.
fn round(
    workspace: &Workspace,
    run: &Run<'_>,
    server: &Server,
    log: &mut Log,
) -> Result<(Tally, Usage)> {
    let (stop, stopped) = channel::<()>();
    std::thread::scope(|scope| {
        let watching = scope.spawn(move || {
            let mut most = Usage::default();
            loop {
                if let Some(seen) = server.process_id().and_then(usage_of) {
                    most.rss_bytes = most.rss_bytes.max(seen.rss_bytes);
                    most.handles = most.handles.max(seen.handles);
                }
                match stopped.recv_timeout(SAMPLE) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return most,
                }
            }
        });
        let tally = suites::run_against(workspace, run, server, log);
        drop(stop);
        let mut usage = watching.join().expect("the watcher does not panic");
        usage.disk_bytes = bytes_under(server.data())?;
        Ok((tally?, usage))
    })
}

/// None where the process has gone.
fn usage_of(process_id: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let handles = fs::read_dir(format!("/proc/{process_id}/fd")).ok()?.count() as u64;
    Some(Usage { rss_bytes: kib << 10, handles, disk_bytes: 0 })
}

fn bytes_under(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Segments come and go while the server works.
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { bytes_under(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// Compares the last third of the rounds with the first third after the warm-up, by their medians.
///
/// # Errors
/// When the last ones are larger by more than noise, or there are too few.
fn growth(values: &[u64]) -> Result<()> {
    ensure!(values.len() >= ROUNDS_MIN, "{} rounds say nothing", values.len());
    let settled = &values[WARM_UP_ROUNDS..];
    let third = settled.len().div_ceil(3);
    let (first, last) = (median(&settled[..third]), median(&settled[settled.len() - third..]));
    let allowed = first + first * GROWTH_PERCENT_MAX / 100;
    ensure!(last <= allowed, "from {first} to {last} over {} rounds", values.len());
    Ok(())
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_told_from_noise() {
        let flat: Vec<u64> = (0..12).map(|round| 100 + round % 3).collect();
        assert!(growth(&flat).is_ok());
        let warming: Vec<u64> = (0..12).map(|round| if round < 3 { 10 } else { 100 }).collect();
        assert!(growth(&warming).is_ok());
        let growing: Vec<u64> = (0..12).map(|round| 100 + 5 * round).collect();
        assert!(growth(&growing).is_err());
        assert!(growth(&flat[..4]).is_err());
    }

    #[test]
    fn this_process_takes_something() {
        let usage = usage_of(std::process::id()).expect("it runs");
        assert!(usage.rss_bytes > 1 << 20 && usage.handles >= 3);
    }
}
