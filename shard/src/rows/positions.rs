//! Positions of entities that were read or moved lately, so that an entry can be checked without
//! the store. Bounded, and never the truth: what is not known here is read.
//!
//! INVARIANT: what is known here is what the applied log says. Only the replica moves a position,
//! and says so here each time; and a reader who was overtaken by it teaches nothing: either the
//! moved position is known, or something was forgotten since the reader began.

use std::collections::HashMap;

use parking_lot::Mutex;
use piton_core::id::Position;

use crate::rows::EntityKey;

/// Entities of one shard that are remembered, once in the young and once in the old half.
const HALF_MAX: usize = 2_048;

/// One shard's positions that are known.
#[derive(Default)]
pub(crate) struct Positions {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    young: HashMap<EntityKey, Position>,
    /// Forgotten when the young are enough to take their place.
    old: HashMap<EntityKey, Position>,
    /// How often something was forgotten.
    forgotten: u64,
}

/// What a reader holds from before it reads until it tells what it has read.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    forgotten: u64,
}

impl Positions {
    pub(crate) fn get(&self, key: &EntityKey) -> Option<Position> {
        self.known.lock().get(key)
    }

    /// To be called before a position is read that [`Self::learn`] is to be told.
    pub(crate) fn begin_reading(&self) -> Reading {
        Reading { forgotten: self.known.lock().forgotten }
    }

    /// Takes in what was read, unless it may have moved since.
    pub(crate) fn learn(&self, key: &EntityKey, position: Position, since: Reading) {
        let mut known = self.known.lock();
        if known.forgotten == since.forgotten && known.get(key).is_none() {
            known.put(key.clone(), position);
        }
    }

    /// Takes in what the replica has applied.
    pub(crate) fn moved(&self, positions: impl IntoIterator<Item = (EntityKey, Position)>) {
        let mut known = self.known.lock();
        for (key, position) in positions {
            known.put(key, position);
        }
    }

    /// All rows are others now.
    pub(crate) fn clear(&self) {
        let mut known = self.known.lock();
        *known = Known { forgotten: known.forgotten + 1, ..Known::default() };
    }
}

impl Known {
    fn get(&self, key: &EntityKey) -> Option<Position> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    fn put(&mut self, key: EntityKey, position: Position) {
        self.young.insert(key, position);
        if self.young.len() >= HALF_MAX {
            self.old = std::mem::take(&mut self.young);
            self.forgotten += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piton_core::id::WorkflowKey;

    fn key(id: &str) -> EntityKey {
        WorkflowKey { namespace: "n".into(), workflow_id: id.into() }.into()
    }

    #[test]
    fn who_reads_while_a_position_moves_does_not_take_it_back() {
        let positions = Positions::default();
        let reading = positions.begin_reading();
        positions.moved([(key("a"), Position(2))]);
        positions.learn(&key("a"), Position(1), reading);
        assert_eq!(positions.get(&key("a")), Some(Position(2)));
    }

    #[test]
    fn who_reads_while_a_moved_position_is_forgotten_teaches_nothing() {
        let positions = Positions::default();
        let reading = positions.begin_reading();
        positions.moved([(key("a"), Position(2))]);
        let others = (0..2 * HALF_MAX).map(|n| (key(&format!("other-{n}")), Position(1)));
        positions.moved(others);
        assert_eq!(positions.get(&key("a")), None);
        positions.learn(&key("a"), Position(1), reading);
        assert_eq!(positions.get(&key("a")), None);
        positions.learn(&key("a"), Position(2), positions.begin_reading());
        assert_eq!(positions.get(&key("a")), Some(Position(2)));
    }

    #[test]
    fn what_was_read_before_a_restore_is_not_taken_in() {
        let positions = Positions::default();
        positions.moved([(key("a"), Position(7))]);
        let reading = positions.begin_reading();
        positions.clear();
        assert_eq!(positions.get(&key("a")), None);
        positions.learn(&key("a"), Position(7), reading);
        assert_eq!(positions.get(&key("a")), None);
    }

    #[test]
    fn no_more_than_two_halves_are_known() {
        let positions = Positions::default();
        positions.moved((0..10 * HALF_MAX).map(|n| (key(&n.to_string()), Position(1))));
        let known = positions.known.lock();
        assert!(known.young.len() + known.old.len() <= 2 * HALF_MAX);
    }
}
