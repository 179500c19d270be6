//! What clients and workers asked, and what they were answered: what the auditor holds histories
//! against. Every request bears a text of its own that is found again in the history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use piton_tests::audit::{Asked, Broken, Ending, Entry, Seen};

/// When a worker asked for a run's timer and when one first saw it fired, in milliseconds of virtual
/// time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timed {
    pub(crate) asked_ms: u64,
    pub(crate) span_ms: u64,
    pub(crate) seen_ms: Option<u64>,
}

/// Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    entries: Vec<Entry>,
    seen: Vec<Seen>,
    shown: BTreeMap<String, usize>,
    timed: BTreeMap<String, Timed>,
    attempts: BTreeSet<(String, i64, u32)>,
    broken: Vec<Broken>,
    numbers: BTreeMap<&'static str, u64>,
}

impl Ledger {
    /// A text that no other request bears.
    pub(crate) fn name(&self, kind: &'static str) -> String {
        let mut shared = self.shared.lock();
        let number = shared.numbers.entry(kind).or_default();
        *number += 1;
        format!("{kind}-{number}")
    }

    pub(crate) fn enter(&self, workflow_id: &str, asked: Asked, ending: Ending) {
        // As if no try had come late: where tries are that near to each other, a late one that meets
        // the next run is looked at.
        let (workflow_id, is_retried) = (workflow_id.to_owned(), false);
        self.shared.lock().entries.push(Entry { workflow_id, asked, ending, is_retried });
    }

    pub(crate) fn saw(&self, seen: Seen) {
        self.shared.lock().seen.push(seen);
    }

    /// By run: the most events that a read has shown.
    pub(crate) fn shown(&self) -> BTreeMap<String, usize> {
        self.shared.lock().shown.clone()
    }

    pub(crate) fn show(&self, run_id: &str, events: usize) {
        let mut shared = self.shared.lock();
        let shown = shared.shown.entry(run_id.to_owned()).or_default();
        *shown = events.max(*shown);
    }

    /// A worker is about to ask for a run's timer. The first try counts: it may be the one that was
    /// taken.
    pub(crate) fn timer_asked(&self, run_id: &str, span_ms: u64, asked_ms: u64) {
        let mut shared = self.shared.lock();
        let timed = Timed { asked_ms, span_ms, seen_ms: None };
        shared.timed.entry(run_id.to_owned()).or_insert(timed);
    }

    /// A worker sees that a run's timer has fired.
    pub(crate) fn timer_seen(&self, run_id: &str, seen_ms: u64) {
        if let Some(timed) = self.shared.lock().timed.get_mut(run_id) {
            timed.seen_ms.get_or_insert(seen_ms);
        }
    }

    /// A worker was given an attempt of an activity. Nobody else may be given the same one.
    pub(crate) fn attempt_given(&self, run_id: &str, scheduled: i64, attempt: u32) {
        let mut shared = self.shared.lock();
        if !shared.attempts.insert((run_id.to_owned(), scheduled, attempt)) {
            let text =
                format!("A4: {run_id}: attempt {attempt} of activity {scheduled} is given twice");
            shared.broken.push(Broken::new(text));
        }
    }

    /// By run.
    pub(crate) fn timed(&self) -> BTreeMap<String, Timed> {
        self.shared.lock().timed.clone()
    }

    /// Something that was seen to be wrong at once.
    pub(crate) fn broke(&self, what: String) {
        self.shared.lock().broken.push(Broken::new(what));
    }

    pub(crate) fn broken(&self) -> Vec<Broken> {
        self.shared.lock().broken.clone()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.shared.lock().entries.clone()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Signals to a workflow that were acknowledged so far.
    pub(crate) fn signals_to(&self, workflow_id: &str) -> Vec<String> {
        let shared = self.shared.lock();
        let acknowledged = |entry: &&Entry| {
            entry.workflow_id == workflow_id
                && matches!(entry.asked, Asked::Signal(_))
                && matches!(entry.ending, Ending::Done(_))
        };
        let signals = shared.entries.iter().filter(acknowledged);
        signals.map(|entry| entry.asked.text().to_owned()).collect()
    }
}
