//! The commands of a completed workflow task, in order: each goes to the file of its concern.
//! Closing commands are carried out here.

use piton_proto::command::Command;
use piton_proto::command::command::Attributes as C;
use piton_proto::enums::{CommandType, RetryState, WorkflowTaskFailedCause as Cause};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    WorkflowExecutionCanceledEventAttributes, WorkflowExecutionCompletedEventAttributes,
    WorkflowExecutionFailedEventAttributes,
};

use super::event::Annotations;
use super::field::Fields;
use super::{ActivityTask, RunState, Status};
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::Drawn;

/// A command that cannot be carried out: the workflow task fails with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandFailure {
    pub(crate) cause: Cause,
    pub(crate) message: String,
    /// The run is terminated: a payload is larger than the limit, and would be again.
    pub(crate) terminate: bool,
}

impl CommandFailure {
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), terminate: false }
    }

    /// `<cause>: <detail>`, or the cause alone: workers match on "UnhandledCommand" as it is.
    pub(super) fn text(&self) -> String {
        match self.message.as_str() {
            "" => format!("{:?}", self.cause),
            message => format!("{:?}: {message}", self.cause),
        }
    }
}

/// What the commands of one completion came to.
#[derive(Default)]
pub(super) struct Applied {
    /// Activities that the worker asks to have at once.
    pub(super) eager: Vec<EventId>,
    /// Those of them that it is handed.
    pub(super) started: Vec<ActivityTask>,
    /// An activity was cancelled before it started: its Canceled event waits for the flush.
    pub(super) cancelled_unstarted: bool,
    /// The run that this one continues as.
    pub(super) successor: Option<RunState>,
}

/// Refuses an answer whose shape is wrong; nothing of it is recorded and the task stays held.
pub(super) fn check_order(commands: &[Command]) -> Result<(), Rejection> {
    let mut closed_by = None;
    for command in commands {
        let Ok(kind) = CommandType::try_from(command.command_type) else {
            let text = format!("unknown command type: {}", command.command_type);
            return Err(Rejection::InvalidArgument(text));
        };
        if kind == CommandType::Unspecified {
            return Err(Rejection::invalid("unknown command type: Unspecified"));
        }
        if let Some(closed_by) = closed_by {
            let all: Vec<_> = commands.iter().map(|c| format!("{:?}", c.command_type())).collect();
            let text = format!(
                "invalid command sequence: [{}], command {closed_by:?} must be the last command.",
                all.join(", ")
            );
            return Err(Rejection::InvalidArgument(text));
        }
        closed_by = closes(kind).then_some(kind);
    }
    Ok(())
}

fn closes(kind: CommandType) -> bool {
    matches!(
        kind,
        CommandType::CompleteWorkflowExecution
            | CommandType::FailWorkflowExecution
            | CommandType::CancelWorkflowExecution
            | CommandType::ContinueAsNewWorkflowExecution
    )
}

/// The cause with which a task fails whose command of this type is wrong.
fn bad_cause(kind: CommandType) -> Cause {
    match kind {
        CommandType::Unspecified => Cause::Unspecified,
        CommandType::ScheduleActivityTask => Cause::BadScheduleActivityAttributes,
        CommandType::RequestCancelActivityTask => Cause::BadRequestCancelActivityAttributes,
        CommandType::StartTimer => Cause::BadStartTimerAttributes,
        CommandType::CancelTimer => Cause::BadCancelTimerAttributes,
        CommandType::CompleteWorkflowExecution => Cause::BadCompleteWorkflowExecutionAttributes,
        CommandType::FailWorkflowExecution => Cause::BadFailWorkflowExecutionAttributes,
        CommandType::CancelWorkflowExecution => Cause::BadCancelWorkflowExecutionAttributes,
        CommandType::RequestCancelExternalWorkflowExecution => {
            Cause::BadRequestCancelExternalWorkflowExecutionAttributes
        }
        CommandType::RecordMarker => Cause::BadRecordMarkerAttributes,
        CommandType::ContinueAsNewWorkflowExecution => Cause::BadContinueAsNewAttributes,
        CommandType::StartChildWorkflowExecution => Cause::BadStartChildExecutionAttributes,
        CommandType::SignalExternalWorkflowExecution => Cause::BadSignalWorkflowExecutionAttributes,
        CommandType::UpsertWorkflowSearchAttributes => Cause::BadSearchAttributes,
        CommandType::ModifyWorkflowProperties => Cause::BadModifyWorkflowPropertiesAttributes,
        CommandType::ProtocolMessage => Cause::BadUpdateWorkflowExecutionMessage,
        CommandType::ScheduleNexusOperation => Cause::BadScheduleNexusOperationAttributes,
        CommandType::RequestCancelNexusOperation => Cause::BadRequestCancelNexusOperationAttributes,
    }
}

