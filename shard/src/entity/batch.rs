//! One batch of an entity's requests: loaded, decided, committed, and only then answered. One commit
//! for all requests that waited.

use std::collections::VecDeque;

use piton_core::id::Position;
use piton_store::Write;

use crate::entity::{Entity, Need};
use crate::error::ShardError;
use crate::leader::hosting::{Envelope, refuse_all};
use crate::replica::entry::TransitionRecord;
use crate::replica::proposer::Outcome;

/// Decides and commits what waits; what does not fit into one transition is put back.
///
/// # Errors
/// When the state can no longer be trusted: the actor must go.
pub(crate) async fn process<E: Entity>(
    entity: &mut E,
    mut waiting: VecDeque<Envelope<E::Ask>>,
) -> Result<(), ShardError> {
    if entity.shard().is_stopped() {
        let gone = entity.shard().gone();
        refuse_all(waiting, &entity.shard().cluster, &gone);
        return Err(gone);
    }
    let mut batch = E::Batch::default();
    if !entity.is_loaded()
        && let Err(error) = entity.load(&mut batch)
    {
        refuse_all(waiting, &entity.shard().cluster, &error);
        return Err(error);
    }
    while let Some(envelope) = waiting.pop_front() {
        entity.decide(envelope, &mut batch);
        if E::is_full(&batch) {
            break;
        }
    }
    if !waiting.is_empty() {
        entity.handle().mailbox.put_back(waiting);
    }
    commit(entity, batch).await
}

/// Commits what a batch comes to, then has it answered.
///
/// # Errors
/// As [`process`].
pub(crate) async fn commit<E: Entity>(
    entity: &mut E,
    mut batch: E::Batch,
) -> Result<(), ShardError> {
    let next = Position(entity.position().0 + 1);
    let done = match entity.writes(&mut batch, next) {
        Ok(Need::Commit(writes)) => propose(entity, writes).await,
        Ok(Need::Confirm) => entity.shard().confirm().await,
        Ok(Need::Nothing) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        entity.refuse(batch, &error);
        return Err(error);
    }
    entity.committed(&mut batch);
    entity.conclude(batch).await
}

/// Has writes committed as one transition on the last one, and waits for it.
pub(crate) async fn propose<E: Entity>(
    entity: &mut E,
    writes: Vec<Write>,
) -> Result<(), ShardError> {
    let base = *entity.position();
    let shard = entity.shard();
    let transition = TransitionRecord { term: shard.term, key: entity.key(), base, writes };
    match shard.proposer.propose(transition).await {
        Outcome::Committed => {
            *entity.position() = Position(base.0 + 1);
            Ok(())
        }
        Outcome::NotLed { leader } => {
            let leader = leader.filter(|&leader| leader != shard.cluster.host().node());
            Err(ShardError::NotLeader { shard: shard.id, leader })
        }
        Outcome::Failed(why) => Err(ShardError::OutcomeUnknown(why)),
    }
}
