//! All groups on this node: start, stop, one log and one connection per peer for all of them.

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::config::{NodeConfig, NodeId};
use crate::error::RaftError;
use crate::group::Group;
use crate::log::{GroupId, Log};
use crate::replica::Replica;

/// All groups of this node.
#[derive(Clone)]
pub struct Groups {}

impl Groups {
    /// Opens the node's log; no group runs yet. Blocks while the log is recovered.
    ///
    /// # Errors
    /// When the log cannot be opened or the tuning contradicts itself.
    pub fn open(config: NodeConfig) -> Result<Groups, RaftError> {
        config.tuning.check()?;
        unimplemented!()
    }

    /// Starts the group's replica here. `members` initialises a group that has no log yet: the
    /// same set on every member.
    ///
    /// # Errors
    /// When the log, the snapshot or the replica cannot be used.
    pub async fn start(
        &self,
        group: GroupId,
        members: &BTreeSet<NodeId>,
        replica: Box<dyn Replica>,
    ) -> Result<Group, RaftError> {
        let _ = (group, members, replica);
        unimplemented!()
    }

    /// Stops all groups and then the log.
    pub async fn shutdown(&self) {
        unimplemented!()
    }

    /// Becomes `Some` when the log can no longer sync: nothing is acknowledged any more, and the
    /// node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        unimplemented!()
    }

    /// The node's log: the synced index that bounds checkpoints, and its figures.
    pub fn log(&self) -> &Log {
        unimplemented!()
    }
}
