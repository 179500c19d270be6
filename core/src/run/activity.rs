//! Activities: handing out an attempt, and the answers to it. Commands are in `activity_command`,
//! retries in `activity_retry`, timeouts in `activity_timeout`. Until an activity ends, attempts
//! are notes only; its Started event is written together with its last one.

use std::sync::Arc;

use piton_proto::common::{Payloads, Priority, WorkflowExecution};
use piton_proto::enums::RetryState;
use piton_proto::failure::Failure;
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    ActivityTaskCancelRequestedEventAttributes, ActivityTaskCanceledEventAttributes,
    ActivityTaskCompletedEventAttributes, ActivityTaskFailedEventAttributes,
    ActivityTaskScheduledEventAttributes, ActivityTaskStartedEventAttributes, HistoryEvent,
};
use piton_proto::sdk::UserMetadata;
use piton_proto::workflowservice::PollActivityTaskQueueResponse;

use super::facts::Ending;
use super::{Activity, ActivityTask, Decided, Reply, RunState, Step, oversize};
use crate::error::Rejection;
use crate::id::EventId;
use crate::message::Proto;
use crate::note::{ActivityNote, ActivityStart};
use crate::request::{ActivityRef, Drawn, Taker};
use crate::time::Timestamp;

/// What workers take and answer.
impl RunState {
    /// Records that an offered attempt is handed out. The same ticket gets the same answer again.
    pub(super) fn start_activity(
        mut self,
        (scheduled, stamp, created): (EventId, u32, Timestamp),
        taker: Taker,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let offered = self
            .activities
            .get(&scheduled)
            .filter(|a| a.note.stamp == stamp && !a.is_in_backoff())
            .filter(|a| a.note.attempt_scheduled_at == created)
            .filter(|_| !self.is_ending_buffered(Ending::Activity(scheduled)))
            .filter(|_| self.may(Step::DispatchActivity))
            .cloned();
        let Some(activity) = offered else { return Ok(Decided::with(self, Reply::Gone)) };
        let task = match &activity.note.started {
            Some(start) if start.request_id == taker.request_id => {
                Some(self.activity_task(&activity, start, drawn))
            }
            Some(_) => None,
            None => {
                let Taker { identity, request_id, sticky: _, worker_version } = taker;
                let worker_version = worker_version.map(Proto);
                let start = ActivityStart { at: drawn.now, identity, request_id, worker_version };
                self.begin_attempt(scheduled, start, drawn)
            }
        };
        let reply = task.map_or(Reply::Gone, |task| Reply::Activity(Box::new(task)));
        Ok(Decided::with(self, reply))
    }

    /// Puts an attempt back that no worker has seen: offered again under a new stamp.
    pub(super) fn take_back_activity(
        mut self,
        scheduled: EventId,
        stamp: u32,
        request_id: &str,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if self.is_ending_buffered(Ending::Activity(scheduled)) {
            return Ok(Decided::done(self));
        }
        if let Some(activity) = self.activities.get_mut(&scheduled)
            && activity.note.stamp == stamp
            && activity.note.started.as_ref().is_some_and(|s| &*s.request_id == request_id)
        {
            let note = &mut Arc::make_mut(activity).note;
            note.started = None;
            note.stamp += 1;
        }
        Ok(Decided::done(self))
    }

    /// The worker's result. By id it is accepted before the activity is started, too.
    pub(super) fn complete_activity(
        mut self,
        activity: &ActivityRef,
        result: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if !drawn.limits.is_blob(result.as_ref()) {
            return self.fail_oversized(activity, oversize::RESULT, identity, drawn);
        }
        let found = self.pending_activity(activity)?;
        let scheduled = found.scheduled_event_id;
        if found.note.started.is_none() {
            if !matches!(activity, ActivityRef::Id(_)) {
                return Err(not_pending());
            }
            let identity = identity.clone();
            // No ticket: nobody was handed the attempt.
            let request_id = "".into();
            let worker_version = None;
            let start = ActivityStart { at: drawn.now, identity, request_id, worker_version };
            self.begin_attempt(scheduled, start, drawn);
        }
        let completed = ActivityTaskCompletedEventAttributes {
            result,
            scheduled_event_id: scheduled.0,
            identity,
            ..Default::default()
        };
        let ending = Attributes::ActivityTaskCompletedEventAttributes(completed);
        self.close_activity(scheduled, ending, drawn);
        Ok(Decided::done(self))
    }

