//! What a retry policy may say, and what it means where it says nothing: one rule for clients and
//! for commands.

use piton_proto::common::RetryPolicy;

use crate::time::Span;

const INITIAL_INTERVAL: Span = Span::from_secs(1);
/// The longest interval is this many times the initial one, unless it is given.
const INTERVAL_FACTOR_MAX: i64 = 100;
const COEFFICIENT: f64 = 2.0;
/// What a timeout is called by among the types that are not retried: this and the timeout.
pub(crate) const TIMEOUT_PREFIX: &str = "TemporalTimeout:";

/// The policy with defaults filled in; no policy is all defaults.
///
/// # Errors
/// The text of the refusal.
pub fn filled(policy: Option<RetryPolicy>) -> Result<RetryPolicy, String> {
    let mut policy = policy.unwrap_or_default();
    let initial = Span::from_proto(policy.initial_interval.as_ref());
    if policy.initial_interval.is_none() || initial == Span::ZERO {
        policy.initial_interval = Some(INITIAL_INTERVAL.to_proto());
    }
    let initial = Span::from_proto(policy.initial_interval.as_ref());
    let maximum = Span::from_proto(policy.maximum_interval.as_ref());
    if policy.maximum_interval.is_none() || maximum == Span::ZERO {
        let maximum = initial.times(INTERVAL_FACTOR_MAX).min(Span::MAX);
        policy.maximum_interval = Some(maximum.to_proto());
    }
    if policy.backoff_coefficient == 0.0 {
        policy.backoff_coefficient = COEFFICIENT;
    }
    if policy.maximum_attempts != 1 {
        check(&policy)?;
    }
    Ok(policy)
}

fn check(policy: &RetryPolicy) -> Result<(), String> {
    let initial = Span::from_proto(policy.initial_interval.as_ref());
    let maximum = Span::from_proto(policy.maximum_interval.as_ref());
    let refusal = if initial < Span::ZERO {
        "InitialInterval cannot be negative on retry policy."
    } else if policy.backoff_coefficient.is_nan() || policy.backoff_coefficient < 1.0 {
        "BackoffCoefficient cannot be less than 1 on retry policy."
    } else if maximum < Span::ZERO {
        "MaximumInterval cannot be negative on retry policy."
    } else if maximum < initial {
        "MaximumInterval cannot be less than InitialInterval on retry policy."
    } else if policy.maximum_attempts < 0 {
        "MaximumAttempts cannot be negative on retry policy."
    } else {
        return policy.non_retryable_error_types.iter().try_for_each(|name| check_type(name));
    };
    Err(refusal.to_owned())
}

fn check_type(name: &str) -> Result<(), String> {
    let Some(timeout) = name.strip_prefix(TIMEOUT_PREFIX) else { return Ok(()) };
    match timeout {
        "StartToClose" | "ScheduleToStart" | "ScheduleToClose" | "Heartbeat" => Ok(()),
        _ => Err(format!("Invalid timeout type value: {timeout}.")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn policy(initial_ms: i64, coefficient: f64, maximum_ms: i64) -> RetryPolicy {
        RetryPolicy {
            initial_interval: Some(Span::from_millis(initial_ms).to_proto()),
            backoff_coefficient: coefficient,
            maximum_interval: Some(Span::from_millis(maximum_ms).to_proto()),
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn defaults_fill_what_a_policy_leaves_open() {
        let filled = filled(None).expect("defaults are valid");
        assert_eq!(Span::from_proto(filled.initial_interval.as_ref()), Span::from_secs(1));
        assert_eq!(Span::from_proto(filled.maximum_interval.as_ref()), Span::from_secs(100));
        assert_eq!((filled.backoff_coefficient, filled.maximum_attempts), (2.0, 0));
    }

    #[test]
    fn policies_out_of_range_are_refused_unless_there_is_one_attempt() {
        for (policy, names) in [
            (policy(1000, 0.5, 2000), "BackoffCoefficient"),
            (policy(1000, f64::NAN, 2000), "BackoffCoefficient"),
            (policy(1000, 2.0, 500), "MaximumInterval"),
            (policy(-1, 2.0, 500), "InitialInterval"),
            (RetryPolicy { maximum_attempts: -1, ..policy(1, 2.0, 2) }, "MaximumAttempts"),
        ] {
            let text = filled(Some(policy.clone())).expect_err("out of range");
            assert!(text.contains(names), "{text}");
            if policy.maximum_attempts == 0 {
                let once = RetryPolicy { maximum_attempts: 1, ..policy };
                assert_eq!(filled(Some(once)).map(|p| p.maximum_attempts), Ok(1));
            }
        }
        let named = |name: &str| RetryPolicy {
            non_retryable_error_types: vec![name.to_owned()],
            ..RetryPolicy::default()
        };
        assert!(filled(Some(named("TemporalTimeout:Nap"))).is_err());
        assert!(filled(Some(named("TemporalTimeout:Heartbeat"))).is_ok());
    }
}
