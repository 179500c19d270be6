//! `cargo xtask tidy`: the house rules that a machine can check, as `file:line: what`.
//!
//! It reads the tree once and runs nothing, so it takes a blink. A rule that hurts is changed here,
//! with its reason.

mod deploy;
mod design;
mod manifest;
mod mutations;
mod rust;
mod tree;
mod wings;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::report::Tally;

/// What is built, installed or left by a run.
const SKIPPED: &[&str] =
    &[".git", "target", "node_modules", "piton-data", "dist", ".venv", "__pycache__"];

/// One file of the tree, by its path from the root with forward slashes.
struct File {
    path: String,
    text: String,
}

/// One broken rule. Line 0 stands for the whole file.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: path.to_owned(), line, what: what.into() }
    }
}

pub(crate) fn run(root: &Path) -> Result<Tally> {
    let mut files = Vec::new();
    read_tree(root, root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let findings = check(&files);
    for Finding { path, line, what } in &findings {
        let place = if *line == 0 { path.clone() } else { format!("{path}:{line}") };
        println!("   {place}: {what}");
    }
    // Each finding is a failure, so that the sum says how much is left to do.
    Ok(Tally { passed: usize::from(findings.is_empty()), failed: findings.len() })
}

fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    tree::check(files, &mut findings);
    deploy::check(files, &mut findings);
    design::check(files, &mut findings);
    mutations::check(files, &mut findings);
    for file in files {
        if file.path.ends_with(".rs") {
            rust::check(file, &mut findings);
            wings::check(file, &mut findings);
        } else if file.path.ends_with("Cargo.toml") {
            manifest::check(file, &mut findings);
        }
    }
    findings
}

fn read_tree(root: &Path, directory: &Path, files: &mut Vec<File>) -> Result<()> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let path: PathBuf = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_tree(root, &path, files)?;
        } else if kind.is_file()
            // A file that is no text holds nothing to check.
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            let relative = path.strip_prefix(root).context("a path below the root")?;
            files.push(File { path: relative.to_string_lossy().replace('\\', "/"), text });
        }
    }
    Ok(())
}

/// The lines at which a check finds something in a file of this text.
#[cfg(test)]
fn lines_of(check: fn(&File, &mut Vec<Finding>), path: &str, text: &str) -> Vec<usize> {
    let file = File { path: path.to_owned(), text: text.to_owned() };
    let mut findings = Vec::new();
    check(&file, &mut findings);
    findings.iter().map(|finding| finding.line).collect()
}
