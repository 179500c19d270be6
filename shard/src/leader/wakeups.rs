//! What wakes the entities of a shard soon: due timers, and the deadlines of workflow tasks that are
//! held, which have no row. `timers` loads them and wakes whom they are for.

use std::collections::BTreeSet;

use parking_lot::{Mutex, MutexGuard};
use piton_core::effect::TimerKind;
use piton_core::id::RunId;
use piton_core::time::Timestamp;
use ractor::ActorRef;

use crate::rows::EntityKey;

/// When an entity is woken, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wakeup {
    pub(crate) due: Timestamp,
    pub(crate) key: EntityKey,
    pub(crate) run_id: RunId,
    pub(crate) cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// A timer row is due.
    Timer(TimerKind),
    /// The held workflow task of this number has taken too long.
    HeldTask(u64),
}

/// The wakeups of a shard that are near. Shared by its entities and its timer actor.
#[derive(Default)]
pub(crate) struct Wakeups {
    near: Mutex<Near>,
    actor: Mutex<Option<ActorRef<TimerMessage>>>,
}

#[derive(Default)]
pub(crate) struct Near {
    pub(crate) wakeups: BTreeSet<Wakeup>,
    /// Rows due from here on are not in memory.
    pub(crate) horizon: Timestamp,
    /// When the actor will look by itself.
    pub(crate) looks_at: Option<Timestamp>,
}

pub(crate) enum TimerMessage {
    Look,
}

impl Wakeups {
    /// Adds a timer whose row is committed, or a held task's deadline.
    pub(crate) fn arm(&self, wakeup: Wakeup) {
        let due = wakeup.due;
        let tell = {
            let mut near = self.near.lock();
            if matches!(wakeup.cause, Cause::Timer(_)) && due >= near.horizon {
                return;
            }
            near.wakeups.insert(wakeup);
            near.looks_at.is_none_or(|at| due < at)
        };
        if tell && let Some(actor) = &*self.actor.lock() {
            // A stopped actor has nothing to look at.
            let _ = actor.cast(TimerMessage::Look);
        }
    }

    pub(crate) fn disarm(&self, wakeup: &Wakeup) {
        self.near.lock().wakeups.remove(wakeup);
    }

    /// What is in memory may be half of the rows: all of them are read again, at this time, which is
    /// answered.
    pub(crate) fn begin_anew(&self, at: Timestamp) -> Timestamp {
        let mut near = self.near.lock();
        near.horizon = Timestamp::default();
        near.looks_at = Some(at);
        at
    }

    pub(crate) fn near(&self) -> MutexGuard<'_, Near> {
        self.near.lock()
    }

    /// Names the actor that is told of earlier wakeups than it knows.
    pub(crate) fn attach(&self, actor: ActorRef<TimerMessage>) {
        *self.actor.lock() = Some(actor);
    }

    pub(crate) fn stop(&self) {
        if let Some(actor) = self.actor.lock().take() {
            actor.stop(None);
        }
    }
}
