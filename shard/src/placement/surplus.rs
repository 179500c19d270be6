//! Replicas on this node that their shards' leaders do not count any more, and how surely.

use std::collections::BTreeMap;
use std::time::Duration;

use piton_core::id::ShardId;
use tokio::time::Instant;

/// A replica is kept for so long after its leader was first heard not to count it: a change that is not
/// committed yet may come to nothing, and then this replica's acknowledgements count.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// What a leader said is believed for so long: it says it anew each second.
const FRESH: Duration = Duration::from_secs(3);
/// How often it has to be said.
const TIMES_MIN: u32 = 3;

/// Since when which replica has been one too many.
#[derive(Default)]
pub(super) struct Surplus(BTreeMap<ShardId, Said>);

/// That a leader does not count a replica.
struct Said {
    first: Instant,
    last: Instant,
    times: u32,
}

impl Surplus {
    pub(super) fn forget(&mut self, shard: ShardId) {
        self.0.remove(&shard);
    }

    /// What the shard's newest leader said last: when it was heard, and whether it leaves this node out.
    /// True: it has been said for long enough, and often, and just now.
    pub(super) fn note(
        &mut self,
        shard: ShardId,
        said: Option<(Instant, bool)>,
        now: Instant,
    ) -> bool {
        let is_fresh = |heard: &Instant| now.duration_since(*heard) < FRESH;
        let out = said.filter(|(_, is_out)| *is_out).map(|(heard, _)| heard).filter(is_fresh);
        let Some(heard) = out else {
            self.forget(shard);
            return false;
        };
        let said = self.0.entry(shard).or_insert(Said { first: heard, last: heard, times: 1 });
        if heard > said.last {
            (said.last, said.times) = (heard, said.times + 1);
        }
        said.times >= TIMES_MIN && said.last - said.first >= KEPT_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_said_again_and_again_is_believed() {
        let (mut surplus, begin) = (Surplus::default(), Instant::now());
        for second in 0..10 {
            let now = begin + second * SECOND;
            assert!(!surplus.note(SHARD, Some((now, true)), now));
        }
        assert!(surplus.note(SHARD, Some((begin + KEPT_FOR, true)), begin + KEPT_FOR));
    }

    #[test]
    fn what_is_old_is_worth_nothing() {
        let (mut surplus, begin) = (Surplus::default(), Instant::now());
        for second in 0..100 {
            let heard = begin + second * SECOND;
            assert!(!surplus.note(SHARD, Some((heard, true)), heard + FRESH));
        }
    }

    #[test]
    fn two_sightings_are_too_few_and_one_is_counted_once() {
        let (mut surplus, begin) = (Surplus::default(), Instant::now());
        assert!(!surplus.note(SHARD, Some((begin, true)), begin));
        let later = begin + 100 * SECOND;
        for _ in 0..100 {
            assert!(!surplus.note(SHARD, Some((later, true)), later));
        }
    }

    #[test]
    fn whoever_is_counted_again_is_kept_as_long_as_ever() {
        let (mut surplus, begin) = (Surplus::default(), Instant::now());
        for second in 0..100 {
            let now = begin + second * SECOND;
            let is_out = second % 9 != 0;
            assert!(!surplus.note(SHARD, Some((now, is_out)), now));
        }
        assert!(!surplus.note(SHARD, None, begin + 100 * SECOND));
    }
}
