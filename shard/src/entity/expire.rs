//! Deletes what has expired of an entity: a closed run whose retention is over, or a request id that
//! is old enough.

use piton_core::id::Position;

use crate::entity::{Entity, batch};
use crate::error::ShardError;
use crate::leader::reads::unreadable;
use crate::rows::retention::{self, ExpireRow};

/// Rows deleted by one transition.
const DELETED_ROWS_MAX: usize = 256;

/// Deletes what expired, in bounded transitions, unless it is in use.
///
/// # Errors
/// When it could not be read, or nobody knows what became of a transition: the actor must go. It is tried
/// again later.
pub(crate) async fn expire<E: Entity>(entity: &mut E, row: &ExpireRow) -> Result<(), ShardError> {
    let deleted = delete(entity, row).await;
    deleted.inspect_err(|error| {
        tracing::warn!(key = ?row.key, %error, "cannot delete what expired; tried again later");
    })
}

async fn delete<E: Entity>(entity: &mut E, row: &ExpireRow) -> Result<(), ShardError> {
    loop {
        let deletion = retention::deletion_writes(&entity.shard().rows, row, DELETED_ROWS_MAX);
        let deletion = deletion.map_err(unreadable)?;
        if deletion.writes.is_empty() && deletion.done {
            return Ok(());
        }
        let next = Position(entity.position().0 + 1);
        let Some(own) = entity.row_without(&row.what, deletion.done, next) else { return Ok(()) };
        let mut writes = deletion.writes;
        writes.push(own?);
        batch::propose(entity, writes).await?;
        entity.forget(&row.what, deletion.done);
        if deletion.done {
            return Ok(());
        }
    }
}
