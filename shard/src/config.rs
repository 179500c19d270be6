//! What a node's shards are tuned by. Limits of the API are in `piton_core::limits`.

use std::time::Duration;

use crate::room::Room;

/// Every bound and interval of this crate.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// How many shards a new cluster begins with.
    pub shards: u32,
    /// How long a workflow's actor stays in memory without a request. Zero: not at all.
    pub idle: Duration,
    /// The same for a workflow whose last run has closed: most are never asked for again.
    pub idle_closed: Duration,
    /// Workflows in memory, over all shards of this node; beyond it the longest unused leave early.
    pub in_memory_max: usize,
    /// Bytes of rows applied but not yet checkpointed, over all shards of this node.
    pub table_bytes: usize,
    /// Time between two checkpoints of a shard with changes; up to five times that where they take long.
    pub checkpoint_interval: Duration,
    /// Requests that may wait for one workflow.
    pub mailbox_len_max: usize,
    /// Tasks that a queue's matching actor holds; the rest stays in the shards' rows.
    pub matching_window: usize,
    /// A sticky queue without a poll for this long has lost its worker.
    pub sticky_poller_max_age: Duration,
    /// A queue without a poll for this long has no worker: a query is refused at once.
    pub poller_max_age: Duration,
    /// How often a queue's owner is told again of a poll that waits.
    pub poll_renewal: Duration,
    /// How long `DescribeTaskQueue` remembers a poller.
    pub poller_memory: Duration,
    /// Due timers are loaded this far ahead.
    pub timer_window: Duration,
    /// Transitions that are gathered into one Raft entry, in bytes.
    pub entry_bytes_max: usize,
    /// First wait before an errand to another workflow is tried again.
    pub errand_retry_min: Duration,
    /// Longest such wait.
    pub errand_retry_max: Duration,
    /// How often runs and request ids whose time is over are deleted.
    pub retention_interval: Duration,
    /// How many of them at once in each shard; the next follow when these are gone.
    pub retention_batch: usize,
    /// How long a request waits for a shard's leader before UNAVAILABLE.
    pub leader_wait: Duration,
    /// A node that has heard of no majority of the cluster for so long expects no leader soon, and has
    /// such a request wait this much only.
    pub cut_off_after: Duration,
    pub cut_off_wait: Duration,
    /// How long what other nodes have to hear, and nothing would repair, is sent again.
    pub insist_wait: Duration,
    /// A leader that has not heard of a majority for so long decides nothing, until it does.
    pub majority_wait: Duration,
    /// How long a call to another node waits for its answer, or longer if its caller says so.
    pub call_wait: Duration,
    /// Pages of history and other short reads for callers that run at once, on all shards of this node.
    pub lookups_max: usize,
    /// Slices of lists and counts that run at once.
    pub scans_max: usize,
    /// Rows that a list or a count reads before it lets others read.
    pub scan_slice_rows: usize,
    /// What is free on the node's disk.
    pub room: Room,
}

impl ShardConfig {
    /// A closed workflow never stays longer than an open one.
    pub(crate) fn idle_closed(&self) -> Duration {
        self.idle_closed.min(self.idle)
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            shards: 16,
            idle: Duration::from_secs(10),
            idle_closed: Duration::from_secs(1),
            in_memory_max: 4_096,
            table_bytes: 64 << 20,
            checkpoint_interval: Duration::from_secs(1),
            mailbox_len_max: 10_000,
            matching_window: 1_000,
            sticky_poller_max_age: Duration::from_secs(10),
            poller_max_age: Duration::from_secs(20),
            poll_renewal: Duration::from_secs(15),
            poller_memory: Duration::from_secs(300),
            timer_window: Duration::from_secs(120),
            entry_bytes_max: 4 << 20,
            errand_retry_min: Duration::from_millis(20),
            errand_retry_max: Duration::from_secs(5),
            retention_interval: Duration::from_secs(10),
            retention_batch: 100,
            leader_wait: Duration::from_millis(2_500),
            cut_off_after: Duration::from_millis(2_000),
            cut_off_wait: Duration::from_millis(200),
            insist_wait: Duration::from_secs(5),
            majority_wait: Duration::from_millis(1_200),
            call_wait: Duration::from_secs(10),
            lookups_max: 4,
            scans_max: scans_max(),
            scan_slice_rows: 1_024,
            room: Room::default(),
        }
    }
}

/// Half of the machine at most: the rest goes on as if nobody scanned.
fn scans_max() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, 4)
}
