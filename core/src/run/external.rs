//! Signals and cancel requests from this run to other workflows.

use std::sync::Arc;

use piton_proto::command::{
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
};
use piton_proto::history::{
    HistoryEvent, RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
};
use piton_proto::sdk::UserMetadata;

use super::command::CommandFailure;
use super::{Decided, RunState};
use crate::effect::{Effect, Errand, ErrandKey};
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{Drawn, ExternalRefusal};

impl RunState {
    pub(super) fn initiate_signal(
        &mut self,
        attributes: SignalExternalWorkflowExecutionCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn initiate_cancel(
        &mut self,
        attributes: RequestCancelExternalWorkflowExecutionCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn external_signal_done(
        self,
        initiated: EventId,
        refusal: Option<ExternalRefusal>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (initiated, refusal, drawn);
        unimplemented!()
    }

    pub(super) fn external_cancel_done(
        self,
        initiated: EventId,
        refusal: Option<ExternalRefusal>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (initiated, refusal, drawn);
        unimplemented!()
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
