//! What time does to a pending activity: its four timeouts and the end of its retry backoff.
//! Also what it owes, since that is a matter of the same deadlines.

use std::sync::Arc;

use piton_proto::common::Payloads;
use piton_proto::enums::{RetryState, TimeoutType};
use piton_proto::failure::failure::FailureInfo;
use piton_proto::failure::{Failure, TimeoutFailureInfo};
use piton_proto::history::ActivityTaskTimedOutEventAttributes;
use piton_proto::history::history_event::Attributes;

use super::activity_retry::timeout_name;
use super::facts::Ending;
use super::{Activity, RunState, Step};
use crate::effect::{Effect, QueueName, TaskKey, TaskOffer, TimerKind};
use crate::id::EventId;
use crate::request::Drawn;
use crate::time::{Span, Timestamp};

/// Why an activity is not tried again whose time for all attempts is not enough for one more.
const NO_TIME_LEFT: &str = "Not enough time to schedule next retry before activity ScheduleToClose \
                            timeout, giving up retrying";

/// What is due of an activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Attempt,
    Timeout(TimeoutType),
}

impl Activity {
    /// Whether it waits for the time of its next attempt.
    pub(super) fn is_in_backoff(&self) -> bool {
        self.note.retry_wait.is_some()
    }

    /// Whether a worker may take its attempt now.
    pub(super) fn is_offered(&self) -> bool {
        self.note.started.is_none() && !self.is_in_backoff()
    }

    /// When all its attempts together have to be over.
    pub(super) fn schedule_to_close_due(&self) -> Option<Timestamp> {
        let span = Span::from_proto(self.attributes.schedule_to_close_timeout.as_ref());
        span.given().map(|span| self.scheduled_at + span)
    }

    /// The nearest of its timeouts. Of two at the same time the API's smaller number comes first:
    /// so a start-to-close timeout is still tried again where it can be.
    fn nearest_timeout(&self) -> Option<(Timestamp, TimeoutType)> {
        let a = &self.attributes;
        let after = |from: Timestamp, span: &Option<prost_types::Duration>, kind| {
            Span::from_proto(span.as_ref()).given().map(|span| (from + span, kind))
        };
        let close = self.schedule_to_close_due().map(|due| (due, TimeoutType::ScheduleToClose));
        let attempt = match &self.note.started {
            Some(start) => {
                let heartbeat = self.note.heartbeat_at.map_or(start.at, |at| at.max(start.at));
                [
                    after(start.at, &a.start_to_close_timeout, TimeoutType::StartToClose),
                    after(heartbeat, &a.heartbeat_timeout, TimeoutType::Heartbeat),
                ]
            }
            None if self.is_in_backoff() => [None, None],
            None => {
                let from = self.note.attempt_scheduled_at;
                let kind = TimeoutType::ScheduleToStart;
                [after(from, &a.schedule_to_start_timeout, kind), None]
            }
        };
        attempt.into_iter().chain([close]).flatten().min_by_key(|(due, kind)| (*due, *kind as i32))
    }

    /// The next thing that time does to it.
    fn next_due(&self) -> Option<(Timestamp, Due)> {
        let timeout = self.nearest_timeout().map(|(due, kind)| (due, Due::Timeout(kind)));
        let attempt =
            self.is_in_backoff().then_some((self.note.attempt_scheduled_at, Due::Attempt));
        [attempt, timeout].into_iter().flatten().min_by_key(|(due, _)| *due)
    }
}

fn timeout_failure(kind: TimeoutType, message: String, details: Option<Payloads>) -> Failure {
    Failure {
        message,
        source: "Server".to_owned(),
        failure_info: Some(FailureInfo::TimeoutFailureInfo(TimeoutFailureInfo {
            timeout_type: kind.into(),
            last_heartbeat_details: details,
        })),
        ..Failure::default()
    }
}

