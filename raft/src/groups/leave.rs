//! A group that leaves this node: stopped, and then forgotten but for its vote and how far it had come.
//!
//! ORDER: the log forgets first, durably. From then on the group is gone, whatever a crash leaves of
//! its state and its snapshots: a start takes neither for a log that lacks something (`fit`), and
//! clears both before the group may begin anew.

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::{Groups, Inner, SNAPSHOT_DIRECTORY};
use crate::error::{RaftError, ReplicaError};
use crate::execution::{blocking, failpoint};
use crate::group::Running;
use crate::log::{EntryId, GroupId, LogError};
use crate::log_store::LogStore;
use crate::replica::Replica;
use crate::replica_thread::ReplicaThread;
use crate::snapshot;
use crate::types::term_of;

impl Groups {
    /// Stops a group on this node alone; the others go on. What was acknowledged stays, and the group
    /// may be started again. Does nothing if it does not run here.
    pub fn stop(&self, group: GroupId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some((stopped, slot)) = self.inner.take_running(group) else { return };
            // On Raft's runtime, so that a caller who goes away leaves nothing half stopped.
            let ended = self.inner.handle.spawn(async move {
                slot.inner.stop(stopped.running()).await;
                drop(slot);
            });
            if ended.await.is_err() {
                tracing::warn!(%group, "group did not stop in order");
            }
        })
    }

    /// Forgets a group that does not run here: its entries, its snapshots, and, through `replica`, its
    /// state. The vote stays, and how far the log had come: a replica that comes back under this node's
    /// id must neither vote twice in a term nor as if it had acknowledged nothing. A crash at any
    /// moment is harmless: either the group is still there, or it can be forgotten again.
    ///
    /// The node must be no voter of the group any more: it acknowledged what it forgets.
    ///
    /// # Errors
    /// [`RaftError::Running`], or when log, state or snapshots cannot be used.
    pub fn forget(
        &self,
        group: GroupId,
        replica: Box<dyn Replica>,
    ) -> BoxFuture<'_, Result<(), RaftError>> {
        Box::pin(async move {
            let slot = self.inner.take_slot(group).ok_or(RaftError::Running { group })?;
            let forgotten =
                self.inner.handle.spawn(async move { slot.inner.forget(group, replica).await });
            forgotten.await.unwrap_or_else(|error| {
                Err(RaftError::Stopped { group, reason: error.to_string() })
            })
        })
    }

    /// Groups of which a crash left the state after the log had forgotten them: forget them again.
    pub fn half_forgotten(&self) -> &[GroupId] {
        &self.inner.half_forgotten
    }
}

impl Inner {
    /// Stops a group, and waits for all that is under way for it.
    pub(super) async fn stop(&self, running: &Running) {
        let member = self.switch.remove(running.id);
        running.stop().await;
        if let Some(member) = member {
            member.ended().await;
        }
    }

    async fn forget(&self, group: GroupId, replica: Box<dyn Replica>) -> Result<(), RaftError> {
        if !self.log.state(group).is_forgotten {
            let store = LogStore::new(self.log.clone(), group, self.tuning.read_bytes_max);
            self.forget_log(group, &store).await?;
        }
        failpoint(self.node, group, "log has forgotten");
        // What it met is gone with the rest.
        self.halts.send_if_modified(|halts| halts.remove(&group).is_some());
        let replica = self.start_replica(group, replica)?;
        let cleared = self.clear_forgotten(group, &replica).await;
        let stopped = blocking(move || replica.stop()).await;
        cleared?;
        stopped.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })
    }

    /// Has the log forget a group but for its vote and how far its entries had reached.
    pub(super) async fn forget_log(
        &self,
        group: GroupId,
        store: &LogStore,
    ) -> Result<(), RaftError> {
        let reached = self.log_id(group, store.reached())?;
        let floor = reached.map(|id| EntryId { index: id.index, term: term_of(&id) });
        let (tx, rx) = oneshot::channel();
        self.log.forget(group, floor, move |result| {
            // The receiver is gone only if the node stops.
            let _ = tx.send(result);
        });
        let forgotten = rx.await.unwrap_or(Err(LogError::Closed));
        forgotten.map_err(|source| RaftError::Log { group, source })
    }

    /// Clears what is left of a forgotten group beside the log.
    pub(super) async fn clear_forgotten(
        &self,
        group: GroupId,
        replica: &ReplicaThread,
    ) -> Result<(), RaftError> {
        // Also where it has no mark: a restoration may have ended half way.
        let cleared = replica.call(|replica| replica.clear()).await.and_then(|cleared| cleared);
        cleared.map_err(|source| RaftError::Replica { group, source })?;
        failpoint(self.node, group, "forgotten state cleared");
        let (disk, dir) = (self.disk.clone(), self.dir.join(SNAPSHOT_DIRECTORY));
        let removed = blocking(move || snapshot::remove_all(&*disk, &dir, group)).await;
        let removed = removed.map_err(|error| {
            let source = ReplicaError::new("remove the snapshots of a forgotten group", error);
            RaftError::Replica { group, source }
        })?;
        removed.map_err(|source| RaftError::Snapshot { group, source })?;
        failpoint(self.node, group, "forgotten snapshots removed");
        Ok(())
    }
}
