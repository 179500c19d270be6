//! Signals and cancel requests from this run to other workflows. Each is an errand until the
//! target's answer is recorded; answers may come twice.

use std::sync::Arc;

use piton_proto::command::{
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
};
use piton_proto::common::WorkflowExecution;
use piton_proto::enums::{
    CancelExternalWorkflowExecutionFailedCause, SignalExternalWorkflowExecutionFailedCause,
    WorkflowTaskFailedCause,
};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    ExternalWorkflowExecutionCancelRequestedEventAttributes,
    ExternalWorkflowExecutionSignaledEventAttributes, HistoryEvent,
    RequestCancelExternalWorkflowExecutionFailedEventAttributes,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionFailedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
};

use super::command::CommandFailure;
use super::event::Annotations;
use super::facts::Ending;
use super::field::Fields;
use super::{Decided, RunState};
use crate::effect::{Effect, Errand, ErrandKey};
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{Drawn, ExternalRefusal};

/// The commands.
impl RunState {
    #[expect(
        deprecated,
        reason = "SDKs fill in the namespace and the control, and events show them"
    )]
    pub(super) fn initiate_signal(
        &mut self,
        command: SignalExternalWorkflowExecutionCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "SignalExternalWorkflowExecutionCommand",
            WorkflowTaskFailedCause::BadSignalWorkflowExecutionAttributes,
            drawn.limits,
        );
        let target = command.execution.as_ref().ok_or_else(|| fields.missing("Execution"))?;
        let fields = fields
            .beside("WorkflowId", &target.workflow_id)
            .beside("Namespace", &command.namespace)
            .beside("RunId", &target.run_id)
            .beside("SignalName", &command.signal_name);
        fields.required("WorkflowId", &target.workflow_id)?;
        fields.run_id(&target.run_id)?;
        fields.required("SignalName", &command.signal_name)?;
        fields.blob(".Input", command.input.as_ref())?;
        let max = drawn.limits.pending_external_signals_max;
        if self.external_signals.len() as u64 >= max {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::PendingSignalsLimitExceeded,
                format!(
                    "the number of pending signals to external workflows, {max}, has reached the limit"
                ),
            ));
        }
        let (_, namespace_id) = self.resolve_namespace(&command.namespace, drawn);
        let initiated = SignalExternalWorkflowExecutionInitiatedEventAttributes {
            workflow_task_completed_event_id: completed.0,
            namespace: command.namespace,
            namespace_id,
            workflow_execution: command.execution,
            signal_name: command.signal_name,
            input: command.input,
            control: command.control,
            child_workflow_only: command.child_workflow_only,
            header: command.header,
        };
        let attributes =
            Attributes::SignalExternalWorkflowExecutionInitiatedEventAttributes(initiated);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    #[expect(
        deprecated,
        reason = "SDKs fill in the namespace and the control, and events show them"
    )]
    pub(super) fn initiate_cancel(
        &mut self,
        command: RequestCancelExternalWorkflowExecutionCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "RequestCancelExternalWorkflowExecutionCommand",
            WorkflowTaskFailedCause::BadRequestCancelExternalWorkflowExecutionAttributes,
            drawn.limits,
        );
        let (namespace, run_id) = (&command.namespace, &command.run_id);
        if command.workflow_id.is_empty() {
            let fields = fields.beside("Namespace", namespace).beside("RunId", run_id);
            return Err(fields.missing("WorkflowId"));
        }
        let fields = fields
            .beside("WorkflowId", &command.workflow_id)
            .beside("RunId", run_id)
            .beside("Namespace", namespace);
        fields.short("WorkflowId", &command.workflow_id)?;
        fields.run_id(run_id)?;
        fields.blob(".Reason", Some(&command.reason))?;
        let begun_by_this_task = self.children.values().any(|child| {
            child.attributes.workflow_task_completed_event_id == completed.0
                && child.attributes.workflow_id == command.workflow_id
        });
        if begun_by_this_task {
            return Err(fields.bad(format!(
                "Start and RequestCancel for child workflow is not allowed in same workflow task. \
                 WorkflowId={} RunId={run_id} Namespace={namespace}",
                command.workflow_id
            )));
        }
        let max = drawn.limits.pending_external_cancels_max;
        if self.external_cancels.len() as u64 >= max {
            return Err(CommandFailure::new(
                WorkflowTaskFailedCause::PendingRequestCancelLimitExceeded,
                format!(
                    "the number of pending requests to cancel external workflows, {max}, has reached the limit"
                ),
            ));
        }
        let (_, namespace_id) = self.resolve_namespace(&command.namespace, drawn);
        let initiated = RequestCancelExternalWorkflowExecutionInitiatedEventAttributes {
            workflow_task_completed_event_id: completed.0,
            namespace: command.namespace,
            namespace_id,
            workflow_execution: Some(WorkflowExecution {
                workflow_id: command.workflow_id,
                run_id: command.run_id,
            }),
            control: command.control,
            child_workflow_only: command.child_workflow_only,
            reason: command.reason,
        };
        let attributes =
            Attributes::RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(initiated);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }
}

