//! The last batches of history that a hosted workflow has committed: a workflow task is made of them
//! without a look at the rows. At most a few kilobytes of each workflow in memory.

use std::collections::VecDeque;
use std::ops::Range;

use piton_core::id::{EventId, RunId};

use crate::rows::HistoryBatch;

/// Bytes of history kept of one workflow.
const BYTES_MAX: usize = 4 << 10;

/// The end of the history of the run that was written to last.
#[derive(Debug, Default)]
pub(crate) struct RecentHistory {
    run_id: Option<RunId>,
    /// Without a gap, oldest first.
    batches: VecDeque<HistoryBatch>,
    /// The next event's id.
    end: EventId,
    bytes: usize,
}

impl RecentHistory {
    /// A batch was committed.
    pub(crate) fn push(&mut self, run_id: &RunId, batch: HistoryBatch) {
        if self.run_id.as_ref() != Some(run_id) || batch.first != self.end {
            *self = Self { run_id: Some(run_id.clone()), ..Self::default() };
        }
        let events = i64::try_from(batch.len()).unwrap_or(i64::MAX);
        self.end = EventId(batch.first.0.saturating_add(events));
        self.bytes += batch.raw.len();
        self.batches.push_back(batch);
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= oldest.raw.len();
        }
    }

    /// The batches that hold these events, unless some are older than what is kept, or they are more than
    /// the budget allows.
    pub(crate) fn batches(
        &self,
        run_id: &RunId,
        ids: &Range<EventId>,
        events_max: usize,
        bytes_max: usize,
    ) -> Option<Vec<HistoryBatch>> {
        let first = self.batches.front()?.first;
        let is_kept =
            self.run_id.as_ref() == Some(run_id) && first <= ids.start && ids.end <= self.end;
        let fits =
            usize::try_from(ids.end.0 - ids.start.0).is_ok_and(|events| events <= events_max);
        if !is_kept || !fits || self.bytes > bytes_max {
            return None;
        }
        let behind = self.batches.iter().skip(1).map(|batch| batch.first).chain([self.end]);
        let holding = self.batches.iter().zip(behind);
        let holding = holding.filter(|(batch, end)| *end > ids.start && batch.first < ids.end);
        Some(holding.map(|(batch, _)| batch.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use piton_core::proto::history::{History, HistoryEvent};
    use prost::Message;

    fn batch(first: i64, events: i64, padding: usize) -> HistoryBatch {
        let event = |event_id| HistoryEvent { event_id, ..Default::default() };
        let mut history = History { events: (first..first + events).map(event).collect() };
        let named = piton_core::proto::common::Payload {
            data: vec![0; padding].into(),
            ..Default::default()
        };
        history.events[0].user_metadata =
            Some(piton_core::proto::sdk::UserMetadata { summary: Some(named), details: None });
        HistoryBatch { first: EventId(first), raw: history.encode_to_vec().into() }
    }

    fn firsts(recent: &RecentHistory, run: &str, ids: Range<i64>) -> Option<Vec<i64>> {
        let ids = EventId(ids.start)..EventId(ids.end);
        let found = recent.batches(&RunId::from(run), &ids, 100, 1 << 20);
        found.map(|batches| batches.iter().map(|batch| batch.first.0).collect())
    }

    #[test]
    fn what_was_committed_last_is_found_and_nothing_else() {
        let mut recent = RecentHistory::default();
        let run = RunId::from("a");
        assert_eq!(firsts(&recent, "a", 1..2), None);
        recent.push(&run, batch(1, 2, 0));
        recent.push(&run, batch(3, 1, 0));
        recent.push(&run, batch(4, 3, 0));
        assert_eq!(firsts(&recent, "a", 1..7), Some(vec![1, 3, 4]));
        assert_eq!(firsts(&recent, "a", 2..4), Some(vec![1, 3]));
        assert_eq!(firsts(&recent, "a", 5..6), Some(vec![4]));
        assert_eq!(firsts(&recent, "a", 5..8), None, "not committed yet");
        assert_eq!(firsts(&recent, "b", 5..6), None, "another run");
        let few = recent.batches(&run, &(EventId(1)..EventId(7)), 5, 1 << 20);
        assert_eq!(few, None, "more than a page may hold");
    }

    #[test]
    fn a_gap_and_another_run_begin_anew() {
        let mut recent = RecentHistory::default();
        recent.push(&RunId::from("a"), batch(1, 2, 0));
        recent.push(&RunId::from("a"), batch(4, 1, 0));
        assert_eq!(firsts(&recent, "a", 1..2), None);
        assert_eq!(firsts(&recent, "a", 4..5), Some(vec![4]));
        recent.push(&RunId::from("b"), batch(1, 2, 0));
        assert_eq!(firsts(&recent, "a", 4..5), None);
        assert_eq!(firsts(&recent, "b", 1..3), Some(vec![1]));
    }

    #[test]
    fn the_oldest_goes_first_and_a_large_one_is_not_kept() {
        let mut recent = RecentHistory::default();
        let run = RunId::from("a");
        recent.push(&run, batch(1, 1, BYTES_MAX / 2));
        recent.push(&run, batch(2, 1, BYTES_MAX / 2));
        assert_eq!(firsts(&recent, "a", 1..3), None);
        assert_eq!(firsts(&recent, "a", 2..3), Some(vec![2]));
        recent.push(&run, batch(3, 1, BYTES_MAX));
        assert_eq!(firsts(&recent, "a", 2..3), None);
        recent.push(&run, batch(4, 1, 0));
        assert_eq!(firsts(&recent, "a", 4..5), Some(vec![4]));
        assert_eq!(recent.bytes, recent.batches[0].raw.len());
    }
}
