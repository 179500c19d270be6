//! `cargo xtask test`: what CI runs, in the order in which a failure is cheapest to learn of.

use std::time::Duration;

use anyhow::Result;

use crate::Workspace;
use crate::chaos;
use crate::process;
use crate::report::{Log, Report, Tally};
use crate::sim::{self, Seeds};
use crate::suites::{HARSH, Run, Suite, is_left_out, step};
use crate::tidy;

const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
const TEST_LIMIT: Duration = Duration::from_secs(600);
/// Seeds that every run simulates; more by `cargo xtask sim`.
const SIMULATED: Seeds = Seeds { count: 200, from: 1 };

/// Scenarios of our TypeScript suite that `--fast` keeps: one of each kind of failure.
const SMOKE: &[&str] = &["order-runs", "killed-after-charge", "server-killed"];

pub(crate) fn run(workspace: &Workspace, report: &mut Report, fast: bool) -> Result<()> {
    let root = &workspace.root;
    report.step("tidy", |_| tidy::run(root));
    report.step("format", |log| {
        let mut command = process::cargo(root);
        command.args(["fmt", "--all", "--check"]);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    });
    // One build of everything with one set of features: the binary and the tests share it.
    let built = report.step("build", |log| {
        let mut command = process::cargo(root);
        command.args(["build", "--workspace", "--all-targets", "--profile", "ci", "--locked"]);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    });
    report.step("clippy", |log| {
        let mut command = process::cargo(root);
        command.args(["clippy", "--workspace", "--all-targets", "--profile", "ci", "--locked"]);
        command.args(["--", "-D", "warnings"]);
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    });
    report.step("docs", |log| {
        let mut command = process::cargo(root);
        command.args(["doc", "--workspace", "--no-deps", "--profile", "ci", "--locked"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
    });
    if !built {
        println!("   the build failed: nothing more can run");
        return Ok(());
    }
    report.step("tests of the crates", |log| cargo_test(workspace, log));
    run_suites(workspace, report, fast);
    if !fast {
        sim::run_built(workspace, report, SIMULATED);
        chaos::run_short(workspace, report);
    }
    Ok(())
}

/// Has the data directory written that `tests/node/golden_data.rs` opens.
pub(crate) fn golden_data(workspace: &Workspace, log: &mut Log) -> Result<Tally> {
    let mut command = process::cargo(&workspace.root);
    command.args(["test", "--profile", "ci", "--locked", "-p", "piton-tests", "--test", "node"]);
    command.args(["--", "--ignored", "--exact", "golden_data::write"]);
    process::run(command, log, BUILD_LIMIT, |_| {}).map(Tally::one)
}

fn run_suites(workspace: &Workspace, report: &mut Report, fast: bool) {
    let binary = workspace.target.join("ci").join("piton");
    let smoke: Vec<String> = SMOKE.iter().map(|&name| name.to_owned()).collect();
    let plain = Run {
        suite: Suite::TypeScript,
        label: "typescript",
        binary: &binary,
        nodes: 1,
        environment: &[],
        full: false,
        filter: &[],
        quiet: false,
    };
    if fast {
        step(workspace, report, &Run { label: "typescript smoke", filter: &smoke, ..plain });
        return;
    }
    step(workspace, report, &Run { suite: Suite::Histories, label: "histories", ..plain });
    step(workspace, report, &plain);
    step(workspace, report, &Run { label: "typescript three nodes", nodes: 3, ..plain });
    step(workspace, report, &Run { suite: Suite::Python, label: "python", ..plain });
    for (suite, label) in [(Suite::Go, "go"), (Suite::Java, "java")] {
        if !is_left_out(workspace, suite) {
            step(workspace, report, &Run { suite, label, ..plain });
        }
    }
    step(workspace, report, &Run { suite: Suite::RustCore, label: "rust-core", ..plain });
    if is_left_out(workspace, Suite::Seed) {
        return;
    }
    step(workspace, report, &Run { suite: Suite::Seed, label: "seed", ..plain });
    let harsh =
        Run { suite: Suite::Seed, label: "seed idle 0 table 64KiB", environment: HARSH, ..plain };
    step(workspace, report, &harsh);
}

/// All tests of all crates; shows one line per test binary.
fn cargo_test(workspace: &Workspace, log: &mut Log) -> Result<Tally> {
    let mut command = process::cargo(&workspace.root);
    command.args(["test", "--workspace", "--profile", "ci", "--locked", "--no-fail-fast"]);
    let mut sum = Tally::default();
    let ok = process::run(command, log, TEST_LIMIT, |line| {
        if let Some(tally) = parse_test_result(line) {
            sum.passed += tally.passed;
            sum.failed += tally.failed;
        }
        if line.ends_with(" FAILED") || line.starts_with("test result: FAILED") {
            println!("   {line}");
        }
    })?;
    Ok(sum.of_child(ok))
}

/// Reads `test result: ok. 3 passed; 0 failed; ...`.
fn parse_test_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = counts.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Tally { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_cargo_test_are_read() {
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_test_result(line), Some(Tally { passed: 3, failed: 2 }));
        assert_eq!(parse_test_result("test core::a_sentence ... ok"), None);
    }
}
