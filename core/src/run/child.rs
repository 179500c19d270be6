//! Children: the parent's side of starting them and of hearing how they ended, and the child's
//! side of waiting until its parent has recorded the start.
//!
//! A child never runs before its parent has the Started event: the child asks, the parent
//! records and answers. All of it may come twice, so each step is recognised when repeated.

use std::sync::Arc;

use piton_proto::command::StartChildWorkflowExecutionCommandAttributes;
use piton_proto::common::{Header, WorkflowExecution, WorkflowType};
use piton_proto::enums::{
    ParentClosePolicy, StartChildWorkflowExecutionFailedCause, TaskQueueKind,
    WorkflowIdReusePolicy, WorkflowTaskFailedCause,
};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    ChildWorkflowExecutionCanceledEventAttributes, ChildWorkflowExecutionCompletedEventAttributes,
    ChildWorkflowExecutionFailedEventAttributes, ChildWorkflowExecutionStartedEventAttributes,
    ChildWorkflowExecutionTerminatedEventAttributes, ChildWorkflowExecutionTimedOutEventAttributes,
    HistoryEvent, StartChildWorkflowExecutionFailedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes,
};
use piton_proto::taskqueue::TaskQueue;
use prost::Message;

use super::command::CommandFailure;
use super::event::Annotations;
use super::facts::Ending;
use super::field::Fields;
use super::property::{set_attributes, set_memo};
use super::{Child, Decided, Reply, RunState};
use crate::effect::{ChildOutcome, ChildResult, Effect, Errand, ErrandKey};
use crate::error::Rejection;
use crate::id::{EventId, RunId};
use crate::request::{ChildRefusal, Drawn};
use crate::time::Span;

/// The command.
impl RunState {
    pub(super) fn initiate_child(
        &mut self,
        command: StartChildWorkflowExecutionCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let attributes = self.initiated_attributes(command, completed, drawn)?;
        let attributes =
            Attributes::StartChildWorkflowExecutionInitiatedEventAttributes(attributes);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    fn initiated_attributes(
        &self,
        mut command: StartChildWorkflowExecutionCommandAttributes,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<StartChildWorkflowExecutionInitiatedEventAttributes, CommandFailure> {
        let fields = Fields::of(
            "StartChildWorkflowExecutionCommand",
            WorkflowTaskFailedCause::BadStartChildExecutionAttributes,
            drawn.limits,
        );
        let workflow_type = command.workflow_type.as_ref().map_or("", |t| t.name.as_str());
        let (named, _) = self.resolve_namespace(namespace_of(&command), drawn);
        let fields = fields
            .beside("WorkflowId", &command.workflow_id)
            .beside("WorkflowType", workflow_type)
            .beside("Namespace", &named);
        check_names(&fields, &command.workflow_id, workflow_type)?;
        let queue = fields.task_queue(command.task_queue.as_ref(), self.task_queue_name())?;
        command.retry_policy = fields.retry_policy(command.retry_policy.take())?;
        refuse_what_is_not_built(&command, &fields)?;
        fields.blob(". Input", command.input.as_ref())?;
        let memo_bytes = command.memo.as_ref().map_or(0, |memo| memo.encoded_len() as u64);
        fields.bytes(".Memo", memo_bytes, drawn.limits.memo_bytes_max)?;
        if let Some(attributes) = &mut command.search_attributes {
            drawn.search_attributes.check(attributes).map_err(|text| {
                CommandFailure::new(WorkflowTaskFailedCause::BadSearchAttributes, text)
            })?;
        }
        let timeouts = Timeouts::of(&command, &fields, drawn)?;
        self.check_room_for_child(drawn)?;
        let (namespace, namespace_id) = self.resolve_namespace(namespace_of(&command), drawn);
        let policy = match command.parent_close_policy() {
            ParentClosePolicy::Unspecified => ParentClosePolicy::Terminate,
            given => given,
        };
        let reuse = match command.workflow_id_reuse_policy() {
            WorkflowIdReusePolicy::Unspecified => WorkflowIdReusePolicy::AllowDuplicate,
            given => given,
        };
        #[expect(deprecated, reason = "workers still say inherit_build_id, and the event shows it")]
        Ok(StartChildWorkflowExecutionInitiatedEventAttributes {
            namespace,
            namespace_id,
            workflow_id: command.workflow_id,
            workflow_type: command.workflow_type,
            task_queue: Some(TaskQueue {
                name: queue,
                kind: TaskQueueKind::Normal.into(),
                normal_name: String::new(),
            }),
            input: command.input,
            workflow_execution_timeout: command
                .workflow_execution_timeout
                .map(|_| timeouts.execution.to_proto()),
            workflow_run_timeout: Some(timeouts.run.to_proto()),
            workflow_task_timeout: Some(timeouts.task.to_proto()),
            parent_close_policy: policy.into(),
            workflow_task_completed_event_id: completed.0,
            workflow_id_reuse_policy: reuse.into(),
            retry_policy: command.retry_policy,
            header: command.header,
            memo: set_memo(command.memo),
            search_attributes: set_attributes(command.search_attributes),
            inherit_build_id: command.inherit_build_id,
            control: command.control,
            priority: command.priority,
            ..Default::default()
        })
    }

    fn check_room_for_child(&self, drawn: &Drawn<'_>) -> Result<(), CommandFailure> {
        let max = drawn.limits.pending_children_max;
        if self.children.len() as u64 >= max {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::PendingChildWorkflowsLimitExceeded,
                format!("the number of pending child workflows, {max}, has reached the limit"),
            ));
        }
        Ok(())
    }

