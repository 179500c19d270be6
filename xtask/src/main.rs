//! Every developer command, the same here and in CI: `cargo xtask test | tidy | deploy-check |
//! golden-data | sim | chaos | mutate | soak | ratio | conformance`.
//!
//! It drives cargo, npm and pip and starts servers under test; it knows nothing of their insides,
//! so it builds in seconds and depends on no crate of the workspace.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod chaos;
mod deploy;
mod mutate;
mod process;
mod ratio;
mod report;
mod rust_core;
mod server;
mod sim;
mod soak;
mod suites;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::report::Report;
use crate::suites::Suite;

const USAGE: &str = "\
usage: cargo xtask <command>

  test [--fast]        everything CI runs; --fast leaves out the SDK suites but a smoke
  tidy                 the house rules that a machine can check
  deploy-check         what is in deploy/, by those tools it is for that are on the path: openssl, promtool,
                       helm, hadolint, docker-compose, systemd-analyze
  golden-data          writes the present version's data directory, which every later one must
                       open, to tests/node/golden
  sim [--seeds N] [--from S]
                       whole nodes in one thread with faults that follow from a seed
  chaos [--nodes 3] [--minutes 5] [--seed 1] [--faults kill,pause,...] [--server FILE] [--faulty] [...]
                       a cluster of real processes under load, hurt as drawn from the seed, and
                       audited; every option: target/ci/piton-chaos --help; --faulty: nodes whose
                       disks lose what was not synced, and whose clocks are set
  soak [--minutes N]   the seed suite over and over for an hour, or N minutes, with the server killed
                       again and again: nothing of it may grow
  ratio A B [--pairs N] [--seconds S] [--concurrency 1,64,256] [--nodes A,B]
                       builds two commits (. is the working tree), runs them in turns under load, and
                       prints each figure of B by that of A, as the median and range of N pairs
  mutate [--list] [NAME ...]
                       removes protections of the design, one after the other, and expects tests
                       to turn red; the list is tests/mutations, --list shows it:
                       mutate                          all of them, in minutes
                       mutate fence-term fence-slot    these
  conformance [histories|typescript|python|go|java|seed|rust-core ...] [--release] [--full]
              [--nodes N | --address HOST:PORT] [-- FILTER ...]
                       SDK suites against a fresh server, of N nodes that are killed in turn where a
                       suite has the server killed, or against the one at --address;
                       --release builds it so, --full keeps the seed suite's full sizes;
                       histories: raw calls, compared with what the official server answered;
                       rust-core: the official Rust core's own tests, from its package;
                       FILTER: prefixes of scenario names, parts of names of rust-core
  conformance histories --record HOST:PORT [-- FILTER ...]
                       writes the answers of the server there, an official one, into the files
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs one command; `Ok(false)` means that it worked and found failures.
fn run(arguments: &[String]) -> Result<bool> {
    let workspace = Workspace::find()?;
    let Some((command, rest)) = arguments.split_first() else { bail!("no command\n{USAGE}") };
    let mut report = Report::new(&workspace)?;
    match command.as_str() {
        "test" => test::run(&workspace, &mut report, parse_fast(rest)?)?,
        "tidy" | "golden-data" | "deploy-check" => {
            if !rest.is_empty() {
                bail!("{command} takes no arguments\n{USAGE}");
            }
            match command.as_str() {
                "tidy" => _ = report.step("tidy", |_| tidy::run(&workspace.root)),
                "deploy-check" => deploy::run(&workspace, &mut report),
                _ => _ = report.step("golden data", |log| test::golden_data(&workspace, log)),
            }
        }
        "sim" => sim::run(&workspace, &mut report, sim::parse(rest)?),
        "chaos" => chaos::run(&workspace, &mut report, &chaos::parse(rest)?),
        "soak" => soak::run(&workspace, &mut report, soak::parse(rest)?),
        "ratio" => ratio::run(&workspace, &mut report, &ratio::parse(rest)?),
        "mutate" => {
            let options = mutate::parse(rest)?;
            if mutate::show(&workspace, &options)? {
                return Ok(true);
            }
            mutate::run(&workspace, &mut report, &options)?;
        }
        "conformance" => {
            let (wanted, options) = parse_conformance(rest)?;
            suites::conformance(&workspace, &mut report, &wanted, &options)?;
        }
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return Ok(true);
        }
        other => bail!("unknown command {other}\n{USAGE}"),
    }
    Ok(report.finish())
}

fn parse_fast(rest: &[String]) -> Result<bool> {
    match rest {
        [] => Ok(false),
        [flag] if flag == "--fast" => Ok(true),
        _ => bail!("test takes only --fast\n{USAGE}"),
    }
}

fn parse_conformance(rest: &[String]) -> Result<(Vec<Suite>, suites::Options)> {
    let mut wanted = Vec::new();
    let mut options = suites::Options::default();
    let mut arguments = rest.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "histories" => wanted.push(Suite::Histories),
            "typescript" => wanted.push(Suite::TypeScript),
            "python" => wanted.push(Suite::Python),
            "go" => wanted.push(Suite::Go),
            "java" => wanted.push(Suite::Java),
            "seed" => wanted.push(Suite::Seed),
            "rust-core" => wanted.push(Suite::RustCore),
            "--release" => options.release = true,
            "--full" => options.full = true,
            "--nodes" => {
                let given = arguments.next().context("--nodes COUNT")?;
                options.nodes = Some(given.parse().context("--nodes COUNT")?);
            }
            "--address" => {
                options.address = Some(arguments.next().context("--address HOST:PORT")?.clone());
            }
            "--record" => {
                options.address = Some(arguments.next().context("--record HOST:PORT")?.clone());
                options.record = true;
            }
            "--" => options.filter = arguments.by_ref().cloned().collect(),
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    if options.record && wanted != [Suite::Histories] {
        bail!("only histories are recorded\n{USAGE}");
    }
    if wanted.is_empty() {
        wanted = vec![Suite::Histories, Suite::TypeScript, Suite::Python];
        wanted.extend([Suite::Go, Suite::Java, Suite::Seed]);
    }
    Ok((wanted, options))
}

/// Where things lie. Everything that is written goes under `target`.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Workspace {
    fn find() -> Result<Workspace> {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("xtask lies in the workspace")?.to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => std::path::absolute(PathBuf::from(directory))?,
            None => root.join("target"),
        };
        Ok(Workspace { root, target })
    }

    /// The founding article's suite, where it lies beside the clone.
    pub(crate) fn seed_suite(&self) -> Option<PathBuf> {
        let script = self.root.parent()?.join("shared/acceptance/seed/run.sh");
        script.is_file().then_some(script)
    }
}
