//! Turns due timers into requests. One actor per shard; it loads the near window of the shard's timer
//! rows into `wakeups`, and sleeps until the first of those.

use std::sync::{Arc, Weak};
use std::time::Duration;

use piton_core::time::{Span, Timestamp};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;

use crate::leader::dispatch::Duty;
use crate::leader::panics::caught;
use crate::leader::runtime::ShardRuntime;
use crate::leader::wakeups::{Cause, TimerMessage, Wakeup};

/// Wait before rows are read again that could not be read, or after a bug of ours.
const BEGIN_ANEW_PAUSE: Duration = Duration::from_millis(100);

/// The actor that waits for the nearest wakeup.
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
                shard.wakeups.attach(actor);
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
        if let Some(sleeper) = state.sleeper.take() {
            sleeper.abort();
        }
        let mut trusts = shard.cluster.host().trusts_clock();
        if !*trusts.borrow_and_update() {
            // INVARIANT: a clock that is far from the others' fires nothing (D12): what fires too early
            // cannot be taken back.
            let sleeper = tokio::spawn(async move {
                if trusts.wait_for(|trusts| *trusts).await.is_ok() {
                    let _ = myself.cast(TimerMessage::Look);
                }
            });
            state.sleeper = Some(sleeper.abort_handle());
            return Ok(());
        }
        let now = shard.clock.now();
        let next = caught(shard.id, "timers", || {
            let is_loaded = load_window(&shard, now);
            let next = fire(&shard, now);
            is_loaded.then_some(next)
        });
        let anew = now + Span::from(BEGIN_ANEW_PAUSE);
        let next = next.flatten().unwrap_or_else(|| shard.wakeups.begin_anew(anew));
        let clock = shard.clock;
        let sleeper = tokio::spawn(async move {
            clock.wait_until(next).await;
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

/// Reads the rows that come due within the next window, when half of the last one is over. False:
/// they cannot be read now.
fn load_window(shard: &ShardRuntime, now: Timestamp) -> bool {
    let window = shard.config.timer_window;
    let (from, until) = {
        let mut near = shard.wakeups.near();
        if near.horizon - now > Span::from(window / 2) {
            return true;
        }
        let from = near.horizon;
        near.horizon = now + Span::from(window);
        (from, near.horizon)
    };
    // ORDER: the horizon moves before the rows are read. A timer committed meanwhile is armed by
    // its actor or seen by the scan, or both, which is the same wakeup.
    match shard.rows.timers_between(from, until) {
        Ok(rows) => {
            let mut near = shard.wakeups.near();
            for row in rows {
                let cause = Cause::Timer(row.kind);
                let wakeup = Wakeup { due: row.due, key: row.key, run_id: row.run_id, cause };
                near.wakeups.insert(wakeup);
            }
            true
        }
        Err(error) => {
            tracing::error!(shard = %shard.id, %error, "cannot read timer rows");
            false
        }
    }
}

/// Sends a request for each wakeup that is due; answers when to look again.
fn fire(shard: &Arc<ShardRuntime>, now: Timestamp) -> Timestamp {
    let mut due = Vec::new();
    let next = {
        let mut near = shard.wakeups.near();
        while let Some(wakeup) = near.wakeups.first() {
            if wakeup.due > now {
                break;
            }
            due.extend(near.wakeups.pop_first());
        }
        let half_window = now + Span::from(shard.config.timer_window / 2);
        let next = near.wakeups.first().map_or(half_window, |wakeup| wakeup.due.min(half_window));
        near.looks_at = Some(next);
        next
    };
    // INVARIANT: a row that is due wakes its run once in this term; several of one run at once
    // wake it once, as it fires everything that is due.
    let mut woken = None;
    for Wakeup { due, key, run_id, cause } in due {
        shard.metrics.timer_fired((now - due).to_std());
        let duty = match cause {
            Cause::Timer(_) if woken.as_ref() == Some(&(key.clone(), run_id.clone())) => continue,
            Cause::Timer(_) => {
                woken = Some((key.clone(), run_id.clone()));
                Duty::Fire { run_id }
            }
            Cause::HeldTask(number) => Duty::EndHeldTask { run_id, number },
        };
        shard.remind(key, duty);
    }
    next
}
