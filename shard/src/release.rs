//! What this release knows how to read and write, as a feature level.

use std::sync::atomic::{AtomicBool, Ordering};

/// The highest feature level of this release. A release that writes something which older ones cannot
/// read, be it a version of a record, has one more, and writes it in clusters of that level only.
const LEVEL: u32 = 1;

/// Whether this process passes for the release that comes after this one.
static IS_NEXT: AtomicBool = AtomicBool::new(false);

/// The highest feature level that this process knows.
pub fn feature_level() -> u32 {
    LEVEL + u32::from(is_next())
}

/// Makes this process a node of a release with one feature level more, and with a format of entries and a
/// version of a record that this one does not know. Before any node of it starts; there is no way back.
/// For tests of rolling upgrades, which run two releases side by side without building the code twice.
#[doc(hidden)]
pub fn pass_for_next_release() {
    IS_NEXT.store(true, Ordering::Relaxed);
}

pub(crate) fn is_next() -> bool {
    IS_NEXT.load(Ordering::Relaxed)
}
