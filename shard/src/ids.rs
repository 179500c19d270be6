//! The one source of random ids: run ids, a namespace's id, where poll numbers begin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// Draws ids. Clones draw from the same source.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    /// `None`: from the system.
    seed: Option<Arc<AtomicU64>>,
}

impl Ids {
    /// Ids that nobody else draws.
    pub fn random() -> Self {
        Self::default()
    }

    /// The same ids for the same seed, for simulation. Two lives of a node must not share a seed.
    pub fn seeded(seed: u64) -> Self {
        // Mixed, since seeds that are a step apart would draw the same ids, one after the other.
        Self { seed: Some(Arc::new(AtomicU64::new(mix(seed)))) }
    }

    /// An id for something of which there will be many: later ones sort later.
    pub(crate) fn draw_in_order(&self) -> Uuid {
        if self.seed.is_some() { self.draw() } else { Uuid::now_v7() }
    }

    pub(crate) fn draw(&self) -> Uuid {
        match &self.seed {
            Some(state) => {
                let drawn = u128::from(next(state)) << 64 | u128::from(next(state));
                uuid::Builder::from_random_bytes(drawn.to_be_bytes()).into_uuid()
            }
            None => Uuid::new_v4(),
        }
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Splitmix64.
fn next(state: &AtomicU64) -> u64 {
    mix(state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
}

fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_ids_and_draws_none_twice() {
        let draw = |seed| {
            let ids = Ids::seeded(seed);
            (0..100).map(|_| ids.draw()).collect::<Vec<_>>()
        };
        let mut drawn = draw(1);
        assert_eq!(drawn, draw(1));
        drawn.extend(draw(1_u64.wrapping_add(STEP)));
        drawn.sort();
        drawn.dedup();
        assert_eq!(drawn.len(), 200);
    }
}
