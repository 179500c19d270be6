//! What a run does beside what clients see: who led which term, when there were faults, and what of the
//! machinery was at work.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use piton_raft::{GroupId, NodeId};

/// Notes what is seen. The world has one.
#[derive(Default)]
pub(crate) struct Witness {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    leaders: BTreeMap<(GroupId, u64), NodeId>,
    broken: Vec<String>,
    /// From when to when there were faults.
    troubles: Vec<(u64, u64)>,
    stores_discarded: u64,
    /// How often what else came about.
    counts: BTreeMap<&'static str, u64>,
}

impl Witness {
    /// A node takes another one, or itself, for the leader of a term. A term has one (A11).
    pub(crate) fn leads(&self, group: GroupId, term: u64, leader: Option<NodeId>) {
        let Some(leader) = leader else { return };
        let mut seen = self.seen.lock();
        let first = *seen.leaders.entry((group, term)).or_insert(leader);
        if first != leader {
            let text =
                format!("A11: group {group} has two leaders in term {term}: {first}, {leader}");
            seen.broken.push(text);
        }
    }

    /// In how many terms, of all groups, somebody led.
    pub(crate) fn terms(&self) -> usize {
        self.seen.lock().leaders.len()
    }

    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = self.seen.lock().broken.clone();
        broken.dedup();
        broken
    }

    /// Something that was seen to be wrong at once.
    pub(crate) fn broke(&self, what: String) {
        self.seen.lock().broken.push(what);
    }

    /// It has come about once more.
    pub(crate) fn count(&self, what: &'static str) {
        *self.seen.lock().counts.entry(what).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.seen.lock().counts.clone()
    }

    pub(crate) fn trouble(&self, from_ms: u64, to_ms: u64) {
        self.seen.lock().troubles.push((from_ms, to_ms));
    }

    pub(crate) fn troubles(&self) -> Vec<(u64, u64)> {
        self.seen.lock().troubles.clone()
    }

    pub(crate) fn store_discarded(&self) {
        self.seen.lock().stores_discarded += 1;
    }

    pub(crate) fn stores_discarded(&self) -> u64 {
        self.seen.lock().stores_discarded
    }
}
