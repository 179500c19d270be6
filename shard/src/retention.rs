//! What has outlived its retention, and the writes that delete it. Leader only; the deletion goes
//! through the workflow's actor like any other transition.

use piton_core::id::{RequestId, RunId, WorkflowKey};
use piton_core::time::Timestamp;
use piton_store::Write;

use crate::rows::{LoadError, WorkflowRows};

/// Something that may be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExpireRow {
    pub(crate) when: Timestamp,
    pub(crate) key: WorkflowKey,
    pub(crate) what: Expired,
}

/// What may be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// A closed run.
    Run(RunId),
    /// A request id.
    Request(RequestId),
}

/// What a call of [`deletion_writes`] found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deletion {
    /// To be proposed with a put of `current` (position one higher), or, if this run is the current
    /// one and `done`, with its delete.
    pub(crate) writes: Vec<Write>,
    /// Nothing of it is left after these writes; otherwise call again after they are applied.
    pub(crate) done: bool,
}

/// What is to be deleted by `now`, the oldest first, at most `limit`.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn expired(
    rows: &WorkflowRows,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<ExpireRow>, LoadError> {
    let _ = (rows, now, limit);
    unimplemented!()
}

/// Deletes up to `limit` rows of what expired. A run's first event goes first, so from the first
/// call on the run is not found any more.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn deletion_writes(
    rows: &WorkflowRows,
    expired: &ExpireRow,
    limit: usize,
) -> Result<Deletion, LoadError> {
    let _ = (rows, expired, limit);
    unimplemented!()
}
