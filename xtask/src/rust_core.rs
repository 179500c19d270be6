//! The official Rust core's own integration tests: they are inside its published package, and run
//! against a fresh server here.
//!
//! `tests/conformance/rust-core` keeps what they resolve to (`Cargo.lock`), the tests that pass
//! (`passing.txt`: it only grows) and those that need what is not built, with the reason
//! (`excluded.txt`). Nothing of the package is copied into the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::process;
use crate::report::{Log, Tally};
use crate::suites::copy_tree;

const PACKAGE: &str = "temporalio-sdk-core";
const VERSION: &str = "0.10.1";
/// What publishing strips: the tests' own path dependencies. Tests and SDK share the one core.
const DEV_DEPENDENCIES: &str = r#"
[dev-dependencies.temporalio-sdk]
version = "=1.1.1"
features = ["experimental", "opentelemetry", "testing"]

[dev-dependencies.uuid]
version = "1"
features = ["std", "v4"]
"#;
const MANIFEST: &str = r#"[workspace]
members = ["core"]
resolver = "2"

[patch.crates-io]
temporalio-sdk-core = { path = "core" }
"#;
const FEATURES: &str = "temporalio-common/serde_serialize,test-utilities,ephemeral-server,otel,\
                        temporalio-common/vendored-protox";
/// They download or start a server of their own, or want the vendor's cloud.
const NOT_FOR_US: &[&str] = &[
    "ephemeral_server",
    "cloud",
    "replace_client_works_after_polling_failure",
    "switching_worker_client_changes_poll",
];
/// Tests at once: each has workers of its own.
const THREADS: &str = "6";

const FETCH_LIMIT: Duration = Duration::from_secs(300);
const BUILD_LIMIT: Duration = Duration::from_secs(1_500);
const RUN_LIMIT: Duration = Duration::from_secs(900);

/// The server as these tests expect it.
pub(crate) const ENVIRONMENT: &[(&str, &str)] =
    &[("PITON_SEARCH_ATTRIBUTE", "CustomTextField=Text,CustomIntField=Int")];

/// Lays the package out and builds its tests; answers the test binary.
pub(crate) fn prepare(workspace: &Workspace, work: &Path, log: &mut Log) -> Result<PathBuf> {
    let lists = lists(workspace);
    let core = work.join("core");
    if !core.join("Cargo.toml").is_file() {
        let package = fetch(work, log)?;
        let unfinished = work.join("core.new");
        let _ = std::fs::remove_dir_all(&unfinished);
        copy_tree(&package, &unfinished)?;
        let manifest = unfinished.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)? + DEV_DEPENDENCIES;
        std::fs::write(&manifest, text)?;
        std::fs::rename(&unfinished, &core)?;
    }
    std::fs::write(work.join("Cargo.toml"), MANIFEST)?;
    std::fs::copy(lists.join("Cargo.lock"), work.join("Cargo.lock"))
        .context("copy the tests' own Cargo.lock")?;
    let mut build = cargo(work);
    build.args(["test", "--locked", "-p", PACKAGE, "--test", "integ_tests", "--no-run"]);
    build.args(["--message-format", "json", "--features", FEATURES]);
    let mut binary = None;
    let built = process::run(build, log, BUILD_LIMIT, |line| {
        if line.contains(r#""name":"integ_tests""#) {
            binary = executable_of(line).or(binary.take());
        }
    })?;
    match binary {
        Some(binary) if built => Ok(binary),
        _ => bail!("the tests of {PACKAGE} did not build"),
    }
}

/// The command that runs all tests that are not excluded, or those with a part of `filter` in
/// their names.
pub(crate) fn tests(
    workspace: &Workspace,
    binary: &Path,
    work: &Path,
    filter: &[String],
    log: &mut Log,
) -> Result<Command> {
    let excluded = names(&lists(workspace).join("excluded.txt"))?;
    let is_wanted = |name: &str| {
        let is_ours = !NOT_FOR_US.iter().any(|part| name.contains(part));
        let is_asked = match filter {
            // Some that are excluded would wait for what never comes.
            [] => !excluded.contains(name),
            parts => parts.iter().any(|part| name.contains(part.as_str())),
        };
        is_ours && is_asked
    };
    let mut list = Command::new(binary);
    list.current_dir(work.join("core")).args(["--list", "--format", "terse"]);
    let mut wanted = Vec::new();
    process::run(list, log, FETCH_LIMIT, |line| {
        let name = line.strip_suffix(": test").filter(|name| is_wanted(name));
        wanted.extend(name.map(str::to_owned));
    })?;
    let mut command = Command::new(binary);
    command.current_dir(work.join("core")).args(["--test-threads", THREADS, "--exact"]);
    command.args(wanted);
    command.env("RUST_LOG", "ERROR").env("RUST_BACKTRACE", "0");
    Ok(command)
}

