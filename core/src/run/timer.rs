//! Timers that the workflow asks for.

use std::sync::Arc;

use piton_proto::command::{CancelTimerCommandAttributes, StartTimerCommandAttributes};
use piton_proto::enums::WorkflowTaskFailedCause;
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    HistoryEvent, TimerCanceledEventAttributes, TimerFiredEventAttributes,
    TimerStartedEventAttributes,
};

use super::command::CommandFailure;
use super::event::Annotations;
use super::facts::Ending;
use super::field::{Fields, refused_by_state};
use super::{RunState, Timer};
use crate::effect::{Effect, TimerKind};
use crate::id::EventId;
use crate::request::Drawn;
use crate::time::{Span, Timestamp};

impl Timer {
    pub(crate) fn effect(&self) -> Effect {
        Effect::Timer(self.fires_at, TimerKind::User(self.started_event_id))
    }
}

impl RunState {
    pub(super) fn start_timer(
        &mut self,
        command: StartTimerCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "StartTimerCommand",
            WorkflowTaskFailedCause::BadStartTimerAttributes,
            drawn.limits,
        );
        let id = &command.timer_id;
        let fields = fields.beside("TimerId", id);
        fields.required("TimerId", id)?;
        Span::asked(command.start_to_fire_timeout.as_ref()).map_err(|why| {
            fields.bad(format!(
                "An invalid StartToFireTimeout is set on StartTimerCommand: {why}. TimerId={id}"
            ))
        })?;
        if self.pending_timer(&command.timer_id).is_some() {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::StartTimerDuplicateId,
                refused_by_state("add-timer-started-event", "TimerID", id),
            ));
        }
        let started = TimerStartedEventAttributes {
            timer_id: command.timer_id,
            start_to_fire_timeout: Some(command.start_to_fire_timeout.unwrap_or_default()),
            workflow_task_completed_event_id: completed.0,
        };
        let attributes = Attributes::TimerStartedEventAttributes(started);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    /// Cancels a timer. One that has fired unseen by the worker has then never fired.
    pub(super) fn cancel_timer(
        &mut self,
        command: CancelTimerCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "CancelTimerCommand",
            WorkflowTaskFailedCause::BadCancelTimerAttributes,
            drawn.limits,
        );
        let fields = fields.beside("TimerId", &command.timer_id);
        fields.required("TimerId", &command.timer_id)?;
        // The id may have been used again after the first timer fired into the buffer: the worker
        // means the one that it knows last.
        let known = self.timers.values().rev().find(|t| t.timer_id == command.timer_id);
        let Some(started) = known.map(|timer| timer.started_event_id) else {
            let id = &command.timer_id;
            return Err(fields.bad(refused_by_state("add-timer-canceled-event", "TimerID", id)));
        };
        self.remove_buffered_timer_fired(started);
        let canceled = TimerCanceledEventAttributes {
            timer_id: command.timer_id,
            started_event_id: started.0,
            workflow_task_completed_event_id: completed.0,
            identity: self.completer_identity(completed),
        };
        let attributes = Attributes::TimerCanceledEventAttributes(canceled);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    /// Fires every timer that is due, in the order of their times.
    pub(super) fn fire_timers(&mut self, drawn: &Drawn<'_>) {
        let mut due: Vec<Arc<Timer>> = self
            .timers
            .values()
            .filter(|timer| timer.fires_at <= drawn.now)
            .filter(|timer| !self.is_timer_closing(timer))
            .cloned()
            .collect();
        if due.is_empty() {
            return;
        }
        due.sort_by_key(|timer| (timer.fires_at, timer.started_event_id));
        for timer in due {
            let fired = TimerFiredEventAttributes {
                timer_id: timer.timer_id.clone(),
                started_event_id: timer.started_event_id.0,
            };
            self.let_wait(drawn, Attributes::TimerFiredEventAttributes(fired));
        }
        self.release_buffered(drawn);
        self.ensure_workflow_task(drawn);
    }

    fn pending_timer(&self, id: &str) -> Option<&Arc<Timer>> {
        let mut timers = self.timers.values();
        timers.find(|timer| timer.timer_id == id && !self.is_timer_closing(timer))
    }

    /// Whether it has fired, and its event waits for the held workflow task to end.
    pub(crate) fn is_timer_closing(&self, timer: &Timer) -> bool {
        self.is_ending_buffered(Ending::Timer(timer.started_event_id))
    }

    pub(super) fn fold_timer_started(
        &mut self,
        event: &HistoryEvent,
        attributes: &TimerStartedEventAttributes,
    ) {
        let at = Timestamp::from_proto(event.event_time.as_ref()).unwrap_or(self.last_event_time);
        let timer = Timer {
            timer_id: attributes.timer_id.clone(),
            started_event_id: EventId(event.event_id),
            fires_at: at + Span::from_proto(attributes.start_to_fire_timeout.as_ref()),
        };
        self.timers.insert(timer.started_event_id, Arc::new(timer));
    }

    /// Fired or Canceled.
    pub(super) fn fold_timer_closed(&mut self, started: EventId) {
        self.timers.remove(&started);
    }
}
