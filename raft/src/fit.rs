//! What log, state and snapshots say of each other when a node starts. The log is the truth: where
//! the state or a snapshot knows of an entry that the log does not hold, something that was
//! acknowledged is gone, and the node does not start on the rest. Nothing is written before that is
//! known.
//!
//! Owns the rule, and the way out for a node alone whose log cannot be restored: a log that begins at
//! the best that is known beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use piton_store::Mark;

use crate::config::NodeId;
use crate::error::{RaftError, SnapshotError};
use crate::groups::{LOG_DIRECTORY, SNAPSHOT_DIRECTORY};
use crate::log::{Disk, GroupId, Log, LogConfig, LogContents, LogError, RealDisk};
use crate::snapshot::{self, Head};
use crate::types::{LogId, StoredMembership, Vote, term_of};
use crate::wire;

/// Where a group's state stands, by someone beside the log.
#[derive(Clone, Debug)]
struct Known {
    group: GroupId,
    id: LogId,
    membership: StoredMembership,
    by: String,
    /// Another node made it, so the log here need not have come that far.
    is_received: bool,
}

/// The log lacks an entry of a group that is known beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Whose entry.
    pub group: GroupId,
    /// Who knows of it: the store, or a snapshot by its name.
    pub by: String,
    /// Its index.
    pub known: u64,
    /// The last entry that the log holds of the group, if it holds any.
    pub last: Option<u64>,
    /// Where the log ends: a file and an offset, or the directory in which there is none.
    pub place: String,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Misfit { group, by, known, last, place } = self;
        match last {
            None => write!(f, "{place} holds no entry of group {group}, but {by} was made of ")?,
            Some(last) if last < known => {
                write!(
                    f,
                    "the log ends in {place} at entry {last} of group {group}, but {by} was made of "
                )?;
            }
            Some(_) => {
                write!(
                    f,
                    "the log that ends in {place} holds another entry {known} of group {group} than {by} was made of, which is "
                )?;
            }
        }
        write!(f, "its entries up to {known}")
    }
}

/// What everybody beside the log says. Damaged snapshots are met by the group that needs them, unless
/// they are asked for `strictly`.
fn known(
    disk: &dyn Disk,
    dir: &Path,
    states: &[(GroupId, Mark)],
    strictly: bool,
) -> Result<Vec<Known>, RaftError> {
    let heads = snapshot::heads(disk, &dir.join(SNAPSHOT_DIRECTORY));
    let heads = heads.map_err(|source| RaftError::Snapshot { group: GroupId(0), source })?;
    let mut marks = Vec::new();
    for Head { group, path, mark } in heads {
        match mark {
            Ok(mark) => {
                let by = format!("the snapshot {}", path.display());
                marks.push((group, mark, by, snapshot::is_received(&path)));
            }
            Err(SnapshotError::Corrupt { .. }) if !strictly => {}
            Err(source) => return Err(RaftError::Snapshot { group, source }),
        }
    }
    let states = states.iter();
    marks.extend(states.map(|(group, mark)| (*group, mark.clone(), "the store".to_owned(), false)));
    let read = |(group, mark, by, is_received): (GroupId, Mark, String, bool)| {
        // A mark that does not decode is damage, which whoever reads it next meets.
        let (id, membership) = wire::mark_parts(&mark).ok()?;
        Some(Known { group, id, membership, by, is_received })
    };
    Ok(marks.into_iter().filter_map(read).collect())
}

/// Everything that is known of a group and not in the log.
fn misfits(contents: Option<&LogContents>, log_dir: &Path, known: &[Known]) -> Vec<Misfit> {
    let place = contents.map_or_else(
        || log_dir.display().to_string(),
        |contents| {
            let (file, offset) = contents.end();
            format!("{} at offset {offset}", file.display())
        },
    );
    let received = |group: GroupId| {
        let of_it = known.iter().filter(|known| known.group == group && known.is_received);
        of_it.map(|known| known.id.index).max()
    };
    let mut misfits = Vec::new();
    for Known { group, id, by, .. } in known.iter().filter(|known| !known.is_received) {
        let state = contents.map(|contents| contents.state(*group)).unwrap_or_default();
        if state.is_forgotten {
            // A crash came before its state or its snapshot was gone, too.
            continue;
        }
        let purged = state.purged.as_ref().map(|purged| purged.index);
        let last = state.last.map(|last| last.index).or(purged);
        let holds = if purged.is_some_and(|purged| id.index <= purged) {
            true
        } else {
            let term = contents.and_then(|contents| contents.term_of(*group, id.index));
            term == Some(term_of(id))
        };
        // While a snapshot of another node is taken over, the state is ahead of the log.
        if !holds && received(*group).is_none_or(|received| received < id.index) {
            let (group, by, place) = (*group, by.clone(), place.clone());
            misfits.push(Misfit { group, by, known: id.index, last, place });
        }
    }
    misfits
}

/// Refuses a log that lacks what is known beside it.
pub(crate) fn check(
    disk: &dyn Disk,
    dir: &Path,
    config: &LogConfig,
    states: &[(GroupId, Mark)],
    open_log: impl Fn(LogError) -> RaftError,
) -> Result<(), RaftError> {
    let known = known(disk, dir, states, false)?;
    if known.is_empty() {
        return Ok(());
    }
    let log_dir = dir.join(LOG_DIRECTORY);
    let contents = LogContents::read(disk, &log_dir, config).map_err(open_log)?;
    match misfits(contents.as_ref(), &log_dir, &known).into_iter().next() {
        Some(misfit) => Err(RaftError::Misfit(Box::new(misfit))),
        None => Ok(()),
    }
}

