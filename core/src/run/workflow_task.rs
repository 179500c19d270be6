//! The workflow task.

use piton_proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
};

use crate::effect::Effect;
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{Drawn, Taker, WorkflowTaskRef};
use crate::run::{Decided, RunState};

impl RunState {
    /// Schedules a workflow task unless there is one, or there may be none now.
    pub(crate) fn ensure_workflow_task(&mut self, _drawn: &Drawn<'_>) {
        unimplemented!()
    }

    /// Ends the backoff of the first workflow task, as a cancel request does.
    pub(crate) fn end_first_task_backoff(&mut self, _drawn: &Drawn<'_>) {
        unimplemented!()
    }

    pub(super) fn take_workflow_task(
        self,
        _scheduled: EventId,
        _stamp: u32,
        _taker: Taker,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn complete_workflow_task(
        self,
        _token: WorkflowTaskRef,
        _answer: RespondWorkflowTaskCompletedRequest,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn fail_workflow_task(
        self,
        _token: WorkflowTaskRef,
        _answer: RespondWorkflowTaskFailedRequest,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn time_out_workflow_task(
        self,
        _number: u64,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn take_back_workflow_task(
        self,
        _number: u64,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn leave_sticky(
        self,
        _stamp: u32,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn reset_sticky(self) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    pub(super) fn fire_workflow_task(&mut self, _drawn: &Drawn<'_>) {
        unimplemented!()
    }

    pub(crate) fn fail_held_task_for_close(&mut self, _drawn: &Drawn<'_>) {
        unimplemented!()
    }

    pub(crate) fn single_effects(&self, _out: &mut Vec<Effect>) {
        unimplemented!()
    }
}
