//! Lines of a completion as commands.

use piton_core::proto::command::command::Attributes as C;
use piton_core::proto::command::{self, Command};
use piton_core::proto::common::{
    ActivityType, Memo, Priority, SearchAttributes, WorkflowExecution, WorkflowType,
};
use piton_core::proto::enums::{CommandType, ParentClosePolicy};
use piton_core::proto::failure::Failure;
use piton_core::proto::sdk::UserMetadata;
use piton_core::proto::taskqueue::TaskQueue;

use super::Step;
use super::arguments::payload;
use super::request::retry_policy;

pub(crate) fn command(step: &Step) -> Command {
    let (kind, attributes) = match step.verb.as_str() {
        "activity" => (
            CommandType::ScheduleActivityTask,
            C::ScheduleActivityTaskCommandAttributes(activity(step)),
        ),
        "cancel-activity" => (
            CommandType::RequestCancelActivityTask,
            C::RequestCancelActivityTaskCommandAttributes(
                command::RequestCancelActivityTaskCommandAttributes {
                    scheduled_event_id: step.number("scheduled"),
                },
            ),
        ),
        "timer" => (
            CommandType::StartTimer,
            C::StartTimerCommandAttributes(command::StartTimerCommandAttributes {
                timer_id: step.text_of("id"),
                start_to_fire_timeout: step.duration("after"),
            }),
        ),
        "cancel-timer" => (
            CommandType::CancelTimer,
            C::CancelTimerCommandAttributes(command::CancelTimerCommandAttributes {
                timer_id: step.text_of("id"),
            }),
        ),
        "child" => (
            CommandType::StartChildWorkflowExecution,
            C::StartChildWorkflowExecutionCommandAttributes(child(step)),
        ),
        "signal-external" | "cancel-external" => external(step),
        "search" | "memo" | "marker" => property(step),
        _ => closing(step),
    };
    let summary = step.get("summary").map(payload);
    Command {
        command_type: kind.into(),
        attributes: Some(attributes),
        user_metadata: summary
            .map(|summary| UserMetadata { summary: Some(summary), ..UserMetadata::default() }),
        ..Command::default()
    }
}

fn queue(step: &Step) -> Option<TaskQueue> {
    step.get("queue").map(|name| TaskQueue { name: name.to_owned(), ..TaskQueue::default() })
}