/// Groups of which nobody else may have what this node lost: as far as the best that is known beside the
/// log says, it was their only voter. `states` is where the store stands.
///
/// # Errors
/// When the snapshots cannot be looked at.
pub fn held_alone(
    node: NodeId,
    dir: &Path,
    states: &[(GroupId, Mark)],
) -> Result<Vec<GroupId>, RaftError> {
    let mut best: BTreeMap<GroupId, Known> = BTreeMap::new();
    for known in known(&RealDisk, dir, states, false)? {
        if best.get(&known.group).is_none_or(|best| best.id.index < known.id.index) {
            best.insert(known.group, known);
        }
    }
    best.retain(|_, known| known.membership.membership().voter_ids().all(|voter| voter == node));
    Ok(best.into_keys().collect())
}

/// What a node alone gives up where its log cannot be restored; see [`Losses`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Of which group.
    pub group: GroupId,
    /// What is kept: everything up to this entry, as the store or a snapshot has it.
    pub kept: u64,
    /// Who has it.
    pub by: String,
    /// The last entry that the log still holds of the group.
    pub log_ends: Option<u64>,
}

/// A loss that is known and not accepted yet.
#[derive(Debug)]
pub struct Losses {
    dir: PathBuf,
    node: NodeId,
    best: BTreeMap<GroupId, Known>,
    /// Group by group; empty where everything fits.
    pub groups: Vec<Loss>,
    /// Why the log cannot be read at all; `None` where it can, or where there is none.
    pub unreadable: Option<LogError>,
}

impl Losses {
    /// Looks at a node's directory, which nobody else uses, and writes nothing. `states` is where
    /// the store stands.
    ///
    /// # Errors
    /// When a snapshot cannot be read, a newer release has written the log, or the node is not alone:
    /// then the others have what it lost.
    pub fn look(node: NodeId, dir: &Path, states: &[(GroupId, Mark)]) -> Result<Losses, RaftError> {
        let known = known(&RealDisk, dir, states, true)?;
        let log_dir = dir.join(LOG_DIRECTORY);
        let (contents, unreadable) =
            match LogContents::read(&RealDisk, &log_dir, &LogConfig::default()) {
                Ok(contents) => (contents, None),
                // It is whole, and nobody needs to give it up.
                Err(source @ LogError::Newer { .. }) => {
                    return Err(RaftError::OpenLog { node, source });
                }
                Err(error) => (None, Some(error)),
            };
        let mut best: BTreeMap<GroupId, Known> = BTreeMap::new();
        let is_forgotten = |known: &&Known| {
            contents.as_ref().is_some_and(|contents| contents.state(known.group).is_forgotten)
        };
        for known in known.iter().filter(|known| !is_forgotten(known)) {
            if known.membership.membership().voter_ids().any(|voter| voter != node) {
                let reason = "it has other members, which have what is lost here: remove the data \
                              directory, and let them refill this node";
                return Err(RaftError::Members { group: known.group, reason });
            }
            match best.get(&known.group) {
                Some(better) if better.id.index >= known.id.index => {}
                Some(_) | None => drop(best.insert(known.group, known.clone())),
            }
        }
        let misfits = misfits(contents.as_ref(), &log_dir, &known);
        best.retain(|group, _| misfits.iter().any(|misfit| misfit.group == *group));
        let loss = |(group, known): (&GroupId, &Known)| {
            let misfit = misfits.iter().find(|misfit| misfit.group == *group)?;
            let (kept, by) = (known.id.index, known.by.clone());
            Some(Loss { group: *group, kept, by, log_ends: misfit.last })
        };
        let groups = best.iter().filter_map(loss).collect();
        Ok(Losses { dir: dir.to_owned(), node, best, groups, unreadable })
    }

    /// Has the log begin, for each group that lost something, at the best that is known of it. A log
    /// that cannot be read must have been set aside.
    ///
    /// # Errors
    /// When the log cannot be opened or written.
    pub fn accept(self) -> Result<(), RaftError> {
        let Losses { dir, node, best, .. } = self;
        let log_error = |source| RaftError::OpenLog { node, source };
        let dir = dir.join(LOG_DIRECTORY);
        let (log, _) =
            Log::open(Arc::new(RealDisk), dir, LogConfig::default()).map_err(log_error)?;
        for (group, known) in best {
            let vote = log.state(group).vote;
            let voted = vote.and_then(|vote| wire::vote_from_bytes(vote).ok());
            let term = term_of(&known.id).max(voted.map_or(0, |vote| vote.leader_id.term));
            // ORDER: the vote first, as for any entry: no log begins in a term later than its vote.
            log.save_vote(group, wire::vote_to_bytes(&Vote::new(term, node)), |_| {});
            log.truncate(group, known.id.index.saturating_add(1), |_| {});
            log.purge(group, known.id.index, wire::log_id_to_bytes(&known.id), |_| {});
        }
        let (tx, rx) = mpsc::channel();
        log.sync(move |result| {
            // The receiver waits below.
            let _ = tx.send(result);
        });
        let synced = rx.recv().unwrap_or(Err(LogError::Closed));
        log.shutdown();
        synced.map_err(log_error)
    }
}

/// The same rule for a group that starts: its replica stands where the log does not reach.
pub(crate) fn refuse_state(
    group: GroupId,
    mark: &Mark,
    last: Option<LogId>,
    dir: &Path,
) -> RaftError {
    RaftError::Misfit(Box::new(Misfit {
        group,
        by: "its state".to_owned(),
        known: mark.index,
        last: last.map(|last| last.index),
        place: dir.join(LOG_DIRECTORY).display().to_string(),
    }))
}
