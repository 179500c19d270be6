//! The client log: what was asked and answered, with times of one monotonic clock; and what the
//! auditor is told of it. A line of JSON for each call, written when its outcome is known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use piton_tests::audit::{Asked, Broken, Ending, Entry, Seen};
use serde::{Serialize, Serializer};
use tonic::Code;

/// How one call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Done,
    /// For good: it was not carried out.
    Refused,
    Unknown,
}

/// One call, as it is logged.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Call {
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    pub(crate) node: usize,
    pub(crate) call: &'static str,
    pub(crate) workflow: String,
    /// What it is found by in the history.
    pub(crate) text: String,
    pub(crate) outcome: Outcome,
    #[serde(serialize_with = "in_words")]
    pub(crate) code: Code,
    pub(crate) detail: String,
}

fn in_words<S: Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{code:?}"))
}

/// What is kept of a call for the report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brief {
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    pub(crate) call: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) code: Code,
}

/// A request with all its tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requested {
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    /// Or else it was given up.
    pub(crate) is_answered: bool,
}

/// A write that exists to see whether its shard takes writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) shard: u32,
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
}

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    began_unix_ms: i64,
    file: Mutex<BufWriter<File>>,
    calls: Mutex<Vec<Brief>>,
    requests: Mutex<Vec<Requested>>,
    probes: Mutex<Vec<Probe>>,
    in_flight: AtomicU64,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    entries: Vec<Entry>,
    seen: Vec<Seen>,
    /// By run: the most events that a read has shown.
    shown: BTreeMap<String, usize>,
    /// By workflow: signals that were acknowledged.
    signals: BTreeMap<String, Vec<String>>,
    attempts: BTreeSet<(String, String, i32)>,
    numbers: BTreeMap<&'static str, u64>,
    broken: Vec<Broken>,
}

/// Counts a request as in flight until it is dropped.
pub(crate) struct InFlight<'a>(&'a AtomicU64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Journal {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let shared = Shared {
            began: Instant::now(),
            began_unix_ms: i64::try_from(unix.as_millis())?,
            file: Mutex::new(BufWriter::new(file)),
            calls: Mutex::default(),
            requests: Mutex::default(),
            probes: Mutex::default(),
            in_flight: AtomicU64::new(0),
            ledger: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Microseconds since the run began.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.shared.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The wall clock's time, in milliseconds, when the run was so old.
    pub(crate) fn unix_ms(&self, us: u64) -> i64 {
        self.shared.began_unix_ms + (us / 1_000) as i64
    }

    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.shared.in_flight)
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn log(&self, call: Call) {
        let Call { from_us, to_us, call: kind, outcome, code, .. } = call;
        if let Ok(line) = serde_json::to_string(&call) {
            // What cannot be written is missed by who reads it, not by the auditor.
            let _ = writeln!(self.shared.file.lock(), "{line}");
        }
        self.shared.calls.lock().push(Brief { from_us, to_us, call: kind, outcome, code });
    }

    /// A request is over that began then.
    pub(crate) fn requested(&self, from_us: u64, is_answered: bool) {
        let requested = Requested { from_us, to_us: self.now_us(), is_answered };
        self.shared.requests.lock().push(requested);
    }

    pub(crate) fn requests(&self) -> Vec<Requested> {
        self.shared.requests.lock().clone()
    }

    /// Something else that happened, among the calls.
    pub(crate) fn note(&self, what: &str) {
        let line = serde_json::json!({ "at_us": self.now_us(), "note": what });
        let _ = writeln!(self.shared.file.lock(), "{line}");
    }

    pub(crate) fn flush(&self) {
        let _ = self.shared.file.lock().flush();
    }

    pub(crate) fn calls(&self) -> Vec<Brief> {
        self.shared.calls.lock().clone()
    }

    pub(crate) fn probed(&self, probe: Probe) {
        self.shared.probes.lock().push(probe);
    }

    pub(crate) fn probes(&self) -> Vec<Probe> {
        self.shared.probes.lock().clone()
    }

    /// A text that no other request bears.
    pub(crate) fn name(&self, kind: &'static str) -> String {
        let mut ledger = self.shared.ledger.lock();
        let number = ledger.numbers.entry(kind).or_default();
        *number += 1;
        format!("{kind}-{number}")
    }

    pub(crate) fn enter(&self, workflow_id: &str, asked: Asked, ending: Ending, is_retried: bool) {
        let mut ledger = self.shared.ledger.lock();
        let workflow_id = workflow_id.to_owned();
        if let (Asked::Signal(name), Ending::Done(_)) = (&asked, &ending) {
            ledger.signals.entry(workflow_id.clone()).or_default().push(name.clone());
        }
        ledger.entries.push(Entry { workflow_id, asked, ending, is_retried });
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.shared.ledger.lock().entries.clone()
    }

    /// Signals to a workflow that were acknowledged so far.
    pub(crate) fn signals_to(&self, workflow_id: &str) -> Vec<String> {
        self.shared.ledger.lock().signals.get(workflow_id).cloned().unwrap_or_default()
    }

    pub(crate) fn saw(&self, seen: Seen) {
        self.shared.ledger.lock().seen.push(seen);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.ledger.lock().seen.clone()
    }

    /// By workflow's run: how many events reads have shown so far.
    pub(crate) fn all_shown(&self) -> BTreeMap<String, usize> {
        self.shared.ledger.lock().shown.clone()
    }

    pub(crate) fn show(&self, run_id: &str, events: usize) {
        let mut ledger = self.shared.ledger.lock();
        let shown = ledger.shown.entry(run_id.to_owned()).or_default();
        *shown = events.max(*shown);
    }

    /// A worker was given an attempt of an activity. Nobody else may be given the same one.
    pub(crate) fn attempt_given(&self, workflow_id: &str, run_id: &str, id: &str, attempt: i32) {
        let mut ledger = self.shared.ledger.lock();
        if !ledger.attempts.insert((run_id.to_owned(), id.to_owned(), attempt)) {
            let text = format!("A4: {run_id}: attempt {attempt} of {id} is given twice");
            ledger.broken.push(Broken::of(workflow_id, text));
        }
    }

    /// Something that was seen to be wrong at once.
    pub(crate) fn broke(&self, broken: Broken) {
        self.note(&broken.text);
        self.shared.ledger.lock().broken.push(broken);
    }

    pub(crate) fn broken(&self) -> Vec<Broken> {
        self.shared.ledger.lock().broken.clone()
    }
}
