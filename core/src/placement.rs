//! Workflow -> slot. The hash is frozen for ever: every key on disk begins with what it gives
//! (D1). Slot -> shard is the meta group's table, not a matter of this file.

use xxhash_rust::xxh3::Xxh3;

use crate::id::{ShardId, WorkflowKey};

/// How many slots there are. Frozen.
pub const SLOTS: u16 = 16_384;

/// One of [`SLOTS`] hash values; all keys of a workflow begin with its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

/// `xxh3_64(namespace id, 0, workflow id) mod 16384`.
pub fn slot_of(key: &WorkflowKey) -> Slot {
    slot_of_parts(key.namespace.as_str(), key.workflow_id.as_str())
}

/// The slot of anything named within a namespace; a task queue's owner is found by it too.
pub fn slot_of_parts(namespace: &str, name: &str) -> Slot {
    let mut hash = Xxh3::new();
    hash.update(namespace.as_bytes());
    hash.update(&[0]);
    hash.update(name.as_bytes());
    Slot((hash.digest() % u64::from(SLOTS)) as u16)
}

/// The even split of all slots over `shards` shards that a new cluster begins with.
pub fn initial_range(shard: ShardId, shards: u32) -> std::ops::Range<u16> {
    let bound = |n: u32| (u32::from(SLOTS) * n / shards) as u16;
    bound(shard.0)..bound(shard.0 + 1)
}

/// The shard that the initial split gives a slot to.
pub fn initial_shard(slot: Slot, shards: u32) -> ShardId {
    let guess = u32::from(slot.0) * shards / u32::from(SLOTS);
    let shard = (guess..=guess + 1)
        .map(ShardId)
        .find(|&s| s.0 < shards && initial_range(s, shards).contains(&slot.0));
    shard.expect("ranges of neighbours meet, so the slot lies in this one or the next")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_frozen() {
        let slot = |ns: &str, id: &str| slot_of_parts(ns, id).0;
        assert_eq!(
            [slot("", ""), slot("default", "order-1"), slot("a", "b"), slot("ab", "")],
            FROZEN
        );
    }

    /// Changing any of these loses every workflow on disk.
    const FROZEN: [u16; 4] = [11_483, 10_358, 4_945, 16_098];

    #[test]
    fn initial_ranges_tile_all_slots() {
        for shards in [1, 3, 8, 16, 63, 64] {
            for slot in 0..SLOTS {
                let owner = initial_shard(Slot(slot), shards);
                assert!(initial_range(owner, shards).contains(&slot), "{slot} of {shards}");
            }
        }
    }
}
