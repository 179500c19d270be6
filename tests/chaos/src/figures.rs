//! What a run measures: how long shards took no writes, how late timers were meanwhile, and what
//! clients noticed of what was planned.

use std::collections::BTreeMap;

use piton_core::placement::{initial_shard, slot_of_parts};
use piton_proto::enums::EventType;
use piton_proto::history::history_event::Attributes as Event;
use piton_tests::audit::{Broken, Histories, due_ms, time_ms};
use tonic::Code;

use crate::journal::{Brief, Journal, Outcome, Probe, Requested};
use crate::kinds::Kind;
use crate::nemesis::Fault;
use crate::storm;

/// Long polls, which say nothing of latency.
pub(crate) const HELD: &[&str] = &["poll-workflow-task", "poll-activity-task"];

pub(crate) fn at_share(sorted: &[u64], share: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

/// p50, p99 and the longest, as cells of a table.
pub(crate) fn spread(sorted: &[u64]) -> String {
    let longest = sorted.last().copied().unwrap_or_default();
    format!("{} | {} | {longest}", at_share(sorted, 0.5), at_share(sorted, 0.99))
}

/// The time for which a shard took no write.
struct Gap {
    kind: Kind,
    shard: u32,
    from_us: u64,
    to_us: u64,
}

/// For each shard of a node that was hit, from the fault to the first answer to a write that was sent
/// after it.
fn gaps(faults: &[Fault], probes: &[Probe]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    for fault in faults.iter().filter(|fault| fault.kind.fails_over()) {
        for shard in &fault.led {
            let after = probes.iter().filter(|p| p.shard == *shard && p.from_us >= fault.from_us);
            if let Some(to_us) = after.map(|probe| probe.to_us).min() {
                let (kind, from_us) = (fault.kind, fault.from_us);
                gaps.push(Gap { kind, shard: *shard, from_us, to_us });
            }
        }
    }
    gaps
}

type ByKind = BTreeMap<Kind, Vec<u64>>;

fn sorted(mut by_kind: ByKind) -> ByKind {
    by_kind.values_mut().for_each(|times| times.sort_unstable());
    by_kind
}

/// How long each shard of a node that was hit took no write, in ms.
pub(crate) fn failovers(faults: &[Fault], probes: &[Probe]) -> ByKind {
    let mut by_kind = ByKind::new();
    for gap in gaps(faults, probes) {
        by_kind.entry(gap.kind).or_default().push((gap.to_us - gap.from_us) / 1_000);
    }
    sorted(by_kind)
}

/// Where a workflow is.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) namespace_id: String,
    pub(crate) shards: u32,
}

impl Placement {
    pub(crate) fn shard_of(&self, workflow_id: &str) -> u32 {
        initial_shard(slot_of_parts(&self.namespace_id, workflow_id), self.shards).0
    }
}

/// A timer that fired: its workflow, when it was due, and how much later it fired.
fn timers(histories: &Histories) -> Vec<(&str, i64, u64)> {
    let mut timers = Vec::new();
    for ((workflow_id, _), events) in histories {
        let due: BTreeMap<i64, i64> =
            events.iter().filter_map(|event| Some((event.event_id, due_ms(event)?))).collect();
        for event in events {
            if let Some(Event::TimerFiredEventAttributes(fired)) = &event.attributes
                && let Some(due) = due.get(&fired.started_event_id)
            {
                timers.push((workflow_id.as_str(), *due, (time_ms(event) - due).max(0) as u64));
            }
        }
    }
    timers
}

/// How late timers were that came due while their shard took no write, in ms.
pub(crate) fn late_timers(
    faults: &[Fault],
    journal: &Journal,
    histories: &Histories,
    placement: &Placement,
) -> ByKind {
    let mut by_kind = ByKind::new();
    let gaps = gaps(faults, &journal.probes());
    for (workflow_id, due, late) in timers(histories) {
        let shard = placement.shard_of(workflow_id);
        let is_in = |gap: &&Gap| {
            let span = journal.unix_ms(gap.from_us)..=journal.unix_ms(gap.to_us);
            gap.shard == shard && span.contains(&due)
        };
        if let Some(gap) = gaps.iter().find(is_in) {
            by_kind.entry(gap.kind).or_default().push(late);
        }
    }
    sorted(by_kind)
}

/// The same for the timers of storms.
pub(crate) fn late_in_storms(histories: &Histories) -> Vec<u64> {
    let timers = timers(histories).into_iter();
    let mut late: Vec<u64> =
        timers.filter(|(id, ..)| id.starts_with(storm::NAME)).map(|(.., late)| late).collect();
    late.sort_unstable();
    late
}

/// What clients noticed while something that was planned went on.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Noticed {
    pub(crate) times: usize,
    /// How long requests took that were under way, with all their tries, in ms.
    pub(crate) requests: Vec<u64>,
    /// Those that no try answered.
    pub(crate) given_up: usize,
    /// Tries that were answered with UNAVAILABLE, as clients expect.
    pub(crate) sent_again: usize,
    /// Tries that ended otherwise without an answer.
    pub(crate) failed: usize,
}

pub(crate) fn noticed(
    faults: &[Fault],
    requests: &[Requested],
    calls: &[Brief],
) -> BTreeMap<Kind, Noticed> {
    let mut by_kind: BTreeMap<Kind, Noticed> = BTreeMap::new();
    for fault in faults.iter().filter(|fault| fault.kind.is_planned()) {
        let is_in = |from: u64, to: u64| from < fault.ready_us && to > fault.from_us;
        let noticed = by_kind.entry(fault.kind).or_default();
        noticed.times += 1;
        for request in requests.iter().filter(|r| is_in(r.from_us, r.to_us)) {
            noticed.requests.push((request.to_us - request.from_us) / 1_000);
            noticed.given_up += usize::from(!request.is_answered);
        }
        let without_answer = |call: &&Brief| call.outcome == Outcome::Unknown;
        let is_short = |call: &&Brief| !HELD.contains(&call.call);
        for call in calls.iter().filter(without_answer).filter(is_short) {
            if is_in(call.from_us, call.to_us) {
                match call.code {
                    Code::Unavailable => noticed.sent_again += 1,
                    _ => noticed.failed += 1,
                }
            }
        }
    }
    by_kind.values_mut().for_each(|noticed| noticed.requests.sort_unstable());
    by_kind
}

