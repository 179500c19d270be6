//! What a shard's leader answers from rows: pages of history, lists, counts. Reads wait for the actor's undecided transitions and for a read-index round
//! (D5a). All of it runs on threads of its own, so that no read holds up what is decided.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use piton_core::error::Rejection;
use piton_core::id::{NamespaceId, RunId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::list_filter::Asked;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::ShardError;
use crate::leader::hosting::{Following, Subscription};
use crate::leader::runtime::ShardRuntime;
use crate::message::{Answer, HistoryPage, HistoryPageReply, ReadCall, TaskQueueView};
use crate::rows::history::{self, HistoryError, PageOutcome, RunView};
use crate::rows::lookup::Lookup;
use crate::rows::scan::{Scan, Scanning, Slices};
use crate::rows::tasks::Backlog;
use crate::rows::visibility::{Counting, Listing};
use crate::rows::{LoadError, WorkflowRows};

/// How often a run is looked for anew because it was closed meanwhile.
const FIND_ATTEMPTS_MAX: usize = 8;

/// The slots that an answer covers.
type Covered = Vec<Range<u16>>;

/// What a slice of a scan comes to.
enum Slice<S: Slices> {
    More(S),
    Last((S::Answer, Covered)),
}

/// What a caller hears of rows that cannot be read. A store that fails is rebuilt (architecture
/// D13), so it is worth trying again; what does not decode will not decode the next time either.
pub(crate) fn unreadable(error: LoadError) -> ShardError {
    match error {
        LoadError::Store { .. } | LoadError::Unsteady { .. } => {
            ShardError::Unavailable(error.to_string())
        }
        LoadError::Value { .. }
        | LoadError::Key { .. }
        | LoadError::Fold { .. }
        | LoadError::Missing { .. } => {
            tracing::error!(error = &error as &dyn std::error::Error, "stored rows are damaged");
            ShardError::Internal(error.to_string())
        }
    }
}

/// The refusal of a workflow that is not there.
pub(crate) fn not_found(key: &WorkflowKey) -> ShardError {
    Rejection::NotFound(format!("workflow not found for ID: {}", key.workflow_id)).into()
}

/// The refusal of a run that its workflow does not have.
pub(crate) fn run_not_found(key: &WorkflowKey, run_id: &RunId) -> ShardError {
    let text = format!(
        "workflow execution not found for workflow ID \"{}\" and run ID \"{run_id}\"",
        key.workflow_id
    );
    Rejection::NotFound(text).into()
}

pub(crate) fn refused(error: HistoryError) -> ShardError {
    match error {
        HistoryError::Token(text) => Rejection::InvalidArgument(text.into()).into(),
        HistoryError::Gone { key, run_id } => run_not_found(&key, &run_id),
        HistoryError::Load(error) => unreadable(error),
    }
}

impl ShardRuntime {
    /// Answers a call from rows.
    pub(crate) async fn read_rows(self: &Arc<Self>, call: ReadCall) -> Result<Answer, ShardError> {
        match call {
            ReadCall::History { key, run_id, page } => {
                self.read_history(key, run_id, page).await.map(Answer::History)
            }
            ReadCall::List { namespace, filter, after, limit, timeout } => {
                self.confirm().await?;
                let asked = filter.asked();
                let listing = Listing::new(&namespace, filter, after.as_deref(), limit);
                let (rows, covered) = self.find(&namespace, asked, listing, timeout).await?;
                Ok(Answer::List { rows, covered })
            }
            ReadCall::Count { namespace, filter, timeout } => {
                self.confirm().await?;
                let asked = filter.asked();
                let counting = Counting::new(&namespace, filter);
                let (counts, covered) = self.find(&namespace, asked, counting, timeout).await?;
                Ok(Answer::Count { counts, covered })
            }
            ReadCall::Backlog { queue, timeout } => {
                let backlog = Scanning::new(Backlog::of(&queue));
                let ((backlog_count, oldest), _) = self.scan(backlog, timeout).await?;
                Ok(Answer::Queue(TaskQueueView { backlog_count, oldest, ..Default::default() }))
            }
        }
    }

    /// Looks up the workflows that are asked for by their ids, or looks through all there are.
    async fn find<S: Scan>(
        &self,
        namespace: &NamespaceId,
        asked: Asked,
        scan: S,
        timeout: Option<Duration>,
    ) -> Result<(S::Answer, Covered), ShardError> {
        match asked {
            Asked::Ids(ids) => self.scan(Lookup::new(namespace, &ids, scan), timeout).await,
            Asked::All | Asked::Prefix(_) => self.scan(Scanning::new(scan), timeout).await,
        }
    }

    /// Reads slice by slice, and says which slots the answer covers. It ends between two slices when its
    /// caller's time is over or nobody waits for it any more.
    async fn scan<S: Slices>(
        &self,
        mut slices: S,
        timeout: Option<Duration>,
    ) -> Result<(S::Answer, Covered), ShardError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let slice_rows = self.config.scan_slice_rows;
        loop {
            if until.is_some_and(|until| until <= Instant::now()) {
                let text = "the caller's time was over before all rows were read";
                return Err(ShardError::DeadlineExceeded(text.to_owned()));
            }
            let rows = self.rows.clone();
            let slice = self.cluster.host().reads().scan(move || {
                if !slices.go_on(&rows, slice_rows)? {
                    return Ok(Slice::More(slices));
                }
                let covered = rows.range()?.into_iter().map(|range| range.slots).collect();
                Ok(Slice::Last((slices.answer(), covered)))
            });
            match slice.await?.map_err(unreadable)? {
                Slice::More(rest) => slices = rest,
                Slice::Last(answer) => return Ok(answer),
            }
        }
    }

    /// Reads the rows of one workflow.
    async fn look_up<T: Send + 'static>(
        &self,
        read: impl FnOnce(&WorkflowRows) -> T + Send + 'static,
    ) -> Result<T, ShardError> {
        let rows = self.rows.clone();
        self.cluster.host().reads().look_up(move || read(&rows)).await
    }

    async fn read_history(
        self: &Arc<Self>,
        key: WorkflowKey,
        run_id: Option<RunId>,
        page: HistoryPage,
    ) -> Result<HistoryPageReply, ShardError> {
        let pinned = history::token_run(&page.token).map_err(refused)?;
        if let (Some(pinned), Some(asked)) = (&pinned, &run_id)
            && pinned != asked
        {
            return Err(crate::route::api::token_of_another_run());
        }
        let limits = self.cluster.limits();
        let Following { run_id, mut views } =
            match self.page_or_views(&key, pinned.or(run_id), &page, &limits).await? {
                Found::Page(page) => return Ok(page),
                Found::Open(following) => following,
            };
        let longest = Duration::from_millis(limits.history_poll_ms_max);
        let until = Instant::now() + page.wait.unwrap_or_default().min(longest);
        let mut page = page;
        loop {
            let seen = views.borrow_and_update().clone();
            let view = RunView {
                run_id: run_id.clone(),
                next_event_id: seen.next_event_id,
                is_open: seen.open,
                held: seen.held.clone(),
                closing: seen.closing.clone(),
            };
            let outcome = match history::known_page(&view, &page).map_err(refused)? {
                Some(known) => known,
                None => {
                    let (at, asked, limits) = (key.clone(), page.clone(), Arc::clone(&limits));
                    let read = move |rows: &WorkflowRows| {
                        history::read_page(rows, &at, &view, &asked, &limits)
                    };
                    self.look_up(read).await?.map_err(refused)?
                }
            };
            match outcome {
                PageOutcome::Page(reply) => return Ok(reply),
                PageOutcome::Wait { token } => {
                    page.token = token;
                    if !wait_for_more(&mut views, &seen, until).await? {
                        let token = page.token;
                        return Ok(HistoryPageReply { events: Vec::new(), next_page_token: token });
                    }
                }
            }
        }
    }

    /// An open run's actor says how far it is; of a closed run the rows say all. Where somebody is ready to
    /// wait, a workflow that is in memory is asked first: who waits for its end reads nothing at all.
    async fn page_or_views(
        self: &Arc<Self>,
        key: &WorkflowKey,
        run_id: Option<RunId>,
        page: &HistoryPage,
        limits: &Arc<Limits>,
    ) -> Result<Found, ShardError> {
        let mut run_id = run_id;
        let mut ask = page.wait.is_some() && self.workflows.is_open(key);
        for _ in 0..FIND_ATTEMPTS_MAX {
            if ask && let Some(views) = self.subscribe(key, run_id.clone()).await? {
                return Ok(Found::Open(views));
            }
            // ORDER: before the rows are looked into, "not found" too has to be true of the whole group.
            self.confirm().await?;
            let (of, asked, bounds) = (key.clone(), page.clone(), Arc::clone(limits));
            let read = move |rows: &WorkflowRows| closed_page(rows, &of, run_id, &asked, &bounds);
            match self.look_up(read).await?.map_err(refused)? {
                InRows::Closed(page) => return Ok(Found::Page(page)),
                InRows::Open(open) => run_id = Some(open),
                InRows::NoWorkflow => return Err(not_found(key)),
                InRows::NoRun(run_id) => return Err(run_not_found(key, &run_id)),
            }
            ask = true;
        }
        let text = format!("the runs of workflow {} kept changing", key.workflow_id);
        Err(ShardError::Unavailable(text))
    }
}

