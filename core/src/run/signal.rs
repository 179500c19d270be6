//! Signals to this run, and requests to cancel it.

use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    HistoryEvent, WorkflowExecutionCancelRequestedEventAttributes,
    WorkflowExecutionSignaledEventAttributes,
};

use super::event::event;
use super::{Decided, RunState};
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{CancelRequest, Drawn, Signal};

impl RunState {
    /// A signal; the shell has looked its request id up before.
    pub(super) fn take_signal(
        mut self,
        signal: Signal,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if !self.status.is_open() {
            return Err(Rejection::AlreadyCompleted);
        }
        if signal.child_only && !self.is_child_of(signal.sender.as_ref()) {
            return Err(not_a_child());
        }
        if self.signals + self.buffered_signals() >= drawn.limits.signals_max {
            let text = "exceeded workflow execution limit for signal events";
            return Err(Rejection::invalid(text));
        }
        self.record_signal(signal, drawn);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    /// Writes the Signaled event; a start with a signal does it, too.
    pub(super) fn record_signal(&mut self, signal: Signal, drawn: &Drawn<'_>) {
        let Signal { name, input, identity, header, request_id, sender, child_only: _, links } =
            signal;
        #[expect(deprecated, reason = "the flag is never set")]
        let attributes = WorkflowExecutionSignaledEventAttributes {
            signal_name: name,
            input,
            identity,
            header,
            skip_generate_workflow_task: false,
            external_workflow_execution: sender,
            request_id,
        };
        let attributes = Attributes::WorkflowExecutionSignaledEventAttributes(attributes);
        let event = HistoryEvent { links, ..event(drawn.now, attributes, None) };
        self.add_whole_event(drawn, event);
    }

    fn buffered_signals(&self) -> u64 {
        let attributes = self.buffered.values().filter_map(|event| event.attributes.as_ref());
        let signals = attributes
            .filter(|a| matches!(a, Attributes::WorkflowExecutionSignaledEventAttributes(_)));
        signals.count() as u64
    }

    /// A request to cancel: told to the worker once, and not at all to a closed run.
    pub(super) fn request_cancel(
        mut self,
        cancel: CancelRequest,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let first = &self.started.first_execution_run_id;
        if !cancel.first_run_id.is_empty() && cancel.first_run_id != *first {
            return Err(Rejection::NotFound("workflow execution not found".into()));
        }
        if !self.status.is_open() {
            return Ok(Decided::done(self));
        }
        let sender = cancel.sender.as_ref().map(|(execution, _)| &execution.0);
        if cancel.child_only && !self.is_child_of(sender) {
            return Err(not_a_child());
        }
        if self.cancel_requested.is_some() || self.is_cancel_request_buffered() {
            return Ok(Decided::done(self));
        }
        let (sender, initiated) = match cancel.sender {
            Some((execution, initiated)) => (Some(execution.0), initiated.0),
            None => (None, 0),
        };
        let attributes = WorkflowExecutionCancelRequestedEventAttributes {
            cause: cancel.reason,
            external_initiated_event_id: initiated,
            external_workflow_execution: sender,
            identity: cancel.identity,
        };
        let attributes = Attributes::WorkflowExecutionCancelRequestedEventAttributes(attributes);
        let event = HistoryEvent { links: cancel.links, ..event(drawn.now, attributes, None) };
        self.add_whole_event(drawn, event);
        self.end_first_task_backoff(drawn);
        self.ensure_workflow_task(drawn);
        Ok(Decided::done(self))
    }

    /// Whether this run was started as a child by the given one.
    fn is_child_of(&self, sender: Option<&piton_proto::common::WorkflowExecution>) -> bool {
        sender.is_some() && self.started.parent_workflow_execution.as_ref() == sender
    }

    pub(super) fn fold_signaled(&mut self) {
        self.signals += 1;
    }

    pub(super) fn fold_cancel_requested(&mut self, event: &HistoryEvent) {
        self.cancel_requested = Some(EventId(event.event_id));
    }
}

fn not_a_child() -> Rejection {
    Rejection::NotFound("workflow is not a child of the workflow that asks".into())
}