    /// The worker's failure: another attempt, or the end. The answer says what was left out.
    pub(super) fn fail_activity(
        mut self,
        activity: &ActivityRef,
        failure: Option<Failure>,
        last_heartbeat_details: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let scheduled = self.started_activity(activity)?;
        let mut left_out = Vec::new();
        if !drawn.limits.is_blob(last_heartbeat_details.as_ref()) {
            left_out.push(oversize::failure(oversize::HEARTBEAT));
        } else if let Some(details) = last_heartbeat_details {
            self.keep_heartbeat(scheduled, Some(details), drawn);
        }
        let mut failure = failure.unwrap_or_default();
        if let Some(instead) = oversize::of_failure(&failure, drawn.limits) {
            left_out.push(instead.clone());
            failure = instead;
        }
        self.fail_attempt(scheduled, failure, identity, drawn);
        Ok(Decided::with(self, Reply::ActivityFailed { left_out }))
    }

    /// The worker has sent more than fits: that is the end of the activity.
    fn fail_oversized(
        self,
        activity: &ActivityRef,
        text: &str,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let failed =
            self.fail_activity(activity, Some(oversize::failure(text)), None, identity, drawn)?;
        Ok(Decided { reply: Ok(Reply::Done), ..failed })
    }

    /// The worker has cancelled the activity, as it was asked to.
    pub(super) fn cancel_activity(
        mut self,
        activity: &ActivityRef,
        details: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if !drawn.limits.is_blob(details.as_ref()) {
            return self.fail_oversized(activity, oversize::CANCEL_DETAILS, identity, drawn);
        }
        let scheduled = self.started_activity(activity)?;
        let requested = self.activities.get(&scheduled).and_then(|a| a.cancel_requested);
        let Some(requested) = requested else {
            let text =
                "unable to mark activity as canceled without activity being request canceled first";
            return Err(Rejection::invalid(text));
        };
        let canceled = ActivityTaskCanceledEventAttributes {
            details,
            latest_cancel_requested_event_id: requested.0,
            scheduled_event_id: scheduled.0,
            identity,
            ..Default::default()
        };
        let ending = Attributes::ActivityTaskCanceledEventAttributes(canceled);
        self.close_activity(scheduled, ending, drawn);
        Ok(Decided::done(self))
    }

    /// A sign of life; the answer says whether the activity is to be cancelled.
    pub(super) fn heartbeat_activity(
        mut self,
        activity: &ActivityRef,
        details: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if !drawn.limits.is_blob(details.as_ref()) {
            let failed = self.fail_oversized(activity, oversize::HEARTBEAT, identity, drawn)?;
            let told = Reply::Heartbeat { cancel_requested: true };
            return Ok(Decided { reply: Ok(told), ..failed });
        }
        let scheduled = self.started_activity(activity)?;
        let cancel_requested =
            self.activities.get(&scheduled).is_some_and(|a| a.cancel_requested.is_some());
        self.keep_heartbeat(scheduled, details, drawn);
        Ok(Decided::with(self, Reply::Heartbeat { cancel_requested }))
    }
}

/// Steps of the above.
impl RunState {
    pub(super) fn activity_by_id(&self, id: &str) -> Option<&Arc<Activity>> {
        let mut activities = self.activities.values();
        activities.find(|a| a.attributes.activity_id == id && !self.is_activity_closing(a))
    }

    /// Whether its last event waits for the held workflow task to end.
    pub(crate) fn is_activity_closing(&self, activity: &Activity) -> bool {
        self.is_ending_buffered(Ending::Activity(activity.scheduled_event_id))
    }

    fn pending_activity(&self, by: &ActivityRef) -> Result<&Arc<Activity>, Rejection> {
        if !self.status.is_open() {
            return Err(Rejection::AlreadyCompleted);
        }
        match by {
            ActivityRef::Attempt { scheduled, attempt, stamp } => self
                .activities
                .get(scheduled)
                .filter(|a| a.note.attempt == *attempt && a.note.stamp == *stamp)
                .filter(|_| !self.is_ending_buffered(Ending::Activity(*scheduled)))
                .ok_or_else(not_pending),
            ActivityRef::Id(id) => self.activity_by_id(id).ok_or_else(|| {
                let text = format!(
                    "cannot find pending activity with ActivityID {id}, check workflow execution \
                     history for more details"
                );
                Rejection::ActivityNotFound(text)
            }),
        }
    }