/// What clients noticed of a node that caught up.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CaughtUp {
    /// How long it took until the cluster was whole, in ms.
    pub(crate) took: Vec<u64>,
    /// How long requests took, with all their tries, that were sent shortly before it went away, in ms.
    pub(crate) before: Vec<u64>,
    /// The same shortly before it came back.
    pub(crate) without: Vec<u64>,
    /// The same from then on until the cluster was whole.
    pub(crate) meanwhile: Vec<u64>,
}

/// What is compared with the time in which a node catches up.
const BEFORE_US: u64 = 30_000_000;

pub(crate) fn caught_up(faults: &[Fault], requests: &[Requested]) -> BTreeMap<Kind, CaughtUp> {
    let mut by_kind: BTreeMap<Kind, CaughtUp> = BTreeMap::new();
    for fault in faults {
        let Some(back_us) = fault.back_us else { continue };
        let caught_up = by_kind.entry(fault.kind).or_default();
        caught_up.took.push(fault.ready_us.saturating_sub(back_us) / 1_000);
        for request in requests {
            let millis = (request.to_us - request.from_us) / 1_000;
            let is_before =
                |end_us: u64| (end_us.saturating_sub(BEFORE_US)..end_us).contains(&request.from_us);
            if is_before(fault.from_us) {
                caught_up.before.push(millis);
            } else if is_before(back_us) && request.from_us > fault.from_us {
                caught_up.without.push(millis);
            } else if (back_us..fault.ready_us).contains(&request.from_us) {
                caught_up.meanwhile.push(millis);
            }
        }
    }
    for caught_up in by_kind.values_mut() {
        let CaughtUp { took, before, without, meanwhile } = caught_up;
        [took, before, without, meanwhile].into_iter().for_each(|times| times.sort_unstable());
    }
    by_kind
}

/// Tasks that nobody answered, though every worker answers what it is given.
pub(crate) fn lost_tasks(histories: &Histories) -> Vec<Broken> {
    let mut lost = Vec::new();
    for (run, events) in histories {
        for event in events {
            let what = match event.attributes.as_ref() {
                Some(Event::ActivityTaskStartedEventAttributes(started)) => {
                    (started.attempt > 1).then_some("an attempt of an activity")
                }
                _ if event.event_type() == EventType::WorkflowTaskTimedOut => {
                    Some("a workflow task")
                }
                _ if event.event_type() == EventType::ActivityTaskTimedOut => Some("an activity"),
                _ => None,
            };
            if let Some(what) = what {
                lost.push(Broken::at(run, event.event_id, format!("{what} was lost")));
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: Kind) -> Fault {
        Fault {
            kind,
            node: 0,
            from_us: 1_000_000,
            to_us: 2_000_000,
            back_us: None,
            ready_us: 3_000_000,
            led: vec![1],
            in_flight: 1,
        }
    }

    #[test]
    fn a_failover_ends_with_the_first_answer_to_what_was_sent_after_the_fault() {
        let probe = |shard, from_us, to_us| Probe { shard, from_us, to_us };
        let probes = [
            probe(1, 900_000, 1_010_000),
            probe(2, 1_000_000, 1_020_000),
            probe(1, 1_100_000, 1_700_000),
            probe(1, 1_200_000, 1_600_000),
        ];
        assert_eq!(failovers(&[fault(Kind::Kill)], &probes)[&Kind::Kill], [600]);
    }

    #[test]
    fn a_node_catches_up_from_when_it_is_back_until_all_is_whole() {
        let away = Fault { back_us: Some(2_000_000), ..fault(Kind::Away) };
        let request = |from_us, to_us| Requested { from_us, to_us, is_answered: true };
        let requests = [
            request(999_000, 1_002_000),
            request(1_999_000, 2_001_000),
            request(2_000_000, 2_005_000),
            request(2_900_000, 3_100_000),
            request(3_000_000, 3_001_000),
        ];
        let caught_up = caught_up(&[away, fault(Kind::Kill)], &requests);
        let expected = CaughtUp {
            took: vec![1_000],
            before: vec![3],
            without: vec![2],
            meanwhile: vec![5, 200],
        };
        assert_eq!(caught_up, BTreeMap::from([(Kind::Away, expected)]));
    }

    #[test]
    fn what_is_sent_again_and_answered_did_not_fail() {
        let request = |from_us, to_us| Requested { from_us, to_us, is_answered: true };
        let requests = [request(900_000, 1_100_000), request(3_100_000, 3_200_000)];
        let call = |call, code| Brief {
            from_us: 1_500_000,
            to_us: 1_600_000,
            call,
            outcome: Outcome::Unknown,
            code,
        };
        let calls = [
            call("signal", Code::Unavailable),
            call("signal", Code::DeadlineExceeded),
            call("poll-workflow-task", Code::DeadlineExceeded),
        ];
        let noticed = noticed(&[fault(Kind::Restart), fault(Kind::Kill)], &requests, &calls);
        let restart =
            Noticed { times: 1, requests: vec![200], given_up: 0, sent_again: 1, failed: 1 };
        assert_eq!(noticed, BTreeMap::from([(Kind::Restart, restart)]));
    }
}
