//! One actor per workflow id: takes all requests that wait, decides them one after the other,
//! proposes them together, and replies after the commit (D5). Step 3 of a request's way.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use piton_core::id::WorkflowKey;
use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr};

use crate::error::ShardError;
use crate::leader::hosting::WorkflowHandle;
use crate::leader::mailbox::Notice;
use crate::leader::panics;
use crate::leader::runtime::ShardRuntime;
use crate::workflow::batch::Hosted;

/// Starts a workflow's actor.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(
    shard: Arc<ShardRuntime>,
    key: WorkflowKey,
    handle: Arc<WorkflowHandle>,
) -> Result<ActorRef<Notice>, SpawnErr> {
    let hosted = Hosted::new(shard, handle, key);
    ractor::ActorRuntime::spawn_instant(None, WorkflowActor, hosted).map(|(actor, _)| actor)
}

struct WorkflowActor;

impl Actor for WorkflowActor {
    type Msg = Notice;
    type State = Hosted;
    type Arguments = Hosted;

    async fn pre_start(
        &self,
        _: ActorRef<Notice>,
        hosted: Hosted,
    ) -> Result<Hosted, ActorProcessingErr> {
        Ok(hosted)
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        notice: Notice,
        hosted: &mut Hosted,
    ) -> Result<(), ActorProcessingErr> {
        // Boxed: an actor's own future stays as small as what it waits for, and most only wait.
        if let Err(error) = Box::pin(work(hosted)).await {
            // Architecture D5: the outcome of a commit is unknown or the state cannot be trusted,
            // so the actor goes, and the next request re-hosts the workflow from its rows.
            tracing::debug!(key = ?hosted.key, %error, "a workflow's actor gives up");
            hosted.shard.leave(&hosted.key, &hosted.handle);
            hosted.abandon(&error);
            myself.stop(None);
            return Ok(());
        }
        let leaves = matches!(notice, Notice::Leave) || hosted.shard.config.idle.is_zero();
        if leaves {
            // Nothing that a caller does wakes the actor when the caller goes.
            hosted.forget_abandoned_queries();
        }
        if leaves && hosted.is_idle() && hosted.handle.mailbox.close_if_empty() {
            hosted.shard.leave(&hosted.key, &hosted.handle);
            myself.stop(None);
        }
        Ok(())
    }
}

/// Works until nothing waits. A panic is a bug of ours in one workflow: it ends this actor only.
async fn work(hosted: &mut Hosted) -> Result<(), ShardError> {
    loop {
        let waiting = hosted.handle.mailbox.take();
        if waiting.is_empty() {
            return Ok(());
        }
        let processed = AssertUnwindSafe(hosted.process(waiting)).catch_unwind().await;
        processed.unwrap_or_else(|panic| {
            let panic = panics::text_of(panic.as_ref());
            tracing::error!(key = ?hosted.key, panic, "a workflow's actor panicked");
            Err(ShardError::Internal("an internal error in this workflow".into()))
        })?;
    }
}