/// The page of a closed run, or how far an open one is.
enum Found {
    Page(HistoryPageReply),
    Open(Following),
}

/// What the rows say of a run.
enum InRows {
    Closed(HistoryPageReply),
    Open(RunId),
    NoWorkflow,
    NoRun(RunId),
}

/// Reads a page of a closed run, whose history is what its rows say: no actor is needed, and no state.
fn closed_page(
    rows: &WorkflowRows,
    key: &WorkflowKey,
    run_id: Option<RunId>,
    page: &HistoryPage,
    limits: &Limits,
) -> Result<InRows, HistoryError> {
    let current = rows.current(key)?.map(|current| current.run);
    let Some(run_id) = run_id.or_else(|| Some(current.as_ref()?.run_id.clone())) else {
        return Ok(InRows::NoWorkflow);
    };
    if current.as_ref().is_some_and(|run| run.run_id == run_id && run.status.is_open()) {
        return Ok(InRows::Open(run_id));
    }
    let Some(ends) = rows.run_ends(key, &run_id)? else {
        return Ok(if current.is_some() { InRows::NoRun(run_id) } else { InRows::NoWorkflow });
    };
    if ends.closed.is_none() {
        return Ok(InRows::Open(run_id));
    }
    let next_event_id = ends.next_event_id;
    let (held, closing) = (None, None);
    let view = RunView { run_id: run_id.clone(), next_event_id, is_open: false, held, closing };
    Ok(match history::read_page(rows, key, &view, page, limits)? {
        PageOutcome::Page(reply) => InRows::Closed(reply),
        PageOutcome::Wait { .. } => unreachable!("nothing more of a closed run comes"),
    })
}

/// Waits until the run has moved on from what was seen; false when the time is over.
async fn wait_for_more(
    views: &mut watch::Receiver<Subscription>,
    seen: &Subscription,
    until: Instant,
) -> Result<bool, ShardError> {
    let moved = tokio::time::timeout_at(until, views.wait_for(|now| !now.is_as_far_as(seen))).await;
    match moved {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(_)) => Err(ShardError::Unavailable("the workflow is moving to another node".into())),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests;