/// The targets' answers.
impl RunState {
    #[expect(deprecated, reason = "events show the control that SDKs fill in")]
    pub(super) fn external_signal_done(
        mut self,
        initiated: EventId,
        refusal: Option<ExternalRefusal>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        use SignalExternalWorkflowExecutionFailedCause as Cause;
        let pending = self.external_signals.get(&initiated).cloned();
        let Some(asked) = pending.filter(|_| self.awaits(Ending::ExternalSignal(initiated))) else {
            return Ok(Decided::done(self));
        };
        // The command may leave the namespace open, and what came of it names it.
        let (namespace, _) = self.resolve_namespace(&asked.namespace, drawn);
        let cause = refusal.map(|refusal| match refusal {
            ExternalRefusal::NotFound => Cause::ExternalWorkflowExecutionNotFound,
            ExternalRefusal::NamespaceNotFound => Cause::NamespaceNotFound,
            ExternalRefusal::SignalCountLimit => Cause::SignalCountLimitExceeded,
        });
        let attributes = match cause {
            None => Attributes::ExternalWorkflowExecutionSignaledEventAttributes(
                ExternalWorkflowExecutionSignaledEventAttributes {
                    initiated_event_id: initiated.0,
                    namespace,
                    namespace_id: asked.namespace_id.clone(),
                    workflow_execution: asked.workflow_execution.clone(),
                    control: asked.control.clone(),
                },
            ),
            Some(cause) => Attributes::SignalExternalWorkflowExecutionFailedEventAttributes(
                SignalExternalWorkflowExecutionFailedEventAttributes {
                    cause: cause.into(),
                    workflow_task_completed_event_id: 0,
                    namespace,
                    namespace_id: asked.namespace_id.clone(),
                    workflow_execution: asked.workflow_execution.clone(),
                    initiated_event_id: initiated.0,
                    control: asked.control.clone(),
                },
            ),
        };
        self.add_event(drawn, attributes, None);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    #[expect(deprecated, reason = "events show the control that SDKs fill in")]
    pub(super) fn external_cancel_done(
        mut self,
        initiated: EventId,
        refusal: Option<ExternalRefusal>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        use CancelExternalWorkflowExecutionFailedCause as Cause;
        let pending = self.external_cancels.get(&initiated).cloned();
        let Some(asked) = pending.filter(|_| self.awaits(Ending::ExternalCancel(initiated))) else {
            return Ok(Decided::done(self));
        };
        // The command may leave the namespace open, and what came of it names it.
        let (namespace, _) = self.resolve_namespace(&asked.namespace, drawn);
        let cause = refusal.map(|refusal| match refusal {
            // Cancel requests are not counted; a target never answers with the limit.
            ExternalRefusal::NotFound | ExternalRefusal::SignalCountLimit => {
                Cause::ExternalWorkflowExecutionNotFound
            }
            ExternalRefusal::NamespaceNotFound => Cause::NamespaceNotFound,
        });
        let attributes = match cause {
            None => Attributes::ExternalWorkflowExecutionCancelRequestedEventAttributes(
                ExternalWorkflowExecutionCancelRequestedEventAttributes {
                    initiated_event_id: initiated.0,
                    namespace,
                    namespace_id: asked.namespace_id.clone(),
                    workflow_execution: asked.workflow_execution.clone(),
                },
            ),
            Some(cause) => Attributes::RequestCancelExternalWorkflowExecutionFailedEventAttributes(
                RequestCancelExternalWorkflowExecutionFailedEventAttributes {
                    cause: cause.into(),
                    workflow_task_completed_event_id: 0,
                    namespace,
                    namespace_id: asked.namespace_id.clone(),
                    workflow_execution: asked.workflow_execution.clone(),
                    initiated_event_id: initiated.0,
                    control: asked.control.clone(),
                },
            ),
        };
        self.add_event(drawn, attributes, None);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    fn awaits(&self, ending: Ending) -> bool {
        self.status.is_open() && !self.is_ending_buffered(ending)
    }

    pub(crate) fn external_signal_effect(
        initiated: EventId,
        attributes: &SignalExternalWorkflowExecutionInitiatedEventAttributes,
    ) -> Effect {
        let attributes = Arc::new(attributes.clone());
        Effect::Errand(ErrandKey::Signal(initiated), Errand::Signal { initiated, attributes })
    }

    pub(crate) fn external_cancel_effect(
        initiated: EventId,
        attributes: &RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    ) -> Effect {
        let attributes = Arc::new(attributes.clone());
        Effect::Errand(ErrandKey::Cancel(initiated), Errand::Cancel { initiated, attributes })
    }
}

/// The folds.
impl RunState {
    pub(super) fn fold_external_signal_initiated(
        &mut self,
        event: &HistoryEvent,
        attributes: &SignalExternalWorkflowExecutionInitiatedEventAttributes,
    ) {
        self.external_signals.insert(EventId(event.event_id), Arc::new(attributes.clone()));
    }

    /// Signaled, or it failed.
    pub(super) fn fold_external_signal_closed(&mut self, initiated: EventId) {
        self.external_signals.remove(&initiated);
    }

    pub(super) fn fold_external_cancel_initiated(
        &mut self,
        event: &HistoryEvent,
        attributes: &RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    ) {
        self.external_cancels.insert(EventId(event.event_id), Arc::new(attributes.clone()));
    }

    /// Requested, or it failed.
    pub(super) fn fold_external_cancel_closed(&mut self, initiated: EventId) {
        self.external_cancels.remove(&initiated);
    }
}
