//! What a shard's leader answers from rows: pages of history, lists, counts. Reads wait for the actor's undecided transitions and for a read-index round
//! (architecture D5a).

use std::sync::Arc;
use std::time::Duration;

use piton_core::error::Rejection;
use piton_core::id::{RunId, WorkflowKey};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::ShardError;
use crate::leader::hosting::Subscription;
use crate::leader::runtime::ShardRuntime;
use crate::message::{Answer, HistoryPage, HistoryPageReply, ReadCall, TaskQueueView};
use crate::rows::LoadError;
use crate::rows::history::{self, HistoryError, PageOutcome, RunView};
use crate::rows::visibility;

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

pub(crate) fn refused(error: HistoryError) -> ShardError {
    match error {
        HistoryError::Token(text) => Rejection::InvalidArgument(text.into()).into(),
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
            ReadCall::List { namespace, filter, after, limit } => {
                self.confirm().await?;
                let listed =
                    visibility::list(&self.rows, &namespace, &filter, after.as_deref(), limit);
                let rows = listed.map_err(unreadable)?;
                Ok(Answer::List { rows, covered: self.covered()? })
            }
            ReadCall::Count { namespace, filter } => {
                self.confirm().await?;
                let counts =
                    visibility::count(&self.rows, &namespace, &filter).map_err(unreadable)?;
                Ok(Answer::Count { counts, covered: self.covered()? })
            }
            ReadCall::Backlog { queue } => {
                let (backlog_count, oldest) = self.rows.backlog(&queue).map_err(unreadable)?;
                Ok(Answer::Queue(TaskQueueView { backlog_count, oldest, ..Default::default() }))
            }
        }
    }

    fn covered(&self) -> Result<Vec<std::ops::Range<u16>>, ShardError> {
        let range = self.rows.range().map_err(unreadable)?;
        Ok(range.into_iter().map(|r| r.slots).collect())
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
        // ORDER: before the rows are looked into, "not found" too has to be true of the whole group.
        self.confirm().await?;
        let run_id = match pinned.or(run_id) {
            Some(run_id) => run_id,
            None => self.current_run(&key)?,
        };
        let mut views = self.subscribe(&key, &run_id).await?;
        let limits = self.cluster.limits();
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
            };
            let outcome = history::read_page(&self.rows, &key, &view, &page, &limits);
            match outcome.map_err(refused)? {
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

    fn current_run(&self, key: &WorkflowKey) -> Result<RunId, ShardError> {
        let current = self.rows.current(key).map_err(unreadable)?;
        current.map(|c| c.run.run_id).ok_or_else(|| not_found(key))
    }
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
