//! What a group's replica stands at when it starts: state, snapshot and log brought together.

use std::sync::Arc;

use piton_store::Mark;

use super::Inner;
use crate::error::RaftError;
use crate::execution::failpoint;
use crate::fit;
use crate::log::GroupId;
use crate::log_store::LogStore;
use crate::replica_thread::ReplicaThread;
use crate::snapshot::Snapshots;
use crate::state_machine::{restore, write_snapshot};
use crate::types::{LogId, StoredMembership, log_id};
use crate::wire;

/// What a replica stands at, as openraft wants to know it.
pub(super) type Applied = Option<(LogId, StoredMembership)>;

impl Inner {
    /// Brings state, snapshot and log together: a state that is behind the snapshot is replaced by
    /// it, and the log does the rest. One that is ahead of the log is refused, unless a snapshot of
    /// another node explains it.
    pub(super) async fn fit_state(
        &self,
        group: GroupId,
        store: &LogStore,
        replica: &ReplicaThread,
        snapshots: &Arc<Snapshots>,
    ) -> Result<Applied, RaftError> {
        let replica_error = |source| RaftError::Replica { group, source };
        let mark = replica.call(|replica| replica.applied()).await.map_err(replica_error)?;
        let (purged, last) =
            (self.log_id(group, store.purged())?, self.log_id(group, store.last())?);
        let mut applied = match &mark {
            Some(mark) => self.applied_that_fits(group, mark, purged, last)?,
            None => None,
        };
        if applied.is_none()
            && let Some(mark) = mark
        {
            let is_behind = purged.is_some_and(|purged| mark.index < purged.index);
            // A crash while a snapshot was installed leaves the state at it, and the log behind.
            let explained = snapshots.received_index().is_some_and(|index| index >= mark.index);
            if !is_behind && !explained {
                failpoint(self.node, group, "state is ahead");
                return Err(fit::refuse_state(group, &mark, last, &self.dir));
            }
            tracing::warn!(%group, applied = mark.index, "state does not fit the log, it is rebuilt");
            let cleared = replica.call(|replica| replica.clear()).await;
            cleared.and_then(|cleared| cleared).map_err(replica_error)?;
        }
        if let Some(file) = snapshots.current()
            && applied.as_ref().is_none_or(|(applied, _)| applied.index < file.mark.index)
        {
            tracing::info!(%group, log_index = file.mark.index, "state is restored from snapshot");
            let mark = file.mark.clone();
            restore(group, replica, snapshots, file).await?;
            applied = wire::mark_parts(&mark).ok();
        }
        if let Some(purged) = purged
            && applied.as_ref().is_none_or(|(applied, _)| applied.index < purged.index)
        {
            let damaged = snapshots.damage();
            return Err(damaged
                .map_or(RaftError::SnapshotMissing { group, purged: purged.index }, |source| {
                    RaftError::Snapshot { group, source }
                }));
        }
        Ok(applied)
    }

    /// A log whose loss was accepted begins behind the last snapshot: the store alone has what came
    /// before, and a store must be such that it can be discarded. So a snapshot is taken, before
    /// openraft sees an older one, which it does not expect.
    pub(super) async fn cover_start_of_log(
        &self,
        group: GroupId,
        replica: &ReplicaThread,
        snapshots: &Arc<Snapshots>,
    ) -> Result<(), RaftError> {
        let purged = self.log.state(group).purged.map_or(0, |purged| purged.index);
        if snapshots.index() < purged {
            let _turn = self.snapshot_turn.lock().await;
            write_snapshot(group, replica, snapshots).await?;
        }
        Ok(())
    }

    /// The replica's place, if the log holds it.
    fn applied_that_fits(
        &self,
        group: GroupId,
        mark: &Mark,
        purged: Option<LogId>,
        last: Option<LogId>,
    ) -> Result<Applied, RaftError> {
        let Ok(applied) = wire::mark_parts(mark) else { return Ok(None) };
        let index = mark.index;
        if purged.is_some_and(|purged| index < purged.index)
            || last.is_none_or(|last| index > last.index)
        {
            return Ok(None);
        }
        let here = if let Some(purged) = purged.filter(|purged| purged.index == index) {
            Some(purged)
        } else {
            let entries = self.log.read(group, index..index + 1, 1);
            let entries = entries.map_err(|source| RaftError::Log { group, source })?;
            entries.first().map(|entry| log_id(entry.term, entry.index))
        };
        Ok((here == Some(applied.0)).then_some(applied))
    }
}
