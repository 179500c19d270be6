//! The SDK suites: what each needs (npm, a Python environment), a server of its own, and its run.
//!
//! A suite prints one line per scenario and ends with `N passed, M failed`; nothing else is known
//! of it here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process;
use crate::report::{Log, Report, Tally, print_tail};
use crate::rust_core;
use crate::server::{Server, Spec};

const BUILD_LIMIT: Duration = Duration::from_secs(1200);
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
const SUITE_LIMIT: Duration = Duration::from_secs(480);
const FULL_SUITE_LIMIT: Duration = Duration::from_secs(1200);

/// The client of the suite of histories.
const HISTORIES: &str = "piton-histories";

/// The seed suite's sizes in CI; its own defaults are for release builds.
const SMALL_SEED: &[(&str, &str)] = &[("SEED_ORDERS", "60"), ("SEED_AGENTS", "300")];

/// Every workflow leaves memory at once, and checkpoints never stop.
pub(crate) const HARSH: &[(&str, &str)] = &[("PITON_IDLE_MS", "0"), ("PITON_TABLE_BYTES", "65536")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    Histories,
    TypeScript,
    Python,
    Go,
    Java,
    Seed,
    RustCore,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Histories => "histories",
            Suite::TypeScript => "typescript",
            Suite::Python => "python",
            Suite::Go => "go",
            Suite::Java => "java",
            Suite::Seed => "seed",
            Suite::RustCore => "rust-core",
        }
    }

    /// Why the suite cannot run here, if it cannot.
    pub(crate) fn missing(self, workspace: &Workspace) -> Option<String> {
        let tools: &[&str] = match self {
            Suite::Go => &["go"],
            Suite::Java => &["java", "mvn"],
            Suite::Seed if workspace.seed_suite().is_none() => {
                return Some("../shared is not there".to_owned());
            }
            Suite::Histories
            | Suite::TypeScript
            | Suite::Python
            | Suite::Seed
            | Suite::RustCore => &[],
        };
        let absent = tools.iter().find(|tool| !process::is_on_path(tool))?;
        Some(format!("there is no {absent} on the PATH"))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) release: bool,
    pub(crate) full: bool,
    pub(crate) nodes: Option<u32>,
    pub(crate) address: Option<String>,
    pub(crate) filter: Vec<String>,
    /// What the server at `address` answers becomes what is expected of histories.
    pub(crate) record: bool,
}

/// One run of one suite against one server.
pub(crate) struct Run<'a> {
    pub(crate) suite: Suite,
    /// Tells runs of one suite apart in logs and data directories.
    pub(crate) label: &'a str,
    pub(crate) binary: &'a Path,
    /// Of how many nodes the server is.
    pub(crate) nodes: u32,
    pub(crate) environment: &'a [(&'static str, &'static str)],
    pub(crate) full: bool,
    pub(crate) filter: &'a [String],
    /// Shows only what failed.
    pub(crate) quiet: bool,
}

/// The command `cargo xtask conformance`.
pub(crate) fn conformance(
    workspace: &Workspace,
    report: &mut Report,
    wanted: &[Suite],
    options: &Options,
) -> Result<()> {
    let profile = if options.release { "release" } else { "ci" };
    let binary = workspace.target.join(profile).join("piton");
    if options.address.is_none() && !build_server(workspace, report, profile) {
        return Ok(());
    }
    if wanted.contains(&Suite::Histories) && !build_histories(workspace, report, profile) {
        return Ok(());
    }
    for &suite in wanted {
        if is_left_out(workspace, suite) {
            continue;
        }
        let run = Run {
            suite,
            label: suite.name(),
            binary: &binary,
            nodes: options.nodes.unwrap_or(1),
            environment: &[],
            full: options.full,
            filter: &options.filter,
            quiet: false,
        };
        match &options.address {
            Some(address) => {
                report.step(run.label, |log| at(workspace, &run, address, options.record, log))
            }
            None => step(workspace, report, &run),
        };
    }
    Ok(())
}

/// Says so if the suite cannot run here.
pub(crate) fn is_left_out(workspace: &Workspace, suite: Suite) -> bool {
    let missing = suite.missing(workspace);
    if let Some(why) = &missing {
        println!("== {}: left out, {why}", suite.name());
    }
    missing.is_some()
}

/// Builds the binary under test into `target/<profile>`.
pub(crate) fn build_server(workspace: &Workspace, report: &mut Report, profile: &str) -> bool {
    report.step("build the server", |log| {
        let mut command = process::cargo(&workspace.root);
        command.args(["build", "--profile", profile, "-p", "piton-node", "--bin", "piton"]);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    })
}

/// Builds the client of the suite of histories beside the server.
fn build_histories(workspace: &Workspace, report: &mut Report, profile: &str) -> bool {
    report.step("build the suite of histories", |log| {
        let mut command = process::cargo(&workspace.root);
        command.args(["build", "--profile", profile, "-p", "piton-tests", "--bin", HISTORIES]);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    })
}

