//! The shell of an entity: what every actor with rows, a position and a fence of its own does alike,
//! whatever it is. A workflow is one; schedules, batch jobs and activities on their own will follow.
//!
//! The shell takes what waits, has it decided, commits it as one transition, and only then has it
//! answered; it knows request ids and deletes what has expired. It decides nothing: that an entity
//! is of some kind, and what it is asked, is [`Entity`]'s. Step 3 of a request's way.

pub(crate) mod actor;
pub(crate) mod batch;
pub(crate) mod expire;
pub(crate) mod requests;

use std::collections::VecDeque;
use std::sync::Arc;

use piton_core::id::Position;
use piton_store::Write;

use crate::error::ShardError;
use crate::leader::hosting::{Asked, Envelope, Handle};
use crate::leader::runtime::ShardRuntime;
use crate::rows::EntityKey;
use crate::rows::retention::Expired;

/// An entity in memory: the state of its actor. The shell calls its methods in this order:
///
/// 1. `load`, once in an actor's life: the rows as they are committed.
/// 2. `decide`, for each request of a batch, until it `is_full`. What is decided is taken into the
///    state ahead of the commit, and what is to be answered is noted. Nothing leaves here.
/// 3. `writes`: what the batch has to have committed. The shell commits it, as one transition, or
///    confirms that this node still leads. If that fails, `refuse`, and the actor goes: the state is
///    ahead of the rows.
/// 4. `committed`: effects.
/// 5. `conclude`: answers, and whatever nobody waits for leaves memory.
///
/// `abandon` is called instead of all that follows when a step fails, `conclude` among them: what expires is
/// deleted there, by transitions of its own.
pub(crate) trait Entity: Sized + Send + 'static {
    type Ask: Asked;
    /// What the requests of one batch come to.
    type Batch: Default + Send;

    fn shard(&self) -> &Arc<ShardRuntime>;
    fn handle(&self) -> &Arc<Handle<Self::Ask>>;
    fn key(&self) -> EntityKey;
    /// The position of the last transition: that of the rows, once it is loaded.
    fn position(&mut self) -> &mut Position;
    fn is_loaded(&self) -> bool;

    fn load(&mut self, batch: &mut Self::Batch) -> Result<(), ShardError>;
    fn decide(&mut self, envelope: Envelope<Self::Ask>, batch: &mut Self::Batch);
    /// No more fits into one transition.
    fn is_full(batch: &Self::Batch) -> bool;
    /// What has to be committed; the entity's `current` row, at position `next`, is among the writes.
    fn writes(&mut self, batch: &mut Self::Batch, next: Position) -> Result<Need, ShardError>;
    fn committed(&mut self, batch: &mut Self::Batch);
    fn refuse(&mut self, batch: Self::Batch, why: &ShardError);
    fn conclude(
        &mut self,
        batch: Self::Batch,
    ) -> impl Future<Output = Result<(), ShardError>> + Send;

    /// Puts the `current` row at position `next`, or deletes it, beside the deletion of what expired:
    /// `done` with the last rows of it. `None`: it is in use, and stays.
    fn row_without(
        &mut self,
        gone: &Expired,
        done: bool,
        next: Position,
    ) -> Option<Result<Write, ShardError>>;
    /// That deletion is committed.
    fn forget(&mut self, gone: &Expired, done: bool);

    /// Whether nothing of it lives only in memory (D6).
    fn is_idle(&mut self) -> bool;
    /// Other actors may be hosted in its place from now on.
    fn leave(&self);
    /// The actor goes without having finished; these wait.
    fn abandon(&mut self, left: VecDeque<Envelope<Self::Ask>>, why: &ShardError);
}

/// What stands behind the answers of a batch.
pub(crate) enum Need {
    /// These writes, as one transition.
    Commit(Vec<Write>),
    /// That this node still leads (D5a).
    Confirm,
    Nothing,
}

#[cfg(test)]
pub(crate) mod tests;