/// Whether a command's attributes are those of its type.
fn fits(kind: CommandType, attributes: &C) -> bool {
    let of_attributes = match attributes {
        C::ScheduleActivityTaskCommandAttributes(_) => CommandType::ScheduleActivityTask,
        C::RequestCancelActivityTaskCommandAttributes(_) => CommandType::RequestCancelActivityTask,
        C::StartTimerCommandAttributes(_) => CommandType::StartTimer,
        C::CancelTimerCommandAttributes(_) => CommandType::CancelTimer,
        C::CompleteWorkflowExecutionCommandAttributes(_) => CommandType::CompleteWorkflowExecution,
        C::FailWorkflowExecutionCommandAttributes(_) => CommandType::FailWorkflowExecution,
        C::CancelWorkflowExecutionCommandAttributes(_) => CommandType::CancelWorkflowExecution,
        C::RequestCancelExternalWorkflowExecutionCommandAttributes(_) => {
            CommandType::RequestCancelExternalWorkflowExecution
        }
        C::RecordMarkerCommandAttributes(_) => CommandType::RecordMarker,
        C::ContinueAsNewWorkflowExecutionCommandAttributes(_) => {
            CommandType::ContinueAsNewWorkflowExecution
        }
        C::StartChildWorkflowExecutionCommandAttributes(_) => {
            CommandType::StartChildWorkflowExecution
        }
        C::SignalExternalWorkflowExecutionCommandAttributes(_) => {
            CommandType::SignalExternalWorkflowExecution
        }
        C::UpsertWorkflowSearchAttributesCommandAttributes(_) => {
            CommandType::UpsertWorkflowSearchAttributes
        }
        C::ModifyWorkflowPropertiesCommandAttributes(_) => CommandType::ModifyWorkflowProperties,
        C::ProtocolMessageCommandAttributes(_) => CommandType::ProtocolMessage,
        C::ScheduleNexusOperationCommandAttributes(_) => CommandType::ScheduleNexusOperation,
        C::RequestCancelNexusOperationCommandAttributes(_) => {
            CommandType::RequestCancelNexusOperation
        }
    };
    of_attributes == kind
}

/// A command that has passed the checks that all commands share.
struct Checked {
    kind: CommandType,
    attributes: C,
    annotations: Annotations,
}

fn check(command: Command, drawn: &Drawn<'_>) -> Result<Checked, CommandFailure> {
    let kind = command.command_type();
    let bad = |text: String| Err(CommandFailure::new(bad_cause(kind), text));
    let metadata = command.user_metadata;
    let bytes = |payload: Option<&piton_proto::common::Payload>| {
        payload.map_or(0, |p| prost::Message::encoded_len(p) as u64)
    };
    let (summary, details) = metadata
        .as_ref()
        .map_or((0, 0), |m| (bytes(m.summary.as_ref()), bytes(m.details.as_ref())));
    if summary > drawn.limits.user_metadata_summary_bytes_max {
        return bad(format!("summary of {kind:?}'s user metadata exceeds size limit."));
    }
    if details > drawn.limits.user_metadata_details_bytes_max {
        return bad(format!("details of {kind:?}'s user metadata exceed size limit."));
    }
    match command.attributes {
        Some(attributes) if fits(kind, &attributes) => {
            let group_markers = command.event_group_markers;
            let annotations = Annotations { user_metadata: metadata, group_markers };
            Ok(Checked { kind, attributes, annotations })
        }
        _ => bad(format!("{kind:?}CommandAttributes is not set on {kind:?}Command.")),
    }
}

