//! Pages of history for readers and for workers' tasks; the waiting for new events is the workflow
//! actor's business. A page ends where a committed batch ends, so it may be larger than asked.
//! Step 9 of a request's way reads here too.

use std::ops::Range;
use std::sync::Arc;

use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::message::Proto;
use piton_core::proto::history::HistoryEvent;
use piton_core::run::HeldTask;
use piton_store::codec::Kind;
use serde::{Deserialize, Serialize};

use crate::message::{HeldEvents, HistoryPage, HistoryPageReply};
use crate::rows::recent::RecentHistory;
use crate::rows::{LoadError, WorkflowRows};

/// What is committed of the run at this moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunView {
    pub(crate) run_id: RunId,
    /// The next event's id: the history's end, not included.
    pub(crate) next_event_id: EventId,
    pub(crate) is_open: bool,
    /// The workflow task that a worker holds; its events come next.
    pub(crate) held: Option<Arc<HeldTask>>,
    /// The event that closed it, where it is at hand.
    pub(crate) closing: Option<Arc<HistoryEvent>>,
}

impl RunView {
    /// What a page shows behind the committed events, oldest first.
    fn held_events(&self, shown: HeldEvents) -> Vec<HistoryEvent> {
        let Some(held) = self.held.as_deref() else { return Vec::new() };
        let is_shown = match shown {
            HeldEvents::Hidden => false,
            HeldEvents::FirstAttempt => held.attempt == 1,
            HeldEvents::EveryAttempt => true,
        };
        let events = held.scheduled.iter().chain([&held.started]);
        if is_shown { events.cloned().collect() } else { Vec::new() }
    }
}

/// The answer to a page request.
#[derive(Clone, Debug)]
pub(crate) enum PageOutcome {
    Page(HistoryPageReply),
    /// There is nothing new: ask again when the run has moved; at the deadline answer no events and
    /// this token.
    Wait {
        token: Vec<u8>,
    },
}

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The token is not one of ours, or is for another run. For the caller.
    #[error("{0}")]
    Token(&'static str),
    /// The run was deleted since the view of it was taken.
    #[error("run {run_id} of workflow {} is gone", key.workflow_id)]
    Gone { key: WorkflowKey, run_id: RunId },
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Where a reader goes on. Opaque to clients; its namespace and workflow are those of the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PageToken {
    run_id: RunId,
    reverse: bool,
    /// The next event to deliver.
    next: EventId,
    /// The end that the first call pinned, not included.
    end: EventId,
    /// What follows `end` in a worker's task and is not committed yet.
    suffix: Vec<Proto<HistoryEvent>>,
}

/// An older release's tokens are read; a reader that holds a newer one begins anew.
const PAGE_TOKEN: Kind<PageToken> = Kind::new("a page token", &[]);

impl PageToken {
    fn decode(bytes: &[u8]) -> Result<Option<Self>, HistoryError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let token: Self =
            PAGE_TOKEN.decode(bytes).map_err(|_| HistoryError::Token("Invalid NextPageToken."))?;
        if token.next < EventId(0) || token.end < EventId(0) {
            return Err(HistoryError::Token("Invalid NextPageToken."));
        }
        Ok(Some(token))
    }

    /// Goes on with what comes next.
    fn at_end_of(view: &RunView) -> Self {
        let (run_id, suffix) = (view.run_id.clone(), Vec::new());
        let (next, end) = (view.next_event_id, view.next_event_id);
        Self { run_id, reverse: false, next, end, suffix }
    }

    /// All that it pinned has been delivered: what came since is pinned next, or waited for.
    fn is_delivered(&self) -> bool {
        self.suffix.is_empty() && self.next >= self.end
    }

    /// Whether it goes on within the run as it is. Ours do; a client's own making may not.
    fn is_within(&self, view: &RunView) -> bool {
        if self.reverse {
            (EventId::FIRST..view.next_event_id).contains(&self.next)
        } else {
            (EventId::FIRST..=self.end).contains(&self.next) && self.end <= view.next_event_id
        }
    }

    fn encode(&self) -> Vec<u8> {
        PAGE_TOKEN.encode(self).expect("a token holds a run id and at most two events").to_vec()
    }
}

/// The run that a page token is for; `None` when the token is empty.
///
/// # Errors
/// When the token is not one of ours.
pub(crate) fn token_run(token: &[u8]) -> Result<Option<RunId>, HistoryError> {
    Ok(PageToken::decode(token)?.map(|token| token.run_id))
}

