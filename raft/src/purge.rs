//! When a snapshot is taken, and how far the log goes with it.
//!
//! A leader keeps the log for followers that lack it, dead ones too, up to a limit in bytes over all
//! groups of the node. Within it a follower that was away is refilled from the log; beyond it the log
//! goes, and the follower gets a snapshot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;

use crate::error::RaftError;
use crate::execution::failpoint;
use crate::group::Running;
use crate::log::GroupId;
use crate::state_machine::write_snapshot;

/// What the groups of a node keep of their logs for followers alone.
#[derive(Default)]
pub(crate) struct HeldLogs(Mutex<BTreeMap<GroupId, u64>>);

impl HeldLogs {
    /// Notes what a group holds. False: all groups hold too much, and none holds more than this.
    fn may_hold(&self, group: GroupId, bytes: u64, bytes_max: u64) -> bool {
        let mut held = self.0.lock();
        held.insert(group, bytes);
        let sum = held.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let more = held.iter().any(|(other, theirs)| *other != group && *theirs > bytes);
        sum <= bytes_max || more
    }

    pub(crate) fn release(&self, group: GroupId) {
        self.0.lock().remove(&group);
    }
}

/// The first entry that a group still sends: an append session that needs an earlier one ends, so
/// that the log can go.
#[derive(Default)]
pub(crate) struct KeptFrom(AtomicU64);

impl KeptFrom {
    pub(crate) fn index(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn let_go(&self, through: u64) {
        self.0.fetch_max(through.saturating_add(1), Ordering::Relaxed);
    }
}

/// Takes snapshots when they are due, until the group is gone.
pub(crate) async fn watch_log_size(group: std::sync::Weak<Running>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(group) = group.upgrade() else { return };
        if group.stopping.load(Ordering::Relaxed) {
            return;
        }
        let done = if group.snapshot_due() || group.snapshots.is_damaged() {
            group.take_snapshot().await.map(drop)
        } else if group.purge_is_held() {
            group.purge_held().await
        } else {
            Ok(())
        };
        if let Err(error) = done {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(group = %group.id, error, "snapshot failed, the log grows on");
        }
    }
}

impl Running {
    /// The log has outgrown the last snapshot, whatever of it is held for followers.
    fn snapshot_due(&self) -> bool {
        let least = self.tuning.snapshot_log_bytes_min.max(self.snapshots.bytes());
        self.log.bytes_since_purge(self.id) >= least
            && self.log.bytes_in(self.id, self.snapshots.index() + 1..u64::MAX) >= least
    }

    /// The last snapshot covers entries that are still there.
    fn purge_is_held(&self) -> bool {
        let through = self.snapshots.index();
        let through = through.saturating_sub(self.tuning.entries_kept_behind_snapshot);
        self.purged() < through
    }

    fn purged(&self) -> u64 {
        self.log.state(self.id).purged.map_or(0, |purged| purged.index)
    }

    pub(crate) async fn take_snapshot(&self) -> Result<u64, RaftError> {
        let _turn = self.snapshot_turn.lock().await;
        let _at_work = self.begin_work().await?;
        let group = self.id;
        let before = self.snapshots.index();
        let written = write_snapshot(group, &self.replica, &self.snapshots).await?;
        let Some(file) = written else { return Ok(before) };
        let index = file.mark.index;
        if index > before {
            tracing::info!(%group, log_index = index, bytes = file.bytes, "snapshot taken");
            failpoint(self.node, group, "snapshot taken");
            let triggered = self.raft.trigger().snapshot().await;
            triggered.map_err(|error| self.stopped(error.to_string()))?;
            self.await_snapshot(index).await?;
        }
        self.purge().await?;
        Ok(index)
    }

    /// Has the log go through that entry now, whoever needs it: what is damaged can be sent to nobody.
    pub(crate) async fn let_go(&self, through: u64) -> Result<(), RaftError> {
        self.kept_from.let_go(through);
        self.purge_held().await
    }

    async fn purge_held(&self) -> Result<(), RaftError> {
        let _at_work = self.begin_work().await?;
        self.purge().await
    }

    /// What is begun so is waited for when the group stops; later nothing begins any more.
    async fn begin_work(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, RaftError> {
        let at_work = self.at_work.lock().await;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(self.stopped("it was told to".to_string()));
        }
        Ok(at_work)
    }

    /// Waits until openraft knows the snapshot: it purges nothing beyond the one it knows.
    async fn await_snapshot(&self, index: u64) -> Result<(), RaftError> {
        let mut metrics = self.raft.data_metrics();
        loop {
            let known = metrics.borrow_watched().snapshot.is_some_and(|id| id.index >= index);
            if known {
                return Ok(());
            }
            let changed = metrics.changed().await;
            changed.map_err(|_| self.stopped("while a snapshot was taken".to_string()))?;
        }
    }

    /// Purges the log as far as snapshot and checkpoint allow, and as no follower needs it.
    async fn purge(&self) -> Result<(), RaftError> {
        let checkpointed = self.replica.call(|replica| replica.checkpointed()).await;
        let checkpointed =
            checkpointed.map_err(|source| RaftError::Replica { group: self.id, source })?;
        let through = self.snapshots.index().min(checkpointed);
        let through = through.saturating_sub(self.tuning.entries_kept_behind_snapshot);
        let through = self.through_what_nobody_needs(through);
        if through > self.purged() {
            let purged = self.raft.trigger().purge_log(through).await;
            purged.map_err(|error| self.stopped(error.to_string()))?;
        }
        Ok(())
    }

    fn through_what_nobody_needs(&self, through: u64) -> u64 {
        let needed = self.needed_from().filter(|needed| *needed <= through);
        let Some(needed) = needed else {
            self.held.release(self.id);
            return through;
        };
        let bytes = self.log.bytes_in(self.id, needed..through.saturating_add(1));
        if self.held.may_hold(self.id, bytes, self.tuning.log_held_bytes_max) {
            return needed.saturating_sub(1);
        }
        tracing::info!(group = %self.id, bytes, log_index = through, "log is no longer held");
        self.held.release(self.id);
        // Openraft waits with a purge for as long as a session needs the log.
        self.kept_from.let_go(through);
        through
    }

    /// The first entry that some follower of this leader lacks, if the log still has it.
    fn needed_from(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let first = metrics.purged.map_or(0, |purged| purged.index + 1);
        let kept_from = self.kept_from.index();
        let followers = metrics.replication.iter().flatten();
        let followers = followers.filter(|(node, _)| **node != self.node);
        let needed = followers.filter_map(|(node, acknowledged)| {
            if let Some(index) = self.sendings.index(*node) {
                return Some(index + 1);
            }
            match acknowledged.as_ref().map(|id| id.index + 1) {
                // Nothing is known of it yet: it may well need all there is.
                None => Some(first),
                Some(next) if next >= first => Some(next),
                // It gets a snapshot, which is not being sent yet.
                Some(_) => None,
            }
        });
        // What is not sent any more is held for nobody.
        needed.filter(|needed| *needed >= kept_from).min()
    }
}
