//! The tree that is built: the workspace's files with every replacement in them. A file that has
//! not changed keeps its time, so that a second run builds only what it has to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::list::{Mutation, Replacement, rewrite};

/// Brings `tree` up to the files under `root` that git knows or would add.
pub(super) fn lay_out(root: &Path, tree: &Path, list: &[Mutation]) -> Result<()> {
    let mut replacements: BTreeMap<&str, Vec<Replacement<'_>>> = BTreeMap::new();
    for mutation in list {
        for replacement in mutation.replacements()? {
            replacements.entry(replacement.file).or_default().push(replacement);
        }
    }
    let files = files(root)?;
    for file in &files {
        let mut bytes = std::fs::read(root.join(file)).with_context(|| format!("read {file}"))?;
        if let Some(replacements) = replacements.remove(file.as_str()) {
            let text = String::from_utf8(bytes).with_context(|| format!("{file} is no text"))?;
            bytes = rewrite(file, &text, &replacements)?.into_bytes();
        }
        write_if_changed(&tree.join(file), &bytes)?;
    }
    if let Some(file) = replacements.keys().next() {
        anyhow::bail!("{file} is to be changed and not there");
    }
    remove_others(tree, tree, &files)
}

fn files(root: &Path) -> Result<BTreeSet<String>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().context("start git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("a path that is no text")?;
    let names = names.split('\0').filter(|name| !name.is_empty());
    // A file may be deleted and not yet committed so.
    Ok(names.filter(|name| root.join(name).is_file()).map(str::to_owned).collect())
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn remove_others(tree: &Path, directory: &Path, files: &BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path: PathBuf = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(tree, &path, files)?;
            continue;
        }
        let name = path.strip_prefix(tree).context("a path below the tree")?;
        if !files.contains(&name.to_string_lossy().replace('\\', "/")) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
