//! The binaries under test: built once with all mutations in them, then started for one test, or
//! for seeds of the simulation, with one mutation on or none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::list::{Red, VARIABLE};
use crate::process::{self, End};
use crate::report::Log;

const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// What hangs longer without its protection has turned red, too.
const TEST_LIMIT: Duration = Duration::from_secs(90);

/// How the simulation says that faults hit nobody, which is no failure.
const SEED_UNKNOWN: i32 = 3;

/// What became of one test, or of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Green,
    Red,
    /// It did not end in time.
    Hung,
    /// There is no such test.
    NotFound,
}

/// Where the binary of each crate's test target lies, and what directory it runs in.
#[derive(Default)]
pub(super) struct Binaries {
    tests: BTreeMap<(String, String), (PathBuf, PathBuf)>,
    simulation: Option<PathBuf>,
}

/// The lines of cargo's messages that matter.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Binaries {
    pub(super) fn build_tests(&mut self, tree: &Path, target: &Path, log: &mut Log) -> Result<()> {
        let mut command = process::cargo(tree);
        command.args(["test", "--no-run", "--workspace", "--profile", "ci", "--locked"]);
        command.args(["--message-format", "json-render-diagnostics"]);
        command.arg("--target-dir").arg(target);
        // A change to the list touches a few files of each crate.
        command.env("CARGO_INCREMENTAL", "1");
        let mut lines = Vec::new();
        let ok = process::run(command, log, BUILD_LIMIT, |line| lines.push(line.to_owned()))?;
        ensure!(ok, "the tree with all mutations in it does not build");
        for line in lines {
            self.note_test(tree, serde_json::from_str(&line).context("a message of cargo")?);
        }
        Ok(())
    }

    fn note_test(&mut self, tree: &Path, message: Message) -> Option<()> {
        if !message.profile?.test {
            return None;
        }
        let directory = message.manifest_path?.parent()?.to_path_buf();
        let package = directory.strip_prefix(tree).ok()?.to_string_lossy().into_owned();
        let target = message.target?;
        let target = match target.kind.first()?.as_str() {
            "test" => target.name,
            kind => kind.to_owned(),
        };
        self.tests.insert((package, target), (message.executable?, directory));
        Some(())
    }

    pub(super) fn build_simulation(
        &mut self,
        tree: &Path,
        target: &Path,
        log: &mut Log,
    ) -> Result<()> {
        let command = crate::sim::build(tree, target);
        ensure!(process::run(command, log, BUILD_LIMIT, |_| {})?, "the simulation does not build");
        self.simulation = Some(target.join("ci").join("piton-sim"));
        Ok(())
    }

    /// Runs one test, or seeds until one fails, with one mutation on or none.
    pub(super) fn run(&self, red: &Red, mutation: Option<&str>, log: &mut Log) -> Result<Outcome> {
        match red {
            Red::Test { package, target, name } => {
                let Some(target) = self.tests.get(&(package.clone(), target.clone())) else {
                    return Ok(Outcome::NotFound);
                };
                run_test(target, name, mutation, log)
            }
            Red::Seeds(count) => {
                let executable = self.simulation.as_ref().context("no simulation was built")?;
                for seed in 1..=*count {
                    let outcome = run_seed(executable, seed, mutation, log)?;
                    if outcome != Outcome::Green {
                        return Ok(outcome);
                    }
                }
                Ok(Outcome::Green)
            }
        }
    }
}

fn run_test(
    (executable, directory): &(PathBuf, PathBuf),
    name: &str,
    mutation: Option<&str>,
    log: &mut Log,
) -> Result<Outcome> {
    let mut command = switched(executable, mutation);
    command.current_dir(directory).args(["--exact", name, "--nocapture"]);
    command.env("CARGO_MANIFEST_DIR", directory);
    let mut ran = None;
    let end = process::run_to_end(command, log, TEST_LIMIT, |line| {
        ran = parse_running(line).or(ran);
    })?;
    Ok(match (end, ran) {
        (End::TimedOut, _) => Outcome::Hung,
        (End::Exited(_), None) => bail!("{} is no test binary", executable.display()),
        (End::Exited(Some(0)), Some(1)) => Outcome::Green,
        // A test that takes its process with it has failed as well.
        (End::Exited(_), Some(1)) => Outcome::Red,
        (End::Exited(_), Some(_)) => Outcome::NotFound,
    })
}

fn run_seed(
    executable: &Path,
    seed: u64,
    mutation: Option<&str>,
    log: &mut Log,
) -> Result<Outcome> {
    let mut command = switched(executable, mutation);
    command.args(["--one", &seed.to_string()]);
    Ok(match process::run_to_end(command, log, TEST_LIMIT, |_| {})? {
        End::TimedOut => Outcome::Hung,
        End::Exited(Some(0 | SEED_UNKNOWN)) => Outcome::Green,
        End::Exited(_) => Outcome::Red,
    })
}

fn switched(executable: &Path, mutation: Option<&str>) -> Command {
    let mut command = Command::new(executable);
    command.env_remove(VARIABLE).env("RUST_BACKTRACE", "0");
    if let Some(mutation) = mutation {
        command.env(VARIABLE, mutation);
    }
    command
}

/// Reads `running 1 test`.
fn parse_running(line: &str) -> Option<usize> {
    let (count, rest) = line.strip_prefix("running ")?.split_once(' ')?;
    matches!(rest, "test" | "tests").then(|| count.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_tests_is_read() {
        assert_eq!(parse_running("running 1 test"), Some(1));
        assert_eq!(parse_running("running 0 tests"), Some(0));
        assert_eq!(parse_running("running late"), None);
    }
}
