//! What a run leaves: numbers in Markdown, and the time line beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use piton_tests::audit::{Broken, CLOSING, Histories};

use crate::chart;
use crate::journal::{Journal, Outcome, Probe};
use crate::nemesis::{Fault, Kind};
use crate::registers::Checked;

/// Long polls, which say nothing of latency.
const HELD: &[&str] = &["poll-workflow-task", "poll-activity-task"];

pub(crate) struct Run<'a> {
    /// What was asked for.
    pub(crate) title: String,
    pub(crate) journal: &'a Journal,
    pub(crate) faults: &'a [Fault],
    pub(crate) histories: &'a Histories,
    pub(crate) registers: Checked,
    pub(crate) broken: &'a [Broken],
}

/// How long each shard of the node that was hit took no write.
pub(crate) fn failovers(faults: &[Fault], probes: &[Probe]) -> BTreeMap<Kind, Vec<u64>> {
    let mut by_kind: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
    for fault in faults.iter().filter(|fault| fault.kind.fails_over()) {
        for shard in &fault.led {
            let after = probes.iter().filter(|p| p.shard == *shard && p.from_us >= fault.from_us);
            if let Some(first) = after.map(|probe| probe.to_us).min() {
                by_kind.entry(fault.kind).or_default().push((first - fault.from_us) / 1_000);
            }
        }
    }
    by_kind.values_mut().for_each(|times| times.sort_unstable());
    by_kind
}

fn at_share(sorted: &[u64], share: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

impl Run<'_> {
    pub(crate) fn write(&self, directory: &Path) -> Result<String> {
        let mut text = format!("# {}\n\n", self.title);
        match self.broken.len() {
            0 => text += "No violation.\n",
            count => writeln!(text, "{count} violations.")?,
        }
        text += "\n![time line](timeline.svg)\n\n";
        self.faults(&mut text)?;
        self.failover(&mut text)?;
        self.calls(&mut text)?;
        self.audited(&mut text)?;
        fs::write(directory.join("report.md"), &text)?;
        let svg = chart::timeline(&self.journal.calls(), self.faults, HELD);
        fs::write(directory.join("timeline.svg"), svg)?;
        Ok(text)
    }

    fn faults(&self, text: &mut String) -> Result<()> {
        *text += "## Faults\n\n| Fault | Times | While calls were in flight | Shards led by the node hit |\n";
        *text += "|---|---:|---:|---:|\n";
        let kinds: BTreeSet<Kind> = self.faults.iter().map(|fault| fault.kind).collect();
        for kind in kinds {
            let of: Vec<_> = self.faults.iter().filter(|fault| fault.kind == kind).collect();
            let hit = of.iter().filter(|fault| fault.in_flight > 0).count();
            let led: usize = of.iter().map(|fault| fault.led.len()).sum();
            writeln!(text, "| {kind} | {} | {hit} | {led} |", of.len())?;
        }
        Ok(())
    }

    fn failover(&self, text: &mut String) -> Result<()> {
        *text += "\n## Failover\n\nFrom the fault to the first answer to a write that was sent after \
                  it, for each shard that the node led, in ms.\n\n";
        *text += "| Fault | Shards | p50 | p99 | Longest |\n|---|---:|---:|---:|---:|\n";
        for (kind, times) in failovers(self.faults, &self.journal.probes()) {
            let (p50, p99) = (at_share(&times, 0.5), at_share(&times, 0.99));
            let longest = times.last().copied().unwrap_or_default();
            writeln!(text, "| {kind} | {} | {p50} | {p99} | {longest} |", times.len())?;
        }
        Ok(())
    }

    fn calls(&self, text: &mut String) -> Result<()> {
        *text += "\n## Calls\n\nTimes of those that were done, in ms.\n\n";
        *text += "| Call | Done | Refused | Unknown | p50 | p99 | Longest |\n";
        *text += "|---|---:|---:|---:|---:|---:|---:|\n";
        let mut by_call: BTreeMap<&str, (Vec<u64>, [usize; 2])> = BTreeMap::new();
        for call in self.journal.calls() {
            let (done, others) = by_call.entry(call.call).or_default();
            match call.outcome {
                Outcome::Done => done.push((call.to_us - call.from_us) / 1_000),
                Outcome::Refused => others[0] += 1,
                Outcome::Unknown => others[1] += 1,
            }
        }
        for (call, (mut done, [refused, unknown])) in by_call {
            done.sort_unstable();
            let (p50, p99) = (at_share(&done, 0.5), at_share(&done, 0.99));
            let longest = done.last().copied().unwrap_or_default();
            let count = done.len();
            writeln!(
                text,
                "| {call} | {count} | {refused} | {unknown} | {p50} | {p99} | {longest} |"
            )?;
        }
        Ok(())
    }

    fn audited(&self, text: &mut String) -> Result<()> {
        let events: usize = self.histories.values().map(Vec::len).sum();
        let runs = self.histories.len();
        writeln!(text, "\n## Audit\n\n{runs} runs with {events} events were read.")?;
        let Checked { linearizable, undecided, operations } = self.registers;
        writeln!(
            text,
            "{linearizable} workflows with {operations} operations were linearizable, {undecided} too \
             large to tell.\n"
        )?;
        let mut by_end: BTreeMap<&str, usize> = BTreeMap::new();
        for events in self.histories.values() {
            let last = events.last().map(|event| event.event_type());
            let name =
                last.filter(|last| CLOSING.contains(last)).map_or("open", |l| l.as_str_name());
            *by_end.entry(name).or_default() += 1;
        }
        for (end, count) in by_end {
            writeln!(
                text,
                "- {}: {count}",
                end.trim_start_matches("EVENT_TYPE_WORKFLOW_EXECUTION_")
            )?;
        }
        if !self.broken.is_empty() {
            *text += "\n## Violations\n\n";
            for broken in self.broken.iter().take(50) {
                writeln!(text, "- {broken}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_ends_with_the_first_answer_to_what_was_sent_after_the_fault() {
        let fault = Fault {
            kind: Kind::Kill,
            node: 0,
            from_us: 1_000_000,
            to_us: 2_000_000,
            ready_us: 3_000_000,
            led: vec![1],
            in_flight: 1,
        };
        let probe = |shard, from_us, to_us| Probe { shard, from_us, to_us };
        let probes = [
            probe(1, 900_000, 1_010_000),
            probe(2, 1_000_000, 1_020_000),
            probe(1, 1_100_000, 1_700_000),
            probe(1, 1_200_000, 1_600_000),
        ];
        assert_eq!(failovers(&[fault], &probes)[&Kind::Kill], [600]);
    }
}