    /// The name and the id of the namespace that a command names; none is this run's own. The id
    /// stays empty where there is no such namespace: the shell refuses the errand.
    pub(super) fn resolve_namespace(&self, name: &str, drawn: &Drawn<'_>) -> (String, String) {
        if name.is_empty() || name == drawn.namespace_name {
            let id = self.key.namespace.as_str();
            return (drawn.namespace_name.to_owned(), id.to_owned());
        }
        let known = drawn.namespaces.iter().find(|(known, _)| &**known == name);
        (name.to_owned(), known.map_or_else(String::new, |(_, id)| id.as_str().to_owned()))
    }
}

fn check_names(
    fields: &Fields<'_>,
    workflow_id: &str,
    workflow_type: &str,
) -> Result<(), CommandFailure> {
    for (field, text) in [("WorkflowId", workflow_id), ("WorkflowType", workflow_type)] {
        if text.is_empty() {
            let missing = fields.missing(field).message;
            return Err(fields.bad(format!("Required field {missing}")));
        }
        fields.short(field, text)?;
    }
    Ok(())
}

#[expect(deprecated, reason = "SDKs fill the field in, and it means what it says")]
fn namespace_of(command: &StartChildWorkflowExecutionCommandAttributes) -> &str {
    &command.namespace
}

fn refuse_what_is_not_built(
    command: &StartChildWorkflowExecutionCommandAttributes,
    fields: &Fields<'_>,
) -> Result<(), CommandFailure> {
    let refused = |field: &str| {
        Err(fields.bad(format!("{field} of a child workflow is not supported by this server yet.")))
    };
    if !command.cron_schedule.is_empty() {
        return refused("CronSchedule");
    }
    // One attempt is what a child without a policy has.
    if command.retry_policy.as_ref().is_some_and(|policy| policy.maximum_attempts != 1) {
        return refused("RetryPolicy");
    }
    if command.versioning_override.is_some() {
        return refused("VersioningOverride");
    }
    Ok(())
}

/// The timeouts of a child, with defaults filled in.
struct Timeouts {
    execution: Span,
    run: Span,
    task: Span,
}

impl Timeouts {
    fn of(
        command: &StartChildWorkflowExecutionCommandAttributes,
        fields: &Fields<'_>,
        drawn: &Drawn<'_>,
    ) -> Result<Self, CommandFailure> {
        let execution =
            fields.span("WorkflowExecutionTimeout", command.workflow_execution_timeout.as_ref())?;
        let run = fields.span("WorkflowRunTimeout", command.workflow_run_timeout.as_ref())?;
        let task = fields.span("WorkflowTaskTimeout", command.workflow_task_timeout.as_ref())?;
        let run = run.min_given(execution);
        let task = drawn.limits.task_timeout(task).min_given(run);
        Ok(Self { execution, run, task })
    }
}

