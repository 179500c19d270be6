//! The errands of a shard's runs that are under way, in lines. `outbox` carries them out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use piton_core::effect::{Errand, ErrandKey};
use piton_core::id::{RunId, WorkflowKey};

/// From a run to a target: errands of one line never overtake each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) key: WorkflowKey,
    pub(crate) run_id: RunId,
    pub(crate) target: WorkflowKey,
}

/// What waits in each line, in event order; the first is being carried out.
#[derive(Default)]
pub(crate) struct ErrandLines {
    lines: Mutex<BTreeMap<Line, VecDeque<(ErrandKey, Errand)>>>,
    stopped: AtomicBool,
}

impl ErrandLines {
    /// Puts an errand at the end of its line, unless it is there. True: it is the first one.
    pub(crate) fn add(&self, line: &Line, key: ErrandKey, errand: Errand) -> bool {
        let mut lines = self.lines.lock();
        let waiting = lines.entry(line.clone()).or_default();
        if waiting.iter().any(|(known, _)| *known == key) {
            return false;
        }
        waiting.push_back((key, errand));
        waiting.len() == 1
    }

    pub(crate) fn first(&self, line: &Line) -> Option<(ErrandKey, Errand)> {
        self.lines.lock().get(line).and_then(|waiting| waiting.front().cloned())
    }

    /// The first one of the line is done.
    pub(crate) fn done(&self, line: &Line) {
        let mut lines = self.lines.lock();
        if let Some(waiting) = lines.get_mut(line) {
            waiting.pop_front();
            if waiting.is_empty() {
                lines.remove(line);
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.lines.lock().clear();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}
