//! What a workflow says about itself: search attributes, memo, markers.

use piton_proto::command::{
    ModifyWorkflowPropertiesCommandAttributes, RecordMarkerCommandAttributes,
    UpsertWorkflowSearchAttributesCommandAttributes,
};
use piton_proto::history::{
    UpsertWorkflowSearchAttributesEventAttributes, WorkflowPropertiesModifiedEventAttributes,
};
use piton_proto::sdk::UserMetadata;

use super::RunState;
use super::command::CommandFailure;
use crate::id::EventId;
use crate::request::Drawn;

impl RunState {
    pub(super) fn upsert_search_attributes(
        &mut self,
        attributes: UpsertWorkflowSearchAttributesCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn modify_memo(
        &mut self,
        attributes: ModifyWorkflowPropertiesCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn record_marker(
        &mut self,
        attributes: RecordMarkerCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    pub(super) fn fold_search_attributes_upserted(
        &mut self,
        attributes: &UpsertWorkflowSearchAttributesEventAttributes,
    ) {
        let _ = attributes;
        unimplemented!()
    }

    pub(super) fn fold_memo_modified(
        &mut self,
        attributes: &WorkflowPropertiesModifiedEventAttributes,
    ) {
        let _ = attributes;
        unimplemented!()
    }
}
