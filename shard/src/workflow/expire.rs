//! Deletes what has expired of a hosted workflow: a closed run whose retention is over, or a request id
//! that is old enough.

use piton_core::id::Position;

use crate::error::ShardError;
use crate::leader::reads::unreadable;
use crate::replica::entry::TransitionRecord;
use crate::replica::proposer::Outcome;
use crate::rows;
use crate::rows::retention::{self, ExpireRow, Expired};
use crate::workflow::batch::Hosted;

/// Rows deleted by one transition.
const DELETED_ROWS_MAX: usize = 256;

impl Hosted {
    /// Deletes what expired, in bounded transitions, unless it is in use.
    pub(crate) async fn expire(&mut self, row: &ExpireRow) {
        if let Err(error) = self.delete_expired(row).await {
            tracing::warn!(key = ?self.key, %error, "cannot delete what expired; tried again later");
        }
    }

    /// Deletes what expired, unless the run it belongs to is open again or followed.
    async fn delete_expired(&mut self, row: &ExpireRow) -> Result<(), ShardError> {
        if let Expired::Run(run_id) = &row.what {
            let is_open = self.runs.get(run_id).is_some_and(|run| run.status.is_open());
            if is_open {
                return Ok(());
            }
        }
        loop {
            let deletion = retention::deletion_writes(&self.shard.rows, row, DELETED_ROWS_MAX);
            let deletion = deletion.map_err(unreadable)?;
            if deletion.writes.is_empty() && deletion.done {
                return Ok(());
            }
            let mut writes = deletion.writes;
            let is_last = matches!((&row.what, self.current_run()), (Expired::Run(gone), Some(current))
                if deletion.done && *gone == current);
            let next = Position(self.position.0 + 1);
            match &mut self.current {
                Some(current) if !is_last => {
                    current.position = next;
                    let write = rows::current_write(&self.key, current);
                    writes.push(write.map_err(|e| ShardError::Internal(e.to_string()))?);
                }
                _ => writes.push(rows::current_delete(&self.key)),
            }
            let transition = TransitionRecord {
                term: self.shard.term,
                key: self.key.clone().into(),
                base: self.position,
                writes,
            };
            if let Outcome::Failed(why) = self.shard.proposer.propose(transition).await {
                return Err(ShardError::Unavailable(why));
            }
            if is_last {
                (self.position, self.current) = (Position(0), None);
                self.runs.clear();
            } else {
                self.position = next;
            }
            if let Expired::Run(run_id) = &row.what {
                self.runs.remove(run_id);
            }
            if deletion.done {
                return Ok(());
            }
        }
    }
}
