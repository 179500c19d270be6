//! `piton data accept-loss`: the way out for a node alone whose log cannot be restored. Says what is
//! lost, and, told to, has the log begin at the best that the store and the snapshots hold.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use piton_raft::log::RealDisk;
use piton_raft::{GroupId, LOG_DIRECTORY, Losses, RaftError};
use piton_store::Mark;

use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::identity::{Identity, IdentityError, KeptIdentity};
use crate::storage::STORE_DIRECTORY;

/// What opening a store needs in memory.
const STORE_CACHE_BYTES: u64 = 8 << 20;

/// Why a loss cannot be told or accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptLossError {
    #[error("there is no node's data in {}", path.display())]
    NoData { path: PathBuf },
    #[error(transparent)]
    Directory(#[from] DataDirectoryError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "this node is one of a cluster, whose other nodes have what it lost: {}. Start it: it sets aside what \
         is damaged, and they fill it. If it does not, have them remove it, empty its data directory, and \
         start it with --join",
        others.join(", ")
    )]
    HasPeers { others: Vec<String> },
    #[error("find out what is lost")]
    Look(#[source] RaftError),
    #[error("write the log anew")]
    Write(#[source] RaftError),
    #[error("move {} aside", path.display())]
    SetAside {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What the data directory of a node that does not run has lost, in words. With `accepted`, the node
/// can be started on the rest afterwards; otherwise nothing is changed.
///
/// # Errors
/// When it cannot be told, or the node is not alone.
pub fn accept_loss(path: &Path, accepted: bool) -> Result<String, AcceptLossError> {
    let no_data = || AcceptLossError::NoData { path: path.to_owned() };
    if !path.is_dir() {
        return Err(no_data());
    }
    let directory = DataDirectory::open(path)?;
    let path = directory.path();
    let mut text = String::new();
    let identity = match Identity::kept(path)? {
        Some(identity) => identity,
        None => {
            let copy = Identity::copy_in(&RealDisk, path)?.ok_or_else(no_data)?;
            text.push_str("node.toml is missing; there is a copy, which takes its place.\n");
            copy
        }
    };
    let peers = identity.peers();
    if !peers.is_empty() {
        let others = peers.iter().map(|(node, address)| format!("node {node} at {address}"));
        return Err(AcceptLossError::HasPeers { others: others.collect() });
    }
    let missing = match identity.check_log(&RealDisk, path) {
        Ok(()) => false,
        Err(IdentityError::LogMissing { .. }) => true,
        Err(error) => return Err(error.into()),
    };
    let states = states(path, &mut text);
    let losses = Losses::look(identity.node(), path, &states).map_err(AcceptLossError::Look)?;
    describe(&losses, missing, &mut text);
    if !accepted {
        text.push_str("Nothing was changed. --yes accepts this.\n");
        return Ok(text);
    }
    if losses.unreadable.is_some() {
        let aside = set_aside(path)?;
        let _ = writeln!(text, "The damaged log is kept in {}.", aside.display());
    }
    identity.keep(path)?;
    losses.accept().map_err(AcceptLossError::Write)?;
    KeptIdentity::new(Arc::new(RealDisk), path, identity).note_log()?;
    text.push_str("The loss is accepted: the node can be started.\n");
    Ok(text)
}

/// Where the store stands, as far as it can be read.
fn states(path: &Path, text: &mut String) -> Vec<(GroupId, Mark)> {
    states_in(path).unwrap_or_else(|why| {
        let _ = writeln!(text, "{why}.");
        Vec::new()
    })
}

/// Where the store of a node that does not run stands; or why it says nothing.
pub(crate) fn states_in(path: &Path) -> Result<Vec<(GroupId, Mark)>, String> {
    let opened = piton_store::open_kept(&path.join(STORE_DIRECTORY), STORE_CACHE_BYTES);
    let marks = opened.and_then(|store| {
        let Some(store) = store else { return Ok(None) };
        let marks = piton_store::marks(store.as_ref());
        store.close();
        marks.map(Some)
    });
    match marks {
        Ok(Some(marks)) => {
            Ok(marks.into_iter().map(|(group, mark)| (GroupId(group), mark)).collect())
        }
        Ok(None) => Err("There is no store that can be relied on".to_owned()),
        Err(error) => Err(format!("The store is not counted on: {error}")),
    }
}

fn describe(losses: &Losses, missing: bool, text: &mut String) {
    // Writing to a string does not fail.
    let _ = match &losses.unreadable {
        Some(error) => writeln!(text, "The log cannot be read: {error}."),
        None if missing => writeln!(text, "The log is gone."),
        None if losses.groups.is_empty() => writeln!(text, "Nothing is known to be lost."),
        None => writeln!(text, "The log lacks what is known beside it."),
    };
    for loss in &losses.groups {
        let ends = loss.log_ends.map_or("nowhere".to_owned(), |last| format!("at entry {last}"));
        let _ = writeln!(
            text,
            "  group {}: the log ends {ends}; {} has all up to entry {}, which is kept. What was \
             acknowledged after that is lost.",
            loss.group, loss.by, loss.kept
        );
    }
    if missing || losses.unreadable.is_some() {
        text.push_str("  Of every other group, everything is lost.\n");
    }
}

/// Moves the log out of the way, under a name that is free.
fn set_aside(path: &Path) -> Result<PathBuf, AcceptLossError> {
    let log = path.join(LOG_DIRECTORY);
    let mut names = (1..).map(|number| path.join(format!("{LOG_DIRECTORY}.damaged-{number}")));
    let aside = names.find(|name| !name.exists()).expect("numbers do not end");
    let moved = fs::rename(&log, &aside);
    moved.map_err(|source| AcceptLossError::SetAside { path: log, source })?;
    Ok(aside)
}
