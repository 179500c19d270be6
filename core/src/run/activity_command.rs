//! What a workflow commands of activities: to schedule one, to cancel one. What workers answer is
//! in `activity`.

use piton_proto::command::ScheduleActivityTaskCommandAttributes;
use piton_proto::enums::{TaskQueueKind, WorkflowTaskFailedCause};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    ActivityTaskCancelRequestedEventAttributes, ActivityTaskCanceledEventAttributes,
    ActivityTaskScheduledEventAttributes,
};
use piton_proto::taskqueue::TaskQueue;

use super::command::CommandFailure;
use super::event::Annotations;
use super::facts::{Ending, Facts};
use super::field::{Fields, refused_by_state};
use super::{ActivityTask, RunState, Step};
use crate::id::EventId;
use crate::message::json_text;
use crate::note::ActivityStart;
use crate::request::Drawn;
use crate::retry_policy;
use crate::time::Span;

/// The timeouts of an activity as its Scheduled event says them; 0 is none.
struct Timeouts {
    schedule_to_close: Span,
    schedule_to_start: Span,
    start_to_close: Span,
    heartbeat: Span,
}

impl Timeouts {
    fn of(
        command: &ScheduleActivityTaskCommandAttributes,
        fields: &Fields<'_>,
    ) -> Result<Self, CommandFailure> {
        let span = |name: &str, given: &Option<prost_types::Duration>| {
            let refused = |why| fields.bad(format!("invalid {name}: {why}"));
            Span::asked(given.as_ref()).map_err(refused)
        };
        Ok(Self {
            schedule_to_close: span("ScheduleToCloseTimeout", &command.schedule_to_close_timeout)?,
            schedule_to_start: span("ScheduleToStartTimeout", &command.schedule_to_start_timeout)?,
            start_to_close: span("StartToCloseTimeout", &command.start_to_close_timeout)?,
            heartbeat: span("HeartbeatTimeout", &command.heartbeat_timeout)?,
        })
    }

    /// Fills in what is missing and caps what is too long.
    fn normalised(mut self, run_timeout: Span) -> Option<Self> {
        if let Some(all) = self.schedule_to_close.given() {
            self.schedule_to_start = self.schedule_to_start.min_given(all);
            self.start_to_close = self.start_to_close.min_given(all);
        } else if self.start_to_close.given().is_some() {
            self.schedule_to_close = run_timeout;
        } else {
            return None;
        }
        self.schedule_to_close = self.schedule_to_close.min_given(run_timeout);
        self.schedule_to_start = self.schedule_to_start.min_given(run_timeout);
        self.start_to_close = self.start_to_close.min_given(run_timeout);
        if self.heartbeat.given().is_some() {
            self.heartbeat = self.heartbeat.min_given(self.start_to_close);
        }
        Some(self)
    }
}

