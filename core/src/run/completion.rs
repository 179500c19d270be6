//! A worker's answers to a workflow task: completed with commands, or failed.
//!
//! A completion is applied to a copy of the run; if one of its commands is wrong, the copy is
//! dropped and the task fails instead. Whatever else an answer will carry one day (updates) joins
//! [`Applied`] between the Completed event and the flush.

use piton_proto::deployment::WorkerDeploymentVersion;
use piton_proto::enums::{WorkerVersioningMode, WorkflowTaskFailedCause};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    WorkflowTaskCompletedEventAttributes, WorkflowTaskFailedEventAttributes,
};
use piton_proto::taskqueue::StickyExecutionAttributes;
use piton_proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
};

use super::command::{Applied, CommandFailure, check_order};
use super::workflow_task::TaskEnd;
use super::{Decided, HeldTask, Reply, RunState, Step, oversize};
use crate::effect::QueueName;
use crate::error::Rejection;
use crate::id::EventId;
use crate::note::{Sticky, WorkflowTaskKind};
use crate::request::{Drawn, Taker, WorkflowTaskRef};
use crate::time::{Span, Timestamp};

/// The ticket of a task that is handed out in the answer to the one before it.
const INLINE_REQUEST_ID: &str = "request-from-RespondWorkflowTaskCompleted";

/// How long a task waits on a sticky queue when the worker does not say.
const STICKY_WAIT_DEFAULT: Span = Span::from_secs(10);

impl RunState {
    pub(super) fn complete_workflow_task(
        self,
        token: WorkflowTaskRef,
        mut answer: RespondWorkflowTaskCompletedRequest,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let held = self.held_by(token)?;
        check_built(&answer)?;
        check_order(&answer.commands)?;
        let heartbeats_since = is_heartbeat(&answer).then(|| self.heartbeats_since(&held));
        if heartbeats_since.is_some_and(|since| heartbeat_is_over(since, drawn)) {
            return Ok(self.time_out_heartbeat(drawn));
        }
        let mut run = self.clone();
        let commands = std::mem::take(&mut answer.commands);
        let completed = run.write_completed(&held, &answer, drawn);
        match run.apply_commands(commands, completed, drawn) {
            Ok(applied) => Ok(run.conclude(&held, &answer, applied, heartbeats_since, drawn)),
            Err(failure) => self.refuse_commands(failure, &answer.identity, drawn),
        }
    }

    /// When the chain of heartbeats began that the held task continues, or begins.
    fn heartbeats_since(&self, held: &HeldTask) -> Timestamp {
        let scheduled = self.note.workflow_task.as_ref().map(|task| task.scheduled_at);
        held.heartbeat_since.or(scheduled).unwrap_or(held.started_at)
    }

    /// Writes the task's events and keeps it held, answered, while its commands are applied.
    fn write_completed(
        &mut self,
        held: &HeldTask,
        answer: &RespondWorkflowTaskCompletedRequest,
        drawn: &Drawn<'_>,
    ) -> EventId {
        let (scheduled, started) = self.write_held(held);
        self.held = Some(HeldTask { answered: true, ..held.clone() }.into());
        self.note.sticky = answer.sticky_attributes.as_ref().and_then(|s| self.sticky(s));
        self.append(drawn.now, completed_attributes(answer, scheduled, started))
    }

    fn sticky(&self, attributes: &StickyExecutionAttributes) -> Option<Sticky> {
        let name = &attributes.worker_task_queue.as_ref()?.name;
        let wait = Span::from_proto(attributes.schedule_to_start_timeout.as_ref()).given();
        (!name.is_empty()).then(|| Sticky {
            queue: QueueName::sticky(name, &self.normal_queue().name),
            schedule_to_start: wait.unwrap_or(STICKY_WAIT_DEFAULT),
        })
    }

    /// Ends the task after its commands, and hands out the next one at once if it may.
    // ORDER: what waited for the task enters history after all that its commands wrote, and before
    // the next task is scheduled.
    fn conclude(
        mut self,
        held: &HeldTask,
        answer: &RespondWorkflowTaskCompletedRequest,
        applied: Applied,
        heartbeats_since: Option<Timestamp>,
        drawn: &Drawn<'_>,
    ) -> Decided {
        let mut next = None;
        if self.status.is_open() {
            self.end_answered_task();
            let flushed = self.flush_buffered();
            let wanted =
                flushed || applied.cancelled_unstarted || answer.force_create_new_workflow_task;
            if wanted && self.may(Step::ScheduleWorkflowTask) {
                self.schedule_workflow_task(heartbeats_since, drawn);
                if answer.return_new_workflow_task {
                    self.hold(&inline_taker(answer), drawn);
                    next = self.handed_out(EventId(held.started.event_id).next()).map(Box::new);
                }
            }
        }
        let reply = Reply::WorkflowTaskCompleted { next, eager_activities: applied.started };
        Decided { successor: applied.successor, ..Decided::with(self, reply) }
    }

    /// The answered task is over: nothing is held or scheduled, and the next one is a normal one.
    pub(super) fn end_answered_task(&mut self) {
        self.held = None;
        self.note.workflow_task = None;
        self.note.next_attempt = 1;
    }

    /// A worker may keep a task by heartbeats only for so long.
    fn time_out_heartbeat(mut self, drawn: &Drawn<'_>) -> Decided {
        self.end_held_task(TaskEnd::TimedOut, drawn);
        self.ensure_workflow_task(drawn);
        Decided::of(self, Err(Rejection::WorkflowTaskNotFound))
    }