/// Runs the tests and holds what passed against the lists: a listed test that does not pass is a
/// failure, and so is one that is on no list.
pub(crate) fn drive(
    workspace: &Workspace,
    command: Command,
    is_whole: bool,
    log: &mut Log,
) -> Result<Tally> {
    let mut outcomes = BTreeMap::new();
    // The exit code says less than the outcomes: excluded tests may fail.
    process::run(command, log, RUN_LIMIT, |line| {
        if let Some((name, passed)) = outcome_of(line) {
            outcomes.insert(name.to_owned(), passed);
        }
    })?;
    let lists = lists(workspace);
    let passing = names(&lists.join("passing.txt"))?;
    let excluded = names(&lists.join("excluded.txt"))?;
    let mut tally = Tally::default();
    for (name, passed) in &outcomes {
        match (passed, passing.contains(name), excluded.contains(name)) {
            (true, true, _) => tally.passed += 1,
            (false, true, _) => {
                println!("   FAIL {name}");
                tally.failed += 1;
            }
            (true, false, is_excluded) => {
                let from = if is_excluded { "excluded.txt to " } else { "" };
                println!("   passes, move it {from}passing.txt: {name}");
                tally.passed += 1;
            }
            (false, false, true) => {}
            (false, false, false) => {
                println!("   FAIL {name} (on no list)");
                tally.failed += 1;
            }
        }
    }
    if is_whole {
        for name in passing.iter().filter(|name| !outcomes.contains_key(*name)) {
            println!("   FAIL {name} (did not run)");
            tally.failed += 1;
        }
    }
    let failed = outcomes.values().filter(|passed| !**passed).count();
    println!(
        "   {} of {} pass, {} are excluded; {failed} did not pass",
        outcomes.len() - failed,
        outcomes.len(),
        excluded.len(),
    );
    Ok(tally)
}

fn lists(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/conformance/rust-core")
}

/// Has cargo fetch the package; answers where it lies.
fn fetch(work: &Path, log: &mut Log) -> Result<PathBuf> {
    let get = work.join("get");
    let _ = std::fs::remove_dir_all(&get);
    std::fs::create_dir_all(get.join("src"))?;
    std::fs::write(get.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"get\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[dependencies]\n\
         {PACKAGE} = \"={VERSION}\"\n[workspace]\n"
    );
    std::fs::write(get.join("Cargo.toml"), manifest)?;
    let mut fetch = cargo(&get);
    fetch.args(["fetch", "--quiet"]);
    process::prepare(fetch, log, FETCH_LIMIT)?;
    let mut metadata = cargo(&get);
    metadata.args(["metadata", "--format-version", "1", "--offline"]);
    let wanted = format!("{PACKAGE}-{VERSION}/Cargo.toml\"");
    let mut found = None;
    process::run(metadata, log, FETCH_LIMIT, |line| found = manifest_in(line, &wanted))?;
    std::fs::remove_dir_all(&get)?;
    found.with_context(|| format!("cargo fetched no {PACKAGE} {VERSION}"))
}

/// Cargo in a workspace that is not this one.
fn cargo(directory: &Path) -> Command {
    let mut command = process::cargo(directory);
    command.env("CARGO_TARGET_DIR", directory.join("target"));
    command.env("CARGO_PROFILE_TEST_DEBUG", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.env("CARGO_INCREMENTAL", "0");
    command
}

/// The directory of the manifest whose path ends in `wanted` (with its closing quote).
fn manifest_in(json: &str, wanted: &str) -> Option<PathBuf> {
    let end = json.find(&format!("/{wanted}"))? + wanted.len();
    let start = json[..end].rfind('"')? + 1;
    Path::new(&json[start..end]).parent().map(Path::to_path_buf)
}

fn executable_of(json: &str) -> Option<PathBuf> {
    let (_, rest) = json.split_once(r#""executable":""#)?;
    Some(PathBuf::from(rest.split_once('"')?.0))
}

/// Reads `test a::b ... ok`.
fn outcome_of(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    match outcome.trim() {
        "ok" => Some((name, true)),
        outcome if outcome.starts_with("FAILED") => Some((name, false)),
        _ => None,
    }
}

/// The first word of each line that is no comment.
fn names(path: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_tests_are_read() {
        assert_eq!(outcome_of("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(outcome_of("test a::b - should panic ... FAILED"), Some(("a::b", false)));
        assert_eq!(outcome_of("test a::b ... ignored"), None);
        assert_eq!(outcome_of("test result: ok. 1 passed"), None);
    }

    #[test]
    fn paths_are_found_in_what_cargo_prints() {
        let json = r#"{"executable":"/x/integ_tests-1","fresh":true}"#;
        assert_eq!(executable_of(json), Some(PathBuf::from("/x/integ_tests-1")));
        assert_eq!(executable_of(r#"{"executable":null}"#), None);
        let json = r#"[{"manifest_path":"/r/a-1.0.0/Cargo.toml"},{"manifest_path":"/r/b-2.0.0/Cargo.toml"}]"#;
        assert_eq!(manifest_in(json, "b-2.0.0/Cargo.toml\""), Some(PathBuf::from("/r/b-2.0.0")));
        assert_eq!(manifest_in(json, "c-1.0.0/Cargo.toml\""), None);
    }
}
