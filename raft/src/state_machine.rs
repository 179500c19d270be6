//! A [`Replica`] as openraft wants it: applies committed entries, hands out and installs snapshots.
//!
//! Owns the applied log id and the membership, which are stored with the replica's state as the
//! opaque bytes of its mark.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;

use crate::config::NodeId;
use crate::error::{RaftError, ReplicaError, SnapshotError};
use crate::execution::{blocking, failpoint};
use crate::halt::Halt;
use crate::log::GroupId;
use crate::replica::{CommittedEntry, Replica};
use crate::replica_thread::ReplicaThread;
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::types::{Entry, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig, term_of};
use crate::wire;

type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;
/// The last membership that was applied here, and so is committed.
pub(crate) type AppliedMembership = Arc<Mutex<StoredMembership>>;

type Responder = Option<ApplyResponder<TypeConfig>>;

/// Entries handed to the replica at once, at most.
const APPLY_ENTRIES_MAX: usize = 1024;
/// Bytes handed to the replica at once; one larger entry goes alone.
const APPLY_BYTES_MAX: usize = 8 << 20;

/// Bytes that Raft's own thread applies at once. More take time that heartbeats must not wait for.
const APPLY_HERE_BYTES_MAX: usize = 256 << 10;

/// The adapter of one group's replica to openraft.
pub(crate) struct StateMachine {
    node: NodeId,
    group: GroupId,
    replica: Arc<ReplicaThread>,
    snapshots: Arc<Snapshots>,
    applied: Option<LogId>,
    membership: AppliedMembership,
    halt: Halt,
}

impl StateMachine {
    /// Takes over a replica that stands at `applied`.
    pub(crate) fn new(
        node: NodeId,
        group: GroupId,
        replica: Arc<ReplicaThread>,
        snapshots: Arc<Snapshots>,
        applied: Option<(LogId, StoredMembership)>,
    ) -> StateMachine {
        let (applied, membership) = match applied {
            Some((applied, membership)) => (Some(applied), membership),
            None => (None, StoredMembership::default()),
        };
        let membership = Arc::new(Mutex::new(membership));
        let halt = Halt::default();
        StateMachine { node, group, replica, snapshots, applied, membership, halt }
    }

    pub(crate) fn halt(&self) -> &Halt {
        &self.halt
    }

    pub(crate) fn membership(&self) -> &AppliedMembership {
        &self.membership
    }

    async fn apply_batch(&mut self, items: Vec<(Entry, Responder)>) -> io::Result<()> {
        let applied = self.apply_to_replica(items).await;
        applied.map_err(|error| io::Error::other(self.halt.note(error)))
    }

    async fn apply_to_replica(
        &mut self,
        items: Vec<(Entry, Responder)>,
    ) -> Result<(), ReplicaError> {
        let Some((last, _)) = items.last() else { return Ok(()) };
        let last = last.log_id;
        failpoint(self.node, self.group, "before apply");
        let Some(items) = self.apply_here(last, items)? else {
            self.applied = Some(last);
            return Ok(());
        };
        let membership = Arc::clone(&self.membership);
        let apply = move |replica: &mut dyn Replica| apply_items(replica, items, &membership);
        self.replica.call(apply).await??;
        self.applied = Some(last);
        Ok(())
    }

    /// Applies proposals whose rows are in memory. Gives back what has to go to the replica's thread.
    fn apply_here(
        &self,
        last: LogId,
        items: Vec<(Entry, Responder)>,
    ) -> Result<Option<Vec<(Entry, Responder)>>, ReplicaError> {
        let mut entries = Vec::with_capacity(items.len());
        let mut bytes = 0;
        for (entry, _) in &items {
            let Payload::Normal(proposal) = &entry.payload else { return Ok(Some(items)) };
            bytes += proposal.record().len();
            entries.push(committed_entry(&entry.log_id, proposal.payload()));
        }
        if bytes > APPLY_HERE_BYTES_MAX {
            return Ok(Some(items));
        }
        let mark = wire::mark(&last, &self.membership.lock());
        let applied = self.replica.call_here(|replica| replica.try_apply(&entries, &mark));
        let Some(verdicts) = applied.transpose()?.transpose()?.flatten() else {
            return Ok(Some(items));
        };
        respond(items.into_iter().map(|(_, responder)| responder), verdicts)?;
        Ok(None)
    }
}

