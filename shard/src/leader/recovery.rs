//! What becomes of a workflow whose actor gave up while its shard goes on: the commit's outcome was
//! unknown, so the effects of what may have been committed were carried out by nobody.
//!
//! An empty entry goes through the group. Once it is applied, everything this leader has proposed
//! before is applied or never will be, and the rows tell what the workflow owes. Not before may a
//! ticket come back of an activity that the lost commit was to schedule: where the activity is not
//! found, its poll goes on, and would have left its attempt to nobody if it came to be after all.

use std::sync::Arc;
use std::time::Duration;

use piton_core::id::WorkflowKey;

use crate::leader::dispatch::Duty;
use crate::leader::hosting::{Envelope, Lost};
use crate::leader::runtime::ShardRuntime;
use crate::message::WorkflowCall;
use crate::replica::entry;
use crate::route::shard_leader::ReplyTo;

/// Wait before the empty entry is proposed again. The group refused it, so it has no quorum now.
const PAUSE: Duration = Duration::from_millis(20);

impl ShardRuntime {
    /// Has a workflow recovered, together with others that wait for it.
    pub(crate) fn recover(self: &Arc<Self>, key: WorkflowKey, lost: Lost) {
        if self.lost.add(key, lost) {
            let shard = Arc::clone(self);
            tokio::spawn(async move { recover_all(&shard).await });
        }
    }
}

/// Recovers those who wait, together, until nobody does. When the shard has stopped only tickets are
/// left to do: a new leader finds all else in the rows.
async fn recover_all(shard: &Arc<ShardRuntime>) {
    // ORDER: those who wait are taken before the empty entry is proposed: theirs came before it.
    while let Some(lost) = shard.lost.take() {
        let empty = || entry::encode_entry(shard.cluster.level(), &[]);
        while let Err(error) = shard.group.propose(empty()).await {
            // A new leader serves when all that was committed before its term is applied.
            if shard.is_stopped() {
                break;
            }
            tracing::debug!(shard = %shard.id, %error, "workflows wait to be recovered");
            tokio::time::sleep(PAUSE).await;
        }
        for (key, Lost { runs, requests, tickets }) in lost {
            for ticket in tickets {
                shard.cluster.insist_again(shard.id, WorkflowCall::Ticket(ticket).into());
            }
            if shard.is_stopped() {
                continue;
            }
            for ask in requests {
                shard.ask(&key, Envelope { ask, reply: ReplyTo::nobody() });
            }
            for run_id in runs {
                shard.remind(key.clone().into(), Duty::Resume { run_id });
            }
        }
    }
}
