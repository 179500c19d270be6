//! What is done again and again while a shard is led: workflows that nobody uses leave memory, and what
//! has expired is deleted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use piton_core::time::Span;

use crate::leader::dispatch::Duty;
use crate::leader::mailbox::Notice;
use crate::leader::runtime::ShardRuntime;
use crate::rows::{LoadError, retention};

impl ShardRuntime {
    /// Passivates what has been idle for long.
    pub(crate) fn sweep(&self) {
        let now = self.clock.now();
        let [open, closed] =
            [self.config.idle, self.config.idle_closed()].map(|idle| now - Span::from(idle));
        let mut workflows = self.workflows.all();
        // A burst must not take memory for all of its workflows at once: the longest unused go.
        let too_many = workflows.len().saturating_sub(self.workflows.len_max);
        if too_many > 0 {
            workflows.select_nth_unstable_by_key(too_many, |workflow| workflow.last_used());
        }
        for (index, workflow) in workflows.iter().enumerate() {
            let idle_since = if workflow.is_open() { open } else { closed };
            if index < too_many || workflow.last_used() < idle_since {
                workflow.mailbox.notify(Notice::Leave);
            }
        }
    }

    /// Has runs and request ids deleted whose time is over, one batch after the other.
    pub(crate) fn expire(self: &Arc<Self>) {
        // INVARIANT: by a clock that is far from the others' nothing is deleted for its age (D12).
        let trusts_clock = *self.cluster.host().trusts_clock().borrow();
        if trusts_clock && !self.expiring.swap(true, Ordering::AcqRel) {
            let shard = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = shard.expire_all().await {
                    tracing::error!(shard = %shard.id, %error, "cannot read expiry rows");
                }
                shard.expiring.store(false, Ordering::Release);
            });
        }
    }

    async fn expire_all(self: &Arc<Self>) -> Result<(), LoadError> {
        let limit = self.config.retention_batch;
        let mut oldest = None;
        while !self.is_stopped() {
            let rows = retention::expired(&self.rows, self.clock.now(), limit)?;
            let is_last = rows.len() < limit;
            if rows.first() == oldest.as_ref() {
                // It could not be deleted, or there is none.
                break;
            }
            oldest = rows.first().cloned();
            let (turn, over) = retention::batch();
            for row in rows {
                self.remind(row.key.clone(), Duty::Expire(row, turn.clone()));
            }
            drop(turn);
            over.await;
            if is_last {
                break;
            }
        }
        Ok(())
    }
}
