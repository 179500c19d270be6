//! `cargo xtask ratio A B`: is B faster than A? Builds both, runs their servers in turns under the
//! same load, and prints each figure of B as a multiple of A's. Machines drift by a fifth within an
//! hour; two runs right after each other do not, so only ratios within a pair count.
//!
//! With `--nodes 1,3` B is a cluster of three, all on this machine; `ratio . . --nodes 1,3` says what
//! replication costs. The load comes to its first node, whose CPU is what is shown.
//!
//! What was built is kept under `target/ratio` by commit: trees, one build directory, servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::Workspace;
use crate::process::{cargo, prepare, run as run_process};
use crate::report::{Log, Report, Tally};
use crate::server::{Server, Spec};

const BUILD_LIMIT: Duration = Duration::from_secs(45 * 60);
/// Beside what is measured, for each number of workflows at once.
const ROW_LIMIT: Duration = Duration::from_secs(60);
/// The working tree, instead of a commit.
const WORKING_TREE: &str = ".";

pub(crate) struct Options {
    sides: [String; 2],
    nodes: [u32; 2],
    pairs: usize,
    seconds: u64,
    concurrency: String,
}

pub(crate) fn parse(rest: &[String]) -> Result<Options> {
    let (mut sides, mut pairs, mut seconds) = (Vec::new(), 5, 6);
    let mut concurrency = "1,64,256".to_owned();
    let mut nodes = [1, 1];
    let mut arguments = rest.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--pairs" => pairs = value()?.parse().context("--pairs N")?,
            "--seconds" => seconds = value()?.parse().context("--seconds S")?,
            "--concurrency" => concurrency = value()?.clone(),
            "--nodes" => nodes = of_both(value()?).context("--nodes A,B")?,
            side if !side.starts_with('-') => sides.push(side.to_owned()),
            other => bail!("unknown argument {other}"),
        }
    }
    let sides = sides.try_into().ok().context("ratio takes two commits, A and B")?;
    ensure!(pairs > 0, "no pairs, no ratio");
    Ok(Options { sides, nodes, pairs, seconds, concurrency })
}

fn of_both(text: &str) -> Option<[u32; 2]> {
    let (first, second) = text.split_once(',')?;
    Some([first.parse().ok()?, second.parse().ok()?])
}

pub(crate) fn run(workspace: &Workspace, report: &mut Report, options: &Options) {
    let workshop =
        Workshop { root: workspace.root.clone(), directory: workspace.target.join("ratio") };
    let mut servers = Vec::new();
    for side in &options.sides {
        let built = report.step(&format!("build {side}"), |log| {
            servers.push(workshop.server(side, log)?);
            Ok(Tally::one(true))
        });
        if !built {
            return;
        }
    }
    report.step("ratio", |log| {
        let bench = workshop.bench(log)?;
        let mut pairs = Vec::new();
        for number in 0..options.pairs {
            // Who comes second finds a warmer machine: they take turns at that, too.
            let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut pair = [Figures::new(), Figures::new()];
            for side in order {
                pair[side] =
                    workshop.measure(&servers[side], options.nodes[side], &bench, options, log)?;
            }
            let [first, second] = pair;
            pairs.push((first, second));
            println!("   pair {} of {}", number + 1, options.pairs);
        }
        print_ratios(&options.sides, &pairs);
        Ok(Tally::one(true))
    });
}

/// Where trees, builds and servers are kept.
struct Workshop {
    root: PathBuf,
    directory: PathBuf,
}

impl Workshop {
    /// The server of a commit, built if it was not.
    fn server(&self, side: &str, log: &mut Log) -> Result<PathBuf> {
        if side == WORKING_TREE {
            return self.build(&self.root, "piton-node", "piton", "piton-working-tree", log);
        }
        let commit = self.commit(side, log)?;
        let name = format!("piton-{commit}");
        let built = self.directory.join("bin").join(&name);
        if built.is_file() {
            return Ok(built);
        }
        let tree = self.directory.join("tree").join(&commit);
        if !tree.is_dir() {
            let mut add = self.git();
            add.args(["worktree", "add", "--detach"]).arg(&tree).arg(&commit);
            prepare(add, log, BUILD_LIMIT)?;
        }
        self.build(&tree, "piton-node", "piton", &name, log)
    }

    /// The load generator of the working tree: both sides get the same.
    fn bench(&self, log: &mut Log) -> Result<PathBuf> {
        self.build(&self.root, "piton-tests", "piton-bench", "piton-bench", log)
    }

    /// Builds a release binary of a tree and keeps it under a name of its own.
    fn build(
        &self,
        tree: &Path,
        package: &str,
        binary: &str,
        name: &str,
        log: &mut Log,
    ) -> Result<PathBuf> {
        let build = self.directory.join("build");
        let mut command = cargo(tree);
        command.args(["build", "--release", "--locked", "-p", package, "--bin", binary]);
        command.env("CARGO_TARGET_DIR", &build);
        prepare(command, log, BUILD_LIMIT)?;
        let kept = self.directory.join("bin").join(name);
        std::fs::create_dir_all(self.directory.join("bin"))?;
        std::fs::copy(build.join("release").join(binary), &kept)
            .with_context(|| format!("keep {}", kept.display()))?;
        Ok(kept)
    }

