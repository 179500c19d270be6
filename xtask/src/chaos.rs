//! `cargo xtask chaos`: a cluster of real processes that is hurt under load, and an auditor. What it
//! does is in `tests/chaos`; here both are built and its result is counted.

use std::path::PathBuf;
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

/// What is passed on, and what is needed here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// A binary that exists; otherwise a release build of the tree.
    server: Option<PathBuf>,
    minutes: Duration,
    arguments: Vec<String>,
}

pub(crate) fn parse(rest: &[String]) -> Result<Options> {
    let mut options =
        Options { server: None, minutes: Duration::from_secs(300), arguments: Vec::new() };
    let mut arguments = rest.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--server" => {
                options.server = Some(arguments.next().context("--server FILE")?.into());
                continue;
            }
            "--minutes" => {
                let minutes = arguments.next().context("--minutes N")?;
                let seconds = 60.0 * minutes.parse::<f64>().context("--minutes N")?;
                options.minutes = Duration::try_from_secs_f64(seconds).context("--minutes N")?;
                options.arguments.extend([argument.clone(), minutes.clone()]);
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
        let mut command = Command::new(workspace.target.join("ci").join("piton-chaos"));
        command.arg("--server").arg(server);
        command.arg("--directory").arg(workspace.target.join("chaos")).args(&options.arguments);
        let limit = options.minutes + AROUND;
        report.step("chaos", |log| hurt(command, log, limit));
    }
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
        let arguments =
            ["--nodes", "5", "--server", "/piton", "--minutes", "0.5"].map(str::to_owned);
        let options = parse(&arguments).expect("they are right");
        assert_eq!(options.server, Some(PathBuf::from("/piton")));
        assert_eq!(options.minutes, Duration::from_secs(30));
        assert_eq!(options.arguments, ["--nodes", "5", "--minutes", "0.5"]);
    }
}