/// What can be told of a page without reading a row: that there is nothing new, or the event that a
/// reader of the run's end waits for.
///
/// # Errors
/// When the token is not one of ours, or is for another run.
pub(crate) fn known_page(
    view: &RunView,
    page: &HistoryPage,
) -> Result<Option<PageOutcome>, HistoryError> {
    let token = checked_token(view, page)?;
    Ok(at_once(view, token.as_ref(), page))
}

fn checked_token(view: &RunView, page: &HistoryPage) -> Result<Option<PageToken>, HistoryError> {
    let Some(token) = PageToken::decode(&page.token)? else { return Ok(None) };
    if token.run_id != view.run_id || token.reverse != page.reverse {
        return Err(HistoryError::Token("Next page token is for another request."));
    }
    if !token.is_within(view) {
        return Err(HistoryError::Token("Invalid NextPageToken."));
    }
    Ok(Some(token))
}

fn at_once(view: &RunView, token: Option<&PageToken>, page: &HistoryPage) -> Option<PageOutcome> {
    if page.reverse {
        return None;
    }
    let wait = page.wait.is_some();
    if page.close_only {
        return match &view.closing {
            _ if view.is_open && wait => {
                let token = PageToken::at_end_of(view).encode();
                Some(PageOutcome::Wait { token })
            }
            _ if view.is_open => Some(PageOutcome::Page(HistoryPageReply::default())),
            Some(event) => {
                let events = vec![HistoryEvent::clone(event)];
                let next_page_token = Vec::new();
                Some(PageOutcome::Page(HistoryPageReply { events, next_page_token }))
            }
            None => None,
        };
    }
    let token = token?;
    if !wait || !token.is_delivered() || view.next_event_id > token.next {
        return None;
    }
    Some(if view.is_open {
        PageOutcome::Wait { token: page.token.clone() }
    } else {
        PageOutcome::Page(HistoryPageReply::default())
    })
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
    let token = checked_token(view, page)?;
    if let Some(known) = at_once(view, token.as_ref(), page) {
        return Ok(known);
    }
    let (run_id, budget) = (&view.run_id, Budget::of(page, limits));
    let reader = Reader { rows, recent: None, key, run_id, budget };
    if page.reverse {
        let held = view.held_events(page.held);
        return reader.reverse(view, token, held).map(PageOutcome::Page);
    }
    if page.close_only {
        return reader.close_event(view).map(PageOutcome::Page);
    }
    let held = if page.wait.is_none() { view.held_events(page.held) } else { Vec::new() };
    reader.forward(view, token, page.wait.is_some(), held)
}

/// The first page of a workflow task's history: committed events of `ids`, then `suffix`. The token
/// goes on where it ends; it is empty when all is delivered. `recent`: what need not be read.
///
/// # Errors
/// See [`HistoryError`].
pub(crate) fn task_page(
    rows: &WorkflowRows,
    recent: &RecentHistory,
    key: &WorkflowKey,
    run_id: &RunId,
    ids: Range<EventId>,
    suffix: &[HistoryEvent],
    limits: &Limits,
) -> Result<(Vec<HistoryEvent>, Vec<u8>), HistoryError> {
    let recent = Some(recent);
    let reader = Reader { rows, recent, key, run_id, budget: Budget::full(limits) };
    let token = PageToken {
        run_id: run_id.clone(),
        reverse: false,
        next: ids.start,
        end: ids.end,
        suffix: suffix.iter().cloned().map(Proto).collect(),
    };
    let (events, rest) = reader.pinned(token)?;
    Ok((events, rest.map_or_else(Vec::new, |token| token.encode())))
}

/// How much a page may hold.
struct Budget {
    events: usize,
    bytes: usize,
}

impl Budget {
    fn full(limits: &Limits) -> Self {
        let size = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX).max(1);
        Self {
            events: size(limits.history_page_events_max),
            bytes: size(limits.history_page_bytes_max),
        }
    }

    fn of(page: &HistoryPage, limits: &Limits) -> Self {
        let mut budget = Self::full(limits);
        if page.max_events > 0 {
            budget.events = budget.events.min(page.max_events);
        }
        budget
    }
}

struct Reader<'a> {
    rows: &'a WorkflowRows,
    recent: Option<&'a RecentHistory>,
    key: &'a WorkflowKey,
    run_id: &'a RunId,
    budget: Budget,
}

