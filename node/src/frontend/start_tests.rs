//! Starts: defaults, refusals in the official order, and the fields that are not built.

use piton_proto::common::{Callback, TimeSkippingConfig, WorkflowType};
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflow::{OnConflictOptions, VersioningOverride};

use super::*;

fn start() -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest {
        namespace: "default".to_owned(),
        workflow_id: "w".to_owned(),
        workflow_type: Some(WorkflowType { name: "Order".to_owned() }),
        task_queue: Some(TaskQueue { name: "orders".to_owned(), ..TaskQueue::default() }),
        ..StartWorkflowExecutionRequest::default()
    }
}

fn secs(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn checked(
    change: impl FnOnce(&mut StartWorkflowExecutionRequest),
) -> StartWorkflowExecutionRequest {
    let mut request = start();
    change(&mut request);
    check(&mut request, Origin::Start, &Limits::default()).unwrap();
    request
}

fn refused(change: impl FnOnce(&mut StartWorkflowExecutionRequest)) -> ApiError {
    let mut request = start();
    change(&mut request);
    check(&mut request, Origin::Start, &Limits::default()).unwrap_err()
}

#[test]
fn a_plain_start_gets_its_defaults() {
    let request = checked(|_| {});
    // Not given, so not shown.
    assert_eq!((request.workflow_execution_timeout, request.workflow_run_timeout), (None, None));
    assert_eq!(request.workflow_task_timeout, secs(10));
    assert_eq!(request.workflow_id_reuse_policy(), WorkflowIdReusePolicy::AllowDuplicate);
    assert_eq!(request.workflow_id_conflict_policy(), WorkflowIdConflictPolicy::Fail);
    assert_eq!(request.task_queue.unwrap().kind, i32::from(TaskQueueKind::Normal));
    assert!(!request.request_id.is_empty());
    assert_eq!(request.retry_policy, None);
}

#[test]
fn timeouts_bound_each_other() {
    for (execution, run, task, expected) in [
        (0, 0, 0, (0, 0, 10)),
        (60, 0, 0, (60, 60, 10)),
        (60, 90, 0, (60, 60, 10)),
        (60, 30, 0, (60, 30, 10)),
        (0, 5, 0, (0, 5, 5)),
        (0, 0, 500, (0, 0, 120)),
        (0, 30, 60, (0, 30, 30)),
    ] {
        let request = checked(|r| {
            r.workflow_execution_timeout = secs(execution);
            r.workflow_run_timeout = secs(run);
            r.workflow_task_timeout = secs(task);
        });
        let seconds = |d: Option<Duration>| d.unwrap().seconds;
        let got = (
            seconds(request.workflow_execution_timeout),
            seconds(request.workflow_run_timeout),
            seconds(request.workflow_task_timeout),
        );
        assert_eq!(got, expected, "{execution} {run} {task}");
    }
}

#[test]
fn malformed_starts_are_refused_with_the_official_text() {
    type Change = fn(&mut StartWorkflowExecutionRequest);
    let table: &[(Change, &str)] = &[
        (|r| r.workflow_id.clear(), "WorkflowId is not set on request."),
        (|r| r.workflow_id = "x".repeat(1_001), "WorkflowId length exceeds limit."),
        (|r| r.workflow_type = None, "WorkflowType is not set on request."),
        (|r| r.task_queue = None, "taskQueue is not set"),
        (
            |r| r.task_queue.as_mut().unwrap().name = "/_sys/x".to_owned(),
            "Task queue name cannot start with reserved prefix /_sys/.",
        ),
        (
            |r| r.workflow_execution_timeout = secs(-1),
            "An invalid WorkflowExecutionTimeoutSeconds is set on request. cause: negative duration",
        ),
        (
            |r| r.workflow_run_timeout = secs(-1),
            "An invalid WorkflowRunTimeoutSeconds is set on request. cause: negative duration",
        ),
        (
            |r| r.workflow_task_timeout = secs(-1),
            "An invalid WorkflowTaskTimeoutSeconds is set on request. cause: negative duration",
        ),
        (
            |r| r.workflow_start_delay = secs(-1),
            "An invalid WorkflowStartDelaySeconds is set on request. cause: negative duration",
        ),
        (
            |r| {
                r.workflow_start_delay = secs(1);
                r.cron_schedule = "* * * * *".to_owned();
            },
            "CronSchedule and WorkflowStartDelay may not be used together.",
        ),
        (|r| r.request_id = "x".repeat(1_001), "RequestId length exceeds limit."),
        (|r| r.workflow_id_reuse_policy = 77, "WorkflowIdReusePolicy is unknown."),
        (|r| r.input = Some(large_payloads()), "Blob data size exceeds limit."),
    ];
    for (change, text) in table {
        let refusal = refused(change);
        assert!(matches!(refusal, ApiError::Invalid(_)), "{refusal:?}");
        assert_eq!(refusal.to_string(), *text);
    }
}

fn large_payloads() -> piton_proto::common::Payloads {
    let data = vec![0; (2 << 20) + 1].into();
    let payload = piton_proto::common::Payload { data, ..Default::default() };
    piton_proto::common::Payloads { payloads: vec![payload] }
}

#[test]
fn id_policies_that_contradict_each_other_are_refused() {
    use WorkflowIdConflictPolicy as Conflict;
    use WorkflowIdReusePolicy as Reuse;
    #[expect(deprecated, reason = "old clients still send it")]
    let terminate_if_running = Reuse::TerminateIfRunning;
    let check = |origin, reuse: Reuse, conflict: Conflict| {
        let mut request = start();
        request.workflow_id_reuse_policy = reuse.into();
        request.workflow_id_conflict_policy = conflict.into();
        super::check(&mut request, origin, &Limits::default())
            .map(|()| (request.workflow_id_reuse_policy(), request.workflow_id_conflict_policy()))
            .ok()
    };
    let (plain, signal) = (Origin::Start, Origin::SignalWithStart);
    let (any, reject) = (Reuse::AllowDuplicate, Reuse::RejectDuplicate);
    for (origin, reuse, conflict, expected) in [
        (plain, reject, Conflict::TerminateExisting, None),
        (plain, reject, Conflict::UseExisting, Some((reject, Conflict::UseExisting))),
        (plain, terminate_if_running, Conflict::Fail, None),
        (
            plain,
            terminate_if_running,
            Conflict::Unspecified,
            Some((any, Conflict::TerminateExisting)),
        ),
        (signal, Reuse::Unspecified, Conflict::Unspecified, Some((any, Conflict::UseExisting))),
        (signal, any, Conflict::Fail, None),
        (
            signal,
            terminate_if_running,
            Conflict::Unspecified,
            Some((any, Conflict::TerminateExisting)),
        ),
    ] {
        assert_eq!(check(origin, reuse, conflict), expected, "{origin:?} {reuse:?} {conflict:?}");
    }
}

#[test]
fn retry_policies_are_filled_in_and_checked() {
    let policy = |initial, coefficient, maximum, attempts| RetryPolicy {
        initial_interval: secs(initial),
        backoff_coefficient: coefficient,
        maximum_interval: secs(maximum),
        maximum_attempts: attempts,
        non_retryable_error_types: Vec::new(),
    };
    let mut empty = RetryPolicy::default();
    check_retry_policy(Some(&mut empty)).unwrap();
    assert_eq!(empty, policy(1, 2.0, 100, 0));

    for (mut given, text) in [
        (policy(-1, 2.0, 1, 0), "InitialInterval cannot be negative on retry policy."),
        (policy(1, 0.5, 1, 0), "BackoffCoefficient cannot be less than 1 on retry policy."),
        (policy(1, f64::NAN, 1, 0), "BackoffCoefficient cannot be less than 1 on retry policy."),
        (policy(1, 2.0, -1, 0), "MaximumInterval cannot be negative on retry policy."),
        (
            policy(5, 2.0, 1, 0),
            "MaximumInterval cannot be less than InitialInterval on retry policy.",
        ),
        (policy(1, 2.0, 1, -1), "MaximumAttempts cannot be negative on retry policy."),
    ] {
        assert_eq!(check_retry_policy(Some(&mut given)).unwrap_err().to_string(), text);
        // One attempt is no retry, so nothing else in the policy matters.
        given.maximum_attempts = 1;
        check_retry_policy(Some(&mut given)).unwrap();
    }
    let mut types = policy(1, 2.0, 1, 0);
    types.non_retryable_error_types = vec!["Mine".into(), "TemporalTimeout:Heartbeat".into()];
    check_retry_policy(Some(&mut types)).unwrap();
    types.non_retryable_error_types = vec!["TemporalTimeout:Never".into()];
    let error = check_retry_policy(Some(&mut types)).unwrap_err().to_string();
    assert_eq!(error, "Invalid timeout type value: Never.");
}

#[test]
fn fields_that_are_not_built_are_refused_by_name() {
    type Change = fn(&mut StartWorkflowExecutionRequest);
    let table: &[(Change, &str)] = &[
        (|r| r.cron_schedule = "* * * * *".to_owned(), "cron_schedule"),
        (|r| r.retry_policy = Some(RetryPolicy::default()), "retry_policy"),
        (|r| r.workflow_start_delay = secs(1), "workflow_start_delay"),
        (|r| r.completion_callbacks = vec![Callback::default()], "completion_callbacks"),
        (|r| r.versioning_override = Some(VersioningOverride::default()), "versioning_override"),
        (
            |r| {
                let attach_links = true;
                r.on_conflict_options =
                    Some(OnConflictOptions { attach_links, ..Default::default() });
            },
            "on_conflict_options",
        ),
        (
            |r| {
                let enabled = true;
                r.time_skipping_config = Some(TimeSkippingConfig { enabled, ..Default::default() });
            },
            "time_skipping_config",
        ),
    ];
    for (change, field) in table {
        match refused(change) {
            ApiError::FieldNotBuilt { field: named } => assert_eq!(named, *field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn fields_that_say_nothing_are_not_refused() {
    checked(|r| {
        r.retry_policy = Some(RetryPolicy { maximum_attempts: 1, ..RetryPolicy::default() });
        r.workflow_start_delay = secs(0);
        r.on_conflict_options = Some(OnConflictOptions::default());
        r.time_skipping_config = Some(TimeSkippingConfig::default());
        r.links = vec![piton_proto::common::Link::default()];
        r.request_eager_execution = true;
    });
}
