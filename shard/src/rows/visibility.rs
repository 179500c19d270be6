//! List and count: over one shard's visibility rows, and the merging of what the shards answer.
//! The rows are written with the events (D10); nothing here writes.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use piton_core::id::NamespaceId;
use piton_core::list_filter::{GroupBy, ListFilter};
use piton_core::placement::SLOTS;
use piton_core::proto::workflow::WorkflowExecutionInfo;
use piton_core::run::Status;
use piton_store::{Row, key_after};

use crate::message::CountReply;
use crate::rows::keys::EntityKind;
use crate::rows::records::VISIBILITY;
use crate::rows::scan::Scan;
use crate::rows::{LoadError, WorkflowRows, end_of, keys};

/// A run with the key it is sorted by, the same on every shard: open runs by start time, then closed
/// ones by close time and start time, the latest first; ties by run id.
pub(crate) type ListedRun = (Vec<u8>, WorkflowExecutionInfo);

/// Lists runs of one shard behind a sort key.
pub(crate) struct Listing {
    range: Range<Bytes>,
    filter: ListFilter,
    limit: usize,
    listed: Vec<ListedRun>,
}

impl Listing {
    /// Runs behind the sort key `after`, at most `limit`.
    pub(crate) fn new(
        namespace: &NamespaceId,
        filter: ListFilter,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Self {
        let prefix = keys::visibility_of(namespace.as_str(), EntityKind::Workflow);
        // The key comes from a client: whatever it is, nothing outside the namespace is read.
        let start = after.map_or_else(|| prefix.clone(), key_after).max(prefix.clone());
        let end = if limit == 0 { start.clone() } else { end_of(&prefix) };
        Self { range: start..end, filter, limit, listed: Vec::new() }
    }
}

impl Scan for Listing {
    type Answer = Vec<ListedRun>;

    fn range(&self) -> Range<Bytes> {
        self.range.clone()
    }

    fn take(&mut self, rows: &WorkflowRows, row: Row) -> Result<bool, LoadError> {
        let record = rows.decode(&VISIBILITY, &row.value)?;
        if self.filter.matches(&record) {
            self.listed.push((row.key.to_vec(), record.to_proto()));
        }
        Ok(self.listed.len() < self.limit)
    }

    fn answer(self) -> Self::Answer {
        self.listed
    }
}

/// Counts runs of one shard, in the groups that the filter asks for.
pub(crate) struct Counting {
    prefix: Bytes,
    filter: ListFilter,
    /// Without a look at what the rows say.
    counts_all: bool,
    total: u64,
    groups: BTreeMap<&'static str, u64>,
}

impl Counting {
    pub(crate) fn new(namespace: &NamespaceId, filter: ListFilter) -> Self {
        let prefix = keys::visibility_of(namespace.as_str(), EntityKind::Workflow);
        let counts_all = ListFilter::parse("").is_ok_and(|all| all == filter);
        Self { prefix, filter, counts_all, total: 0, groups: BTreeMap::new() }
    }
}

impl Scan for Counting {
    type Answer = CountReply;

    fn range(&self) -> Range<Bytes> {
        self.prefix.clone()..end_of(&self.prefix)
    }

    fn take(&mut self, rows: &WorkflowRows, row: Row) -> Result<bool, LoadError> {
        if self.counts_all {
            self.total += 1;
            return Ok(true);
        }
        let record = rows.decode(&VISIBILITY, &row.value)?;
        if self.filter.matches(&record) {
            self.total += 1;
            if let Some(GroupBy::ExecutionStatus) = self.filter.group_by() {
                *self.groups.entry(status_name(record.status)).or_default() += 1;
            }
        }
        Ok(true)
    }

    fn answer(self) -> Self::Answer {
        let groups = self.groups.into_iter().map(|(name, count)| (name.to_owned(), count));
        CountReply { total: self.total, groups: groups.collect() }
    }
}

/// What a group of `GROUP BY ExecutionStatus` is called.
fn status_name(status: Status) -> &'static str {
    match status {
        Status::Running => "Running",
        Status::Completed => "Completed",
        Status::Failed => "Failed",
        Status::Canceled => "Canceled",
        Status::Terminated => "Terminated",
        Status::ContinuedAsNew => "ContinuedAsNew",
        Status::TimedOut => "TimedOut",
    }
}

/// Merges the answers of all shards, each of which was asked for `limit` rows behind the same key.
/// The second value is the sort key to go on behind; `None`: there are no more rows.
/// `None` instead of both: the slots covered do not tile all slots once (D10).
pub(crate) fn merge_lists(
    answers: Vec<(Vec<ListedRun>, Vec<Range<u16>>)>,
    limit: usize,
) -> Option<(Vec<WorkflowExecutionInfo>, Option<Vec<u8>>)> {
    let (lists, covered): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    if !is_whole(covered) {
        return None;
    }
    // A shard that filled its answer may have more behind it.
    let was_filled = lists.iter().any(|list| list.len() >= limit);
    let mut merged: Vec<ListedRun> = lists.into_iter().flatten().collect();
    merged.sort_by(|(a, _), (b, _)| a.cmp(b));
    let has_more = was_filled || merged.len() > limit;
    merged.truncate(limit);
    let next = merged.last().filter(|_| has_more).map(|(key, _)| key.clone());
    Some((merged.into_iter().map(|(_, run)| run).collect(), next))
}

/// Adds up the answers of all shards; `None` as in [`merge_lists`].
pub(crate) fn merge_counts(answers: Vec<(CountReply, Vec<Range<u16>>)>) -> Option<CountReply> {
    let (counts, covered): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    if !is_whole(covered) {
        return None;
    }
    let mut groups: BTreeMap<String, u64> = BTreeMap::new();
    let mut total = 0;
    for reply in counts {
        total += reply.total;
        for (name, count) in reply.groups {
            *groups.entry(name).or_default() += count;
        }
    }
    Some(CountReply { total, groups: groups.into_iter().collect() })
}

/// Whether the ranges hold every slot exactly once.
fn is_whole(covered: Vec<Vec<Range<u16>>>) -> bool {
    let mut ranges: Vec<_> = covered.into_iter().flatten().filter(|r| !r.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    let mut next = 0;
    for range in ranges {
        if range.start != next {
            return false;
        }
        next = range.end;
    }
    next == SLOTS
}

#[cfg(test)]
pub(crate) mod tests;
