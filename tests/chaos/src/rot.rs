//! Bits that flip in what a node keeps.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

const BITS: usize = 3;

/// Flips bits in one file below a directory, among those that hold something. Answers which; `None`:
/// there is none yet.
///
/// # Errors
/// When the file cannot be read or written.
pub(crate) fn flip(below: &Path, random: &mut SmallRng) -> Result<Option<PathBuf>> {
    let mut files = Vec::new();
    collect(below, &mut files);
    let Some(file) = files.choose(random) else { return Ok(None) };
    let mut bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    for _ in 0..BITS {
        if let Some(at) = written.choose(random) {
            bytes[*at] ^= 1 << random.random_range(0..8);
        }
    }
    fs::write(file, bytes).with_context(|| format!("write {}", file.display()))?;
    Ok(Some(file.clone()))
}

/// Removes the state store of a node, which is rebuilt from its log and snapshots.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn lose_store(data: &Path) -> Result<()> {
    let store = data.join("store");
    fs::remove_dir_all(&store).with_context(|| format!("remove {}", store.display()))
}

fn collect(below: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_none_or(|extension| extension != "toml") {
            files.push(path);
        }
    }
    // The order in which a directory is read is not the seed's.
    files.sort_unstable();
}
