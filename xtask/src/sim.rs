//! `cargo xtask sim`: whole nodes in one thread, with faults that follow from a seed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process;
use crate::report::{Log, Report, Tally};

const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// Together with what each seed may take.
const RUN_LIMIT: Duration = Duration::from_secs(600);
const SEED_LIMIT: Duration = Duration::from_secs(60);

/// Which seeds to run, beside those that once failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    pub(crate) count: u32,
    pub(crate) from: u64,
}

pub(crate) fn parse(rest: &[String]) -> Result<Seeds> {
    let mut seeds = Seeds { count: 10, from: 1 };
    let mut arguments = rest.iter();
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} takes a number"))?;
        match argument.as_str() {
            "--seeds" => seeds.count = value.parse().context("--seeds N")?,
            "--from" => seeds.from = value.parse().context("--from S")?,
            other => bail!("sim does not take {other}"),
        }
    }
    Ok(seeds)
}

/// Builds the simulation and runs it.
pub(crate) fn run(workspace: &Workspace, report: &mut Report, seeds: Seeds) {
    let built = report.step("build of the simulation", |log| {
        let command = build(&workspace.root, &workspace.target);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    });
    if built {
        run_built(workspace, report, seeds);
    }
}

/// Runs the simulation that was built, with everything else or alone.
pub(crate) fn run_built(workspace: &Workspace, report: &mut Report, seeds: Seeds) {
    let mut command = Command::new(workspace.target.join("ci").join("piton-sim"));
    command.args(["--seeds", &seeds.count.to_string(), "--from", &seeds.from.to_string()]);
    let limit = RUN_LIMIT + SEED_LIMIT * seeds.count;
    report.step("sim", |log| simulate(command, log, limit));
}

/// Builds the simulation of the tree at `root`.
pub(crate) fn build(root: &Path, target: &Path) -> Command {
    let mut command = process::cargo(root);
    command.args(["build", "--package", "piton-sim", "--profile", "ci", "--locked"]);
    command.arg("--target-dir").arg(target);
    command
}

fn simulate(command: Command, log: &mut Log, limit: Duration) -> Result<Tally> {
    let mut tally = Tally::default();
    let ok = process::run(command, log, limit, |line| {
        println!("   {line}");
        if let Some(found) = parse_result(line) {
            tally = found;
        }
    })?;
    Ok(tally.of_child(ok))
}

/// Reads `3 passed, 0 failed, 1 unknown (counts as failed)`. A run whose faults did not all hit
/// shows too little, so what is unknown counts as failed.
fn parse_result(line: &str) -> Option<Tally> {
    let mut parts = line.split(", ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed: usize = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    let unknown: usize = parts.next()?.split_once(" unknown")?.0.parse().ok()?;
    Some(Tally { passed, failed: failed + unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_read() {
        let tally = parse_result("3 passed, 2 failed, 1 unknown (counts as failed)");
        assert_eq!(tally, Some(Tally { passed: 3, failed: 3 }));
        assert_eq!(parse_result("seed 3"), None);
    }

    #[test]
    fn seeds_are_read() {
        let arguments = ["--seeds", "5", "--from", "40"].map(str::to_owned);
        assert_eq!(parse(&arguments).ok(), Some(Seeds { count: 5, from: 40 }));
        assert!(parse(&["--seeds".to_owned()]).is_err());
    }
}
