//! Builds history events. It never numbers one: [`super::RunState::append_event`] does.

use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes;
use piton_proto::sdk::{EventGroupMarker, UserMetadata};

use super::facts::Facts;
use crate::time::Timestamp;

/// What a worker wrote beside a command for those who read the history.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Annotations {
    pub(crate) user_metadata: Option<UserMetadata>,
    pub(crate) group_markers: Vec<EventGroupMarker>,
}

impl From<Option<UserMetadata>> for Annotations {
    fn from(user_metadata: Option<UserMetadata>) -> Self {
        Self { user_metadata, group_markers: Vec::new() }
    }
}

/// An event without an id; its type follows from the attributes.
pub(crate) fn event(
    time: Timestamp,
    attributes: Attributes,
    annotations: impl Into<Annotations>,
) -> HistoryEvent {
    let Annotations { user_metadata, group_markers } = annotations.into();
    HistoryEvent {
        event_time: Some(time.to_proto()),
        event_type: Facts::of(&attributes).kind.into(),
        user_metadata,
        event_group_markers: group_markers,
        attributes: Some(attributes),
        ..HistoryEvent::default()
    }
}