impl RunState {
    /// Applies the commands in order; all or, with an error, none: then the run is dropped.
    pub(super) fn apply_commands(
        &mut self,
        commands: Vec<Command>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<Applied, CommandFailure> {
        let mut applied = Applied::default();
        // Events that came in while the worker worked: it has not seen them.
        let unseen_before = self.note.next_buffered;
        for command in commands {
            let checked = check(command, drawn)?;
            let unseen = self.buffered.range(..unseen_before).next().is_some();
            if unseen && closes(checked.kind) {
                return Err(CommandFailure::new(Cause::UnhandledCommand, ""));
            }
            self.apply_command(checked, completed, &mut applied, drawn)?;
        }
        applied.started = self.start_eager(&applied.eager, completed, drawn);
        Ok(applied)
    }

    fn apply_command(
        &mut self,
        command: Checked,
        completed: EventId,
        applied: &mut Applied,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let Checked { kind, attributes, annotations: beside } = command;
        let fields = |command| Fields::of(command, bad_cause(kind), drawn.limits);
        match attributes {
            C::ScheduleActivityTaskCommandAttributes(a) => {
                applied.eager.extend(self.schedule_activity(a, beside, completed, drawn)?);
            }
            C::RequestCancelActivityTaskCommandAttributes(a) => {
                let scheduled = EventId(a.scheduled_event_id);
                applied.cancelled_unstarted |=
                    self.request_cancel_activity(scheduled, beside, completed, drawn)?;
            }
            C::StartTimerCommandAttributes(a) => self.start_timer(a, beside, completed, drawn)?,
            C::CancelTimerCommandAttributes(a) => self.cancel_timer(a, beside, completed, drawn)?,
            C::RecordMarkerCommandAttributes(a) => {
                self.record_marker(a, beside, completed, drawn)?;
            }
            C::StartChildWorkflowExecutionCommandAttributes(a) => {
                self.initiate_child(a, beside, completed, drawn)?;
            }
            C::SignalExternalWorkflowExecutionCommandAttributes(a) => {
                self.initiate_signal(a, beside, completed, drawn)?;
            }
            C::RequestCancelExternalWorkflowExecutionCommandAttributes(a) => {
                self.initiate_cancel(a, beside, completed, drawn)?;
            }
            C::UpsertWorkflowSearchAttributesCommandAttributes(a) => {
                self.upsert_search_attributes(a, beside, completed, drawn)?;
            }
            C::ModifyWorkflowPropertiesCommandAttributes(a) => {
                self.modify_memo(a, beside, completed, drawn)?;
            }
            C::CompleteWorkflowExecutionCommandAttributes(a) => {
                // The cause is of another kind of command, as on the official server.
                let cause = Cause::BadScheduleActivityAttributes;
                let fields = Fields::of("CompleteWorkflowExecutionCommand", cause, drawn.limits);
                fields.blob(".Result", a.result.as_ref())?;
                let attributes = completed_attributes(a.result, completed);
                self.close_by_command(attributes, beside, Status::Completed, drawn);
            }
            C::FailWorkflowExecutionCommandAttributes(a) => {
                let fields = fields("FailWorkflowExecutionCommand");
                let failure = a.failure.ok_or_else(|| fields.missing("Failure"))?;
                fields.blob(".Failure", Some(&failure))?;
                let attributes = failed_attributes(failure, self.last_retry_state(), completed);
                self.close_by_command(attributes, beside, Status::Failed, drawn);
            }
            C::CancelWorkflowExecutionCommandAttributes(a) => {
                let attributes = canceled_attributes(a.details, completed);
                self.close_by_command(attributes, beside, Status::Canceled, drawn);
            }
            C::ContinueAsNewWorkflowExecutionCommandAttributes(a) => {
                applied.successor = Some(self.continue_as_new(a, beside, completed, drawn)?);
            }
            C::ProtocolMessageCommandAttributes(_)
            | C::ScheduleNexusOperationCommandAttributes(_)
            | C::RequestCancelNexusOperationCommandAttributes(_) => {
                let text = format!("{kind:?} commands are not supported yet.");
                return Err(CommandFailure::new(bad_cause(kind), text));
            }
        }
        Ok(())
    }

    /// Closes the run on its own demand. What the completion itself left waiting (an unstarted
    /// activity's Canceled event) nobody will hear of: it is dropped.
    pub(super) fn close_by_command(
        &mut self,
        attributes: Attributes,
        annotations: Annotations,
        status: Status,
        drawn: &Drawn<'_>,
    ) {
        self.end_answered_task();
        self.buffered.clear();
        let event = super::event::event(drawn.now, attributes, annotations);
        self.close_by(drawn, event, status);
    }
}

fn completed_attributes(
    result: Option<piton_proto::common::Payloads>,
    completed: EventId,
) -> Attributes {
    Attributes::WorkflowExecutionCompletedEventAttributes(
        WorkflowExecutionCompletedEventAttributes {
            result,
            workflow_task_completed_event_id: completed.0,
            new_execution_run_id: String::new(),
        },
    )
}

fn failed_attributes(
    failure: piton_proto::failure::Failure,
    retry_state: RetryState,
    completed: EventId,
) -> Attributes {
    Attributes::WorkflowExecutionFailedEventAttributes(WorkflowExecutionFailedEventAttributes {
        failure: Some(failure),
        retry_state: retry_state.into(),
        workflow_task_completed_event_id: completed.0,
        new_execution_run_id: String::new(),
    })
}

fn canceled_attributes(
    details: Option<piton_proto::common::Payloads>,
    completed: EventId,
) -> Attributes {
    Attributes::WorkflowExecutionCanceledEventAttributes(WorkflowExecutionCanceledEventAttributes {
        workflow_task_completed_event_id: completed.0,
        details,
    })
}
