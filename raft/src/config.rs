//! What a node is told when it opens its groups, and the tuned limits with their defaults.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use piton_store::Mark;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::error::RaftError;
use crate::execution::Execution;
use crate::log::{Disk, GroupId, LogConfig};
use crate::silence;
use crate::transport::Transport;

/// How long to leave a peer alone that cannot be reached.
const BACKOFF: &str = "20ms 40ms 80ms ...200ms";

/// A node of the cluster. Random, kept in the node's directory; a wiped node comes back under
/// a new one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct NodeId(pub u64);

impl From<u64> for NodeId {
    fn from(id: u64) -> NodeId {
        NodeId(id)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As in every file and table: what is said of a node can be looked for everywhere.
        write!(f, "{:016x}", self.0)
    }
}

/// What [`crate::Groups::open`] needs.
#[derive(Clone)]
pub struct NodeConfig {
    /// This node.
    pub node: NodeId,
    /// Where the log (`log/`) and the snapshots (`snapshot/`) lie.
    pub dir: PathBuf,
    /// What the log and the snapshots are written through.
    pub disk: Arc<dyn Disk>,
    /// What carries frames to the other nodes.
    pub transport: Arc<dyn Transport>,
    /// Where the groups' states stand that are kept here: the log must hold that much.
    pub states: Vec<(GroupId, Mark)>,
    /// Limits.
    pub tuning: Tuning,
}

/// Limits of Raft on this node.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How often a leader shows itself to its followers.
    pub heartbeat: Duration,
    /// The shortest time without a leader after which a follower stands for election.
    pub election_min: Duration,
    /// The longest such time; also a leader's lease.
    pub election_max: Duration,
    /// Whether a follower first asks if it could win, before it raises the term.
    pub pre_vote: bool,
    /// How long a read waits for its quorum.
    pub read_timeout: Duration,
    /// How long a proposal waits before its outcome is reported as unknown.
    pub propose_timeout: Duration,
    /// Bytes of proposals of one group under way; more have to wait.
    pub proposed_bytes_max: usize,
    /// A snapshot is taken when the log since the last one is larger than this and than the state.
    pub snapshot_log_bytes_min: u64,
    /// How often the log's size is looked at.
    pub snapshot_check: Duration,
    /// Entries kept behind a snapshot for followers that lag a little.
    pub entries_kept_behind_snapshot: u64,
    /// Entry bytes read at once for replication or apply. All that Raft's runtime does waits while as many are
    /// encoded or taken in.
    pub read_bytes_max: usize,
    /// Entries in one replication request.
    pub request_entries_max: u64,
    /// Bytes of a snapshot sent in one frame.
    pub snapshot_frame_bytes: usize,
    /// How far a learner may be behind when it becomes a voter.
    pub voter_lag_entries_max: u64,
    /// Bytes of log, over all groups, that are kept behind snapshots for followers that lack them;
    /// beyond that they get a snapshot.
    pub log_held_bytes_max: u64,
    /// How long a follower that is being sent a snapshot may be silent before the transfer is given
    /// up; it goes on where it was when it begins again.
    pub snapshot_patience: Duration,
    /// How often all that lies on the disk is read, to find damage before it matters.
    pub scrub_every: Duration,
    /// How fast that goes.
    pub scrub_bytes_per_second: u64,
    /// Whether a group whose entries, state or snapshot are damaged here is filled anew by its other
    /// nodes. With false it does not start.
    pub refill: bool,
    /// A log that has not completed a sync for this long, with work waiting, gives up leading.
    pub stall_limit: Duration,
    /// Threads of Raft's own runtime. Nothing on them waits for storage.
    pub threads: usize,
    /// A runtime to be used in place of one of its own, which is still the caller's to stop after the
    /// groups: a transport runs there, too, so that no frame has to change threads.
    pub runtime: Option<Handle>,
    /// Where the node's work runs.
    pub execution: Execution,
    /// Called by the threads of Raft and of the replicas that have nothing to do: they may hold
    /// memory that others have freed for them.
    pub on_idle: fn(),
    /// Limits of the node's log.
    pub log: LogConfig,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            heartbeat: Duration::from_millis(300),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(900),
            pre_vote: true,
            read_timeout: Duration::from_millis(900),
            propose_timeout: Duration::from_secs(10),
            proposed_bytes_max: 64 << 20,
            snapshot_log_bytes_min: 64 << 20,
            snapshot_check: Duration::from_secs(1),
            entries_kept_behind_snapshot: 0,
            read_bytes_max: 256 << 10,
            request_entries_max: 4096,
            snapshot_frame_bytes: 1 << 20,
            voter_lag_entries_max: 1024,
            log_held_bytes_max: 512 << 20,
            snapshot_patience: Duration::from_secs(10),
            scrub_every: Duration::from_secs(6 * 3_600),
            scrub_bytes_per_second: 8 << 20,
            refill: true,
            stall_limit: Duration::from_secs(1),
            threads: 1,
            runtime: None,
            execution: Execution::Threads,
            on_idle: || {},
            log: LogConfig::default(),
        }
    }
}

impl Tuning {
    /// Short times for tests on one machine: an election takes about a fifth of a second.
    pub fn quick() -> Tuning {
        Tuning {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            read_timeout: Duration::from_millis(600),
            propose_timeout: Duration::from_secs(3),
            stall_limit: Duration::from_millis(300),
            ..Tuning::default()
        }
    }

    /// The same for openraft.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub(crate) fn to_openraft(&self) -> Result<openraft::Config, RaftError> {
        if self.threads == 0 || self.snapshot_frame_bytes == 0 {
            let reason = "threads and snapshot_frame_bytes must not be 0".to_string();
            return Err(RaftError::Tuning { reason });
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: "piton".to_string(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            enable_pre_vote: Some(self.pre_vote),
            // Every process life has its own term: a restarted leader is elected anew (D4).
            enable_leader_restore: Some(false),
            max_payload_entries: self.request_entries_max,
            // A follower that lacks what it had acknowledged is filled anew. What rests on its word is
            // the business of its vote (`floor`); ending the leader, which has it all, would help nobody.
            allow_log_reversion: Some(true),
            // A leader that no majority answers is silent for so long that the others, who may hear it
            // all the same, elect another one; then it speaks for as long, in case that they could not.
            quorum_loss_probe_interval: Some(millis(silence::turn(self))),
            // Snapshots and purges are ordered by us, by bytes and never beyond a checkpoint (D13).
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // A follower gets a snapshot only if the entries it lacks are purged.
            replication_lag_threshold: u64::MAX,
            backoff: BACKOFF.to_string(),
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| RaftError::Tuning { reason: error.to_string() })
    }
}
