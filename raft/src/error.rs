//! Errors of this crate, split by what a caller can do about them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::NodeId;
use crate::fit::Misfit;
use crate::log::{GroupId, LogError};

/// Why a group could not be opened or started, or an order to it was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The node's log could not be opened; a damaged log is a wiped node (D9).
    #[error("open the log of node {node}")]
    OpenLog {
        /// Whose log.
        node: NodeId,
        /// What the log said.
        #[source]
        source: LogError,
    },
    /// The log lacks what the state or a snapshot was made of: what was acknowledged is gone.
    #[error("{0}")]
    Misfit(Box<Misfit>),
    /// The runtime that Raft's timers run on could not be built.
    #[error("build the raft runtime of node {node}")]
    BuildRuntime {
        /// Whose runtime.
        node: NodeId,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A group is started once in a process life.
    #[error("start group {group}: it is already running on this node")]
    AlreadyStarted {
        /// Which group.
        group: GroupId,
    },
    /// A group that runs is stopped before it is forgotten.
    #[error("forget group {group}: it runs on this node")]
    Running {
        /// Which group.
        group: GroupId,
    },
    /// A group is founded once: this node already knows it.
    #[error("found group {group}: this node already knows it")]
    HasPast {
        /// Which group.
        group: GroupId,
    },
    /// The members handed in do not form a group.
    #[error("start group {group}: {reason}")]
    Members {
        /// Which group.
        group: GroupId,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// The timing limits contradict each other.
    #[error("check the tuning: {reason}")]
    Tuning {
        /// Which limits, and why.
        reason: String,
    },
    /// The log of this group could not be read or written.
    #[error("use the log of group {group}")]
    Log {
        /// Which group.
        group: GroupId,
        /// What the log said.
        #[source]
        source: LogError,
    },
    /// The log was purged up to a point which no state and no snapshot here covers: this node
    /// cannot serve the group and has to be refilled from a peer.
    #[error("start group {group}: the log is purged through {purged}, but no snapshot covers it")]
    SnapshotMissing {
        /// Which group.
        group: GroupId,
        /// The last purged index.
        purged: u64,
    },
    /// A snapshot file could not be read or written.
    #[error("use the snapshot of group {group}")]
    Snapshot {
        /// Which group.
        group: GroupId,
        /// What went wrong, with the file's name.
        #[source]
        source: SnapshotError,
    },
    /// The replica refused.
    #[error("use the replica of group {group}")]
    Replica {
        /// Which group.
        group: GroupId,
        /// What the replica said.
        #[source]
        source: ReplicaError,
    },
    /// The replica met what this release cannot go past; the node goes on without the group.
    #[error("group {group} cannot go on here: {reason}")]
    Halted {
        /// Which group.
        group: GroupId,
        /// What it met.
        reason: String,
    },
    /// The group has stopped, by order or by a fatal error.
    #[error("group {group} has stopped: {reason}")]
    Stopped {
        /// Which group.
        group: GroupId,
        /// Why.
        reason: String,
    },
}

/// Why a proposal was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead: the entry was not appended and never will be. Ask the leader.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The entry may have been committed or may still be; only the state can tell.
    #[error("the outcome of the proposal is unknown: {0}")]
    Unknown(String),
    /// The group does not run here any more. The outcome is unknown as well.
    #[error("the group has stopped on this node")]
    Stopped,
}

/// Why the members of a group were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead: nothing was changed. Ask the leader.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// An earlier change is not committed yet. Ask again.
    #[error("another change of the members is under way")]
    InProgress,
    /// A node that is to vote has not caught up. Ask again later.
    #[error("node {node} is {entries} entries behind")]
    Lags {
        /// Which node.
        node: NodeId,
        /// How far it is behind.
        entries: u64,
    },
    /// A node that is to vote is not even a learner.
    #[error("node {node} is no member of the group")]
    NotMember {
        /// Which node.
        node: NodeId,
    },
    /// A voter is removed by naming the voters that stay.
    #[error("node {node} is a voter")]
    IsVoter {
        /// Which node.
        node: NodeId,
    },
    /// A group has at least one voter.
    #[error("a group without a voter decides nothing")]
    NoVoters,
    /// The change may have been made or may still be; [`crate::Group::members`] tells.
    #[error("the outcome of the change is unknown: {0}")]
    Unknown(String),
    /// The group does not run here any more. The outcome is unknown as well.
    #[error("the group has stopped on this node")]
    Stopped,
}

/// Why a read could not be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead. Ask the leader.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// No quorum confirmed in time that this node still leads.
    #[error("no quorum confirmed that this node still leads")]
    NoQuorum,
    /// The group does not run here any more.
    #[error("the group has stopped on this node")]
    Stopped,
}

/// What a replica says when it cannot go on. Any such error stops the group on this node.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the replica cannot {doing}")]
pub struct ReplicaError {
    /// What it was doing.
    pub doing: &'static str,
    /// Why it failed.
    #[source]
    pub source: Arc<dyn std::error::Error + Send + Sync>,
}

impl ReplicaError {
    /// An error of the replica while it was `doing` something, for example "apply entries".
    pub fn new(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ReplicaError {
        ReplicaError { doing, source: Arc::from(source.into()) }
    }
}

/// Why a snapshot file could not be written, read or sent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// The disk refused.
    #[error("{doing} {}", file.display())]
    Disk {
        /// What we were doing.
        doing: &'static str,
        /// The file.
        file: PathBuf,
        /// What the disk said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The bytes are not those that were written.
    #[error("the snapshot {} is corrupt at byte {offset}: {reason}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where the damaged part begins.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// A newer release wrote it.
    #[error(
        "the snapshot {} is of version {}, which only a newer release knows",
        file.display(), char::from(*version)
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// The digit that stands for its version.
        version: u8,
    },
    /// The rows could not be read from the replica.
    #[error("read the rows for a snapshot")]
    Rows(#[source] ReplicaError),
    /// The snapshot is for another group.
    #[error("use the snapshot {} of group {found} for group {group}", file.display())]
    OtherGroup {
        /// The file.
        file: PathBuf,
        /// Whose snapshot was wanted.
        group: GroupId,
        /// Whose it is.
        found: GroupId,
    },
}

/// Why a frame was not handed to the network. It is lost; Raft tries again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// There is no connection to that node at the moment.
    #[error("the node is not reachable")]
    Unreachable,
    /// The queue to that node is full.
    #[error("the queue to the node is full")]
    Busy,
}
