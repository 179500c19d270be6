//! The run's random numbers. All follow from its seed.

use std::sync::Arc;

use parking_lot::Mutex;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Splitmix64.
pub(crate) fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(STEP);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Random numbers by splitmix64. Clones draw from the same sequence.
#[derive(Clone)]
pub(crate) struct Chance {
    state: Arc<Mutex<u64>>,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(seed)) }
    }

    /// A sequence of its own, which begins where this one stands.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.state.lock();
        let drawn = mix(*state);
        *state = state.wrapping_add(STEP);
        drawn
    }

    /// A number from `0..end`.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A number from `from..end`.
    pub(crate) fn between(&self, from: u64, end: u64) -> u64 {
        from + self.below(end - from)
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
