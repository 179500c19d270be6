//! Pages of history for readers; the waiting for new events is the workflow actor's business.
//! Step 9 reads it too: what a worker is handed goes out as it was stored.

use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::limits::Limits;

use crate::peer::{HistoryPage, HistoryPageReply};
use crate::rows::{LoadError, WorkflowRows};

/// What is committed of the run at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunView {
    pub(crate) run_id: RunId,
    /// The next event's id: the history's end, not included.
    pub(crate) next_event_id: EventId,
    pub(crate) is_open: bool,
}

/// The answer to a page request.
#[derive(Clone, Debug)]
pub(crate) enum PageOutcome {
    Page(HistoryPageReply),
    /// There is nothing new: ask again when the run has moved; at the deadline answer no events and
    /// this token.
    Wait { token: Vec<u8> },
}

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The token is not one of ours, or is for another run. For the caller.
    #[error("{0}")]
    Token(&'static str),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The run that a page token is for; `None` when the token is empty.
///
/// # Errors
/// When the token is not one of ours.
pub(crate) fn token_run(token: &[u8]) -> Result<Option<RunId>, HistoryError> {
    let _ = token;
    unimplemented!()
}

/// Reads one page; see semantics section 19 of the API.
///
/// # Errors
/// See [`HistoryError`].
pub(crate) fn read_page(
    rows: &WorkflowRows,
    key: &WorkflowKey,
    view: &RunView,
    page: &HistoryPage,
    limits: &Limits,
) -> Result<PageOutcome, HistoryError> {
    let _ = (rows, key, view, page, limits);
    unimplemented!()
}
