//! One Raft group per shard, many groups per node: replicates opaque bytes in one order and applies
//! them to a [`Replica`]. Step 4 of the way of a request: propose, sync once for many groups, commit.
//!
//! This crate knows bytes, not workflows, and is the only one that names openraft. It never decides
//! what an entry means, never reads the state that a replica keeps, and never answers before an
//! entry is committed and applied here.
//!
//! Read in this order: `replica` (what entries are applied to), `groups` (starting, and what
//! survives a restart), `group` (propose, read, lead), `members` (who belongs
//! to a group), `log_store` and `state_machine` (what openraft
//! asks for), `network`, `switch` and `frame` (what goes between nodes), `snapshot` (files),
//! `purge` (how far the log goes), `takeover` (a leader that is gone), `hand_over` (one that
//! is to be another one), `floor` (a replica that was
//! forgotten and begins anew).

pub mod log;

mod config;
mod error;
mod execution;
mod fit;
mod floor;
mod frame;
#[cfg(test)]
mod frame_tests;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod groups;
mod halt;
mod hand_over;
mod log_store;
mod members;
mod memory_network;
mod network;
mod purge;
mod replica;
mod replica_thread;
mod rounds;
mod runtime;
mod scrub;
mod silence;
#[cfg(feature = "sim")]
pub mod sim;
mod snapshot;
mod state_machine;
#[cfg(test)]
mod suite_tests;
mod switch;
mod takeover;
mod transport;
mod types;
mod wire;

pub use config::{NodeConfig, NodeId, Tuning};
pub use error::{
    ChangeError, ProposeError, RaftError, ReadError, ReplicaError, SnapshotError, TransportError,
};
pub use execution::Execution;
pub use fit::{Loss, Losses, Misfit, held_alone};
pub use group::{Committed, Group, GroupMetrics, Leadership};
pub use groups::{Groups, LOG_DIRECTORY, SNAPSHOT_DIRECTORY};
pub use log::{Disk, GroupId, Log};
pub use members::{Lag, Members, Removed};
pub use memory_network::MemoryNetwork;
pub use replica::{CommittedEntry, Replica, SnapshotRows};
pub use rounds::{Joined, Rounds};
pub use scrub::DamageStats;
pub use snapshot::SnapshotStats;
pub use transport::{Inbox, Lane, Transport};
