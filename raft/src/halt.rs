//! Groups that cannot go on here: their replica met what it cannot go past, an entry of a newer release
//! say. A start anew of the same release would meet it again, so the group is left where it is, and the
//! node goes on with the others.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use piton_store::with_causes;
use tokio::sync::watch;

use crate::error::ReplicaError;
use crate::log::GroupId;

/// Why each group that has halted on this node did.
pub(crate) type Halts = watch::Sender<BTreeMap<GroupId, String>>;

/// What one replica met that it cannot go past. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Halt(Arc<OnceLock<String>>);

impl Halt {
    /// Notes the first error of the replica, and hands it on.
    pub(crate) fn note(&self, error: ReplicaError) -> ReplicaError {
        self.0.get_or_init(|| with_causes(&error));
        error
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Tells of it, if there is something to tell.
    pub(crate) fn tell(&self, group: GroupId, halts: &Halts) -> bool {
        let Some(reason) = self.reason() else { return false };
        tracing::error!(%group, reason, "group has stopped on this node, which goes on without it");
        halts.send_modify(|halts| {
            halts.insert(group, reason.to_owned());
        });
        true
    }
}
