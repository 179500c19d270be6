//! What becomes of a workflow whose actor gave up while its shard goes on: the commit's outcome was
//! unknown, so the effects of what may have been committed were carried out by nobody.
//!
//! An empty entry goes through the group. Once it is applied, everything this leader has proposed
//! before is applied or never will be, and the rows tell what the workflow owes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::id::{RunId, WorkflowKey};

use crate::leader::term::ShardRuntime;
use crate::replica::entry;
use crate::workflow::actor::{Ask, Envelope, ReplyTo};

/// Wait before the empty entry is proposed again. The group refused it, so it has no quorum now.
const PAUSE: Duration = Duration::from_millis(20);

/// A workflow whose actor gave up.
pub(crate) struct Lost {
    pub(crate) key: WorkflowKey,
    /// The runs that it had in memory.
    pub(crate) runs: Vec<RunId>,
    /// Requests of our own that it did not come to.
    pub(crate) requests: Vec<Ask>,
}

/// The workflows of a shard that wait for their recovery.
#[derive(Default)]
pub(crate) struct Recovery {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Lost>,
    running: bool,
}

impl Recovery {
    pub(crate) fn add(&self, shard: &Arc<ShardRuntime>, lost: Lost) {
        let mut state = self.state.lock();
        state.waiting.push(lost);
        if !std::mem::replace(&mut state.running, true) {
            let shard = Arc::clone(shard);
            tokio::spawn(async move { run(&shard).await });
        }
    }

    fn take(&self) -> Option<Vec<Lost>> {
        let mut state = self.state.lock();
        state.running = !state.waiting.is_empty();
        state.running.then(|| std::mem::take(&mut state.waiting))
    }
}

/// Recovers those who wait, together, until nobody does. A new leader finds all of it in the rows,
/// so it ends when the shard stops.
async fn run(shard: &Arc<ShardRuntime>) {
    // ORDER: those who wait are taken before the empty entry is proposed: theirs came before it.
    while let Some(lost) = shard.recovery.take() {
        while let Err(error) = shard.group.propose(entry::encode_entry(&[])).await {
            if shard.is_stopped() {
                return;
            }
            tracing::debug!(shard = %shard.id, %error, "workflows wait to be recovered");
            tokio::time::sleep(PAUSE).await;
        }
        for Lost { key, runs, requests } in lost {
            let resume = runs.into_iter().map(|run_id| Ask::Resume { run_id });
            for ask in requests.into_iter().chain(resume) {
                shard.ask(&key, Envelope { ask, reply: ReplyTo::nobody() });
            }
        }
    }
}
