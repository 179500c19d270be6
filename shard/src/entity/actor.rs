//! One actor per entity: takes all requests that wait, decides them one after the other, proposes
//! them together, and replies after the commit (D5).

use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};

use crate::entity::{Entity, batch};
use crate::error::ShardError;
use crate::leader::mailbox::Notice;
use crate::leader::panics;

/// Starts an entity's actor.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start<E: Entity>(entity: E) -> Result<ActorRef<Notice>, SpawnErr> {
    let actor = EntityActor(PhantomData::<fn() -> E>);
    ractor::ActorRuntime::spawn_instant(None, actor, entity).map(|(actor, _)| actor)
}

struct EntityActor<E>(PhantomData<fn() -> E>);

impl<E: Entity> Actor for EntityActor<E> {
    type Msg = Notice;
    type State = E;
    type Arguments = E;

    async fn pre_start(&self, _: ActorRef<Notice>, entity: E) -> Result<E, ActorProcessingErr> {
        Ok(entity)
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        notice: Notice,
        entity: &mut E,
    ) -> Result<(), ActorProcessingErr> {
        // Boxed: an actor's own future stays as small as what it waits for, and most only wait.
        if let Err(error) = Box::pin(work(entity)).await {
            // D5: the outcome of a commit is unknown or the state cannot be trusted,
            // so the actor goes, and the next request hosts the entity again from its rows.
            tracing::debug!(key = ?entity.key(), %error, "an entity's actor gives up");
            entity.leave();
            let left = entity.handle().mailbox.close();
            entity.abandon(left, &error);
            myself.stop(None);
            return Ok(());
        }
        let leaves = matches!(notice, Notice::Leave) || entity.shard().config.idle.is_zero();
        if leaves && entity.is_idle() && entity.handle().mailbox.close_if_empty() {
            entity.leave();
            myself.stop(None);
        }
        Ok(())
    }
}

/// Works until nothing waits. A panic is a bug of ours in one entity: it ends this actor only.
async fn work<E: Entity>(entity: &mut E) -> Result<(), ShardError> {
    loop {
        let waiting = entity.handle().mailbox.take();
        if waiting.is_empty() {
            return Ok(());
        }
        let processed = AssertUnwindSafe(batch::process(entity, waiting)).catch_unwind().await;
        processed.unwrap_or_else(|panic| {
            let panic = panics::text_of(panic.as_ref());
            let key = entity.key();
            tracing::error!(?key, panic, "an entity's actor panicked");
            let kind = key.kind.name();
            Err(ShardError::Internal(format!("an internal error in this {kind}")))
        })?;
    }
}