    /// A command cannot be carried out: nothing of the completion is kept, and the task fails.
    fn refuse_commands(
        mut self,
        failure: CommandFailure,
        identity: &str,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let CommandFailure { cause, terminate, .. } = failure;
        let text = failure.text();
        let held = self.held.as_ref().map(|held| held.kind);
        let is_transient = held == Some(WorkflowTaskKind::Transient);
        if is_transient && !terminate && cause != WorkflowTaskFailedCause::UnhandledCommand {
            // It stays held, so that its timeout paces the retries of wrong code.
            return Err(Rejection::InvalidArgument(text));
        }
        self.end_held_task(TaskEnd::refused(cause, text.clone(), identity), drawn);
        if terminate {
            self.terminate_by_server(&text, drawn);
        } else {
            self.ensure_workflow_task(drawn);
        }
        Ok(Decided::of(self, Err(Rejection::CommandsRefused(text))))
    }

    pub(super) fn fail_workflow_task(
        mut self,
        token: WorkflowTaskRef,
        mut answer: RespondWorkflowTaskFailedRequest,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if !self.status.is_open() {
            return Err(Rejection::AlreadyCompleted);
        }
        self.held_by(token)?;
        if answer.cause() == WorkflowTaskFailedCause::GrpcMessageTooLarge {
            self.terminate_by_server(&format!("{:?}", answer.cause()), drawn);
            return Ok(Decided::done(self));
        }
        answer.failure =
            answer.failure.map(|f| oversize::of_failure(&f, drawn.limits).unwrap_or(f));
        self.end_held_task(failed_by_worker(answer), drawn);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }
}

/// Who gets the next task in the answer to this one.
#[allow(deprecated, reason = "older workers still send it, and the event has it")]
fn inline_taker(answer: &RespondWorkflowTaskCompletedRequest) -> Taker {
    Taker {
        identity: answer.identity.clone(),
        request_id: INLINE_REQUEST_ID.into(),
        sticky: true,
        worker_version: answer.worker_version_stamp.clone().filter(|stamp| !stamp.use_versioning),
    }
}

#[allow(deprecated, reason = "older workers still send it, and the event has it")]
fn failed_by_worker(answer: RespondWorkflowTaskFailedRequest) -> TaskEnd {
    TaskEnd::Failed(Box::new(WorkflowTaskFailedEventAttributes {
        cause: answer.cause,
        failure: answer.failure,
        identity: answer.identity,
        binary_checksum: answer.binary_checksum,
        ..Default::default()
    }))
}

#[allow(deprecated, reason = "older workers still send them, and the event has them")]
fn completed_attributes(
    answer: &RespondWorkflowTaskCompletedRequest,
    scheduled: EventId,
    started: EventId,
) -> Attributes {
    Attributes::WorkflowTaskCompletedEventAttributes(WorkflowTaskCompletedEventAttributes {
        scheduled_event_id: scheduled.0,
        started_event_id: started.0,
        identity: answer.identity.clone(),
        binary_checksum: answer.binary_checksum.clone(),
        worker_version: answer.worker_version_stamp.clone(),
        sdk_metadata: answer.sdk_metadata.clone(),
        metering_metadata: answer.metering_metadata,
        deployment_version: deployment_version(answer),
        worker_deployment_name: deployment_name(answer),
        ..Default::default()
    })
}

/// The deployment that an unversioned worker belongs to, for those who read the history.
fn deployment_name(answer: &RespondWorkflowTaskCompletedRequest) -> String {
    let options = answer.deployment_options.as_ref().map(|o| o.deployment_name.clone());
    let version = || deployment_version(answer).map(|version| version.deployment_name);
    options.or_else(version).unwrap_or_default()
}

/// The version by which events name the deployment that older workers send.
#[allow(deprecated, reason = "older workers send it")]
fn deployment_version(
    answer: &RespondWorkflowTaskCompletedRequest,
) -> Option<WorkerDeploymentVersion> {
    let deployment = answer.deployment.as_ref()?;
    Some(WorkerDeploymentVersion {
        build_id: deployment.build_id.clone(),
        deployment_name: deployment.series_name.clone(),
    })
}

/// Refuses what is not built rather than ignore it.
fn check_built(answer: &RespondWorkflowTaskCompletedRequest) -> Result<(), Rejection> {
    let refused = |field: &str| Err(Rejection::invalid(format!("{field} is not supported yet")));
    if !answer.messages.is_empty() {
        return refused("messages");
    }
    if answer.versioning_behavior != 0 {
        return refused("versioning_behavior");
    }
    if answer.intermediate_page || answer.page_number != 0 {
        return refused("intermediate_page");
    }
    let mode = answer.deployment_options.as_ref().map(|o| o.worker_versioning_mode());
    if mode == Some(WorkerVersioningMode::Versioned) {
        return refused("deployment_options.worker_versioning_mode");
    }
    Ok(())
}

/// Whether the answer only keeps the task.
fn is_heartbeat(answer: &RespondWorkflowTaskCompletedRequest) -> bool {
    let empty = answer.commands.is_empty() && answer.messages.is_empty();
    answer.force_create_new_workflow_task && empty
}

fn heartbeat_is_over(since: Timestamp, drawn: &Drawn<'_>) -> bool {
    drawn.now - since > Span::of_limit_ms(drawn.limits.workflow_task_heartbeat_ms_max)
}
