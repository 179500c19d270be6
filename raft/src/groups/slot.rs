//! One group is started, stopped or forgotten by one caller at a time.

use std::sync::Arc;

use super::Inner;
use crate::group::Group;
use crate::log::GroupId;

/// Keeps others from starting, stopping or forgetting a group meanwhile; given back when dropped.
pub(super) struct Slot {
    pub(super) inner: Arc<Inner>,
    group: GroupId,
}

impl Inner {
    /// `None`: the group runs, or somebody has its slot.
    pub(super) fn take_slot(self: &Arc<Self>, group: GroupId) -> Option<Slot> {
        let mut groups = self.groups.lock();
        if groups.contains_key(&group) {
            return None;
        }
        groups.insert(group, None);
        Some(Slot { inner: Arc::clone(self), group })
    }

    /// Takes the group that runs out of its slot, for its end: nobody may start it before that.
    pub(super) fn take_running(self: &Arc<Self>, group: GroupId) -> Option<(Group, Slot)> {
        let running = self.groups.lock().get_mut(&group)?.take()?;
        Some((running, Slot { inner: Arc::clone(self), group }))
    }
}

impl Slot {
    /// From now on the group runs.
    pub(super) fn fill(&self, started: Group) {
        self.inner.groups.lock().insert(self.group, Some(started));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut groups = self.inner.groups.lock();
        if groups.get(&self.group).is_some_and(Option::is_none) {
            groups.remove(&self.group);
        }
    }
}