impl Reader<'_> {
    fn forward(
        &self,
        view: &RunView,
        token: Option<PageToken>,
        wait: bool,
        held: Vec<HistoryEvent>,
    ) -> Result<PageOutcome, HistoryError> {
        let mut token = token.unwrap_or_else(|| PageToken {
            run_id: view.run_id.clone(),
            reverse: false,
            next: EventId::FIRST,
            end: view.next_event_id,
            suffix: held.into_iter().map(Proto).collect(),
        });
        let is_task = !token.suffix.is_empty();
        if wait && token.is_delivered() {
            token.end = view.next_event_id;
        }
        let end = token.end;
        let (events, rest) = self.pinned(token)?;
        let next_page_token = match rest {
            Some(rest) => rest.encode(),
            None if wait && !is_task && (view.is_open || view.next_event_id > end) => {
                PageToken { next: end, end, ..PageToken::at_end_of(view) }.encode()
            }
            None => Vec::new(),
        };
        Ok(PageOutcome::Page(HistoryPageReply { events, next_page_token }))
    }

    /// The next page up to the token's end and its suffix, and the token that is left.
    fn pinned(
        &self,
        mut token: PageToken,
    ) -> Result<(Vec<HistoryEvent>, Option<PageToken>), HistoryError> {
        let mut events = self.read(token.next..token.end)?;
        if let Some(last) = events.last() {
            token.next = EventId(last.event_id).next();
        }
        if token.next < token.end {
            return Ok((events, Some(token)));
        }
        events.extend(token.suffix.into_iter().map(|event| event.0));
        Ok((events, None))
    }

    fn read(&self, ids: Range<EventId>) -> Result<Vec<HistoryEvent>, HistoryError> {
        let Budget { events, bytes } = self.budget;
        let recent = self.recent.and_then(|r| r.batches(self.run_id, &ids, events, bytes));
        let batches = match recent {
            Some(recent) => recent,
            None => self.rows.history(self.key, self.run_id, ids.clone(), events, bytes)?,
        };
        let mut found = Vec::new();
        for batch in batches {
            found.extend(self.rows.events(&batch)?);
        }
        found.retain(|event| ids.contains(&EventId(event.event_id)));
        let first = found.first().map(|event| EventId(event.event_id));
        if !ids.is_empty() && first != Some(ids.start) {
            return Err(self.missing(ids.start));
        }
        Ok(found)
    }

    fn close_event(&self, view: &RunView) -> Result<HistoryPageReply, HistoryError> {
        let last = EventId(view.next_event_id.0 - 1);
        let events = self.read(last..view.next_event_id)?;
        Ok(HistoryPageReply { events, next_page_token: Vec::new() })
    }

    fn reverse(
        &self,
        view: &RunView,
        token: Option<PageToken>,
        held: Vec<HistoryEvent>,
    ) -> Result<HistoryPageReply, HistoryError> {
        let held = if token.is_none() { held } else { Vec::new() };
        let last = token.map_or(EventId(view.next_event_id.0 - 1), |token| token.next);
        let Budget { events, bytes } = self.budget;
        let mut found = Vec::new();
        for batch in self.rows.history_back(self.key, self.run_id, last, events, bytes)? {
            found.extend(self.rows.events(&batch)?.into_iter().rev());
        }
        found.retain(|event| event.event_id <= last.0);
        let Some(first) = found.last().map(|event| EventId(event.event_id)) else {
            return Err(self.missing(last));
        };
        let next_page_token = if first <= EventId::FIRST {
            Vec::new()
        } else {
            let (run_id, next) = (view.run_id.clone(), EventId(first.0 - 1));
            PageToken { run_id, reverse: true, next, end: EventId(0), suffix: Vec::new() }.encode()
        };
        let events = held.into_iter().rev().chain(found).collect();
        Ok(HistoryPageReply { events, next_page_token })
    }

    /// Why an event that was there is not: its run has been deleted meanwhile, or what is left of it is
    /// damaged.
    fn missing(&self, event: EventId) -> HistoryError {
        let (key, run_id) = (self.key.clone(), self.run_id.clone());
        match self.rows.run_ends(self.key, self.run_id) {
            Ok(None) => HistoryError::Gone { key, run_id },
            Ok(_) => HistoryError::Load(LoadError::Missing { key, run_id, event }),
            Err(error) => HistoryError::Load(error),
        }
    }
}

#[cfg(test)]
mod tests;
