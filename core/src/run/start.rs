//! Starting a run.

use crate::error::Rejection;
use crate::id::WorkflowKey;
use crate::request::{Drawn, StartRequest};
use crate::run::{Decided, RunState};

/// Decides a start against the workflow's current run. The shell has looked the request id up
/// before.
///
/// # Errors
/// The refusal; then nothing is recorded.
pub fn decide_start(
    _key: &WorkflowKey,
    _current: Option<&RunState>,
    _request: StartRequest,
    _drawn: &Drawn<'_>,
) -> Result<Decided, Rejection> {
    unimplemented!()
}