fn committed_entry(id: &LogId, payload: Bytes) -> CommittedEntry {
    CommittedEntry { term: term_of(id), index: id.index, payload }
}

/// Hands each proposer its verdict.
fn respond(
    responders: impl ExactSizeIterator<Item = Responder>,
    verdicts: Vec<Bytes>,
) -> Result<(), ReplicaError> {
    if verdicts.len() != responders.len() {
        return Err(ReplicaError::new("apply entries", "it gave not one verdict for each"));
    }
    for (responder, verdict) in responders.zip(verdicts) {
        if let Some(responder) = responder {
            responder.send(verdict);
        }
    }
    Ok(())
}

/// Applies entries in order, on the replica's thread: proposals together as far as they stand
/// together, each other entry on its own.
fn apply_items(
    replica: &mut dyn Replica,
    items: Vec<(Entry, Responder)>,
    membership: &AppliedMembership,
) -> Result<(), ReplicaError> {
    let mut run = Run::default();
    for (entry, responder) in items {
        match entry.payload {
            Payload::Normal(proposal) => {
                run.push(entry.log_id, proposal.payload(), responder);
                continue;
            }
            Payload::Blank => run.apply(replica, membership)?,
            Payload::Membership(changed) => {
                run.apply(replica, membership)?;
                // ORDER: whoever waits for the change finds it here.
                *membership.lock() = StoredMembership::new(Some(entry.log_id), changed);
            }
        }
        replica.advance(wire::mark(&entry.log_id, &membership.lock()));
        if let Some(responder) = responder {
            responder.send(Bytes::new());
        }
    }
    run.apply(replica, membership)
}

/// Proposals that follow each other without another entry between them.
#[derive(Default)]
struct Run {
    last: Option<LogId>,
    entries: Vec<CommittedEntry>,
    responders: Vec<Responder>,
}

impl Run {
    fn push(&mut self, id: LogId, payload: Bytes, responder: Responder) {
        self.last = Some(id);
        self.entries.push(committed_entry(&id, payload));
        self.responders.push(responder);
    }

    fn apply(
        &mut self,
        replica: &mut dyn Replica,
        membership: &AppliedMembership,
    ) -> Result<(), ReplicaError> {
        let Some(last) = self.last.take() else { return Ok(()) };
        let entries = std::mem::take(&mut self.entries);
        let responders = std::mem::take(&mut self.responders);
        let verdicts = replica.apply(entries, wire::mark(&last, &membership.lock()))?;
        respond(responders.into_iter(), verdicts)
    }
}

/// Gives a replica the state of a snapshot file, on the replica's thread.
///
/// # Errors
/// When the file is damaged, in which case it is named, or the replica refuses.
pub(crate) async fn restore(
    group: GroupId,
    replica: &ReplicaThread,
    snapshots: &Arc<Snapshots>,
    file: SnapshotFile,
) -> Result<(), RaftError> {
    let mark = file.mark.clone();
    let snapshots = snapshots.clone();
    let restored = replica.call(move |replica| -> Result<(), RaftError> {
        let mut rows =
            snapshots.rows(&file).map_err(|source| RaftError::Snapshot { group, source })?;
        let result = replica.restore(mark, &mut rows);
        // The replica saw the error of the file, too, but can only say that it could not go on.
        if let Some(source) = rows.take_error() {
            return Err(RaftError::Snapshot { group, source });
        }
        result.map_err(|source| RaftError::Replica { group, source })
    });
    restored.await.map_err(|source| RaftError::Replica { group, source })?
}

