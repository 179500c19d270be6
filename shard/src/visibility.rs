//! List and count: over one shard's visibility rows, and the merging of what the shards answer.

use std::ops::Range;

use piton_core::id::NamespaceId;
use piton_core::list_filter::ListFilter;
use piton_core::proto::workflow::WorkflowExecutionInfo;

use crate::peer::CountReply;
use crate::rows::{LoadError, WorkflowRows};

/// A run with the key it is sorted by, the same on every shard.
pub(crate) type ListedRun = (Vec<u8>, WorkflowExecutionInfo);

/// Lists runs of one shard behind the sort key `after`, at most `limit`.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn list(
    rows: &WorkflowRows,
    namespace: &NamespaceId,
    filter: &ListFilter,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<ListedRun>, LoadError> {
    let _ = (rows, namespace, filter, after, limit);
    unimplemented!()
}

/// Counts runs of one shard, in the groups that the filter asks for.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn count(
    rows: &WorkflowRows,
    namespace: &NamespaceId,
    filter: &ListFilter,
) -> Result<CountReply, LoadError> {
    let _ = (rows, namespace, filter);
    unimplemented!()
}

/// Merges the answers of all shards, each of which was asked for `limit` rows behind the same key.
/// The second value is the sort key to go on behind; `None`: there are no more rows.
/// `None` instead of both: the slots covered do not tile all slots once (architecture D10).
pub(crate) fn merge_lists(
    answers: Vec<(Vec<ListedRun>, Vec<Range<u16>>)>,
    limit: usize,
) -> Option<(Vec<WorkflowExecutionInfo>, Option<Vec<u8>>)> {
    let _ = (answers, limit);
    unimplemented!()
}

/// Adds up the answers of all shards; `None` as in [`merge_lists`].
pub(crate) fn merge_counts(answers: Vec<(CountReply, Vec<Range<u16>>)>) -> Option<CountReply> {
    let _ = answers;
    unimplemented!()
}
