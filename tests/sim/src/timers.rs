//! The auditor's rule A5: a timer fires once, and in time.

use piton_tests::audit::{Broken, Histories, check_timers};

use crate::ledger::Ledger;
use crate::world::{WALL_MS, World};

/// A timer that is due wakes its run within this time of a cluster without faults. A worker that was
/// killed with the run's task holds it up by the task's timeout.
const LATE_MS_MAX: i64 = 5_000;
/// So long after a fault a cluster may still be looking for its leaders.
const RECOVERY_MS: i64 = 3_000;
/// By so much a timer may be early across a failover (P4): a clock that is off by more is relied on by
/// nobody.
const EARLY_MS_MAX: i64 = 500;
/// Clocks that are relied on are apart by no more.
const APART_MS_MAX: i64 = 500;

/// By the times in histories, which are those of the leaders' clocks.
pub(crate) fn check(histories: &Histories, world: &World, broken: &mut Vec<Broken>) {
    let healthy = |from, to| healthy_ms(world, from - WALL_MS, to - WALL_MS);
    check_timers(histories, LATE_MS_MAX, &healthy, broken);
}

/// By the time that passed in the world: from before the timer was asked for until it was seen.
pub(crate) fn check_seen(ledger: &Ledger, broken: &mut Vec<Broken>) {
    for (run_id, timed) in ledger.timed() {
        let Some(seen_ms) = timed.seen_ms else { continue };
        let early = (timed.asked_ms + timed.span_ms) as i64 - seen_ms as i64;
        if early > EARLY_MS_MAX {
            let text = format!(
                "A5: {run_id}: a timer of {} ms, asked for at {}, was seen fired {early} ms early",
                timed.span_ms, timed.asked_ms
            );
            broken.push(Broken::new(text));
        }
    }
}

/// How much of a time was without faults and what follows from them.
fn healthy_ms(world: &World, from: i64, to: i64) -> i64 {
    let mut healthy = 0;
    let mut at = from;
    // Troubles follow one another, so that what lies between two of them was without.
    for (began, ended) in world.witness().troubles() {
        let (began, ended) =
            (began as i64 - APART_MS_MAX, ended as i64 + APART_MS_MAX + RECOVERY_MS);
        healthy += (began.min(to) - at).max(0);
        at = at.max(ended);
    }
    healthy + (to - at).max(0)
}
