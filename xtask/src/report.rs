//! Steps, their times and counts, and the last line: `N passed, M failed`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Workspace;

/// How many lines of a failed step's log are printed.
const TAIL_LINES: usize = 120;

/// What a step counted. A step that counts nothing of its own is one check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Tally {
    pub(crate) fn one(ok: bool) -> Tally {
        Tally { passed: usize::from(ok), failed: usize::from(!ok) }
    }

    /// What a child counted that ended well or not: one that crashed may not have counted it.
    pub(crate) fn of_child(self, ok: bool) -> Tally {
        if ok { self } else { Tally { failed: self.failed.max(1), ..self } }
    }
}

struct Step {
    name: String,
    took: Duration,
    tally: Tally,
}

/// The log of one step; a failed step's log is printed.
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    file: File,
}

impl Log {
    pub(crate) fn create(path: PathBuf) -> Result<Log> {
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Log { path, file })
    }

    /// A second handle on the same file, for a child process to write to.
    pub(crate) fn handle(&self) -> Result<File> {
        Ok(File::options().append(true).open(&self.path)?)
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<()> {
        let mut file = self.handle()?;
        writeln!(file, "{line}")?;
        self.file.flush()?;
        Ok(())
    }
}

pub(crate) struct Report {
    started: Instant,
    logs: PathBuf,
    steps: Vec<Step>,
    /// Held to the end: two runs at once would write over each other's data.
    _lock: File,
}

impl Report {
    pub(crate) fn new(workspace: &Workspace) -> Result<Report> {
        let logs = workspace.target.join("test-logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let path = logs.join(".lock");
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        lock.try_lock().with_context(|| {
            format!("another xtask command is at work in {}", workspace.target.display())
        })?;
        Ok(Report { started: Instant::now(), logs, steps: Vec::new(), _lock: lock })
    }

    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Runs one step. An error is a failure of the step, not of the whole run. Returns whether
    /// nothing failed.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce(&mut Log) -> Result<Tally>) -> bool {
        println!("== {name}");
        let started = Instant::now();
        let path = self.logs.join(format!("{}.log", name.replace([' ', ',', '/'], "-")));
        let tally = match Log::create(path.clone()).and_then(|mut log| run(&mut log)) {
            // A suite that ran nothing proves nothing.
            Ok(Tally { passed: 0, failed: 0 }) => {
                println!("   nothing ran");
                Tally::one(false)
            }
            Ok(tally) => tally,
            Err(error) => {
                println!("   {error:#}");
                Tally::one(false)
            }
        };
        let took = started.elapsed();
        if tally.failed > 0 {
            print_tail(&path);
        }
        println!(
            "   {} passed, {} failed ({:.1} s)",
            tally.passed,
            tally.failed,
            took.as_secs_f64()
        );
        self.steps.push(Step { name: name.to_owned(), took, tally });
        tally.failed == 0
    }

    /// Prints the table of steps and the sum. Returns whether nothing failed.
    pub(crate) fn finish(self) -> bool {
        let mut sum = Tally::default();
        println!("== summary");
        for Step { name, took, tally } in &self.steps {
            let mark = if tally.failed == 0 { "ok  " } else { "FAIL" };
            println!(
                "   {mark} {:>7.1} s  {:>5} passed {:>3} failed  {name}",
                took.as_secs_f64(),
                tally.passed,
                tally.failed
            );
            sum.passed += tally.passed;
            sum.failed += tally.failed;
        }
        println!(
            "   in {:.1} s; logs: {}",
            self.started.elapsed().as_secs_f64(),
            self.logs.display()
        );
        println!("{} passed, {} failed", sum.passed, sum.failed);
        sum.failed == 0 && sum.passed > 0
    }
}

/// Prints the end of a log, so that a failure can be read where only the output is kept.
pub(crate) fn print_tail(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let lines: Vec<String> = BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect();
    if lines.is_empty() {
        return;
    }
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    println!("   -- the last lines of {}", path.display());
    for line in &lines[skipped..] {
        println!("   | {line}");
    }
}