fn activity(step: &Step) -> command::ScheduleActivityTaskCommandAttributes {
    command::ScheduleActivityTaskCommandAttributes {
        activity_id: step.text_of("id"),
        activity_type: Some(ActivityType { name: step.get("type").unwrap_or("Charge").to_owned() }),
        task_queue: Some(queue(step).unwrap_or_default()),
        input: step.payloads("input"),
        schedule_to_close_timeout: step.duration("schedule_to_close"),
        schedule_to_start_timeout: step.duration("schedule_to_start"),
        start_to_close_timeout: step.duration("start_to_close"),
        heartbeat_timeout: step.duration("heartbeat"),
        retry_policy: retry_policy(step),
        request_eager_execution: step.flag("eager"),
        priority: step.get("priority").map(|_| Priority {
            priority_key: step.number("priority") as i32,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "SDKs fill the namespace in")]
fn child(step: &Step) -> command::StartChildWorkflowExecutionCommandAttributes {
    let policy = step.get("policy").map(|name| match name {
        "abandon" => ParentClosePolicy::Abandon,
        "request_cancel" => ParentClosePolicy::RequestCancel,
        "terminate" => ParentClosePolicy::Terminate,
        _ => panic!("line {}: no policy is called {name}", step.line),
    });
    command::StartChildWorkflowExecutionCommandAttributes {
        namespace: step.text_of("namespace"),
        workflow_id: step.text_of("id"),
        workflow_type: Some(WorkflowType { name: step.get("type").unwrap_or("Ship").to_owned() }),
        task_queue: queue(step),
        input: step.payloads("input"),
        workflow_run_timeout: step.duration("run_timeout"),
        workflow_execution_timeout: step.duration("execution_timeout"),
        parent_close_policy: policy.map_or(0, Into::into),
        retry_policy: retry_policy(step),
        cron_schedule: step.text_of("cron"),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "SDKs fill the namespace in")]
fn external(step: &Step) -> (CommandType, C) {
    if step.verb == "signal-external" {
        let attributes = command::SignalExternalWorkflowExecutionCommandAttributes {
            namespace: step.text_of("namespace"),
            execution: Some(WorkflowExecution {
                workflow_id: step.text_of("id"),
                run_id: step.text_of("run"),
            }),
            signal_name: step.text_of("signal"),
            input: step.payloads("input"),
            child_workflow_only: step.flag("child_only"),
            ..Default::default()
        };
        let attributes = C::SignalExternalWorkflowExecutionCommandAttributes(attributes);
        return (CommandType::SignalExternalWorkflowExecution, attributes);
    }
    let attributes = command::RequestCancelExternalWorkflowExecutionCommandAttributes {
        namespace: step.text_of("namespace"),
        workflow_id: step.text_of("id"),
        run_id: step.text_of("run"),
        child_workflow_only: step.flag("child_only"),
        reason: step.text_of("reason"),
        ..Default::default()
    };
    let attributes = C::RequestCancelExternalWorkflowExecutionCommandAttributes(attributes);
    (CommandType::RequestCancelExternalWorkflowExecution, attributes)
}

fn property(step: &Step) -> (CommandType, C) {
    let fields = || step.named.iter().map(|(name, value)| (name.clone(), payload(value))).collect();
    match step.verb.as_str() {
        "search" => (
            CommandType::UpsertWorkflowSearchAttributes,
            C::UpsertWorkflowSearchAttributesCommandAttributes(
                command::UpsertWorkflowSearchAttributesCommandAttributes {
                    search_attributes: Some(SearchAttributes { indexed_fields: fields() }),
                },
            ),
        ),
        "memo" => (
            CommandType::ModifyWorkflowProperties,
            C::ModifyWorkflowPropertiesCommandAttributes(
                command::ModifyWorkflowPropertiesCommandAttributes {
                    upserted_memo: Some(Memo { fields: fields() }),
                },
            ),
        ),
        _ => (
            CommandType::RecordMarker,
            C::RecordMarkerCommandAttributes(command::RecordMarkerCommandAttributes {
                marker_name: step.text_of("name"),
                details: step
                    .payloads("details")
                    .map(|d| ("data".to_owned(), d))
                    .into_iter()
                    .collect(),
                ..Default::default()
            }),
        ),
    }
}

fn closing(step: &Step) -> (CommandType, C) {
    match step.verb.as_str() {
        "finish" => (
            CommandType::CompleteWorkflowExecution,
            C::CompleteWorkflowExecutionCommandAttributes(
                command::CompleteWorkflowExecutionCommandAttributes {
                    result: step.payloads("result"),
                },
            ),
        ),
        "fail" => (
            CommandType::FailWorkflowExecution,
            C::FailWorkflowExecutionCommandAttributes(
                command::FailWorkflowExecutionCommandAttributes {
                    failure: Some(Failure {
                        message: step.text_of("message"),
                        ..Failure::default()
                    }),
                },
            ),
        ),
        "give-up" => (
            CommandType::CancelWorkflowExecution,
            C::CancelWorkflowExecutionCommandAttributes(
                command::CancelWorkflowExecutionCommandAttributes {
                    details: step.payloads("details"),
                },
            ),
        ),
        "continue-as-new" => (
            CommandType::ContinueAsNewWorkflowExecution,
            C::ContinueAsNewWorkflowExecutionCommandAttributes(
                command::ContinueAsNewWorkflowExecutionCommandAttributes {
                    input: step.payloads("input"),
                    ..Default::default()
                },
            ),
        ),
        verb => panic!("line {}: no command is called {verb}", step.line),
    }
}