    fn started_activity(&self, by: &ActivityRef) -> Result<EventId, Rejection> {
        let activity = self.pending_activity(by)?;
        activity.note.started.as_ref().ok_or_else(not_pending)?;
        Ok(activity.scheduled_event_id)
    }

    pub(super) fn begin_attempt(
        &mut self,
        scheduled: EventId,
        start: ActivityStart,
        drawn: &Drawn<'_>,
    ) -> Option<ActivityTask> {
        let activity = self.activities.get_mut(&scheduled)?;
        let note = &mut Arc::make_mut(activity).note;
        note.started = Some(start.clone());
        // A completion by id may come during the backoff.
        note.retry_wait = None;
        let activity = Arc::clone(activity);
        Some(self.activity_task(&activity, &start, drawn))
    }

    fn keep_heartbeat(&mut self, scheduled: EventId, details: Option<Payloads>, drawn: &Drawn<'_>) {
        if let Some(activity) = self.activities.get_mut(&scheduled) {
            let note = &mut Arc::make_mut(activity).note;
            note.heartbeat_details = details.map(Proto);
            note.heartbeat_at = Some(drawn.now);
        }
    }

    fn fail_attempt(
        &mut self,
        scheduled: EventId,
        failure: Failure,
        identity: String,
        drawn: &Drawn<'_>,
    ) {
        let state = self.retry_activity(scheduled, &failure, drawn);
        if state == RetryState::InProgress {
            return;
        }
        let failed = ActivityTaskFailedEventAttributes {
            failure: Some(failure),
            scheduled_event_id: scheduled.0,
            identity,
            retry_state: state.into(),
            ..Default::default()
        };
        let ending = Attributes::ActivityTaskFailedEventAttributes(failed);
        self.close_activity(scheduled, ending, drawn);
    }

    /// Ends an activity: the Started event, if it was started, then this one, which gets the id of
    /// the Started event when both enter history. The workflow has to hear of it.
    pub(super) fn close_activity(
        &mut self,
        scheduled: EventId,
        ending: Attributes,
        drawn: &Drawn<'_>,
    ) {
        self.end_activity(scheduled, ending, drawn);
        self.release_buffered(drawn);
        self.ensure_workflow_task(drawn);
    }

    /// The same as far as it goes before the buffer is released.
    #[allow(deprecated, reason = "workers say what build they are of, and the event has it")]
    pub(super) fn end_activity(
        &mut self,
        scheduled: EventId,
        ending: Attributes,
        drawn: &Drawn<'_>,
    ) {
        let Some(activity) = self.activities.get(&scheduled) else { return };
        let note = &activity.note;
        if let Some(start) = &note.started {
            let attributes = ActivityTaskStartedEventAttributes {
                scheduled_event_id: scheduled.0,
                identity: start.identity.clone(),
                request_id: start.request_id.to_string(),
                attempt: i32::try_from(note.attempt).unwrap_or(i32::MAX),
                last_failure: note.last_failure.as_ref().map(|f| f.0.clone()),
                worker_version: start.worker_version.as_ref().map(|v| v.0.clone()),
                ..Default::default()
            };
            let attributes = Attributes::ActivityTaskStartedEventAttributes(attributes);
            // When the attempt began, which may be before the events that came meanwhile.
            self.buffer_event(super::event::event(start.at, attributes, None));
        }
        self.let_wait(drawn, ending);
    }

