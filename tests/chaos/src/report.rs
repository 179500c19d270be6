//! What a run leaves: numbers in Markdown, and the time line beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use piton_tests::audit::{Broken, CLOSING, Histories};

use crate::chart;
use crate::figures::{self, HELD, Placement, at_share, spread};
use crate::journal::{Journal, Outcome};
use crate::kinds::Kind;
use crate::nemesis::Fault;
use crate::registers::Checked;

pub(crate) struct Run<'a> {
    /// What was asked for.
    pub(crate) title: String,
    pub(crate) journal: &'a Journal,
    pub(crate) faults: &'a [Fault],
    pub(crate) histories: &'a Histories,
    pub(crate) placement: &'a Placement,
    pub(crate) registers: Checked,
    pub(crate) broken: &'a [Broken],
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
        self.planned(&mut text)?;
        self.caught_up(&mut text)?;
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
        for (kind, times) in figures::failovers(self.faults, &self.journal.probes()) {
            writeln!(text, "| {kind} | {} | {} |", times.len(), spread(&times))?;
        }
        *text += "\nHow late timers fired that came due in this time, in ms.\n\n";
        *text += "| Fault | Timers | p50 | p99 | Longest |\n|---|---:|---:|---:|---:|\n";
        let late = figures::late_timers(self.faults, self.journal, self.histories, self.placement);
        for (kind, late) in late {
            writeln!(text, "| {kind} | {} | {} |", late.len(), spread(&late))?;
        }
        let late = figures::late_in_storms(self.histories);
        if !late.is_empty() {
            writeln!(text, "| all of storms | {} | {} |", late.len(), spread(&late))?;
        }
        Ok(())
    }

    /// What an operator does on purpose, and clients should not notice.
    fn planned(&self, text: &mut String) -> Result<()> {
        let noticed =
            figures::noticed(self.faults, &self.journal.requests(), &self.journal.calls());
        if noticed.is_empty() {
            return Ok(());
        }
        *text += "\n## Planned\n\nRequests that were under way from its beginning until all nodes were \
                  ready again, with all their tries, in ms. Failed: tries that ended without an answer, \
                  other than with UNAVAILABLE, and requests that were given up.\n\n";
        *text += "| What | Times | Requests | p50 | p99 | Longest | Failed | Tries sent again |\n";
        *text += "|---|---:|---:|---:|---:|---:|---:|---:|\n";
        for (kind, noticed) in noticed {
            let figures::Noticed { times, requests, given_up, sent_again, failed } = noticed;
            let (count, spread, failed) = (requests.len(), spread(&requests), given_up + failed);
            writeln!(text, "| {kind} | {times} | {count} | {spread} | {failed} | {sent_again} |")?;
        }
        Ok(())
    }

    /// What it costs that a node catches up.
    fn caught_up(&self, text: &mut String) -> Result<()> {
        let caught_up = figures::caught_up(self.faults, &self.journal.requests());
        if caught_up.is_empty() {
            return Ok(());
        }
        *text += "\n## Catching up\n\nFrom when a node was there again until the cluster was whole, and the p99 of \
                  requests in the 30 s before it went away, in those before it came back, and meanwhile, with all \
                  their tries, in ms.\n\n";
        *text += "| Fault | Times | Whole after, p50 | Longest | p99 before | p99 without it | p99 meanwhile |\n";
        *text += "|---|---:|---:|---:|---:|---:|---:|\n";
        for (kind, figures::CaughtUp { took, before, without, meanwhile }) in caught_up {
            let longest = took.last().copied().unwrap_or_default();
            let (times, half) = (took.len(), at_share(&took, 0.5));
            let shares = [before, without, meanwhile].map(|times| at_share(&times, 0.99));
            let [before, without, meanwhile] = shares;
            let took = format!("{times} | {half} | {longest}");
            writeln!(text, "| {kind} | {took} | {before} | {without} | {meanwhile} |")?;
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
            let (count, spread) = (done.len(), spread(&done));
            writeln!(text, "| {call} | {count} | {refused} | {unknown} | {spread} |")?;
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
