//! What a run does beside what clients see: who led which term, how far clocks are apart, when there
//! were faults, and what of the machinery was at work.

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
    /// The least and the most that a node's clock was off when its life began.
    clocks: (i64, i64),
    /// From when to when there were faults.
    troubles: Vec<(u64, u64)>,
    stores_discarded: u64,
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

    pub(crate) fn clock_taken(&self, off_ms: i64) {
        let clocks = &mut self.seen.lock().clocks;
        *clocks = (clocks.0.min(off_ms), clocks.1.max(off_ms));
    }

    /// How far two clocks may be apart.
    pub(crate) fn clocks_apart_ms(&self) -> i64 {
        let (least, most) = self.seen.lock().clocks;
        most - least
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
