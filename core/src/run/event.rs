//! Builds history events. It owns which event type belongs to which attributes; it never
//! numbers an event: [`super::RunState::append_event`] does.

use piton_proto::enums::EventType;
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes;
use piton_proto::sdk::{EventGroupMarker, UserMetadata};

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
        event_type: event_type(&attributes).into(),
        user_metadata,
        event_group_markers: group_markers,
        attributes: Some(attributes),
        ..HistoryEvent::default()
    }
}

macro_rules! event_types {
    ($($attributes:ident => $kind:ident,)+) => {
        /// The type that goes with the attributes. Exhaustive, so that a new kind is not forgotten.
        pub(crate) fn event_type(attributes: &Attributes) -> EventType {
            match attributes {
                $(Attributes::$attributes(_) => EventType::$kind,)+
            }
        }
    };
}

event_types! {
    WorkflowExecutionStartedEventAttributes => WorkflowExecutionStarted,
    WorkflowExecutionCompletedEventAttributes => WorkflowExecutionCompleted,
    WorkflowExecutionFailedEventAttributes => WorkflowExecutionFailed,
    WorkflowExecutionTimedOutEventAttributes => WorkflowExecutionTimedOut,
    WorkflowTaskScheduledEventAttributes => WorkflowTaskScheduled,
    WorkflowTaskStartedEventAttributes => WorkflowTaskStarted,
    WorkflowTaskCompletedEventAttributes => WorkflowTaskCompleted,
    WorkflowTaskTimedOutEventAttributes => WorkflowTaskTimedOut,
    WorkflowTaskFailedEventAttributes => WorkflowTaskFailed,
    ActivityTaskScheduledEventAttributes => ActivityTaskScheduled,
    ActivityTaskStartedEventAttributes => ActivityTaskStarted,
    ActivityTaskCompletedEventAttributes => ActivityTaskCompleted,
    ActivityTaskFailedEventAttributes => ActivityTaskFailed,
    ActivityTaskTimedOutEventAttributes => ActivityTaskTimedOut,
    TimerStartedEventAttributes => TimerStarted,
    TimerFiredEventAttributes => TimerFired,
    ActivityTaskCancelRequestedEventAttributes => ActivityTaskCancelRequested,
    ActivityTaskCanceledEventAttributes => ActivityTaskCanceled,
    TimerCanceledEventAttributes => TimerCanceled,
    MarkerRecordedEventAttributes => MarkerRecorded,
    WorkflowExecutionSignaledEventAttributes => WorkflowExecutionSignaled,
    WorkflowExecutionTerminatedEventAttributes => WorkflowExecutionTerminated,
    WorkflowExecutionCancelRequestedEventAttributes => WorkflowExecutionCancelRequested,
    WorkflowExecutionCanceledEventAttributes => WorkflowExecutionCanceled,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes => RequestCancelExternalWorkflowExecutionInitiated,
    RequestCancelExternalWorkflowExecutionFailedEventAttributes => RequestCancelExternalWorkflowExecutionFailed,
    ExternalWorkflowExecutionCancelRequestedEventAttributes => ExternalWorkflowExecutionCancelRequested,
    WorkflowExecutionContinuedAsNewEventAttributes => WorkflowExecutionContinuedAsNew,
    StartChildWorkflowExecutionInitiatedEventAttributes => StartChildWorkflowExecutionInitiated,
    StartChildWorkflowExecutionFailedEventAttributes => StartChildWorkflowExecutionFailed,
    ChildWorkflowExecutionStartedEventAttributes => ChildWorkflowExecutionStarted,
    ChildWorkflowExecutionCompletedEventAttributes => ChildWorkflowExecutionCompleted,
    ChildWorkflowExecutionFailedEventAttributes => ChildWorkflowExecutionFailed,
    ChildWorkflowExecutionCanceledEventAttributes => ChildWorkflowExecutionCanceled,
    ChildWorkflowExecutionTimedOutEventAttributes => ChildWorkflowExecutionTimedOut,
    ChildWorkflowExecutionTerminatedEventAttributes => ChildWorkflowExecutionTerminated,
    SignalExternalWorkflowExecutionInitiatedEventAttributes => SignalExternalWorkflowExecutionInitiated,
    SignalExternalWorkflowExecutionFailedEventAttributes => SignalExternalWorkflowExecutionFailed,
    ExternalWorkflowExecutionSignaledEventAttributes => ExternalWorkflowExecutionSignaled,
    UpsertWorkflowSearchAttributesEventAttributes => UpsertWorkflowSearchAttributes,
    WorkflowExecutionUpdateAcceptedEventAttributes => WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateRejectedEventAttributes => WorkflowExecutionUpdateRejected,
    WorkflowExecutionUpdateCompletedEventAttributes => WorkflowExecutionUpdateCompleted,
    WorkflowPropertiesModifiedExternallyEventAttributes => WorkflowPropertiesModifiedExternally,
    ActivityPropertiesModifiedExternallyEventAttributes => ActivityPropertiesModifiedExternally,
    WorkflowPropertiesModifiedEventAttributes => WorkflowPropertiesModified,
    WorkflowExecutionUpdateAdmittedEventAttributes => WorkflowExecutionUpdateAdmitted,
    NexusOperationScheduledEventAttributes => NexusOperationScheduled,
    NexusOperationStartedEventAttributes => NexusOperationStarted,
    NexusOperationCompletedEventAttributes => NexusOperationCompleted,
    NexusOperationFailedEventAttributes => NexusOperationFailed,
    NexusOperationCanceledEventAttributes => NexusOperationCanceled,
    NexusOperationTimedOutEventAttributes => NexusOperationTimedOut,
    NexusOperationCancelRequestedEventAttributes => NexusOperationCancelRequested,
    WorkflowExecutionOptionsUpdatedEventAttributes => WorkflowExecutionOptionsUpdated,
    NexusOperationCancelRequestCompletedEventAttributes => NexusOperationCancelRequestCompleted,
    NexusOperationCancelRequestFailedEventAttributes => NexusOperationCancelRequestFailed,
    WorkflowExecutionPausedEventAttributes => WorkflowExecutionPaused,
    WorkflowExecutionUnpausedEventAttributes => WorkflowExecutionUnpaused,
    WorkflowExecutionTimeSkippingTransitionedEventAttributes => WorkflowExecutionTimeSkippingTransitioned,
}
