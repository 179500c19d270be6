//! A replica of which something on the disk is damaged, while others of its group are whole: it forgets
//! what it holds, but for its vote and how far its log had come, and is filled by them as a new one is.
//!
//! It acknowledged what it forgets, so a majority may rest on it. That is what the floor is for
//! (`floor`): until its log has come as far again, it votes for nobody with less, and does not stand.

use std::sync::Arc;

use piton_store::{Mark, with_causes};

use super::state::Applied;
use super::{Inner, SNAPSHOT_DIRECTORY};
use crate::error::{RaftError, SnapshotError};
use crate::execution::{blocking, failpoint};
use crate::log::{GroupId, Log, LogError};
use crate::log_store::LogStore;
use crate::replica_thread::ReplicaThread;
use crate::scrub::DamageStats;
use crate::snapshot::{self, Snapshots};
use crate::state_machine::write_snapshot;
use crate::types::{Payload, StoredMembership};
use crate::wire;

impl RaftError {
    /// Whether something that was written cannot be read any more.
    fn is_damage(&self) -> bool {
        match self {
            Self::SnapshotMissing { .. } => true,
            Self::Snapshot { source, .. } => matches!(source, SnapshotError::Corrupt { .. }),
            Self::Log { source, .. } => {
                matches!(source, LogError::Corrupt { .. } | LogError::Missing { .. })
            }
            _ => false,
        }
    }
}

impl Inner {
    /// The group's snapshots, and where its state stands: as it was left, or empty where others are to
    /// fill it.
    pub(super) async fn find_state(
        &self,
        group: GroupId,
        store: &LogStore,
        replica: &ReplicaThread,
    ) -> Result<(Arc<Snapshots>, Applied), RaftError> {
        // ORDER: before a state that does not fit is cleared.
        let mark = replica.call(|replica| replica.applied()).await;
        let mark = mark.map_err(|source| RaftError::Replica { group, source })?;
        let error = match self.whole_state(group, store, replica).await {
            Err(error) if error.is_damage() && self.tuning.refill => error,
            found => return found,
        };
        DamageStats::note(&self.damage.found, 1);
        if !self.is_held_elsewhere(group, mark).await? {
            return Err(error);
        }
        let error = with_causes(&error);
        tracing::error!(%group, error, "what is held of the group is damaged, other nodes fill it anew");
        DamageStats::note(&self.damage.refilled, 1);
        self.forget_log(group, store).await?;
        failpoint(self.node, group, "damaged log has forgotten");
        self.clear_forgotten(group, replica).await?;
        Ok((self.open_snapshots(group).await?, None))
    }

    async fn whole_state(
        &self,
        group: GroupId,
        store: &LogStore,
        replica: &ReplicaThread,
    ) -> Result<(Arc<Snapshots>, Applied), RaftError> {
        let snapshots = self.open_snapshots(group).await?;
        let applied = self.fit_state(group, store, replica, &snapshots).await?;
        let first = applied.as_ref().map_or(0, |(id, _)| id.index.saturating_add(1));
        self.check_readable(group, first).await?;
        self.mend_first(group, first, replica, &snapshots).await?;
        Ok((snapshots, applied))
    }

    /// Reads the first entry, as openraft does when it starts. Where it is damaged and applied, the log
    /// begins behind a snapshot from now on.
    async fn mend_first(
        &self,
        group: GroupId,
        next: u64,
        replica: &ReplicaThread,
        snapshots: &Arc<Snapshots>,
    ) -> Result<(), RaftError> {
        let Some(first) = self.log.state(group).first.filter(|first| first.index < next) else {
            return Ok(());
        };
        let log = self.log.clone();
        let read = blocking(move || log.read(group, first.index..first.index + 1, 1)).await;
        let read = read.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })?;
        let Err(source) = read else { return Ok(()) };
        let error = RaftError::Log { group, source };
        if !error.is_damage() {
            return Err(error);
        }
        let file = {
            let _turn = self.snapshot_turn.lock().await;
            write_snapshot(group, replica, snapshots).await?
        };
        let Some((through, _)) = file.and_then(|file| wire::mark_parts(&file.mark).ok()) else {
            return Err(error);
        };
        if through.index < first.index {
            return Err(error);
        }
        self.damage.found(group, &error);
        // A purge that is lost in a crash is done again.
        self.log.purge(group, through.index, wire::log_id_to_bytes(&through), |_| {});
        Ok(())
    }

    /// Reads the entries that are still to be applied. Met later, damage in one of them would end the
    /// group, at each start anew.
    async fn check_readable(&self, group: GroupId, first: u64) -> Result<(), RaftError> {
        let (log, bytes_max) = (self.log.clone(), self.tuning.read_bytes_max);
        let read = move || {
            let state = log.state(group);
            let mut next = first.max(state.first.map_or(0, |first| first.index));
            while state.last.is_some_and(|last| next <= last.index) {
                let entries = log.read(group, next..u64::MAX, bytes_max)?;
                let Some(last) = entries.last() else { break };
                next = last.index + 1;
            }
            Ok(())
        };
        let read = blocking(read).await;
        let read = read.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })?;
        read.map_err(|source| RaftError::Log { group, source })
    }

    /// Whether another node votes in the group, by the latest that can be read of it here. Where nothing
    /// can, its vote tells: nobody votes for another node who is alone.
    async fn is_held_elsewhere(
        &self,
        group: GroupId,
        state: Option<Mark>,
    ) -> Result<bool, RaftError> {
        let inner = (self.disk.clone(), self.dir.join(SNAPSHOT_DIRECTORY), self.log.clone());
        let bytes_max = self.tuning.read_bytes_max;
        let latest = blocking(move || {
            let (disk, dir, log) = inner;
            let heads = snapshot::heads(&*disk, &dir).unwrap_or_default().into_iter();
            let heads = heads.filter(|head| head.group == group).filter_map(|head| head.mark.ok());
            let marks = state.into_iter().chain(heads);
            let known = marks.filter_map(|mark| wire::mark_parts(&mark).ok());
            let known = known.map(|(_, stored)| stored);
            let known = known.chain(membership_in_log(&log, group, bytes_max));
            known.max_by_key(|stored| *stored.log_id())
        });
        let latest = latest.await;
        let latest =
            latest.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })?;
        let Some(latest) = latest else {
            let vote = self.log.state(group).vote.and_then(|vote| wire::vote_from_bytes(vote).ok());
            return Ok(vote.is_some_and(|vote| vote.leader_id.voted_for != self.node));
        };
        Ok(latest.membership().voter_ids().any(|voter| voter != self.node))
    }
}

/// The last change of members in the log among the entries that can be read.
fn membership_in_log(log: &Log, group: GroupId, bytes_max: usize) -> Option<StoredMembership> {
    let state = log.state(group);
    let (mut next, last) = (state.first?.index, state.last?.index);
    let (mut membership, mut at_once) = (None, bytes_max);
    while next <= last {
        let entries = match log.read(group, next..last + 1, at_once) {
            Ok(entries) if entries.is_empty() => break,
            Ok(entries) => entries,
            // The rest of what was to be read with the damaged one may well be whole.
            Err(_) if at_once > 1 => {
                at_once /= 2;
                continue;
            }
            Err(_) => {
                (next, at_once) = (next + 1, bytes_max);
                continue;
            }
        };
        next += entries.len() as u64;
        for entry in entries.into_iter().filter_map(|entry| wire::entry_from_log(entry).ok()) {
            if let Payload::Membership(changed) = entry.payload {
                membership = Some(StoredMembership::new(Some(entry.log_id), changed));
            }
        }
    }
    membership
}
