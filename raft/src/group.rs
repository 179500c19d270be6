//! One group on this node: propose, read index, leadership watch.

use bytes::Bytes;
use tokio::sync::watch;

use crate::config::NodeId;
use crate::error::{ProposeError, RaftError, ReadError};
use crate::log::GroupId;

/// A handle to one group on this node.
#[derive(Clone)]
pub struct Group {
    id: GroupId,
}

/// An entry that is committed and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The term of the leader that appended it: of this node's leadership.
    pub term: u64,
    /// Its place in the group's log.
    pub index: u64,
    /// What the replica answered.
    pub verdict: Bytes,
}

/// Who leads a group, as this node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The highest term seen.
    pub term: u64,
    /// Who leads in that term, if known.
    pub leader: Option<NodeId>,
    /// This node leads in `term` and the first entry of its own term is applied here: the shard may
    /// decide.
    pub serving: bool,
}

/// How far a group is on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupMetrics {
    /// The current term.
    pub term: u64,
    /// The last entry in the log.
    pub last_index: u64,
    /// The last entry that is known to be committed.
    pub committed_index: u64,
    /// The last entry applied here.
    pub applied_index: u64,
    /// The last entry in the newest snapshot.
    pub snapshot_index: u64,
    /// The last entry purged from the log.
    pub purged_index: u64,
    /// Whether this node leads.
    pub is_leader: bool,
}

impl Group {
    /// Which group this is.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Replicates one entry and applies it here.
    ///
    /// # Errors
    /// See [`ProposeError`]: only `NotLeader` says that the entry was not appended.
    ///
    /// # Cancel safety
    /// A dropped future leaves the outcome unknown; the entry may still be committed.
    pub async fn propose(&self, payload: Bytes) -> Result<Committed, ProposeError> {
        let _ = payload;
        unimplemented!()
    }

    /// Returns once everything committed before the call is applied here, confirmed by a quorum.
    /// Free on a sole voter; concurrent callers share a round.
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read_index(&self) -> Result<(), ReadError> {
        unimplemented!()
    }

    /// Who leads, and whether this node may serve.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        unimplemented!()
    }

    /// Stands for election now, even if there is a leader.
    pub async fn elect(&self) {
        unimplemented!()
    }

    /// Hands leadership to `to`. Does nothing if this node does not lead.
    pub async fn transfer_leader(&self, to: NodeId) {
        let _ = to;
        unimplemented!()
    }

    /// How far the group is.
    pub fn metrics(&self) -> GroupMetrics {
        unimplemented!()
    }

    /// Takes a snapshot now and purges the log as far as the snapshot and the checkpoint allow.
    /// Answers the index of the newest snapshot.
    ///
    /// # Errors
    /// When the group has stopped, or the snapshot could not be written.
    pub async fn snapshot_now(&self) -> Result<u64, RaftError> {
        unimplemented!()
    }
}