/// The parent's side.
impl RunState {
    /// A child asks whether its start is recorded here. This records it, unless that was done for
    /// the same run, or may not be done at all. A closed run still knows the children that live on:
    /// one whose answer got lost must not be taken for one that may not run.
    pub(super) fn child_started(
        mut self,
        initiated: EventId,
        run_id: RunId,
        header: Option<Header>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let known = self.children.get(&initiated).and_then(|child| child.started.as_ref());
        let known = known.map(|(run, _)| run.clone());
        if let Some(known) = known.or_else(|| self.buffered_child_start(initiated)) {
            return Ok(Decided::with(self, Reply::ChildRecorded(known == run_id)));
        }
        let Some(child) = self.open_child(initiated) else {
            return Ok(Decided::with(self, Reply::ChildRecorded(false)));
        };
        self.add_event(drawn, start_of(&child, &run_id, header), None);
        self.ensure_workflow_task(drawn);
        Ok(Decided::with(self, Reply::ChildRecorded(true)))
    }

    /// The child could not be started.
    pub(super) fn child_refused(
        mut self,
        initiated: EventId,
        cause: ChildRefusal,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let Some(child) = self.open_child(initiated) else { return Ok(Decided::done(self)) };
        if child.started.is_some() || self.buffered_child_start(initiated).is_some() {
            return Ok(Decided::done(self));
        }
        let a = &child.attributes;
        let cause = match cause {
            ChildRefusal::AlreadyExists => {
                StartChildWorkflowExecutionFailedCause::WorkflowAlreadyExists
            }
            ChildRefusal::NamespaceNotFound => {
                StartChildWorkflowExecutionFailedCause::NamespaceNotFound
            }
        };
        let failed = StartChildWorkflowExecutionFailedEventAttributes {
            namespace: a.namespace.clone(),
            namespace_id: a.namespace_id.clone(),
            workflow_id: a.workflow_id.clone(),
            workflow_type: a.workflow_type.clone(),
            cause: cause.into(),
            initiated_event_id: initiated.0,
            ..Default::default()
        };
        let attributes = Attributes::StartChildWorkflowExecutionFailedEventAttributes(failed);
        self.add_event(drawn, attributes, None);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    /// The child's chain of runs has ended.
    // ORDER: the Started event comes first, also where the child ended before it was recorded.
    pub(super) fn child_closed(
        mut self,
        initiated: EventId,
        outcome: ChildOutcome,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let Some(child) = self.open_child(initiated) else { return Ok(Decided::done(self)) };
        let recorded = match &child.started {
            Some((run, event)) => Some((run.clone(), event.0)),
            // The flush puts the event's id in.
            None => self.buffered_child_start(initiated).map(|run| (run, 0)),
        };
        let started = match recorded {
            Some((run, _)) if run != outcome.first_run => return Ok(Decided::done(self)),
            Some((_, event)) => event,
            None => {
                self.let_wait(drawn, start_of(&child, &outcome.first_run, None));
                0
            }
        };
        self.let_wait(drawn, ending(&child, outcome, started));
        self.release_buffered(drawn);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    /// The child, if this run is open and does not know its end.
    fn open_child(&self, initiated: EventId) -> Option<Arc<Child>> {
        let child = self.children.get(&initiated).filter(|_| self.status.is_open())?;
        (!self.is_ending_buffered(Ending::Child(initiated))).then(|| Arc::clone(child))
    }

    /// An open run owes the start of each child that is not started.
    pub(crate) fn child_effect(&self, child: &Child) -> Option<Effect> {
        if !self.status.is_open() || child.started.is_some() {
            return None;
        }
        let initiated = child.initiated_event_id;
        let errand = Errand::StartChild {
            initiated,
            attributes: Arc::clone(&child.attributes),
            user_metadata: child.user_metadata.as_deref().cloned(),
        };
        Some(Effect::Errand(ErrandKey::StartChild(initiated), errand))
    }
}

/// The parent's event for the start of a child.
fn start_of(child: &Child, run_id: &RunId, header: Option<Header>) -> Attributes {
    let a = &child.attributes;
    let started = ChildWorkflowExecutionStartedEventAttributes {
        namespace: a.namespace.clone(),
        namespace_id: a.namespace_id.clone(),
        initiated_event_id: child.initiated_event_id.0,
        workflow_execution: Some(WorkflowExecution {
            workflow_id: a.workflow_id.clone(),
            run_id: run_id.as_str().to_owned(),
        }),
        workflow_type: a.workflow_type.clone(),
        header: header.or_else(|| a.header.clone()),
    };
    Attributes::ChildWorkflowExecutionStartedEventAttributes(started)
}

/// The parent's event for the end of a child.
fn ending(child: &Child, outcome: ChildOutcome, started_event_id: i64) -> Attributes {
    let namespace = child.attributes.namespace.clone();
    let namespace_id = child.attributes.namespace_id.clone();
    let workflow_execution = Some(WorkflowExecution {
        workflow_id: outcome.workflow_id.as_str().to_owned(),
        run_id: outcome.run_id.as_str().to_owned(),
    });
    let workflow_type = Some(WorkflowType { name: outcome.workflow_type });
    let initiated_event_id = child.initiated_event_id.0;
    macro_rules! event {
        ($variant:ident($attributes:ident { $($field:ident),* })) => {
            Attributes::$variant($attributes {
                $($field,)*
                namespace,
                namespace_id,
                workflow_execution,
                workflow_type,
                initiated_event_id,
                started_event_id,
            })
        };
    }
    match outcome.result {
        ChildResult::Completed(result) => event!(ChildWorkflowExecutionCompletedEventAttributes(
            ChildWorkflowExecutionCompletedEventAttributes { result }
        )),
        ChildResult::Failed(failure, retry_state) => {
            event!(ChildWorkflowExecutionFailedEventAttributes(
                ChildWorkflowExecutionFailedEventAttributes { failure, retry_state }
            ))
        }
        ChildResult::Canceled(details) => event!(ChildWorkflowExecutionCanceledEventAttributes(
            ChildWorkflowExecutionCanceledEventAttributes { details }
        )),
        ChildResult::TimedOut(retry_state) => {
            event!(ChildWorkflowExecutionTimedOutEventAttributes(
                ChildWorkflowExecutionTimedOutEventAttributes { retry_state }
            ))
        }
        ChildResult::Terminated => event!(ChildWorkflowExecutionTerminatedEventAttributes(
            ChildWorkflowExecutionTerminatedEventAttributes {}
        )),
    }
}

/// The child's side.
impl RunState {
    /// The parent has recorded the start: the child may run.
    pub(super) fn parent_recorded(mut self, drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        if self.status.is_open() && self.note.waits_for_parent {
            self.note.waits_for_parent = false;
            self.ensure_workflow_task(drawn);
        }
        Ok(Decided::done(self))
    }
}

/// The folds.
impl RunState {
    pub(super) fn fold_child_initiated(
        &mut self,
        event: &HistoryEvent,
        attributes: &StartChildWorkflowExecutionInitiatedEventAttributes,
    ) {
        let child = Child {
            initiated_event_id: EventId(event.event_id),
            attributes: Arc::new(attributes.clone()),
            user_metadata: event.user_metadata.clone().map(Arc::new),
            started: None,
        };
        self.children.insert(child.initiated_event_id, Arc::new(child));
    }

    pub(super) fn fold_child_started(
        &mut self,
        event: &HistoryEvent,
        attributes: &ChildWorkflowExecutionStartedEventAttributes,
    ) {
        let initiated = EventId(attributes.initiated_event_id);
        let run = attributes.workflow_execution.as_ref().map_or("", |e| e.run_id.as_str());
        if let Some(child) = self.children.get_mut(&initiated) {
            let child = Arc::make_mut(child);
            child.started = Some((RunId::from(run), EventId(event.event_id)));
            // Nobody needs them any more, and they may be large.
            let attributes = Arc::make_mut(&mut child.attributes);
            attributes.input = None;
            attributes.header = None;
            attributes.memo = None;
        }
    }

    /// Completed, Failed, Canceled, TimedOut, Terminated, or the start failed.
    pub(super) fn fold_child_closed(&mut self, initiated: EventId) {
        self.children.remove(&initiated);
    }
}
