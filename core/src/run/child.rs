//! Children: the parent's side of starting them and hearing how they ended, and the child's side
//! of waiting until its parent has recorded the start.

use piton_proto::command::StartChildWorkflowExecutionCommandAttributes;
use piton_proto::common::Header;
use piton_proto::history::{
    ChildWorkflowExecutionStartedEventAttributes, HistoryEvent,
    StartChildWorkflowExecutionInitiatedEventAttributes,
};
use piton_proto::sdk::UserMetadata;

use super::command::CommandFailure;
use super::{Child, Decided, RunState};
use crate::effect::{ChildOutcome, Effect};
use crate::error::Rejection;
use crate::id::{EventId, RunId};
use crate::request::{ChildRefusal, Drawn};

impl RunState {
    pub(super) fn initiate_child(
        &mut self,
        attributes: StartChildWorkflowExecutionCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn child_started(
        self,
        initiated: EventId,
        run_id: RunId,
        header: Option<Header>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (initiated, run_id, header, drawn);
        unimplemented!()
    }

    pub(super) fn child_refused(
        self,
        initiated: EventId,
        cause: ChildRefusal,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (initiated, cause, drawn);
        unimplemented!()
    }

    pub(super) fn child_closed(
        self,
        initiated: EventId,
        outcome: ChildOutcome,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (initiated, outcome, drawn);
        unimplemented!()
    }

    pub(super) fn parent_recorded(self, drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        let _ = drawn;
        unimplemented!()
    }

    /// An open run owes the start of each child that is not started.
    pub(crate) fn child_effect(&self, child: &Child) -> Option<Effect> {
        let _ = child;
        unimplemented!()
    }

    pub(super) fn fold_child_initiated(
        &mut self,
        event: &HistoryEvent,
        attributes: &StartChildWorkflowExecutionInitiatedEventAttributes,
    ) {
        let _ = (event, attributes);
        unimplemented!()
    }

    pub(super) fn fold_child_started(
        &mut self,
        event: &HistoryEvent,
        attributes: &ChildWorkflowExecutionStartedEventAttributes,
    ) {
        let _ = (event, attributes);
        unimplemented!()
    }

    /// Completed, Failed, Canceled, TimedOut, Terminated, or the start failed.
    pub(super) fn fold_child_closed(&mut self, initiated: EventId) {
        self.children.remove(&initiated);
    }
}
