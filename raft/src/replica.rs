//! What a group's entries are applied to: the trait that the shard crate implements.
//!
//! Owns no state itself. Calls that may wait for the store come on a thread of the replica's own, so
//! that they delay no heartbeat.

use bytes::Bytes;
use piton_store::{Mark, Row};

use crate::error::{ReplicaError, SnapshotError};

/// What a group's entries are applied to; implemented by the shard crate.
///
/// One call comes at a time, in log order. An error or a panic stops the group on this node:
/// applying is deterministic, so trying again would only spread the damage.
pub trait Replica: Send + 'static {
    /// The mark stored with the state that survived: where apply has to go on. `None`: empty.
    fn applied(&self) -> Option<Mark>;

    /// Whether it is read on members that do not lead, too: they hear of each commit at once then,
    /// instead of with the next entries.
    fn is_read_everywhere(&self) -> bool {
        false
    }

    /// The index that the store stands at (0: nothing). The log is never purged beyond it, so
    /// it must not be ahead of what a restart would find.
    fn checkpointed(&self) -> u64;

    /// Applies committed entries in order; `mark` stands for the last of them. Answers one verdict
    /// for each entry (opaque bytes for the proposer).
    fn apply(
        &mut self,
        entries: Vec<CommittedEntry>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError>;

    /// The same on a thread that must not wait for the disk. `None`: that might be needed, and nothing
    /// was done; the same entries come to `apply` next.
    fn try_apply(
        &mut self,
        entries: &[CommittedEntry],
        mark: &Mark,
    ) -> Result<Option<Vec<Bytes>>, ReplicaError> {
        let _ = (entries, mark);
        Ok(None)
    }

    /// An entry that carries nothing for the replica (blank, membership).
    fn advance(&mut self, mark: Mark);

    /// The rows of the state at exactly one mark, for a snapshot: a mark that was handed to
    /// `apply`, `advance` or `restore`, usually that of the last checkpoint. Only asked for when
    /// `checkpointed` is above 0.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotRows>, ReplicaError>;

    /// Replaces the whole state by the rows of a snapshot, durably: when this returns, `applied`
    /// is `mark` and `checkpointed` is its index, also after a crash.
    fn restore(
        &mut self,
        mark: Mark,
        rows: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
    ) -> Result<(), ReplicaError>;

    /// Throws the whole state away: what survived does not fit the log. `applied` is `None` then.
    fn clear(&mut self) -> Result<(), ReplicaError>;
}

/// One committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedEntry {
    /// The term of the leader that appended it.
    pub term: u64,
    /// Its place in the group's log.
    pub index: u64,
    /// What was proposed.
    pub payload: Bytes,
}

/// The rows of a state, standing still at one mark while they are read. Read on a thread of its
/// own while the replica goes on applying.
pub trait SnapshotRows: Send {
    /// Where the rows stand.
    fn mark(&self) -> Mark;
    /// The next rows in key order, at most `limit`; empty at the end.
    fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, ReplicaError>;
}
