//! `cargo xtask mutate`: that our tests can fail.
//!
//! `tests/mutations` lists protections of the design, each with a small change that removes it and
//! the tests that must turn red then. All changes go into one copy of the tree, each behind a
//! switch that the environment turns on, so that one build serves them all. First every named test
//! runs with nothing removed and must be green, then with its protection removed and must not.

mod binaries;
pub(crate) mod list;
mod tree;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::Workspace;
use crate::report::{Log, Report, Tally};
use binaries::{Binaries, Outcome};
use list::{Mutation, Red};

/// What to do with which entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    list: bool,
    names: Vec<String>,
}

pub(crate) fn parse(rest: &[String]) -> Result<Options> {
    let mut options = Options::default();
    for argument in rest {
        match argument.as_str() {
            "--list" => options.list = true,
            flag if flag.starts_with('-') => bail!("mutate does not take {flag}"),
            name => options.names.push(name.to_owned()),
        }
    }
    Ok(options)
}

/// Whether only the list is wanted; then nothing is built or run.
pub(crate) fn show(workspace: &Workspace, options: &Options) -> Result<bool> {
    if !options.list {
        return Ok(false);
    }
    let list = list::read(&workspace.root)?;
    for mutation in chosen(&list, &options.names)? {
        println!("{:<40} {}", mutation.name, mutation.protects);
        for red in mutation.reds()? {
            println!("{:<40} -> {red}", "");
        }
    }
    Ok(true)
}

pub(crate) fn run(workspace: &Workspace, report: &mut Report, options: &Options) -> Result<()> {
    let list = list::read(&workspace.root)?;
    let chosen = chosen(&list, &options.names)?;
    let directory = workspace.target.join("mutate");
    let (copy, logs) = (directory.join("tree"), directory.join("logs"));
    std::fs::create_dir_all(&logs)?;
    let mut reds = BTreeSet::new();
    for mutation in &chosen {
        reds.extend(mutation.reds()?);
    }
    let mut binaries = Binaries::default();
    let laid_out = report.step("tree with all mutations", |_| {
        tree::lay_out(&workspace.root, &copy, &list)?;
        println!("   {} mutations in {}", list.len(), copy.display());
        Ok(Tally::one(true))
    });
    let built = laid_out
        && report.step("build of the mutated tests", |log| {
            binaries.build_tests(&copy, &directory.join("build"), log)?;
            Ok(Tally::one(true))
        });
    let simulated = reds.iter().any(|red| matches!(red, Red::Seeds(_)));
    let built = built
        && (!simulated
            || report.step("build of the mutated simulation", |log| {
                binaries.build_simulation(&copy, &directory.join("sim"), log)?;
                Ok(Tally::one(true))
            }));
    if !built {
        println!("   nothing more can run");
        return Ok(());
    }
    let log_of = |name: &str| Log::create(logs.join(format!("{name}.log")));
    report.step("tests with nothing removed", |log| {
        let mut own = log_of("nothing-removed")?;
        untouched(&binaries, &reds, &mut own, log)
    });
    report.step("mutations", |log| {
        let mut tally = Tally::default();
        for (index, mutation) in chosen.iter().enumerate() {
            let mut own = log_of(&mutation.name)?;
            let progress = format!("{:>3}/{}", index + 1, chosen.len());
            let found = try_one(&binaries, mutation, &progress, &mut own, log)?;
            tally.passed += found.passed;
            tally.failed += found.failed;
        }
        println!("   output of the tests: {}", logs.display());
        Ok(tally)
    });
    Ok(())
}

/// The entries that are named, or all.
fn chosen<'a>(list: &'a [Mutation], names: &[String]) -> Result<Vec<&'a Mutation>> {
    if names.is_empty() {
        return Ok(list.iter().collect());
    }
    let find = |name: &String| {
        list.iter()
            .find(|mutation| mutation.name == *name)
            .with_context(|| format!("no mutation is called {name}; --list shows all"))
    };
    names.iter().map(find).collect()
}

/// Runs all tests with every switch off: a test that fails anyway proves nothing.
fn untouched(
    binaries: &Binaries,
    reds: &BTreeSet<Red>,
    own: &mut Log,
    log: &mut Log,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for red in reds {
        let outcome = binaries.run(red, None, own)?;
        if outcome == Outcome::Green {
            tally.passed += 1;
            continue;
        }
        tally.failed += 1;
        say(log, &format!("{} {red}", describe(outcome)))?;
    }
    Ok(tally)
}

/// Removes one protection: every test named must turn red.
fn try_one(
    binaries: &Binaries,
    mutation: &Mutation,
    progress: &str,
    own: &mut Log,
    log: &mut Log,
) -> Result<Tally> {
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for red in mutation.reds()? {
        let outcome = binaries.run(&red, Some(&mutation.name), own)?;
        outcomes.push((outcome, red));
    }
    let bad = |outcome: &Outcome| !matches!(outcome, Outcome::Red | Outcome::Hung);
    let ok = !outcomes.iter().any(|(outcome, _)| bad(outcome));
    let hung = outcomes.iter().any(|(outcome, _)| *outcome == Outcome::Hung);
    let verdict = match (ok, hung) {
        (true, false) => "red",
        (true, true) => "red, it hangs",
        (false, _) => "NOT RED",
    };
    let took = started.elapsed().as_secs_f64();
    let name = &mutation.name;
    println!("   {progress} {verdict:<8} {name} ({}; {took:.1} s)", mutation.protects);
    for (outcome, red) in outcomes.iter().filter(|(outcome, _)| bad(outcome)) {
        say(log, &format!("        {} {name}: {red}", describe(*outcome)))?;
    }
    Ok(Tally::one(ok))
}

fn say(log: &mut Log, line: &str) -> Result<()> {
    println!("   {line}");
    log.line(line)
}

fn describe(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Green => "STILL GREEN",
        Outcome::Red => "RED",
        Outcome::Hung => "HANGS",
        Outcome::NotFound => "NOT FOUND",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_names_or_the_list() {
        let words = ["--list", "fence-off"].map(str::to_owned);
        let options = parse(&words).ok();
        assert_eq!(options, Some(Options { list: true, names: vec!["fence-off".to_owned()] }));
        assert!(parse(&["--fast".to_owned()]).is_err());
    }
}