    fn activity_task(
        &self,
        activity: &Activity,
        start: &ActivityStart,
        drawn: &Drawn<'_>,
    ) -> ActivityTask {
        let (a, note) = (&activity.attributes, &activity.note);
        let response = PollActivityTaskQueueResponse {
            workflow_namespace: drawn.namespace_name.to_owned(),
            workflow_type: self.started.workflow_type.clone(),
            workflow_execution: Some(self.execution()),
            activity_type: a.activity_type.clone(),
            activity_id: a.activity_id.clone(),
            header: a.header.clone(),
            input: a.input.clone(),
            heartbeat_details: note.heartbeat_details.as_ref().map(|d| d.0.clone()),
            scheduled_time: Some(activity.scheduled_at.to_proto()),
            current_attempt_scheduled_time: Some(note.attempt_scheduled_at.to_proto()),
            started_time: Some(start.at.to_proto()),
            attempt: i32::try_from(note.attempt).unwrap_or(i32::MAX),
            schedule_to_close_timeout: a.schedule_to_close_timeout,
            start_to_close_timeout: a.start_to_close_timeout,
            heartbeat_timeout: a.heartbeat_timeout,
            retry_policy: a.retry_policy.clone(),
            priority: self.activity_priority(activity),
            ..Default::default()
        };
        ActivityTask {
            scheduled: activity.scheduled_event_id,
            attempt: note.attempt,
            stamp: note.stamp,
            response: Box::new(response),
        }
    }

    /// Its priority: what it leaves open is the workflow's.
    pub(super) fn activity_priority(&self, activity: &Activity) -> Option<Priority> {
        let own = activity.attributes.priority.clone();
        inherit_priority(own, self.started.priority.as_ref())
    }

    /// This run as the API names it.
    pub(super) fn execution(&self) -> WorkflowExecution {
        WorkflowExecution {
            workflow_id: self.key.workflow_id.as_str().to_owned(),
            run_id: self.run_id.as_str().to_owned(),
        }
    }
}

/// A priority whose open fields are those of the workflow that it belongs to.
pub fn inherit_priority(own: Option<Priority>, inherited: Option<&Priority>) -> Option<Priority> {
    let (Some(mut priority), Some(inherited)) = (own.clone(), inherited) else {
        return own.or_else(|| inherited.cloned());
    };
    if priority.priority_key == 0 {
        priority.priority_key = inherited.priority_key;
    }
    if priority.fairness_key.is_empty() {
        priority.fairness_key.clone_from(&inherited.fairness_key);
    }
    if priority.fairness_weight == 0.0 {
        priority.fairness_weight = inherited.fairness_weight;
    }
    Some(priority)
}

impl Activity {
    /// As it stands with its Scheduled event.
    pub(super) fn scheduled(
        scheduled_event_id: EventId,
        attributes: Arc<ActivityTaskScheduledEventAttributes>,
        user_metadata: Option<Arc<UserMetadata>>,
        at: Timestamp,
    ) -> Self {
        let note = ActivityNote {
            attempt: 1,
            stamp: 1,
            attempt_scheduled_at: at,
            started: None,
            last_failure: None,
            last_worker_identity: String::new(),
            last_attempt_completed_at: None,
            heartbeat_details: None,
            heartbeat_at: None,
            retry_wait: None,
        };
        let (scheduled_at, cancel_requested) = (at, None);
        Self { scheduled_event_id, attributes, user_metadata, scheduled_at, cancel_requested, note }
    }
}

/// The folds.
impl RunState {
    pub(super) fn fold_activity_scheduled(
        &mut self,
        event: &HistoryEvent,
        attributes: &ActivityTaskScheduledEventAttributes,
    ) {
        let scheduled = EventId(event.event_id);
        let at = Timestamp::from_proto(event.event_time.as_ref()).unwrap_or(self.last_event_time);
        let metadata = event.user_metadata.clone().map(Arc::new);
        let activity = Activity::scheduled(scheduled, Arc::new(attributes.clone()), metadata, at);
        self.activities.insert(scheduled, Arc::new(activity));
    }

    pub(super) fn fold_activity_cancel_requested(
        &mut self,
        event: &HistoryEvent,
        attributes: &ActivityTaskCancelRequestedEventAttributes,
    ) {
        // It may have ended in the meantime.
        if let Some(activity) = self.activities.get_mut(&EventId(attributes.scheduled_event_id)) {
            Arc::make_mut(activity).cancel_requested = Some(EventId(event.event_id));
        }
    }

    /// Completed, Failed, TimedOut or Canceled.
    pub(super) fn fold_activity_closed(&mut self, scheduled: EventId) {
        self.activities.remove(&scheduled);
    }
}

fn not_pending() -> Rejection {
    Rejection::ActivityNotFound(
        "invalid activityID or activity already timed out or invoking workflow is completed".into(),
    )
}