impl RunState {
    /// Ends backoffs and times out attempts, whatever is due, in the order of time. Of all that it
    /// ends the workflow hears at once.
    pub(super) fn fire_activities(&mut self, drawn: &Drawn<'_>) {
        let waited = self.note.next_buffered;
        loop {
            let due = self.due_activities(drawn.now);
            if due.is_empty() {
                break;
            }
            for (_, scheduled, due) in due {
                match due {
                    Due::Attempt => {
                        if let Some(activity) = self.activities.get_mut(&scheduled) {
                            Arc::make_mut(activity).note.retry_wait = None;
                        }
                    }
                    Due::Timeout(kind) => self.time_out_activity(scheduled, kind, drawn),
                }
            }
        }
        if self.note.next_buffered != waited {
            self.release_buffered(drawn);
            self.ensure_workflow_task(drawn);
        }
    }

    /// INVARIANT: each thing due changes its activity so that it is not due any more, or it ends
    /// in the buffer; [`RunState::fire_activities`] ends by that.
    fn due_activities(&self, now: Timestamp) -> Vec<(Timestamp, EventId, Due)> {
        let mut due: Vec<_> = self
            .activities
            .iter()
            .filter_map(|(id, activity)| activity.next_due().map(|(at, due)| (at, *id, due)))
            .filter(|(at, id, _)| *at <= now && !self.is_ending_buffered(Ending::Activity(*id)))
            .collect();
        due.sort_by_key(|(at, id, _)| (*at, *id));
        due
    }

    fn time_out_activity(&mut self, scheduled: EventId, kind: TimeoutType, drawn: &Drawn<'_>) {
        let Some(activity) = self.activities.get(&scheduled) else { return };
        let last_failure = activity.note.last_failure.as_ref().map(|f| Box::new(f.0.clone()));
        let details = activity.note.heartbeat_details.as_ref().map(|d| d.0.clone());
        let message = format!("activity {} timeout", timeout_name(kind));
        // The next attempt gets the details itself; its last failure is without.
        let failure = timeout_failure(kind, message, None);
        let state = self.retry_activity(scheduled, &failure, drawn);
        if state == RetryState::InProgress {
            return;
        }
        let (kind, message) = match state {
            // It could be tried again but for the time that is left.
            RetryState::Timeout if kind != TimeoutType::ScheduleToStart => {
                (TimeoutType::ScheduleToClose, NO_TIME_LEFT.to_owned())
            }
            _ => (kind, failure.message),
        };
        let failure = Failure { cause: last_failure, ..timeout_failure(kind, message, details) };
        let timed_out = ActivityTaskTimedOutEventAttributes {
            failure: Some(failure),
            scheduled_event_id: scheduled.0,
            started_event_id: 0,
            retry_state: state.into(),
        };
        let ending = Attributes::ActivityTaskTimedOutEventAttributes(timed_out);
        self.end_activity(scheduled, ending, drawn);
    }

    /// What a pending activity owes: its offer, and a wake-up for what time does to it next.
    pub(crate) fn activity_effects(&self, activity: &Activity, out: &mut Vec<Effect>) {
        let scheduled = activity.scheduled_event_id;
        if let Some((due, _)) = activity.next_due() {
            out.push(Effect::Timer(due, TimerKind::Activity(scheduled)));
        }
        out.extend(self.offered_activity(activity).map(Effect::Task));
    }

    /// The task of a pending activity, if it is offered to workers.
    pub(crate) fn offered_activity(&self, activity: &Activity) -> Option<TaskOffer> {
        if !(activity.is_offered() && self.may(Step::DispatchActivity)) {
            return None;
        }
        let (scheduled, stamp) = (activity.scheduled_event_id, activity.note.stamp);
        let queue = activity.attributes.task_queue.as_ref().map_or("", |q| q.name.as_str());
        let key = TaskKey::Activity { scheduled, stamp };
        let priority = self.activity_priority(activity);
        let created = activity.note.attempt_scheduled_at;
        Some(TaskOffer::new(key, QueueName::normal(queue), priority.as_ref(), created))
    }
}
