//! Where a node's work runs: on threads, or all of it in one.
//!
//! A simulation repeats a run from its seed. It can, if nothing but the one runtime decides what
//! comes next, so there no thread is started, and what may block is done in place.

use std::hash::{BuildHasher, RandomState};
use std::io;

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::config::NodeId;
use crate::log::GroupId;

/// Where a node's work runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Execution {
    /// Raft has a runtime of its own; the log's writer, each replica and what may block are on
    /// threads.
    #[default]
    Threads,
    /// Everything runs on the runtime that the groups are opened on, which must have one thread.
    /// The seed stands for what is drawn at random, and must differ between two lives of a node.
    Inline { seed: u64 },
}

impl Execution {
    /// A number that another node, another life of this one or another use would hardly draw.
    pub(crate) fn draw(self, purpose: u64) -> u64 {
        match self {
            Execution::Threads => RandomState::new().hash_one(purpose),
            Execution::Inline { seed } => mix(seed ^ mix(purpose)),
        }
    }
}

/// Splitmix64.
pub(crate) fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Does what may wait for the disk on a storage thread. A runtime of one thread, which is a
/// simulation's or a test's, does it in place.
///
/// # Errors
/// When the work panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// A place at which a simulation may crash the node; nothing otherwise.
pub(crate) fn failpoint(node: NodeId, group: GroupId, point: &'static str) {
    #[cfg(feature = "sim")]
    crate::sim::reached(node, group, point);
    #[cfg(not(feature = "sim"))]
    let _ = (node, group, point);
}
