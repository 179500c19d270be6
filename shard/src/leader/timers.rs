//! Turns due timers into requests. One actor per shard; it holds the near window of the shard's
//! timer rows, and the deadlines of workflow tasks that are held (which have no row).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use piton_core::effect::TimerKind;
use piton_core::id::{RunId, WorkflowKey};
use piton_core::request::RunRequest;
use piton_core::time::{Span, Timestamp};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;

use crate::leader::panics::caught;
use crate::leader::term::ShardRuntime;

/// Wait before rows are read again that could not be read, or after a bug of ours.
const BEGIN_ANEW_PAUSE: Duration = Duration::from_millis(100);

/// What wakes a workflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alarm {
    pub(crate) due: Timestamp,
    pub(crate) key: WorkflowKey,
    pub(crate) run_id: RunId,
    pub(crate) what: Wake,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wake {
    /// A timer row is due.
    Row(TimerKind),
    /// The held workflow task of this number has taken too long.
    HeldTask(u64),
}

/// The timers of a shard that are near. Shared by its actors and its timer actor.
#[derive(Default)]
pub(crate) struct Timers {
    near: Mutex<Near>,
    actor: Mutex<Option<ActorRef<TimerMessage>>>,
}

#[derive(Default)]
struct Near {
    alarms: BTreeMap<Alarm, ()>,
    /// Rows due from here on are not in memory.
    horizon: Timestamp,
    /// When the actor will look by itself.
    looks_at: Option<Timestamp>,
}

pub(crate) enum TimerMessage {
    Look,
}

impl Timers {
    /// Adds a timer whose row is committed, or a held task's deadline.
    pub(crate) fn arm(&self, alarm: Alarm) {
        let due = alarm.due;
        let tell = {
            let mut near = self.near.lock();
            if matches!(alarm.what, Wake::Row(_)) && due >= near.horizon {
                return;
            }
            near.alarms.insert(alarm, ());
            near.looks_at.is_none_or(|at| due < at)
        };
        if tell {
            self.look();
        }
    }

    pub(crate) fn disarm(&self, alarm: &Alarm) {
        self.near.lock().alarms.remove(alarm);
    }

    /// What is in memory may be half of the rows: all of them are read again. Answers when.
    fn begin_anew(&self, now: Timestamp) -> Timestamp {
        let next = now + Span::from(BEGIN_ANEW_PAUSE);
        let mut near = self.near.lock();
        near.horizon = Timestamp::default();
        near.looks_at = Some(next);
        next
    }

    fn look(&self) {
        if let Some(actor) = &*self.actor.lock() {
            // A stopped actor has nothing to look at.
            let _ = actor.cast(TimerMessage::Look);
        }
    }

    pub(crate) fn stop(&self) {
        if let Some(actor) = self.actor.lock().take() {
            actor.stop(None);
        }
    }
}

/// The actor that waits for the nearest alarm.
pub(crate) struct TimerActor;

pub(crate) struct TimerState {
    shard: Weak<ShardRuntime>,
    sleeper: Option<AbortHandle>,
}

impl TimerActor {
    pub(crate) fn start(shard: &Arc<ShardRuntime>) {
        let state = TimerState { shard: Arc::downgrade(shard), sleeper: None };
        match ractor::ActorRuntime::spawn_instant(None, TimerActor, state) {
            Ok((actor, _)) => {
                let _ = actor.cast(TimerMessage::Look);
                *shard.timers.actor.lock() = Some(actor);
            }
            Err(error) => {
                tracing::error!(shard = %shard.id, %error, "cannot start the timer actor")
            }
        }
    }
}

impl Actor for TimerActor {
    type Msg = TimerMessage;
    type State = TimerState;
    type Arguments = TimerState;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        state: TimerState,
    ) -> Result<TimerState, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        TimerMessage::Look: TimerMessage,
        state: &mut TimerState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(shard) = state.shard.upgrade() else {
            myself.stop(None);
            return Ok(());
        };
        let now = shard.clock.now();
        let next = caught(shard.id, "timers", || {
            let is_loaded = load_window(&shard, now);
            let next = fire(&shard, now);
            is_loaded.then_some(next)
        });
        let next = next.flatten().unwrap_or_else(|| shard.timers.begin_anew(now));
        if let Some(sleeper) = state.sleeper.take() {
            sleeper.abort();
        }
        let until = shard.clock.instant_of(next);
        let sleeper = tokio::spawn(async move {
            shard_sleep(until).await;
            let _ = myself.cast(TimerMessage::Look);
        });
        state.sleeper = Some(sleeper.abort_handle());
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<Self::Msg>,
        state: &mut TimerState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(sleeper) = state.sleeper.take() {
            sleeper.abort();
        }
        Ok(())
    }
}

async fn shard_sleep(until: tokio::time::Instant) {
    tokio::time::sleep_until(until).await;
}

/// Reads the rows that come due within the next window, when half of the last one is over. False:
/// they cannot be read now.
fn load_window(shard: &ShardRuntime, now: Timestamp) -> bool {
    let window = shard.config.timer_window;
    let (from, until) = {
        let mut near = shard.timers.near.lock();
        if near.horizon - now > Span::from(window / 2) {
            return true;
        }
        let from = near.horizon;
        near.horizon = now + Span::from(window);
        (from, near.horizon)
    };
    // ORDER: the horizon moves before the rows are read. A timer committed meanwhile is armed by
    // its actor or seen by the scan, or both, which is the same alarm.
    match shard.rows.timers_between(from, until) {
        Ok(rows) => {
            let mut near = shard.timers.near.lock();
            for row in rows {
                let alarm = Alarm {
                    due: row.due,
                    key: row.key,
                    run_id: row.run_id,
                    what: Wake::Row(row.kind),
                };
                near.alarms.insert(alarm, ());
            }
            true
        }
        Err(error) => {
            tracing::error!(shard = %shard.id, %error, "cannot read timer rows");
            false
        }
    }
}

/// Sends a request for each due alarm; answers when to look again.
fn fire(shard: &Arc<ShardRuntime>, now: Timestamp) -> Timestamp {
    let mut due = Vec::new();
    let next = {
        let mut near = shard.timers.near.lock();
        while let Some((alarm, ())) = near.alarms.first_key_value() {
            if alarm.due > now {
                break;
            }
            due.extend(near.alarms.pop_first());
        }
        let half_window = now + Span::from(shard.config.timer_window / 2);
        let next =
            near.alarms.first_key_value().map_or(half_window, |(a, ())| a.due.min(half_window));
        near.looks_at = Some(next);
        next
    };
    // INVARIANT: a row that is due wakes its run once in this term; several of one run at once
    // wake it once, as it fires everything that is due.
    let mut woken = None;
    for (alarm, ()) in due {
        let request = match alarm.what {
            Wake::Row(_) if woken.as_ref() == Some(&(alarm.key.clone(), alarm.run_id.clone())) => {
                continue;
            }
            Wake::Row(_) => RunRequest::Due,
            Wake::HeldTask(number) => RunRequest::WorkflowTaskTimedOut { number },
        };
        if matches!(request, RunRequest::Due) {
            woken = Some((alarm.key.clone(), alarm.run_id.clone()));
        }
        shard.tell(&alarm.key, &alarm.run_id, request);
    }
    next
}
