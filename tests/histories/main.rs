//! Small workflows whose histories and answers, recorded once from the official server, are
//! compared field by field with those of the server under test.
//!
//! Each file of `recorded/` is a script of raw gRPC calls with what they came to; `README.md` tells
//! how it is written. The script is client and worker in one, so no SDK decides anything.
//!
//! ```text
//! cargo run -p piton-tests --bin piton-histories -- --address 127.0.0.1:7233 [--record] [NAME ...]
//! ```
#![expect(clippy::print_stdout, reason = "a command line tool")]

mod call;
mod compare;
mod names;
mod render;
mod run;
mod script;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use futures::StreamExt;

use crate::call::Connection;
use crate::compare::Accepted;
use crate::script::Scenario;

/// Scenarios wait for timeouts most of the time, so they run beside each other.
const CONCURRENT: usize = 100;
/// For one scenario, with everything in it that waits.
const SCENARIO_LIMIT: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(about = "Compares histories and answers with those recorded from the official server")]
struct Arguments {
    #[arg(long, env = "TEMPORAL_ADDRESS", default_value = "127.0.0.1:7233")]
    address: String,
    /// Writes what this server answers into the files, instead of comparing.
    #[arg(long)]
    record: bool,
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/histories"))]
    directory: PathBuf,
    /// Prefixes of scenario names; all of them if there is none.
    names: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let scenarios = Scenario::read_all(&arguments.directory.join("recorded"), &arguments.names)?;
    let mut accepted = Accepted::read(&arguments.directory.join("accepted.txt"))?;
    let connection = Connection::open(&arguments.address).await?;
    let (mut passed, mut failed) = (0, 0);
    let connection = &connection;
    let mut outcomes = futures::stream::iter(&scenarios)
        .map(|scenario| async move { (scenario, run_one(connection, scenario).await) })
        .buffered(CONCURRENT);
    while let Some((scenario, outcome)) = outcomes.next().await {
        let findings = match outcome {
            Ok(answers) if arguments.record => {
                scenario.write(&answers)?;
                Vec::new()
            }
            Ok(answers) => accepted.compare(scenario, &answers),
            Err(error) => vec![format!("{error:#}")],
        };
        if findings.is_empty() {
            passed += 1;
            println!("ok   {}", scenario.name);
        } else {
            failed += 1;
            println!("FAIL {}", scenario.name);
            findings.iter().for_each(|finding| println!("     {finding}"));
        }
    }
    if arguments.names.is_empty() && !arguments.record {
        for stale in accepted.unused() {
            failed += 1;
            println!("FAIL accepted.txt: nothing differs any more for: {stale}");
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_one(connection: &Connection, scenario: &Scenario) -> Result<Vec<Vec<String>>> {
    tokio::time::timeout(SCENARIO_LIMIT, run::run(connection, scenario))
        .await
        .with_context(|| format!("not done within {SCENARIO_LIMIT:?}"))?
}