pub(crate) fn snapshot_meta(file: &SnapshotFile) -> Result<SnapshotMeta, SnapshotError> {
    let (last, membership) = wire::mark_parts(&file.mark).map_err(|_| SnapshotError::Corrupt {
        file: file.path.clone(),
        offset: 0,
        reason: "the mark does not decode",
    })?;
    Ok(SnapshotMeta { last_log_id: Some(last), last_membership: membership })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.lock().clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut items = Vec::new();
        let mut bytes = 0;
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if let Payload::Normal(proposal) = &entry.payload {
                bytes += proposal.record().len();
            }
            items.push((entry, responder));
            if items.len() >= APPLY_ENTRIES_MAX || bytes >= APPLY_BYTES_MAX {
                self.apply_batch(std::mem::take(&mut items)).await?;
                bytes = 0;
            }
        }
        self.apply_batch(items).await
    }

    /// Hands out the snapshot that `Group::snapshot_now` has already written, so that a full disk
    /// fails that call and not the group. Only if openraft forces one is it written here.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        if force {
            return Some(self.get_snapshot_builder().await);
        }
        let written = Some(self.snapshots.current()?);
        Some(SnapshotBuilder { written, ..self.get_snapshot_builder().await })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            group: self.group,
            replica: self.replica.clone(),
            snapshots: self.snapshots.clone(),
            written: None,
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<(), io::Error> {
        // ORDER: the snapshot is durable under its own name before the replica throws away the
        // state that it replaces. A crash in between finds the snapshot and restores again.
        let snapshots = self.snapshots.clone();
        let file = blocking(move || snapshots.adopt(file)).await?.map_err(io::Error::other)?;
        let bytes = file.bytes;
        failpoint(self.node, self.group, "snapshot adopted");
        restore(self.group, &self.replica, &self.snapshots, file)
            .await
            .map_err(io::Error::other)?;
        self.snapshots.stats().installed(bytes);
        self.applied = meta.last_log_id;
        *self.membership.lock() = meta.last_membership.clone();
        failpoint(self.node, self.group, "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.snapshots.current().map(to_openraft).transpose()
    }
}

fn to_openraft(file: SnapshotFile) -> io::Result<Snapshot> {
    Ok(Snapshot { meta: snapshot_meta(&file).map_err(io::Error::other)?, snapshot: file })
}

/// Writes the replica's state at its last checkpoint to a snapshot file, unless the newest file
/// stands there already. `None`: nothing has been checkpointed yet.
pub(crate) async fn write_snapshot(
    group: GroupId,
    replica: &ReplicaThread,
    snapshots: &Arc<Snapshots>,
) -> Result<Option<SnapshotFile>, RaftError> {
    let rows = replica.call(|replica| {
        if replica.checkpointed() == 0 { Ok(None) } else { replica.snapshot().map(Some) }
    });
    let rows = rows.await.and_then(|rows| rows);
    let Some(mut rows) = rows.map_err(|source| RaftError::Replica { group, source })? else {
        return Ok(None);
    };
    let snapshots = snapshots.clone();
    let written = blocking(move || snapshots.write(&mut *rows)).await;
    let written =
        written.map_err(|error| RaftError::Stopped { group, reason: error.to_string() })?;
    written.map(Some).map_err(|source| RaftError::Snapshot { group, source })
}

/// Hands out a snapshot that is written already, or writes one.
pub(crate) struct SnapshotBuilder {
    group: GroupId,
    replica: Arc<ReplicaThread>,
    snapshots: Arc<Snapshots>,
    written: Option<SnapshotFile>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let file = match self.written.take() {
            Some(file) => Some(file),
            None => write_snapshot(self.group, &self.replica, &self.snapshots)
                .await
                .map_err(io::Error::other)?,
        };
        to_openraft(file.ok_or_else(|| io::Error::other("nothing has been checkpointed yet"))?)
    }
}
