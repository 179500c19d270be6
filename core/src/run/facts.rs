//! What is true of an event by its kind alone: the one table that everybody reads who asks.
//! Exhaustive over the API's kinds, so that a new one cannot be forgotten; it decides nothing.

use piton_proto::enums::EventType;
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{
    ActivityTaskCancelRequestedEventAttributes, ActivityTaskScheduledEventAttributes,
    ChildWorkflowExecutionStartedEventAttributes, HistoryEvent,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes, TimerStartedEventAttributes,
    UpsertWorkflowSearchAttributesEventAttributes, WorkflowExecutionCanceledEventAttributes,
    WorkflowExecutionCompletedEventAttributes, WorkflowExecutionFailedEventAttributes,
    WorkflowExecutionStartedEventAttributes, WorkflowExecutionTimedOutEventAttributes,
    WorkflowPropertiesModifiedEventAttributes, WorkflowTaskCompletedEventAttributes,
};

use super::Status;
use crate::id::EventId;

/// The facts of one event.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub kind: EventType,
    pub entry: Entry,
    pub fold: Fold<'a>,
}

/// When an event enters history that comes while a worker holds a workflow task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Without waiting: what begins or closes the run, what is of the task itself, and what the
    /// commands and messages of its answer write.
    AtOnce,
    /// When the task has ended.
    Waits,
    /// After all else that waited: a result, which comes after the event that says what began.
    WaitsLast,
}