/// Starts a server for the run, runs the suite, and prints the server's log if something failed.
pub(crate) fn step(workspace: &Workspace, report: &mut Report, run: &Run<'_>) -> bool {
    let name = run.label.replace(' ', "-");
    let server_log = report.logs().join(format!("{name}-server.log"));
    let ok = report.step(run.label, |log| {
        let command = prepare(workspace, run, log)?;
        let server = start_server(workspace, run, &server_log)?;
        against(workspace, run, &server, command, log)
    });
    if !ok {
        print_tail(&server_log);
    }
    ok
}

/// A fresh server, as the run wants it.
pub(crate) fn start_server(workspace: &Workspace, run: &Run<'_>, log: &Path) -> Result<Server> {
    Server::start(Spec {
        binary: run.binary.to_path_buf(),
        nodes: run.nodes,
        data: workspace.target.join("test-data").join(run.label.replace(' ', "-")),
        log: log.to_owned(),
        environment: environment(run),
    })
}

/// Runs the suite once against a server that may have seen it before.
pub(crate) fn run_against(
    workspace: &Workspace,
    run: &Run<'_>,
    server: &Server,
    log: &mut Log,
) -> Result<Tally> {
    let command = prepare(workspace, run, log)?;
    against(workspace, run, server, command, log)
}

fn against(
    workspace: &Workspace,
    run: &Run<'_>,
    server: &Server,
    mut command: Command,
    log: &mut Log,
) -> Result<Tally> {
    command
        .env("TEMPORAL_ADDRESS", &server.address)
        .env("PITON_HTTP", &server.http)
        .env("SERVER_KILL", server.control_command("kill"))
        .env("SERVER_START", server.control_command("start"));
    if let Some(id) = server.process_id() {
        command.env("SERVER_PID", id.to_string());
    }
    with_arguments(&mut command, run, &server.address);
    drive(workspace, command, run, log)
}

/// The same against a server that somebody else started: it is never killed.
fn at(
    workspace: &Workspace,
    run: &Run<'_>,
    address: &str,
    record: bool,
    log: &mut Log,
) -> Result<Tally> {
    let mut command = prepare(workspace, run, log)?;
    if record {
        command.arg("--record");
    }
    command.env("TEMPORAL_ADDRESS", address);
    with_arguments(&mut command, run, address);
    drive(workspace, command, run, log)
}

fn environment(run: &Run<'_>) -> Vec<(&'static str, &'static str)> {
    let own = if run.suite == Suite::RustCore { rust_core::ENVIRONMENT } else { &[] };
    [own, run.environment].concat()
}

fn with_arguments(command: &mut Command, run: &Run<'_>, address: &str) {
    match run.suite {
        Suite::Seed => {
            command.arg(address);
            if !run.full {
                command.envs(SMALL_SEED.iter().copied());
            }
        }
        Suite::RustCore => {
            command.env("TEMPORAL_SERVICE_ADDRESS", format!("http://{address}"));
        }
        Suite::Histories | Suite::TypeScript | Suite::Python | Suite::Go | Suite::Java => {}
    }
    if run.suite != Suite::RustCore {
        command.args(run.filter);
    }
}

/// Runs a suite, shows its lines, and reads its last one.
fn drive(workspace: &Workspace, command: Command, run: &Run<'_>, log: &mut Log) -> Result<Tally> {
    if run.suite == Suite::RustCore {
        return rust_core::drive(workspace, command, run.filter.is_empty(), log);
    }
    let limit = if run.full { FULL_SUITE_LIMIT } else { SUITE_LIMIT };
    let mut tally = None;
    let ok = process::run(command, log, limit, |line| {
        if !run.quiet || line.starts_with("FAIL") {
            println!("   {line}");
        }
        // The SDKs may write a line of their own after the sum.
        tally = parse_tally(line).or(tally);
    })?;
    let tally = tally.context("the suite ended without its sum")?;
    if ok != (tally.failed == 0) {
        bail!("exit code and sum disagree: {tally:?}");
    }
    Ok(tally)
}

