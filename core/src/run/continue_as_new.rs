//! Continue-as-new: the command's checks and defaults, and the event that closes the run by it.

use piton_proto::command::ContinueAsNewWorkflowExecutionCommandAttributes as Command;
use piton_proto::enums::{ContinueAsNewInitiator, WorkflowTaskFailedCause as Cause};
use piton_proto::history::WorkflowExecutionContinuedAsNewEventAttributes;
use piton_proto::history::history_event::Attributes;

use super::command::CommandFailure;
use super::event::Annotations;
use super::field::Fields;
use super::property::{set_attributes, set_memo};
use super::successor::Successor;
use super::workflow_task::queue_to_proto;
use super::{RunState, Status};
use crate::effect::QueueName;
use crate::id::EventId;
use crate::request::Drawn;
use crate::time::Span;

impl RunState {
    /// Closes this run and gives the one that it continues as.
    pub(super) fn continue_as_new(
        &mut self,
        mut command: Command,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<RunState, CommandFailure> {
        let backoff = self.check_continue_as_new(&mut command, drawn)?;
        let next = successor(&command, backoff);
        let attributes = closing_attributes(command, completed, drawn);
        self.close_by_command(attributes, annotations, Status::ContinuedAsNew, drawn);
        Ok(self.begin_successor(next, drawn))
    }

    /// Checks the command, fills in its defaults, and gives the wait before the first task.
    fn check_continue_as_new(
        &self,
        command: &mut Command,
        drawn: &Drawn<'_>,
    ) -> Result<Span, CommandFailure> {
        let limits = drawn.limits;
        let fields = Fields::of(
            "ContinueAsNewWorkflowExecutionCommand",
            Cause::BadContinueAsNewAttributes,
            limits,
        );
        if command.workflow_type.as_ref().is_none_or(|t| t.name.is_empty()) {
            command.workflow_type = self.started.workflow_type.clone();
        }
        let workflow_type = command.workflow_type.as_ref().map_or("", |t| &t.name);
        let fields = fields.beside("WorkflowType", workflow_type);
        fields.required("WorkflowType", workflow_type)?;
        let queue = fields.task_queue(command.task_queue.as_ref(), &self.normal_queue().name)?;
        let shown = format!("name:\"{queue}\" kind:TASK_QUEUE_KIND_NORMAL");
        let fields = fields.beside("TaskQueue", &shown);
        command.task_queue = Some(queue_to_proto(&QueueName::normal(&queue)));

        let inherited = Span::from_proto(self.started.workflow_run_timeout.as_ref());
        let given = fields.span("WorkflowRunTimeout", command.workflow_run_timeout.as_ref())?;
        let chain = Span::from_proto(self.started.workflow_execution_timeout.as_ref());
        let run_timeout = given.given().unwrap_or(inherited).min_given(chain);
        command.workflow_run_timeout = Some(run_timeout.to_proto());
        let given = fields.span("WorkflowTaskTimeout", command.workflow_task_timeout.as_ref())?;
        if given.given().is_none() {
            command.workflow_task_timeout = self.started.workflow_task_timeout;
        }
        let task_timeout = Span::from_proto(command.workflow_task_timeout.as_ref());
        let task_timeout = drawn.limits.task_timeout(task_timeout).min_given(run_timeout);
        command.workflow_task_timeout = Some(task_timeout.to_proto());

        let backoff =
            fields.span("BackoffStartInterval", command.backoff_start_interval.as_ref())?;
        command.retry_policy = fields.retry_policy(command.retry_policy.take())?;
        if !command.cron_schedule.is_empty() {
            return Err(fields.bad("CronSchedule is not supported yet."));
        }
        if command.retry_policy.as_ref().is_some_and(|policy| policy.maximum_attempts != 1) {
            return Err(fields.bad("RetryPolicy of a workflow is not supported yet."));
        }
        if command.initial_versioning_behavior != 0 {
            return Err(fields.bad("InitialVersioningBehavior is not supported yet."));
        }
        fields.blob(". Input", command.input.as_ref())?;
        fields.blob(".LastCompletionResult", command.last_completion_result.as_ref())?;
        fields.blob(".Failure", command.failure.as_ref())?;
        let memo = command.memo.as_ref().map_or(0, |m| prost::Message::encoded_len(m) as u64);
        fields.bytes(". Memo", memo, limits.memo_bytes_max)?;
        command.memo = set_memo(command.memo.take());
        if let Some(attributes) = &mut command.search_attributes {
            let refused = |text| CommandFailure::new(Cause::BadSearchAttributes, text);
            drawn.search_attributes.check(attributes).map_err(refused)?;
        }
        command.search_attributes = set_attributes(command.search_attributes.take());
        Ok(self.continue_as_new_backoff(backoff, drawn))
    }

    /// Runs of a chain follow each other no faster than the limit says.
    fn continue_as_new_backoff(&self, given: Span, drawn: &Drawn<'_>) -> Span {
        let waited = Span::from_proto(self.started.first_workflow_task_backoff.as_ref());
        let lifetime = drawn.now - (self.start_time + waited);
        let interval = Span::of_limit_ms(drawn.limits.continue_as_new_interval_ms_min);
        given.max(interval - lifetime.max(Span::ZERO)).max(Span::ZERO)
    }
}

/// What the command begins the next run with: memo, search attributes and header are its alone.
#[allow(deprecated, reason = "older workers still send the failure, and the next run has it")]
fn successor(command: &Command, backoff: Span) -> Successor {
    Successor {
        // A worker that tries again by itself says so, and its attempts are counted.
        initiator: match command.initiator() {
            ContinueAsNewInitiator::Unspecified => ContinueAsNewInitiator::Workflow,
            given => given,
        },
        backoff,
        workflow_type: command.workflow_type.clone(),
        task_queue: command.task_queue.clone(),
        input: command.input.clone(),
        header: command.header.clone(),
        memo: command.memo.clone(),
        search_attributes: command.search_attributes.clone(),
        run_timeout: command.workflow_run_timeout,
        task_timeout: command.workflow_task_timeout,
        retry_policy: command.retry_policy.clone(),
        last_completion_result: command.last_completion_result.clone(),
        failure: command.failure.clone(),
    }
}

#[allow(deprecated, reason = "older workers still send the failure, and the event has it")]
fn closing_attributes(command: Command, completed: EventId, drawn: &Drawn<'_>) -> Attributes {
    Attributes::WorkflowExecutionContinuedAsNewEventAttributes(
        WorkflowExecutionContinuedAsNewEventAttributes {
            new_execution_run_id: drawn.run_id.as_str().into(),
            workflow_type: command.workflow_type,
            task_queue: command.task_queue,
            input: command.input,
            workflow_run_timeout: command.workflow_run_timeout,
            workflow_task_timeout: command.workflow_task_timeout,
            workflow_task_completed_event_id: completed.0,
            backoff_start_interval: command.backoff_start_interval,
            initiator: command.initiator,
            failure: command.failure,
            last_completion_result: command.last_completion_result,
            header: command.header,
            memo: command.memo,
            search_attributes: command.search_attributes,
            inherit_build_id: command.inherit_build_id,
            ..Default::default()
        },
    )
}
