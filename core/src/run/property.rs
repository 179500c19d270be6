//! What a workflow says about itself: search attributes, memo, markers.

use std::sync::Arc;

use piton_proto::command::{
    ModifyWorkflowPropertiesCommandAttributes, RecordMarkerCommandAttributes,
    UpsertWorkflowSearchAttributesCommandAttributes,
};
use piton_proto::common::{Memo, Payload, SearchAttributes};
use piton_proto::enums::WorkflowTaskFailedCause;
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    MarkerRecordedEventAttributes, UpsertWorkflowSearchAttributesEventAttributes,
    WorkflowPropertiesModifiedEventAttributes,
};
use prost::Message;

use super::RunState;
use super::command::CommandFailure;
use super::event::Annotations;
use super::field::Fields;
use crate::id::EventId;
use crate::request::Drawn;
use crate::search_attribute;

impl RunState {
    pub(super) fn upsert_search_attributes(
        &mut self,
        command: UpsertWorkflowSearchAttributesCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "UpsertWorkflowSearchAttributesCommand",
            WorkflowTaskFailedCause::BadSearchAttributes,
            drawn.limits,
        );
        let mut attributes =
            command.search_attributes.ok_or_else(|| fields.missing("SearchAttributes"))?;
        if attributes.indexed_fields.is_empty() {
            return Err(fields.missing("IndexedFields"));
        }
        drawn.search_attributes.check(&mut attributes).map_err(|text| fields.bad(text))?;
        self.check_search_attributes_together(&attributes, &fields, drawn)?;
        let upserted = UpsertWorkflowSearchAttributesEventAttributes {
            workflow_task_completed_event_id: completed.0,
            search_attributes: Some(attributes),
        };
        let attributes = Attributes::UpsertWorkflowSearchAttributesEventAttributes(upserted);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    /// What was set before counts, too; but not what every run has.
    fn check_search_attributes_together(
        &self,
        added: &piton_proto::common::SearchAttributes,
        fields: &Fields<'_>,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let kept = self.search_attributes.iter();
        let kept = kept.filter(|(name, _)| search_attribute::known(name).is_none());
        let kept = kept.filter(|(name, _)| !added.indexed_fields.contains_key(*name));
        let set = added.indexed_fields.iter().filter(|(_, value)| !is_removal(value));
        let all = kept.chain(set);
        let (count, bytes) = all.fold((0u64, 0u64), |(count, bytes), (name, value)| {
            (count + 1, bytes + (name.len() + value.encoded_len()) as u64)
        });
        let limits = drawn.limits;
        if count > limits.search_attributes_max || bytes > limits.search_attributes_bytes_max {
            return Err(fields.bad("search attributes exceed their limits in number or size."));
        }
        Ok(())
    }

    pub(super) fn modify_memo(
        &mut self,
        command: ModifyWorkflowPropertiesCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "ModifyWorkflowPropertiesCommand",
            WorkflowTaskFailedCause::BadModifyWorkflowPropertiesAttributes,
            drawn.limits,
        );
        let memo = command.upserted_memo.ok_or_else(|| fields.missing("UpsertedMemo"))?;
        if memo.fields.is_empty() {
            return Err(fields.missing("UpsertedMemo.Fields"));
        }
        let kept = self.memo.fields.iter().filter(|(name, _)| !memo.fields.contains_key(*name));
        let bytes = kept
            .chain(&memo.fields)
            .map(|(name, value)| (name.len() + value.encoded_len()) as u64)
            .sum();
        fields.bytes("", memo.encoded_len() as u64, drawn.limits.blob_bytes_max)?;
        fields.bytes(". Memo", bytes, drawn.limits.memo_bytes_max)?;
        let modified = WorkflowPropertiesModifiedEventAttributes {
            workflow_task_completed_event_id: completed.0,
            upserted_memo: Some(memo),
        };
        let attributes = Attributes::WorkflowPropertiesModifiedEventAttributes(modified);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    pub(super) fn record_marker(
        &mut self,
        command: RecordMarkerCommandAttributes,
        annotations: Annotations,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<(), CommandFailure> {
        let fields = Fields::of(
            "RecordMarkerCommand",
            WorkflowTaskFailedCause::BadRecordMarkerAttributes,
            drawn.limits,
        );
        let fields = fields.beside("MarkerName", &command.marker_name);
        fields.required("MarkerName", &command.marker_name)?;
        let details = command.details.values().map(|value| value.encoded_len() as u64).sum();
        fields.bytes(".Details", details, drawn.limits.blob_bytes_max)?;
        fields.blob(".Failure", command.failure.as_ref())?;
        let recorded = MarkerRecordedEventAttributes {
            marker_name: command.marker_name,
            details: command.details,
            workflow_task_completed_event_id: completed.0,
            header: command.header,
            failure: command.failure,
        };
        let attributes = Attributes::MarkerRecordedEventAttributes(recorded);
        self.append_with(drawn.now, attributes, annotations);
        Ok(())
    }

    pub(super) fn fold_search_attributes_upserted(
        &mut self,
        attributes: &UpsertWorkflowSearchAttributesEventAttributes,
    ) {
        let Some(upserted) = &attributes.search_attributes else { return };
        let merged = Arc::make_mut(&mut self.search_attributes);
        for (name, value) in &upserted.indexed_fields {
            if is_removal(value) {
                merged.remove(name);
            } else {
                merged.insert(name.clone(), value.clone());
            }
        }
    }

    pub(super) fn fold_memo_modified(
        &mut self,
        attributes: &WorkflowPropertiesModifiedEventAttributes,
    ) {
        let Some(upserted) = &attributes.upserted_memo else { return };
        let merged = &mut Arc::make_mut(&mut self.memo).fields;
        for (name, value) in &upserted.fields {
            if is_removal(value) {
                merged.remove(name);
            } else {
                merged.insert(name.clone(), value.clone());
            }
        }
    }
}

/// The search attributes that a run begins with: those that are there.
pub(super) fn set_attributes(given: Option<SearchAttributes>) -> Option<SearchAttributes> {
    let mut attributes = given?;
    attributes.indexed_fields.retain(|_, value| !is_removal(value));
    (!attributes.indexed_fields.is_empty()).then_some(attributes)
}

/// The memo that a run begins with: the fields that are there.
pub(super) fn set_memo(given: Option<Memo>) -> Option<Memo> {
    let mut memo = given?;
    memo.fields.retain(|_, value| !is_removal(value));
    (!memo.fields.is_empty()).then_some(memo)
}

/// Whether a value stands for "take the key away": nothing, null, or an empty list.
pub(super) fn is_removal(value: &Payload) -> bool {
    let encoding = value.metadata.get("encoding").map(|e| &e[..]);
    match encoding {
        Some(b"binary/null") | None => value.data.is_empty(),
        Some(b"json/plain") => matches!(&value.data[..], b"" | b"null" | b"[]"),
        Some(_) => false,
    }
}
