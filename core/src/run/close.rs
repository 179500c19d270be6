//! How a run ends: by its workflow, by a client, by a timeout, by a limit; and the errands that
//! remain. The run that follows is in `successor`.

use std::sync::Arc;

use piton_proto::common::Payloads;
use piton_proto::enums::RetryState;
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    HistoryEvent, WorkflowExecutionTerminatedEventAttributes,
    WorkflowExecutionTimedOutEventAttributes,
};

use super::workflow_task::HISTORY_SERVICE;
use super::{Decided, Reply, RunState, Status};
use crate::effect::ErrandKey;
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{Drawn, TerminateRequest};
use crate::time::Timestamp;

impl RunState {
    /// Closes the run by its last event. Nothing may be held or buffered any more.
    pub(crate) fn close(&mut self, drawn: &Drawn<'_>, attributes: Attributes, status: Status) {
        let event = super::event::event(drawn.now, attributes, None);
        self.close_by(drawn, event, status);
    }

    /// As [`RunState::close`], for an event with links or user metadata.
    pub(super) fn close_by(&mut self, drawn: &Drawn<'_>, mut event: HistoryEvent, status: Status) {
        let owed = self.errands_at_close(status);
        event.event_time = Some(drawn.now.max(self.last_event_time).to_proto());
        self.append_event(event);
        self.held = None;
        self.note.workflow_task = None;
        self.note.sticky = None;
        self.note.waits_for_parent = false;
        self.note.first_task_at = None;
        self.note.owed = owed;
        self.forget_children();
    }

    pub(super) fn fold_closed(&mut self, event: &HistoryEvent, status: Status) {
        self.status = status;
        self.close_time = Some(self.last_event_time);
        self.close_event = Some(Arc::new(event.clone()));
        self.activities.clear();
        self.timers.clear();
        self.external_signals.clear();
        self.external_cancels.clear();
    }

    pub(super) fn terminate(
        mut self,
        request: TerminateRequest,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        if !self.status.is_open() {
            return Err(Rejection::AlreadyCompleted);
        }
        let first = self.first_run_id();
        if !request.first_run_id.is_empty() && request.first_run_id != first.as_str() {
            return Err(Rejection::NotFound("workflow execution not found".into()));
        }
        let TerminateRequest { reason, details, identity, first_run_id: _, links } = request;
        self.terminate_by(reason, details, identity, links, drawn);
        Ok(Decided::done(self))
    }

    /// Terminates an open run.
    pub(super) fn terminate_by(
        &mut self,
        reason: String,
        details: Option<Payloads>,
        identity: String,
        links: Vec<piton_proto::common::Link>,
        drawn: &Drawn<'_>,
    ) {
        self.fail_held_task_for_close(drawn);
        let attributes = Attributes::WorkflowExecutionTerminatedEventAttributes(
            WorkflowExecutionTerminatedEventAttributes { reason, details, identity },
        );
        let mut event = super::event::event(drawn.now, attributes, None);
        event.links = links;
        self.close_by(drawn, event, Status::Terminated);
    }

    pub(super) fn terminate_by_server(&mut self, reason: &str, drawn: &Drawn<'_>) {
        self.terminate_by(reason.into(), None, HISTORY_SERVICE.into(), Vec::new(), drawn);
    }

    /// Whether the run timeout or the execution timeout is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.status.is_open() && self.expires_at().is_some_and(|at| at <= now)
    }

    pub(super) fn time_out_run(mut self, drawn: &Drawn<'_>) -> Decided {
        let chain_over = self.chain_expires_at().is_some_and(|at| at <= drawn.now);
        let retry_state = if chain_over { RetryState::Timeout } else { self.last_retry_state() };
        self.fail_held_task_for_close(drawn);
        let attributes = Attributes::WorkflowExecutionTimedOutEventAttributes(
            WorkflowExecutionTimedOutEventAttributes {
                retry_state: retry_state.into(),
                new_execution_run_id: String::new(),
            },
        );
        self.close(drawn, attributes, Status::TimedOut);
        Decided::done(self)
    }

    /// Why no run follows this one: without a policy it has one attempt, and only policies of one
    /// attempt are built.
    pub(super) fn last_retry_state(&self) -> RetryState {
        match self.started.retry_policy {
            Some(_) => RetryState::MaximumAttemptsReached,
            None => RetryState::RetryPolicyNotSet,
        }
    }

    /// Settles an errand of a closed run.
    pub(super) fn errand_done(mut self, errand: ErrandKey) -> Result<Decided, Rejection> {
        self.note.owed.retain(|&owed| owed != errand);
        if !self.status.is_open() {
            self.forget_children();
        }
        Ok(Decided::done(self))
    }
}

impl Decided {
    /// Terminates a run whose history has become too long.
    pub(super) fn limit_history(mut self, drawn: &Drawn<'_>) -> Self {
        let Some(run) = self.run.as_mut().filter(|run| run.status.is_open()) else { return self };
        let EventId(next) = run.next_event_id;
        let reason = if run.history_bytes > drawn.limits.history_bytes_max {
            "Workflow history size exceeds limit."
        } else if next - 1 > drawn.limits.history_events_max as i64 {
            "Workflow history count exceeds limit."
        } else {
            return self;
        };
        run.terminate_by_server(reason, drawn);
        if let Ok(reply) = &mut self.reply {
            reply.forget_tasks();
        }
        self
    }
}

impl Reply {
    /// The run has been closed after all: nothing is handed out.
    fn forget_tasks(&mut self) {
        match self {
            Self::WorkflowTaskCompleted { next, eager_activities } => {
                *next = None;
                eager_activities.clear();
            }
            Self::WorkflowTask(_) | Self::Activity(_) => *self = Self::Gone,
            Self::Started { eager, .. } => *eager = None,
            Self::Done
            | Self::Gone
            | Self::Heartbeat { .. }
            | Self::ActivityFailed { .. }
            | Self::ChildRecorded(_) => {}
        }
    }
}
