//! The writer: one thread that takes what all groups have waiting, writes it as one batch, syncs
//! once, and then tells everyone. Owns the newest segment; begins and frees segments.
//!
//! It never acknowledges before the sync, and after a failed one it never acknowledges again: the
//! kernel may have dropped the pages and would call the next sync a success.

mod batch;
pub(super) mod current;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use self::batch::{Taken, Written};
use self::current::Current;
use super::disk::{Disk, DiskFile};
use super::segment::Previous;
use super::shared::{Operation, Shared, State};
use super::{GroupId, LogError, recovery};

/// Why the writer looks at the queue.
enum Call {
    /// Operations wait.
    Work,
    /// Nothing has waited for a while.
    Idle,
    /// The log closes and nothing waits.
    Close,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) current: Current,
    pub(super) previous: Option<Previous>,
    pub(super) next_batch: u64,
    /// Freed files to be written over.
    spares: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    /// The last batch says something that no later batch proves yet.
    unproven: bool,
    /// Entries of the oldest segment still to be rewritten.
    to_rewrite: (u64, Vec<(GroupId, u64)>),
    last_operations: usize,
    sync_average: Duration,
    /// It has a thread of its own, which may wait until there is room on the disk.
    pub(super) may_block: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>, opened: recovery::Newest) -> Self {
        Writer {
            shared,
            disk,
            current: opened.current,
            previous: opened.previous,
            next_batch: opened.next_batch,
            spares: Vec::new(),
            unproven: true,
            to_rewrite: (0, Vec::new()),
            last_operations: 0,
            sync_average: Duration::ZERO,
            may_block: false,
        }
    }

    /// Works until the log closes or fails.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let ended = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
        if ended.is_err() {
            fail(&shared, Vec::new(), "its writer panicked".to_owned(), None);
        }
    }

    /// Waits for work and writes one batch; false where there will be no other.
    fn turn(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let call = self.await_call(&mut state);
        self.step(call, state)
    }

    /// Writes what waits, or else does what an idle writer does, without waiting; false where
    /// there will be no other batch.
    pub(super) fn step_now(&mut self) -> bool {
        let shared = self.shared.clone();
        let state = shared.state.lock();
        if state.failure.is_some() {
            return false;
        }
        let call = if state.queue.is_empty() { Call::Idle } else { Call::Work };
        self.step(call, state)
    }

    fn step(&mut self, call: Call, mut state: MutexGuard<'_, State>) -> bool {
        let shared = self.shared.clone();
        let mut taken = self.take(&mut state);
        if matches!(call, Call::Idle) {
            // It would keep the memory around it from being given back.
            state.shrink();
        }
        drop(state);
        let last = matches!(call, Call::Close);
        while let Some(part) = self.next_part(&mut taken) {
            match self.write_part(&part) {
                Ok(written) => self.complete_part(part, &written),
                Err(error) => {
                    let operations = part.into_iter().chain(taken.operations).collect();
                    fail(&shared, operations, describe(&error), Some(error));
                    return false;
                }
            }
        }
        let wanted = taken.says_something() || self.unproven && !matches!(call, Call::Work);
        let written = if wanted { self.write(&taken) } else { Ok(Written::default()) };
        match written {
            Ok(written) => {
                self.complete(taken, &written);
                !last
            }
            Err(error) => {
                let reason = describe(&error);
                fail(&shared, taken.operations, reason, Some(error));
                false
            }
        }
    }

    /// Waits until there is something to do.
    fn await_call(&mut self, state: &mut MutexGuard<'_, State>) -> Call {
        while state.queue.is_empty() {
            if state.closing {
                return Call::Close;
            }
            state.wake_at = Some(1);
            let chores = self.unproven
                || !state.committed_changed.is_empty()
                || self.first_segment(state) < state.first_live()
                || self.rewriting(state);
            let wake = &self.shared.wake.thread;
            state.has_no_chores = !chores;
            if !chores {
                wake.wait(state);
            } else if wake.wait_for(state, self.shared.config.idle_after).timed_out()
                && state.queue.is_empty()
            {
                state.wake_at = None;
                return Call::Idle;
            }
        }
        self.gather(state);
        state.wake_at = None;
        Call::Work
    }

    /// Under load, waits a little for those who were answered by the last batch to come back: one
    /// sync for all of them is worth more than an early one for a few.
    fn gather(&self, state: &mut MutexGuard<'_, State>) {
        let expected = self.last_operations;
        if expected < 2 || state.queue.len() >= expected || state.closing {
            return;
        }
        let patience = self.shared.config.gather_max.min(self.sync_average / 2);
        let deadline = Instant::now() + patience;
        while state.queue.len() < expected && !state.closing {
            state.wake_at = Some(expected);
            if self.shared.wake.thread.wait_until(state, deadline).timed_out() {
                return;
            }
        }
    }

    fn first_segment(&self, state: &State) -> u64 {
        state.segments.keys().next().copied().unwrap_or(self.current.number)
    }

    fn rewriting(&self, state: &State) -> bool {
        self.first_segment(state) < self.current.number
            && state.should_rewrite(self.shared.config.segment_bytes)
    }

    /// Tells those whose part of what was taken is durable. The rest goes on waiting.
    fn complete_part(&mut self, part: Vec<Operation>, written: &Written) {
        self.count(written);
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let bytes: usize = part.iter().map(|operation| operation.bytes).sum();
        state.in_flight_bytes = state.in_flight_bytes.saturating_sub(bytes);
        state.in_flight_since = Some(tokio::time::Instant::now());
        if let Some(segment) = state.segments.get_mut(&self.current.number) {
            segment.end = self.current.end;
        }
        for (group, index, ticket, place) in &written.stored {
            state.stored(*group, *index, *ticket, *place);
        }
        drop(state);
        for operation in part {
            (operation.done)(Ok(()));
        }
    }

    /// Shows the durable batch in the index and tells those who wait for it.
    fn complete(&mut self, taken: Taken, written: &Written) {
        self.last_operations = taken.operations.len();
        if written.bytes > 0 {
            self.count(written);
        }
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        state.in_flight_since = None;
        state.in_flight_bytes = 0;
        if std::mem::take(&mut state.is_full) {
            tracing::warn!(dir = %shared.dir.display(), "there is room again, the log goes on");
        }
        if let Some(segment) = state.segments.get_mut(&self.current.number) {
            segment.end = self.current.end;
        }
        for (group, index, ticket, place) in &written.stored {
            state.stored(*group, *index, *ticket, *place);
        }
        for (group, index, from, to) in &written.moved {
            state.moved(*group, *index, *from, *to);
        }
        for reach in &taken.reaches {
            if let Some(index) = state.groups.get_mut(&reach.group) {
                index.synced_through(reach.generation, reach.last);
            }
        }
        state.shrink_recent(shared.config.cache_bytes_max);
        let live = state.segments.split_off(&taken.first_live);
        let freed = std::mem::replace(&mut state.segments, live);
        drop(state);
        for operation in taken.operations {
            (operation.done)(Ok(()));
        }
        for (number, segment) in freed {
            self.free(number, segment);
        }
    }

    fn count(&mut self, written: &Written) {
        let stats = &self.shared.stats;
        stats.add(&stats.batches, 1);
        stats.add(&stats.records, written.records);
        stats.add(&stats.bytes, written.bytes);
        stats.add(&stats.rewritten, written.moved.len() as u64);
        stats.observe_sync(written.synced_in);
        self.sync_average = (self.sync_average * 7 + written.synced_in) / 8;
    }
}

/// Ends the log: those who wait are told, and whoever comes later is refused.
fn fail(shared: &Shared, taken: Vec<Operation>, reason: String, error: Option<LogError>) {
    tracing::error!(dir = %shared.dir.display(), reason, "the log has failed");
    let mut state = shared.state.lock();
    state.failure = Some(reason.clone());
    let waiting = std::mem::take(&mut state.queue);
    drop(state);
    shared.failed.send_replace(Some(reason.clone()));
    let error = error.unwrap_or(LogError::Failed { reason });
    for operation in taken.into_iter().chain(waiting) {
        (operation.done)(Err(error.clone()));
    }
}

/// An error with its cause, for those who only get the text.
fn describe(error: &LogError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