/// What folding an event does to a run's state.
#[derive(Clone, Copy, Debug)]
pub enum Fold<'a> {
    /// Nothing: what it says is in a note or of no consequence, or it is of a feature that is not
    /// built.
    Nothing,
    Begins(&'a WorkflowExecutionStartedEventAttributes),
    CompletesTask(&'a WorkflowTaskCompletedEventAttributes),
    AddsActivity(&'a ActivityTaskScheduledEventAttributes),
    CancelsActivity(&'a ActivityTaskCancelRequestedEventAttributes),
    AddsTimer(&'a TimerStartedEventAttributes),
    AddsChild(&'a StartChildWorkflowExecutionInitiatedEventAttributes),
    StartsChild(&'a ChildWorkflowExecutionStartedEventAttributes),
    AddsExternalSignal(&'a SignalExternalWorkflowExecutionInitiatedEventAttributes),
    AddsExternalCancel(&'a RequestCancelExternalWorkflowExecutionInitiatedEventAttributes),
    SetsSearchAttributes(&'a UpsertWorkflowSearchAttributesEventAttributes),
    SetsMemo(&'a WorkflowPropertiesModifiedEventAttributes),
    CountsSignal,
    AsksToCancel,
    /// It is the last event of something pending.
    Ends(Ending),
    /// It is the last event of the run.
    Closes(Closing<'a>),
}

/// Something pending, as named by the event that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By its Scheduled event.
    Activity(EventId),
    /// By its Started event.
    Timer(EventId),
    /// By its Initiated event: a terminal event, or that the start failed.
    Child(EventId),
    /// By its Initiated event.
    ExternalSignal(EventId),
    /// By its Initiated event.
    ExternalCancel(EventId),
}

/// How a run ends, with what its last event says.
#[derive(Clone, Copy, Debug)]
pub enum Closing<'a> {
    Completed(&'a WorkflowExecutionCompletedEventAttributes),
    Failed(&'a WorkflowExecutionFailedEventAttributes),
    TimedOut(&'a WorkflowExecutionTimedOutEventAttributes),
    Canceled(&'a WorkflowExecutionCanceledEventAttributes),
    Terminated,
    ContinuedAsNew,
}

macro_rules! table {
    ($($attributes:ident($a:pat) => $kind:ident, $entry:ident, $fold:expr;)+) => {
        impl<'a> Facts<'a> {
            pub fn of(attributes: &'a Attributes) -> Self {
                use {Fold::*, Closing as C, EventType as T};
                let (kind, entry, fold) = match attributes {
                    $(Attributes::$attributes($a) => (T::$kind, Entry::$entry, $fold),)+
                };
                Self { kind, entry, fold }
            }
        }
    };
}

// Where a feature is not built, its events stand here as the official server files them.
table! {
    WorkflowExecutionStartedEventAttributes(a) => WorkflowExecutionStarted, AtOnce, Begins(a);
    WorkflowExecutionCompletedEventAttributes(a) =>
        WorkflowExecutionCompleted, AtOnce, Closes(C::Completed(a));
    WorkflowExecutionFailedEventAttributes(a) =>
        WorkflowExecutionFailed, AtOnce, Closes(C::Failed(a));
    WorkflowExecutionTimedOutEventAttributes(a) =>
        WorkflowExecutionTimedOut, AtOnce, Closes(C::TimedOut(a));
    WorkflowExecutionCanceledEventAttributes(a) =>
        WorkflowExecutionCanceled, AtOnce, Closes(C::Canceled(a));
    WorkflowExecutionTerminatedEventAttributes(_) =>
        WorkflowExecutionTerminated, AtOnce, Closes(C::Terminated);
    WorkflowExecutionContinuedAsNewEventAttributes(_) =>
        WorkflowExecutionContinuedAsNew, AtOnce, Closes(C::ContinuedAsNew);

    WorkflowTaskScheduledEventAttributes(_) => WorkflowTaskScheduled, AtOnce, Nothing;
    WorkflowTaskStartedEventAttributes(_) => WorkflowTaskStarted, AtOnce, Nothing;
    WorkflowTaskCompletedEventAttributes(a) => WorkflowTaskCompleted, AtOnce, CompletesTask(a);
    WorkflowTaskTimedOutEventAttributes(_) => WorkflowTaskTimedOut, AtOnce, Nothing;
    WorkflowTaskFailedEventAttributes(_) => WorkflowTaskFailed, AtOnce, Nothing;

    ActivityTaskScheduledEventAttributes(a) => ActivityTaskScheduled, AtOnce, AddsActivity(a);
    ActivityTaskStartedEventAttributes(_) => ActivityTaskStarted, Waits, Nothing;
    ActivityTaskCancelRequestedEventAttributes(a) =>
        ActivityTaskCancelRequested, AtOnce, CancelsActivity(a);
    ActivityTaskCompletedEventAttributes(a) =>
        ActivityTaskCompleted, WaitsLast, Ends(activity(a.scheduled_event_id));
    ActivityTaskFailedEventAttributes(a) =>
        ActivityTaskFailed, WaitsLast, Ends(activity(a.scheduled_event_id));
    ActivityTaskTimedOutEventAttributes(a) =>
        ActivityTaskTimedOut, WaitsLast, Ends(activity(a.scheduled_event_id));
    ActivityTaskCanceledEventAttributes(a) =>
        ActivityTaskCanceled, WaitsLast, Ends(activity(a.scheduled_event_id));
    ActivityPropertiesModifiedExternallyEventAttributes(_) =>
        ActivityPropertiesModifiedExternally, Waits, Nothing;

    TimerStartedEventAttributes(a) => TimerStarted, AtOnce, AddsTimer(a);
    TimerFiredEventAttributes(a) => TimerFired, Waits, Ends(timer(a.started_event_id));
    TimerCanceledEventAttributes(a) => TimerCanceled, AtOnce, Ends(timer(a.started_event_id));

    StartChildWorkflowExecutionInitiatedEventAttributes(a) =>
        StartChildWorkflowExecutionInitiated, AtOnce, AddsChild(a);
    StartChildWorkflowExecutionFailedEventAttributes(a) =>
        StartChildWorkflowExecutionFailed, Waits, Ends(child(a.initiated_event_id));
    ChildWorkflowExecutionStartedEventAttributes(a) =>
        ChildWorkflowExecutionStarted, Waits, StartsChild(a);
    ChildWorkflowExecutionCompletedEventAttributes(a) =>
        ChildWorkflowExecutionCompleted, WaitsLast, Ends(child(a.initiated_event_id));
    ChildWorkflowExecutionFailedEventAttributes(a) =>
        ChildWorkflowExecutionFailed, WaitsLast, Ends(child(a.initiated_event_id));
    ChildWorkflowExecutionCanceledEventAttributes(a) =>
        ChildWorkflowExecutionCanceled, WaitsLast, Ends(child(a.initiated_event_id));
    ChildWorkflowExecutionTimedOutEventAttributes(a) =>
        ChildWorkflowExecutionTimedOut, WaitsLast, Ends(child(a.initiated_event_id));
    ChildWorkflowExecutionTerminatedEventAttributes(a) =>
        ChildWorkflowExecutionTerminated, WaitsLast, Ends(child(a.initiated_event_id));

    SignalExternalWorkflowExecutionInitiatedEventAttributes(a) =>
        SignalExternalWorkflowExecutionInitiated, AtOnce, AddsExternalSignal(a);
    SignalExternalWorkflowExecutionFailedEventAttributes(a) =>
        SignalExternalWorkflowExecutionFailed, Waits, Ends(signal(a.initiated_event_id));
    ExternalWorkflowExecutionSignaledEventAttributes(a) =>
        ExternalWorkflowExecutionSignaled, Waits, Ends(signal(a.initiated_event_id));
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(a) =>
        RequestCancelExternalWorkflowExecutionInitiated, AtOnce, AddsExternalCancel(a);
    RequestCancelExternalWorkflowExecutionFailedEventAttributes(a) =>
        RequestCancelExternalWorkflowExecutionFailed, Waits, Ends(cancel(a.initiated_event_id));
    ExternalWorkflowExecutionCancelRequestedEventAttributes(a) =>
        ExternalWorkflowExecutionCancelRequested, Waits, Ends(cancel(a.initiated_event_id));

    WorkflowExecutionSignaledEventAttributes(_) => WorkflowExecutionSignaled, Waits, CountsSignal;
    WorkflowExecutionCancelRequestedEventAttributes(_) =>
        WorkflowExecutionCancelRequested, Waits, AsksToCancel;
    MarkerRecordedEventAttributes(_) => MarkerRecorded, AtOnce, Nothing;
    UpsertWorkflowSearchAttributesEventAttributes(a) =>
        UpsertWorkflowSearchAttributes, AtOnce, SetsSearchAttributes(a);
    WorkflowPropertiesModifiedEventAttributes(a) =>
        WorkflowPropertiesModified, AtOnce, SetsMemo(a);

    WorkflowPropertiesModifiedExternallyEventAttributes(_) =>
        WorkflowPropertiesModifiedExternally, Waits, Nothing;
    WorkflowExecutionOptionsUpdatedEventAttributes(_) =>
        WorkflowExecutionOptionsUpdated, Waits, Nothing;
    WorkflowExecutionPausedEventAttributes(_) => WorkflowExecutionPaused, Waits, Nothing;
    WorkflowExecutionUnpausedEventAttributes(_) => WorkflowExecutionUnpaused, Waits, Nothing;
    WorkflowExecutionTimeSkippingTransitionedEventAttributes(_) =>
        WorkflowExecutionTimeSkippingTransitioned, Waits, Nothing;
    WorkflowExecutionUpdateAdmittedEventAttributes(_) =>
        WorkflowExecutionUpdateAdmitted, Waits, Nothing;
    WorkflowExecutionUpdateAcceptedEventAttributes(_) =>
        WorkflowExecutionUpdateAccepted, AtOnce, Nothing;
    WorkflowExecutionUpdateRejectedEventAttributes(_) =>
        WorkflowExecutionUpdateRejected, Waits, Nothing;
    WorkflowExecutionUpdateCompletedEventAttributes(_) =>
        WorkflowExecutionUpdateCompleted, AtOnce, Nothing;
    NexusOperationScheduledEventAttributes(_) => NexusOperationScheduled, AtOnce, Nothing;
    NexusOperationStartedEventAttributes(_) => NexusOperationStarted, Waits, Nothing;
    NexusOperationCompletedEventAttributes(_) => NexusOperationCompleted, WaitsLast, Nothing;
    NexusOperationFailedEventAttributes(_) => NexusOperationFailed, WaitsLast, Nothing;
    NexusOperationCanceledEventAttributes(_) => NexusOperationCanceled, WaitsLast, Nothing;
    NexusOperationTimedOutEventAttributes(_) => NexusOperationTimedOut, WaitsLast, Nothing;
    NexusOperationCancelRequestedEventAttributes(_) =>
        NexusOperationCancelRequested, AtOnce, Nothing;
    NexusOperationCancelRequestCompletedEventAttributes(_) =>
        NexusOperationCancelRequestCompleted, Waits, Nothing;
    NexusOperationCancelRequestFailedEventAttributes(_) =>
        NexusOperationCancelRequestFailed, Waits, Nothing;
}

fn activity(scheduled: i64) -> Ending {
    Ending::Activity(EventId(scheduled))
}

fn timer(started: i64) -> Ending {
    Ending::Timer(EventId(started))
}

fn child(initiated: i64) -> Ending {
    Ending::Child(EventId(initiated))
}

fn signal(initiated: i64) -> Ending {
    Ending::ExternalSignal(EventId(initiated))
}

fn cancel(initiated: i64) -> Ending {
    Ending::ExternalCancel(EventId(initiated))
}

impl<'a> Facts<'a> {
    /// Those of an event, which has attributes unless it comes from a damaged row.
    pub fn of_event(event: &'a HistoryEvent) -> Option<Self> {
        event.attributes.as_ref().map(Self::of)
    }

    /// What the event ends, if it ends something pending.
    pub fn ends(&self) -> Option<Ending> {
        if let Fold::Ends(ending) = self.fold { Some(ending) } else { None }
    }

    /// How it closes the run, if it does.
    pub fn closes(&self) -> Option<Closing<'a>> {
        if let Fold::Closes(closing) = self.fold { Some(closing) } else { None }
    }
}

impl Closing<'_> {
    /// How the run stands then.
    pub fn status(&self) -> Status {
        match self {
            Self::Completed(_) => Status::Completed,
            Self::Failed(_) => Status::Failed,
            Self::TimedOut(_) => Status::TimedOut,
            Self::Canceled(_) => Status::Canceled,
            Self::Terminated => Status::Terminated,
            Self::ContinuedAsNew => Status::ContinuedAsNew,
        }
    }
}
