//! Steps of scenarios as requests.

use piton_core::effect::{ChildOutcome, ChildResult, ErrandKey, ParentLink, TaskKey};
use piton_core::id::EventId;
use piton_core::message::Proto;
use piton_core::proto::common::{
    Priority, RetryPolicy, WorkerVersionStamp, WorkflowExecution, WorkflowType,
};
use piton_core::proto::enums::{
    RetryState, WorkflowIdConflictPolicy, WorkflowIdReusePolicy, WorkflowTaskFailedCause,
};
use piton_core::proto::failure::failure::FailureInfo;
use piton_core::proto::failure::{ApplicationFailureInfo, CanceledFailureInfo, Failure};
use piton_core::proto::taskqueue::{StickyExecutionAttributes, TaskQueue};
use piton_core::proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
    StartWorkflowExecutionRequest,
};
use piton_core::request::{
    ActivityRef, CancelRequest, ChildRefusal, ExternalRefusal, Parent, RunRequest, Signal,
    StartRequest, Taker, TerminateRequest, WorkflowTaskRef,
};
use piton_core::time::Timestamp;

use super::{Step, World, command, offers};

pub(crate) fn start(step: &Step) -> StartRequest {
    let enumeration = |name: &str, prefix: &str| {
        step.get(name).map(|value| format!("{prefix}_{}", value.to_uppercase()))
    };
    let reuse = enumeration("reuse", "WORKFLOW_ID_REUSE_POLICY");
    let conflict = enumeration("conflict", "WORKFLOW_ID_CONFLICT_POLICY");
    let start = StartWorkflowExecutionRequest {
        workflow_id: "order-1".into(),
        workflow_type: Some(WorkflowType { name: "Order".into() }),
        task_queue: Some(TaskQueue { name: "orders".into(), ..TaskQueue::default() }),
        input: step.payloads("input"),
        request_id: step.get("request").unwrap_or("start").to_owned(),
        identity: "client".into(),
        workflow_run_timeout: step.duration("run_timeout"),
        workflow_execution_timeout: step.duration("execution_timeout"),
        workflow_task_timeout: step.duration("task_timeout"),
        request_eager_execution: step.flag("eager"),
        priority: step.get("priority").map(|_| Priority {
            priority_key: step.number("priority") as i32,
            ..Default::default()
        }),
        workflow_id_reuse_policy: reuse.map_or(0, |name| {
            WorkflowIdReusePolicy::from_str_name(&name).expect("a reuse policy").into()
        }),
        workflow_id_conflict_policy: conflict.map_or(0, |name| {
            WorkflowIdConflictPolicy::from_str_name(&name).expect("a conflict policy").into()
        }),
        ..Default::default()
    };
    let parent = step.get("parent").map(|id| Parent {
        link: ParentLink {
            namespace_id: "ns".into(),
            workflow_id: id.into(),
            run_id: "parent-run".into(),
            initiated: EventId(5),
        },
        namespace_name: "default".into(),
        root: WorkflowExecution { workflow_id: id.to_owned(), run_id: "parent-run".into() },
    });
    StartRequest {
        start: Box::new(start),
        signal: step.get("signal").map(|_| signal(step)),
        parent,
    }
}

fn signal(step: &Step) -> Signal {
    Signal {
        name: step.get("signal").map_or_else(|| step.word(0).to_owned(), str::to_owned),
        input: step.payloads("input"),
        identity: "client".into(),
        sender: sender(step),
        child_only: step.flag("child_only"),
        ..Signal::default()
    }
}

fn sender(step: &Step) -> Option<WorkflowExecution> {
    let id = step.get("from")?;
    Some(WorkflowExecution { workflow_id: id.to_owned(), run_id: "parent-run".into() })
}

fn failure(step: &Step) -> Failure {
    let info = match step.get("type") {
        Some("Canceled") => FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default()),
        kind => FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
            r#type: kind.unwrap_or("Error").to_owned(),
            non_retryable: step.flag("non_retryable"),
            next_retry_delay: step.duration("delay"),
            ..Default::default()
        }),
    };
    Failure {
        message: step.get("message").unwrap_or("it broke").to_owned(),
        failure_info: Some(info),
        ..Failure::default()
    }
}

