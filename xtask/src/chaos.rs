//! `cargo xtask chaos`: a cluster of real processes that is hurt under load, and an auditor. What it
//! does is in `tests/chaos`; here both are built and its result is counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Workspace;
use crate::process;
use crate::report::{Log, Report, Tally};
use crate::suites;

const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// To found the cluster, to let everything end, and to read it all, beside the minutes of faults.
const AROUND: Duration = Duration::from_secs(1_800);
/// What a fault takes with what follows; a run goes on until each has hit as often as was asked for.
const FAULT_MAX: Duration = Duration::from_secs(120);

/// What every run of `cargo xtask test` does: five minutes of all kinds of faults, on nodes whose disks and
/// clocks can fail.
const SHORT: &[&str] = &[
    "--minutes=5",
    "--calm=0.5",
    "--away=6",
    "--rate=20",
    "--clients=8",
    "--tls",
    "--snapshot-log-bytes=262144",
];
const SHORT_LIMIT: Duration = Duration::from_secs(1_200);

/// What is passed on, and what is needed here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// A binary that exists; otherwise a release build of the tree.
    server: Option<PathBuf>,
    minutes: Duration,
    /// Nodes run the faulty binary of the tree.
    is_faulty: bool,
    /// Of each kind of fault.
    least: u32,
    arguments: Vec<String>,
}

pub(crate) fn parse(rest: &[String]) -> Result<Options> {
    let minutes = Duration::from_secs(300);
    let mut options =
        Options { server: None, minutes, is_faulty: false, least: 1, arguments: Vec::new() };
    let mut arguments = rest.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--server" => {
                options.server = Some(arguments.next().context("--server FILE")?.into());
                continue;
            }
            "--faulty" => {
                options.is_faulty = true;
                continue;
            }
            "--minutes" => {
                let minutes = arguments.next().context("--minutes N")?;
                let seconds = 60.0 * minutes.parse::<f64>().context("--minutes N")?;
                options.minutes = Duration::try_from_secs_f64(seconds).context("--minutes N")?;
                options.arguments.extend([argument.clone(), minutes.clone()]);
                continue;
            }
            "--least" => {
                let least = arguments.next().context("--least N")?;
                options.least = least.parse().context("--least N")?;
                options.arguments.extend([argument.clone(), least.clone()]);
                continue;
            }
            _ => options.arguments.push(argument.clone()),
        }
    }
    Ok(options)
}

pub(crate) fn run(workspace: &Workspace, report: &mut Report, options: &Options) {
    if options.server.is_none() && !suites::build_server(workspace, report, "release") {
        return;
    }
    let built = report.step("build of the chaos tool", |log| {
        let mut command = process::cargo(&workspace.root);
        command.args(["build", "--package", "piton-chaos", "--profile", "ci", "--locked"]);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    });
    if built {
        let server = options.server.clone();
        let server = server.unwrap_or_else(|| workspace.target.join("release").join("piton"));
        let mut command = tool(workspace, &server, options.is_faulty);
        command.args(&options.arguments);
        let limit = options.minutes + FAULT_MAX * options.least + AROUND;
        report.step("chaos", |log| hurt(command, log, limit));
    }
}

/// The same at CI size, with what is built already.
pub(crate) fn run_short(workspace: &Workspace, report: &mut Report) {
    let server = workspace.target.join("ci").join("piton");
    let mut command = tool(workspace, &server, true);
    command.args(SHORT);
    report.step("chaos", |log| hurt(command, log, SHORT_LIMIT));
}

fn tool(workspace: &Workspace, server: &Path, is_faulty: bool) -> Command {
    let built = workspace.target.join("ci");
    let mut command = Command::new(built.join("piton-chaos"));
    command.arg("--server").arg(server);
    command.arg("--directory").arg(workspace.target.join("chaos"));
    if is_faulty {
        command.arg("--faulty").arg(built.join("piton-faulty"));
    }
    command
}

fn hurt(command: Command, log: &mut Log, limit: Duration) -> Result<Tally> {
    let ok = process::run(command, log, limit, |line| println!("   {line}"))?;
    Ok(Tally::one(ok))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_here_is_passed_on() {
        let arguments = ["--nodes", "5", "--server", "/piton", "--faulty", "--minutes", "0.5"]
            .map(str::to_owned);
        let options = parse(&arguments).expect("they are right");
        assert_eq!(options.server, Some(PathBuf::from("/piton")));
        assert_eq!((options.minutes, options.is_faulty), (Duration::from_secs(30), true));
        assert_eq!(options.arguments, ["--nodes", "5", "--minutes", "0.5"]);
    }
}
