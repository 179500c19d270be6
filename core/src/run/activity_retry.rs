//! Whether a failed attempt of an activity is followed by another, and when.
//! It never writes an event: attempts before the last are kept out of history.

use std::sync::Arc;

use piton_proto::common::RetryPolicy;
use piton_proto::enums::{RetryState, TimeoutType};
use piton_proto::failure::Failure;
use piton_proto::failure::failure::FailureInfo;
use prost::Message;

use super::oversize::truncated;
use super::{Activity, RunState};
use crate::id::EventId;
use crate::limits::Limits;
use crate::message::Proto;
use crate::request::Drawn;
use crate::retry_policy::TIMEOUT_PREFIX;
use crate::time::{Span, Timestamp};

/// The wait before the attempt after `attempt`: initial x coefficient^(attempt-1), capped.
fn backoff(policy: &RetryPolicy, attempt: u32) -> Span {
    const UNIT: i128 = 1_000_000;
    let scaled = |interval: Option<&prost_types::Duration>| {
        i128::from(Span::from_proto(interval).as_nanos()) * UNIT
    };
    let maximum = scaled(policy.maximum_interval.as_ref());
    let coefficient = (policy.backoff_coefficient.min(1e9) * UNIT as f64).round() as i128;
    let mut wait = scaled(policy.initial_interval.as_ref());
    if coefficient > UNIT {
        for _ in 1..attempt {
            if wait >= maximum {
                break;
            }
            wait = wait.saturating_mul(coefficient) / UNIT;
        }
    }
    Span::from_nanos((wait.min(maximum) / UNIT) as i64)
}

/// The name that a timeout has in messages and in lists of types that are not retried.
pub(super) fn timeout_name(kind: TimeoutType) -> &'static str {
    match kind {
        TimeoutType::Unspecified => "Unspecified",
        TimeoutType::StartToClose => "StartToClose",
        TimeoutType::ScheduleToStart => "ScheduleToStart",
        TimeoutType::ScheduleToClose => "ScheduleToClose",
        TimeoutType::Heartbeat => "Heartbeat",
    }
}

fn is_retryable(failure: &Failure, policy: &RetryPolicy) -> bool {
    let listed = |name: &str| policy.non_retryable_error_types.iter().any(|t| t == name);
    match &failure.failure_info {
        Some(FailureInfo::CanceledFailureInfo(_) | FailureInfo::TerminatedFailureInfo(_)) => false,
        Some(FailureInfo::ApplicationFailureInfo(info)) => {
            !info.non_retryable && !listed(&info.r#type)
        }
        Some(FailureInfo::ServerFailureInfo(info)) => !info.non_retryable,
        Some(FailureInfo::TimeoutFailureInfo(info)) => {
            !listed(&format!("{TIMEOUT_PREFIX}{}", timeout_name(info.timeout_type())))
        }
        Some(
            FailureInfo::ResetWorkflowFailureInfo(_)
            | FailureInfo::ActivityFailureInfo(_)
            | FailureInfo::ChildWorkflowExecutionFailureInfo(_)
            | FailureInfo::NexusOperationExecutionFailureInfo(_)
            | FailureInfo::NexusHandlerFailureInfo(_),
        )
        | None => true,
    }
}

impl Activity {
    /// The wait before the next attempt, or why there is none. The order of the reasons is the
    /// API's: the first that holds is shown.
    fn next_wait(&self, failure: &Failure, now: Timestamp) -> Result<Span, RetryState> {
        let Some(policy) = &self.attributes.retry_policy else {
            return Err(RetryState::RetryPolicyNotSet);
        };
        if self.cancel_requested.is_some() {
            return Err(RetryState::CancelRequested);
        }
        if let Some(FailureInfo::TimeoutFailureInfo(info)) = &failure.failure_info
            && matches!(
                info.timeout_type(),
                TimeoutType::ScheduleToStart | TimeoutType::ScheduleToClose
            )
        {
            return Err(RetryState::Timeout);
        }
        if !is_retryable(failure, policy) {
            return Err(RetryState::NonRetryableFailure);
        }
        if policy.maximum_attempts > 0
            && self.note.attempt >= policy.maximum_attempts.unsigned_abs()
        {
            return Err(RetryState::MaximumAttemptsReached);
        }
        let asked = match &failure.failure_info {
            Some(FailureInfo::ApplicationFailureInfo(info)) => info.next_retry_delay.as_ref(),
            _ => None,
        };
        let wait = match asked {
            Some(delay) => Span::from_proto(Some(delay)).max(Span::ZERO),
            None => backoff(policy, self.note.attempt),
        };
        if self.schedule_to_close_due().is_some_and(|due| now + wait > due) {
            return Err(RetryState::Timeout);
        }
        Ok(wait)
    }
}

impl RunState {
    /// Begins the next attempt, or says why there is none.
    pub(super) fn retry_activity(
        &mut self,
        scheduled: EventId,
        failure: &Failure,
        drawn: &Drawn<'_>,
    ) -> RetryState {
        let Some(activity) = self.activities.get_mut(&scheduled) else {
            return RetryState::Unspecified;
        };
        let wait = match activity.next_wait(failure, drawn.now) {
            Ok(wait) => wait,
            Err(state) => return state,
        };
        let note = &mut Arc::make_mut(activity).note;
        note.attempt += 1;
        note.stamp += 1;
        note.attempt_scheduled_at = drawn.now + wait;
        note.retry_wait = wait.given();
        note.last_failure = Some(Proto(kept(failure, drawn.limits)));
        if !matches!(failure.failure_info, Some(FailureInfo::TimeoutFailureInfo(_))) {
            note.last_attempt_completed_at = Some(drawn.now);
        }
        if let Some(start) = note.started.take() {
            note.last_worker_identity = start.identity;
        }
        RetryState::InProgress
    }
}

/// A failure as `describe` and the next attempt's Started event show it.
fn kept(failure: &Failure, limits: &Limits) -> Failure {
    let bytes_max = limits.retry_failure_bytes_max as usize;
    if failure.encoded_len() <= bytes_max { failure.clone() } else { truncated(failure, bytes_max) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry_policy::tests::policy;

    #[test]
    fn backoff_grows_by_the_coefficient_up_to_the_maximum() {
        let waits =
            |p: &RetryPolicy| [1, 2, 3, 4, 40].map(|attempt| backoff(p, attempt).as_millis());
        assert_eq!(waits(&policy(1000, 2.0, 7000)), [1000, 2000, 4000, 7000, 7000]);
        assert_eq!(waits(&policy(1000, 1.0, 7000)), [1000; 5]);
        assert_eq!(waits(&policy(10, 1.5, 1_000_000))[..4], [10, 15, 22, 33]);
        assert_eq!(backoff(&policy(1, 1e300, Span::MAX.as_millis()), u32::MAX), Span::MAX);
    }
}