impl RunState {
    /// Schedules an activity. Its event's id, where the worker asks to have it at once and may.
    pub(super) fn schedule_activity(
        &mut self,
        command: ScheduleActivityTaskCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<Option<EventId>, CommandFailure> {
        let asked_eager = command.request_eager_execution;
        let attributes = self.activity_attributes(command, completed, drawn)?;
        let own = attributes.task_queue.as_ref().map(|queue| queue.name.clone());
        let is_eager = asked_eager && own.as_deref() == Some(self.task_queue_name());
        let attributes = Attributes::ActivityTaskScheduledEventAttributes(attributes);
        let scheduled = self.append_with(drawn.now, attributes, annotations);
        Ok(is_eager.then_some(scheduled))
    }

    /// Starts the activities that the worker is handed with the answer.
    // ORDER: after all commands, for a later one may have cancelled the activity or closed the run.
    pub(super) fn start_eager(
        &mut self,
        wanted: &[EventId],
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Vec<ActivityTask> {
        if !self.may(Step::DispatchActivity) {
            return Vec::new();
        }
        let identity = self.completer_identity(completed);
        let mut started = Vec::new();
        for &scheduled in wanted {
            let activity = self.activities.get(&scheduled);
            if activity.is_none_or(|activity| activity.cancel_requested.is_some()) {
                continue;
            }
            let start = ActivityStart {
                at: drawn.now,
                identity: identity.clone(),
                request_id: format!("eager/{}/{}/{scheduled}", drawn.term, drawn.number).into(),
                worker_version: None,
            };
            started.extend(self.begin_attempt(scheduled, start, drawn));
        }
        started
    }

    fn activity_attributes(
        &self,
        command: ScheduleActivityTaskCommandAttributes,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<ActivityTaskScheduledEventAttributes, CommandFailure> {
        let fields = Fields::of(
            "ScheduleActivityTaskCommand",
            WorkflowTaskFailedCause::BadScheduleActivityAttributes,
            drawn.limits,
        );
        let id = &command.activity_id;
        let activity_type = command.activity_type.as_ref().map_or("", |t| t.name.as_str());
        if command.task_queue.is_none() {
            return Err(fields.bad("taskQueue is not set"));
        }
        let queue = fields.task_queue(command.task_queue.as_ref(), self.task_queue_name())?;
        let named = [("activityId", id.as_str()), ("activityType", activity_type)];
        if let Some((name, _)) = named.iter().find(|(_, text)| text.is_empty()) {
            return Err(fields.bad(format!("{name} is not set")));
        }
        let retry_policy =
            retry_policy::filled(command.retry_policy.clone()).map_err(|text| fields.bad(text))?;
        let limit = drawn.limits.id_bytes_max;
        if let Some((name, text)) = named.iter().find(|(_, text)| text.len() as u64 > limit) {
            let length = text.len();
            let text = format!("{name} exceeds length limit. Length={length} Limit={limit}");
            return Err(fields.bad(text));
        }
        if command.priority.as_ref().is_some_and(|priority| priority.priority_key < 0) {
            return Err(fields.bad("invalid priorities: priority key can't be negative"));
        }
        let timeouts = Timeouts::of(&command, &fields)?;
        fields.blob(".Input", command.input.as_ref())?;
        let run_timeout = Span::from_proto(self.started.workflow_run_timeout.as_ref());
        let timeouts = timeouts.normalised(run_timeout).ok_or_else(|| {
            fields.bad(format!(
                "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. \
                 ActivityId={id} ActivityType={activity_type}"
            ))
        })?;
        self.check_room_for_activity(id, drawn)?;
        #[expect(deprecated, reason = "events show the flag as older servers did")]
        Ok(ActivityTaskScheduledEventAttributes {
            activity_id: command.activity_id,
            activity_type: command.activity_type,
            task_queue: Some(TaskQueue {
                name: queue,
                kind: TaskQueueKind::Normal.into(),
                normal_name: String::new(),
            }),
            header: command.header,
            input: command.input,
            schedule_to_close_timeout: Some(timeouts.schedule_to_close.to_proto()),
            schedule_to_start_timeout: Some(timeouts.schedule_to_start.to_proto()),
            start_to_close_timeout: Some(timeouts.start_to_close.to_proto()),
            heartbeat_timeout: Some(timeouts.heartbeat.to_proto()),
            workflow_task_completed_event_id: completed.0,
            retry_policy: Some(retry_policy),
            use_workflow_build_id: command.use_workflow_build_id,
            priority: command.priority,
        })
    }

    fn check_room_for_activity(&self, id: &str, drawn: &Drawn<'_>) -> Result<(), CommandFailure> {
        let max = drawn.limits.pending_activities_max;
        if self.activities.len() as u64 >= max {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::PendingActivitiesLimitExceeded,
                format!("the number of pending activities, {max}, has reached the limit"),
            ));
        }
        if self.activity_by_id(id).is_some() {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::ScheduleActivityDuplicateId,
                refused_by_state("add-activitytask-scheduled-event", "ActivityID", id),
            ));
        }
        Ok(())
    }

    /// Asks to cancel an activity. True when it had not been started, so that it is cancelled
    /// now and the workflow has to hear of it.
    pub(super) fn request_cancel_activity(
        &mut self,
        scheduled: EventId,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<bool, CommandFailure> {
        let is_closed = self.is_ending_buffered(Ending::Activity(scheduled))
            || self.ended_in_this_decision(scheduled);
        let pending = self.activities.get(&scheduled).filter(|_| !is_closed);
        let refusal = || {
            let action = "add-activitytask-cancel-requested-event";
            let text = refused_by_state(action, "ScheduledEventID", scheduled);
            let cause = WorkflowTaskFailedCause::BadRequestCancelActivityAttributes;
            Err(CommandFailure::new(cause, text))
        };
        if scheduled == EventId::default() {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::BadRequestCancelActivityAttributes,
                "ScheduledEventId is not set on RequestCancelActivityTaskCommand.",
            ));
        }
        let is_started = match pending {
            Some(activity) if activity.cancel_requested.is_some() => return refusal(),
            Some(activity) => activity.note.started.is_some(),
            None if is_closed => true,
            None => return refusal(),
        };
        let requested = self.append_with(
            drawn.now,
            Attributes::ActivityTaskCancelRequestedEventAttributes(
                ActivityTaskCancelRequestedEventAttributes {
                    scheduled_event_id: scheduled.0,
                    workflow_task_completed_event_id: completed.0,
                },
            ),
            annotations,
        );
        if is_started {
            return Ok(false);
        }
        let identity = self.completer_identity(completed);
        let canceled = ActivityTaskCanceledEventAttributes {
            details: Some(json_text("ACTIVITY_ID_NOT_STARTED")),
            latest_cancel_requested_event_id: requested.0,
            scheduled_event_id: scheduled.0,
            identity,
            ..Default::default()
        };
        self.add_event(drawn, Attributes::ActivityTaskCanceledEventAttributes(canceled), None);
        Ok(true)
    }

    /// Whether the last event of this activity was written by the decision at hand.
    fn ended_in_this_decision(&self, scheduled: EventId) -> bool {
        let ending = Some(Ending::Activity(scheduled));
        let mut attributes = self.uncommitted.iter().filter_map(|e| e.attributes.as_ref());
        attributes.any(|attributes| Facts::of(attributes).ends() == ending)
    }

    /// Who completed the workflow task whose Completed event is `completed`, which the decision
    /// at hand has written.
    pub(super) fn completer_identity(&self, completed: EventId) -> String {
        let first = self.uncommitted.first().map_or(0, |event| event.event_id);
        let place = usize::try_from(completed.0 - first).ok();
        match place.and_then(|at| self.uncommitted.get(at)).and_then(|e| e.attributes.as_ref()) {
            Some(Attributes::WorkflowTaskCompletedEventAttributes(a)) => a.identity.clone(),
            _ => String::new(),
        }
    }

    pub(super) fn task_queue_name(&self) -> &str {
        self.started.task_queue.as_ref().map_or("", |queue| queue.name.as_str())
    }
}