pub(crate) fn retry_policy(step: &Step) -> Option<RetryPolicy> {
    let names = ["attempts", "initial", "coefficient", "interval_max", "non_retryable"];
    names.iter().any(|name| step.get(name).is_some()).then(|| RetryPolicy {
        initial_interval: step.duration("initial"),
        backoff_coefficient: step
            .get("coefficient")
            .map_or(0.0, |c| c.parse().expect("a coefficient is a number")),
        maximum_interval: step.duration("interval_max"),
        maximum_attempts: step.number("attempts") as i32,
        non_retryable_error_types: step
            .get("non_retryable")
            .map(|types| types.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
    })
}

impl World {
    pub(super) fn request(&self, step: &Step, place: &str) -> RunRequest {
        match step.verb.as_str() {
            "signal" => RunRequest::Signal(signal(step)),
            "cancel" => RunRequest::RequestCancel(CancelRequest {
                reason: step.text_of("reason"),
                identity: "client".into(),
                first_run_id: step.text_of("first_run"),
                sender: sender(step)
                    .map(|sender| (Proto(sender), EventId(step.number("initiated")))),
                child_only: step.flag("child_only"),
                ..CancelRequest::default()
            }),
            "terminate" => RunRequest::Terminate(TerminateRequest {
                reason: step.text_of("reason"),
                identity: "client".into(),
                ..TerminateRequest::default()
            }),
            "reset-sticky" => RunRequest::ResetSticky,
            "sticky-lost" => RunRequest::StickyLost,
            "due" => RunRequest::Due,
            "parent-recorded" => RunRequest::ParentRecorded,
            "take" | "complete" | "fail-task" | "time-out-task" | "undelivered-task"
            | "sticky-unavailable" => self.workflow_task_request(step, place),
            verb if verb.ends_with("-activity") => self.activity_request(step, place),
            _ => relative_request(step, place),
        }
    }

    fn workflow_task_request(&self, step: &Step, place: &str) -> RunRequest {
        let token = self.task.unwrap_or(WorkflowTaskRef { term: 0, number: 0 });
        let number = token.number;
        let offer = offers(self.run(place)).into_iter().find_map(|key| match key {
            TaskKey::Workflow { scheduled, stamp } => Some((scheduled, stamp)),
            TaskKey::Activity { .. } => None,
        });
        match step.verb.as_str() {
            "take" => {
                let (scheduled, stamp) = offer.unwrap_or((EventId(0), 0));
                RunRequest::TakeWorkflowTask { scheduled, stamp, taker: taker(step) }
            }
            "sticky-unavailable" => {
                RunRequest::StickyUnavailable { stamp: offer.map_or(0, |(_, stamp)| stamp) }
            }
            "complete" => {
                let answer = Box::new(completion(step));
                RunRequest::CompleteWorkflowTask { token, answer }
            }
            "fail-task" => {
                let answer = Box::new(RespondWorkflowTaskFailedRequest {
                    cause: WorkflowTaskFailedCause::WorkflowWorkerUnhandledFailure.into(),
                    failure: Some(failure(step)),
                    identity: "worker".into(),
                    ..Default::default()
                });
                RunRequest::FailWorkflowTask { token, answer }
            }
            "time-out-task" => RunRequest::WorkflowTaskTimedOut { number },
            _ => RunRequest::WorkflowTaskUndelivered { number },
        }
    }

    fn activity_request(&self, step: &Step, place: &str) -> RunRequest {
        let name = step.word(0);
        let identity = "worker".to_owned();
        let activity =
            match step.flag("by_id") {
                true => ActivityRef::Id(name.to_owned()),
                false => self.activities.get(step.get("token").unwrap_or(name)).cloned().unwrap_or(
                    ActivityRef::Attempt { scheduled: EventId(0), attempt: 1, stamp: 1 },
                ),
            };
        match step.verb.as_str() {
            "take-activity" => {
                let (scheduled, stamp, created) = self.activity_offer(name, place);
                RunRequest::StartActivity { scheduled, stamp, created, taker: taker(step) }
            }
            "undelivered-activity" => {
                let ActivityRef::Attempt { scheduled, stamp, .. } = activity else {
                    panic!("{place}: an activity is undelivered by its token");
                };
                let request_id = step.get("ticket").unwrap_or("ticket").into();
                RunRequest::ActivityUndelivered { scheduled, stamp, request_id }
            }
            "complete-activity" => {
                RunRequest::CompleteActivity { activity, result: step.payloads("result"), identity }
            }
            "fail-activity" => RunRequest::FailActivity {
                activity,
                failure: Some(failure(step)),
                last_heartbeat_details: step.payloads("heartbeat"),
                identity,
            },
            "cancel-activity" => {
                RunRequest::CancelActivity { activity, details: step.payloads("details"), identity }
            }
            "heartbeat-activity" => RunRequest::HeartbeatActivity {
                activity,
                details: step.payloads("details"),
                identity: "worker".into(),
            },
            verb => panic!("{place}: no step is called {verb}"),
        }
    }

    /// The offer of a pending activity; where there is none, the one that it had.
    fn activity_offer(&self, name: &str, place: &str) -> (EventId, u32, Timestamp) {
        let run = self.run(place);
        let known = run.activities.values().find(|a| a.attributes.activity_id == name);
        known.map_or((EventId(0), 0, Timestamp::MIN), |a| {
            (a.scheduled_event_id, a.note.stamp, a.note.attempt_scheduled_at)
        })
    }
}

fn taker(step: &Step) -> Taker {
    Taker {
        identity: step.get("worker").unwrap_or("worker").to_owned(),
        request_id: step.get("ticket").unwrap_or("ticket").into(),
        sticky: step.flag("sticky"),
        worker_version: step.get("build").map(stamp),
    }
}

fn stamp(build_id: &str) -> WorkerVersionStamp {
    WorkerVersionStamp { build_id: build_id.to_owned(), ..WorkerVersionStamp::default() }
}

#[allow(deprecated, reason = "older workers send them")]
fn completion(step: &Step) -> RespondWorkflowTaskCompletedRequest {
    let sticky = step.get("sticky").map(|name| StickyExecutionAttributes {
        worker_task_queue: Some(TaskQueue { name: name.to_owned(), ..TaskQueue::default() }),
        schedule_to_start_timeout: Some(super::span("5s").to_proto()),
    });
    RespondWorkflowTaskCompletedRequest {
        commands: step.commands.iter().map(command::command).collect(),
        identity: "worker".into(),
        sticky_attributes: sticky,
        return_new_workflow_task: step.flag("return_new"),
        force_create_new_workflow_task: step.flag("heartbeat"),
        worker_version_stamp: step.get("build").map(stamp),
        binary_checksum: step.get("checksum").unwrap_or_default().to_owned(),
        ..Default::default()
    }
}

/// What other workflows answer.
fn relative_request(step: &Step, place: &str) -> RunRequest {
    let initiated = EventId(step.number("initiated"));
    let refusal = || {
        step.get("refused").map(|cause| match cause {
            "not_found" => ExternalRefusal::NotFound,
            "no_namespace" => ExternalRefusal::NamespaceNotFound,
            "limit" => ExternalRefusal::SignalCountLimit,
            _ => panic!("{place}: nobody refuses because of {cause}"),
        })
    };
    match step.verb.as_str() {
        "child-started" => {
            let run_id = step.get("run").unwrap_or("child-run").into();
            RunRequest::ChildStarted { initiated, run_id, header: None }
        }
        "child-refused" => {
            let cause = match step.flag("no_namespace") {
                true => ChildRefusal::NamespaceNotFound,
                false => ChildRefusal::AlreadyExists,
            };
            RunRequest::ChildRefused { initiated, cause }
        }
        "child-closed" => {
            let first_run = step.get("run").unwrap_or("child-run");
            let outcome = ChildOutcome {
                workflow_id: "child-1".into(),
                run_id: step.get("last_run").unwrap_or(first_run).into(),
                first_run: first_run.into(),
                workflow_type: "Ship".into(),
                result: child_result(step, place),
            };
            RunRequest::ChildClosed { initiated, outcome: Box::new(outcome) }
        }
        "signal-done" => RunRequest::ExternalSignalDone { initiated, refusal: refusal() },
        "cancel-done" => RunRequest::ExternalCancelDone { initiated, refusal: refusal() },
        "errand-done" => RunRequest::ErrandDone(match step.get("child") {
            Some(_) => ErrandKey::CloseChild(EventId(step.number("child"))),
            None => ErrandKey::ReportClose,
        }),
        verb => panic!("{place}: no step is called {verb}"),
    }
}

fn child_result(step: &Step, place: &str) -> ChildResult {
    match step.word(0) {
        "completed" => ChildResult::Completed(step.payloads("result")),
        "failed" => ChildResult::Failed(Some(failure(step)), RetryState::RetryPolicyNotSet.into()),
        "canceled" => ChildResult::Canceled(step.payloads("details")),
        "timed_out" => ChildResult::TimedOut(RetryState::Timeout.into()),
        "terminated" => ChildResult::Terminated,
        how => panic!("{place}: no child ends {how}"),
    }
}
