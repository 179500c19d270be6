//! Timers that the workflow asks for.

use piton_proto::command::{CancelTimerCommandAttributes, StartTimerCommandAttributes};
use piton_proto::history::{HistoryEvent, TimerStartedEventAttributes};
use piton_proto::sdk::UserMetadata;

use super::command::CommandFailure;
use super::{RunState, Timer};
use crate::effect::{Effect, TimerKind};
use crate::id::EventId;
use crate::request::Drawn;

impl Timer {
    pub(crate) fn effect(&self) -> Effect {
        Effect::Timer(self.fires_at, TimerKind::User(self.started_event_id))
    }
}

impl RunState {
    pub(super) fn start_timer(
        &mut self,
        attributes: StartTimerCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn cancel_timer(
        &mut self,
        attributes: CancelTimerCommandAttributes,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, completed, drawn);
        unimplemented!()
    }

    pub(super) fn fire_timers(&mut self, drawn: &Drawn<'_>) {
        let _ = drawn;
        unimplemented!()
    }

    pub(super) fn fold_timer_started(
        &mut self,
        event: &HistoryEvent,
        attributes: &TimerStartedEventAttributes,
    ) {
        let _ = (event, attributes);
        unimplemented!()
    }

    /// Fired or Canceled.
    pub(super) fn fold_timer_closed(&mut self, started: EventId) {
        self.timers.remove(&started);
    }
}