    fn commit(&self, side: &str, log: &mut Log) -> Result<String> {
        let mut command = self.git();
        let revision = format!("{side}^{{commit}}");
        command.args(["rev-parse", "--verify", "--short=12"]).arg(revision);
        let mut commit = String::new();
        let found = run_process(command, log, ROW_LIMIT, |line| commit = line.to_owned())?;
        ensure!(found && !commit.is_empty(), "no commit {side}");
        Ok(commit)
    }

    fn git(&self) -> std::process::Command {
        let mut command = std::process::Command::new("git");
        command.current_dir(&self.root);
        command
    }

    fn measure(
        &self,
        binary: &Path,
        nodes: u32,
        bench: &Path,
        options: &Options,
        log: &mut Log,
    ) -> Result<Figures> {
        let server = Server::start(Spec {
            binary: binary.to_path_buf(),
            nodes,
            data: self.directory.join("data"),
            log: self.directory.join("server.log"),
            environment: Vec::new(),
        })?;
        let process_id = server.process_id().context("the server has ended")?;
        let mut command = std::process::Command::new(bench);
        command
            .args(["--address", &server.address, "--http", &server.http])
            .args(["--pid", &process_id.to_string()])
            .args(["--concurrency", &options.concurrency])
            .args(["--seconds", &options.seconds.to_string()])
            .arg("--data-dir")
            .arg(server.data());
        let rows = options.concurrency.split(',').count() as u32;
        let limit = (ROW_LIMIT + Duration::from_secs(options.seconds)) * rows;
        let mut table = Vec::new();
        let done = run_process(command, log, limit, |line| table.push(line.to_owned()))?;
        ensure!(done, "the load generator failed; see {}", log.path.display());
        figures(&table)
    }
}

/// By workflows at once and name of the figure, in the order of the table.
type Figures = BTreeMap<(u64, usize), (String, f64)>;

/// Reads the load generator's table; columns that hold no number are left out.
fn figures(table: &[String]) -> Result<Figures> {
    let mut rows = table.iter().filter_map(|line| cells(line));
    let head = rows.next().context("the load generator printed no table")?;
    let mut found = Figures::new();
    for row in rows {
        let Ok(concurrency) = row[0].parse() else { continue };
        for (column, (name, cell)) in head.iter().zip(&row).enumerate().skip(1) {
            if let Ok(figure) = cell.parse() {
                found.insert((concurrency, column), ((*name).to_owned(), figure));
            }
        }
    }
    ensure!(!found.is_empty(), "the load generator's table is empty");
    Ok(found)
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

fn print_ratios([first, second]: &[String; 2], pairs: &[(Figures, Figures)]) {
    println!("   | at once | figure | {first} | {second} | ratio | from | to |");
    println!("   |---|---|---|---|---|---|---|");
    for (place, (name, _)) in &pairs[0].0 {
        let of = |figures: &Figures| figures.get(place).map(|(_, figure)| *figure);
        let both: Vec<(f64, f64)> =
            pairs.iter().filter_map(|(a, b)| Some((of(a)?, of(b)?))).collect();
        let ratios: Vec<f64> = both.iter().filter(|(a, _)| *a > 0.0).map(|(a, b)| b / a).collect();
        let Some(ratio) = Spread::of(&ratios) else { continue };
        let [a, b] = [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1]
            .map(|side| Spread::of(&both.iter().map(side).collect::<Vec<_>>()))
            .map(|spread| spread.map_or(0.0, |spread| spread.median));
        println!(
            "   | {} | {name} | {a:.2} | {b:.2} | {:.2} | {:.2} | {:.2} |",
            place.0, ratio.median, ratio.least, ratio.most
        );
    }
}

/// The middle of some figures, and how far they reach.
#[derive(Debug, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Spread { least, median, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_by_its_head() -> Result<()> {
        let table =
            ["| at once | a/s | p, q | b |", "|---|---|---|---|", "| 64 | 7 | 1, 2 | 0.5 |"];
        let table: Vec<String> = table.iter().map(|line| (*line).to_owned()).collect();
        let found = figures(&table)?;
        let expected = [((64, 1), ("a/s".to_owned(), 7.0)), ((64, 3), ("b".to_owned(), 0.5))];
        assert_eq!(found, Figures::from(expected));
        assert!(figures(&table[..2]).is_err());
        Ok(())
    }

    #[test]
    fn a_spread_is_the_middle_and_the_ends() {
        assert_eq!(
            Spread::of(&[3.0, 1.0, 2.0]),
            Some(Spread { least: 1.0, median: 2.0, most: 3.0 })
        );
        assert_eq!(Spread::of(&[1.0, 2.0]).map(|spread| spread.median), Some(1.5));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn two_commits_are_needed() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(parse(&words("a b --pairs 3 --seconds 5 --concurrency 64")).is_ok());
        assert!(parse(&words("a b --nodes 1,3")).is_ok_and(|parsed| parsed.nodes == [1, 3]));
        assert!(parse(&words("a b --nodes 3")).is_err());
        assert!(parse(&words("a")).is_err());
        assert!(parse(&words("a b c")).is_err());
        assert!(parse(&words("a b --pairs 0")).is_err());
    }
}