/// Reads `N passed, M failed`.
pub(crate) fn parse_tally(line: &str) -> Option<Tally> {
    let (passed, rest) = line.trim().split_once(" passed, ")?;
    let failed = rest.strip_suffix(" failed")?;
    Some(Tally { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
}

/// Installs and builds what the suite needs; returns the command that runs it.
fn prepare(workspace: &Workspace, run: &Run<'_>, log: &mut Log) -> Result<Command> {
    let work = workspace.target.join("conformance").join(run.suite.name());
    std::fs::create_dir_all(&work)?;
    match run.suite {
        Suite::Histories => Ok(Command::new(run.binary.with_file_name(HISTORIES))),
        Suite::TypeScript => prepare_typescript(&workspace.root, &work, log),
        Suite::Python => prepare_python(&workspace.root, &work, log),
        Suite::Go => prepare_go(&workspace.root, &work, log),
        Suite::Java => prepare_java(&workspace.root, &work, log),
        Suite::Seed => {
            let script = workspace.seed_suite().context("the seed suite is not there")?;
            let whole_lines = workspace.root.join("tests/conformance/seed/whole_lines.cjs");
            let mut command = Command::new(script);
            command.env("SEED_WORK", &work);
            command.env("NODE_OPTIONS", format!("--require \"{}\"", whole_lines.display()));
            Ok(command)
        }
        Suite::RustCore => {
            let binary = rust_core::prepare(workspace, &work, log)?;
            rust_core::tests(workspace, &binary, &work, run.filter, log)
        }
    }
}

/// Lays examples and suite out side by side, so that the suite runs the very code users copy.
fn prepare_typescript(root: &Path, work: &Path, log: &mut Log) -> Result<Command> {
    let example = root.join("examples/typescript");
    for file in ["package.json", "package-lock.json", ".npmrc", "tsconfig.json"] {
        std::fs::copy(example.join(file), work.join(file))
            .with_context(|| format!("copy {file} of examples/typescript"))?;
    }
    for (from, to) in
        [(example.join("src"), "src"), (root.join("tests/conformance/typescript"), "suite")]
    {
        let to = work.join(to);
        let _ = std::fs::remove_dir_all(&to);
        copy_tree(&from, &to)?;
    }
    install_once(work, "package-lock.json", "node_modules", || {
        let mut npm = Command::new("npm");
        npm.current_dir(work).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
        process::prepare(npm, log, INSTALL_LIMIT)
    })?;
    let _ = std::fs::remove_dir_all(work.join("dist"));
    let mut compile = Command::new("node_modules/.bin/tsc");
    compile.current_dir(work).args(["-p", "suite"]);
    process::prepare(compile, log, INSTALL_LIMIT)?;
    let mut bundle = Command::new("node");
    bundle.current_dir(work).arg("dist/suite/bundle.js");
    process::prepare(bundle, log, INSTALL_LIMIT)?;
    let mut command = Command::new("node");
    command.current_dir(work).arg("dist/suite/main.js");
    Ok(command)
}

fn prepare_python(root: &Path, work: &Path, log: &mut Log) -> Result<Command> {
    let suite = root.join("tests/conformance/python");
    std::fs::copy(suite.join("requirements.txt"), work.join("requirements.txt"))?;
    let environment = work.join("venv");
    let python = environment.join("bin/python");
    install_once(work, "requirements.txt", "venv", || {
        let mut create = Command::new("python3");
        create.args(["-m", "venv", "--clear"]).arg(&environment);
        process::prepare(create, log, INSTALL_LIMIT)?;
        let mut install = Command::new(&python);
        install.current_dir(work).args(["-m", "pip", "install", "--quiet", "--no-input"]);
        install.args(["--disable-pip-version-check", "-r", "requirements.txt"]);
        process::prepare(install, log, INSTALL_LIMIT)
    })?;
    let mut command = Command::new(python);
    command.arg("-B").arg(suite.join("main.py")).env("SUITE_WORK", work);
    Ok(command)
}

fn prepare_go(root: &Path, work: &Path, log: &mut Log) -> Result<Command> {
    let binary = work.join("suite");
    let mut build = Command::new("go");
    build.current_dir(root.join("tests/conformance/go")).args(["build", "-o"]).arg(&binary);
    process::prepare(build, log, BUILD_LIMIT)?;
    Ok(Command::new(binary))
}

/// Maven builds beside its sources, so it gets a copy of them.
fn prepare_java(root: &Path, work: &Path, log: &mut Log) -> Result<Command> {
    let suite = root.join("tests/conformance/java");
    let _ = std::fs::remove_dir_all(work.join("src"));
    copy_tree(&suite.join("src"), &work.join("src"))?;
    std::fs::copy(suite.join("pom.xml"), work.join("pom.xml"))?;
    let mut build = Command::new("mvn");
    build.current_dir(work).args(["--quiet", "--batch-mode", "package"]);
    process::prepare(build, log, BUILD_LIMIT)?;
    let mut command = Command::new("java");
    command.current_dir(work).args(["-cp", "target/classes:target/lib/*"]);
    command.arg("dev.piton.conformance.Main");
    Ok(command)
}

/// Runs `install` unless `directory` was made from the same bytes of `lock` before.
fn install_once(
    work: &Path,
    lock: &str,
    directory: &str,
    install: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let wanted = std::fs::read(work.join(lock))?;
    let stamp = work.join(directory).join(".installed-from");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    install()?;
    std::fs::write(stamp, wanted)?;
    Ok(())
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target: PathBuf = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_last_line_is_a_tally() {
        let tally = Tally { passed: 12, failed: 1 };
        assert_eq!(parse_tally("12 passed, 1 failed\n"), Some(tally));
        assert_eq!(parse_tally("12 passed, 1 failed; more"), None);
        assert_eq!(parse_tally("ok 01 12 passed, 1 failed"), None);
        assert_eq!(parse_tally(""), None);
    }
}
