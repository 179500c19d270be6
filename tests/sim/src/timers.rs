//! The auditor's rule A5: a timer fires once, and in time.

use std::collections::BTreeMap;

use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;

use crate::auditor::{Run, closing, time_ms};
use crate::ledger::Ledger;
use crate::world::{WALL_MS, World};

/// A timer that is due wakes its run within this time of a cluster without faults. A worker that was
/// killed with the run's task holds it up by the task's timeout.
const LATE_MS_MAX: i64 = 5_000;
/// So long after a fault a cluster may still be looking for its leaders.
const RECOVERY_MS: i64 = 3_000;
/// By so much a timer may be early across a failover, beyond what clocks are apart.
const EARLY_MS_MAX: i64 = 500;

/// By the times in a history, which are those of the leaders' clocks.
pub(crate) fn check(run: &Run, events: &[HistoryEvent], world: &World, broken: &mut Vec<String>) {
    let mut due = BTreeMap::new();
    for event in events {
        match event.attributes.as_ref() {
            Some(Event::TimerStartedEventAttributes(timer)) => {
                let span = timer.start_to_fire_timeout.unwrap_or_default();
                let span = span.seconds * 1_000 + i64::from(span.nanos) / 1_000_000;
                due.insert(event.event_id, time_ms(event) + span);
            }
            Some(Event::TimerFiredEventAttributes(timer)) => {
                let fired = time_ms(event);
                match due.remove(&timer.started_event_id) {
                    None => broken.push(format!("A5: {run:?}: a timer fired twice")),
                    Some(due) if fired < due => {
                        let early = due - fired;
                        broken.push(format!("A5: {run:?}: a timer fired {early} ms early"));
                    }
                    Some(due) => {
                        let late = healthy_ms(world, due - WALL_MS, fired - WALL_MS);
                        if late > LATE_MS_MAX {
                            broken.push(format!("A5: {run:?}: a timer fired {late} ms late"));
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let now = world.trace().now_ms() as i64;
    for due in due.into_values().filter(|_| closing(events).is_none()) {
        let late = healthy_ms(world, due - WALL_MS, now);
        if late > LATE_MS_MAX {
            broken.push(format!("A5: {run:?}: a timer that is due for {late} ms has not fired"));
        }
    }
}

/// By the time that passed in the world: from before the timer was asked for until it was seen.
pub(crate) fn check_seen(ledger: &Ledger, world: &World, broken: &mut Vec<String>) {
    let may_be_early = EARLY_MS_MAX + world.witness().clocks_apart_ms();
    for (run_id, timed) in ledger.timed() {
        let Some(seen_ms) = timed.seen_ms else { continue };
        let early = (timed.asked_ms + timed.span_ms) as i64 - seen_ms as i64;
        if early > may_be_early {
            broken.push(format!("A5: {run_id}: a timer was seen fired {early} ms early"));
        }
    }
}

/// How much of a time was without faults and what follows from them.
fn healthy_ms(world: &World, from: i64, to: i64) -> i64 {
    let apart = world.witness().clocks_apart_ms();
    let mut healthy = 0;
    let mut at = from;
    // Troubles follow one another, so that what lies between two of them was without.
    for (began, ended) in world.witness().troubles() {
        let (began, ended) = (began as i64 - apart, ended as i64 + apart + RECOVERY_MS);
        healthy += (began.min(to) - at).max(0);
        at = at.max(ended);
    }
    healthy + (to - at).max(0)
}
