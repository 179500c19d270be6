//! A workflow's actor: the shell of entities around what a workflow is.

use std::sync::Arc;

use piton_core::id::WorkflowKey;
use ractor::{ActorRef, SpawnErr};

use crate::entity::actor;
use crate::leader::hosting::WorkflowHandle;
use crate::leader::mailbox::Notice;
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
    actor::start(Hosted::new(shard, handle, key))
}
