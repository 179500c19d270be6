//! The numbers that stand for core's enums in keys. Frozen: they are on disk.

use piton_core::effect::{ErrandKey, TaskKey, TimerKind};
use piton_core::id::EventId;
use piton_core::note::NoteKey;

use crate::message::QueueType;

pub(crate) const WORKFLOW_QUEUE: u8 = 1;
pub(crate) const ACTIVITY_QUEUE: u8 = 2;
const NEXUS_QUEUE: u8 = 3;

pub(crate) fn queue_code(kind: QueueType) -> u8 {
    match kind {
        QueueType::Workflow => WORKFLOW_QUEUE,
        QueueType::Activity => ACTIVITY_QUEUE,
        QueueType::Nexus => NEXUS_QUEUE,
    }
}

/// Type of the queue, event and stamp of a task.
pub(crate) fn task_codes(task: &TaskKey) -> (u8, u64, u32) {
    match task {
        TaskKey::Workflow { scheduled, stamp } => (WORKFLOW_QUEUE, unsigned(*scheduled), *stamp),
        TaskKey::Activity { scheduled, stamp } => (ACTIVITY_QUEUE, unsigned(*scheduled), *stamp),
    }
}

/// An event's id as a key has it. Ids are never negative.
pub(crate) fn unsigned(event: EventId) -> u64 {
    event.0.cast_unsigned()
}

/// `None`: no event has this id.
pub(crate) fn event_id(number: u64) -> Option<EventId> {
    i64::try_from(number).ok().map(EventId)
}

pub(crate) fn timer_codes(kind: &TimerKind) -> (u8, u64) {
    match kind {
        TimerKind::User(event) => (0, unsigned(*event)),
        TimerKind::Activity(event) => (1, unsigned(*event)),
        TimerKind::WorkflowTaskScheduleToStart(event) => (2, unsigned(*event)),
        TimerKind::FirstWorkflowTask => (3, 0),
        TimerKind::RunExpiry => (4, 0),
    }
}

pub(crate) fn timer_kind(kind: u8, event: u64) -> Option<TimerKind> {
    match (kind, event) {
        (0, event) => event_id(event).map(TimerKind::User),
        (1, event) => event_id(event).map(TimerKind::Activity),
        (2, event) => event_id(event).map(TimerKind::WorkflowTaskScheduleToStart),
        (3, 0) => Some(TimerKind::FirstWorkflowTask),
        (4, 0) => Some(TimerKind::RunExpiry),
        _ => None,
    }
}

/// Event and kind: errands of a run sort by event, the report of its start first, of its close last.
pub(crate) fn errand_codes(errand: ErrandKey) -> (u64, u8) {
    match errand {
        ErrandKey::ReportStart => (0, 0),
        ErrandKey::StartChild(event) => (unsigned(event), 1),
        ErrandKey::Signal(event) => (unsigned(event), 2),
        ErrandKey::Cancel(event) => (unsigned(event), 3),
        ErrandKey::CloseChild(event) => (unsigned(event), 4),
        ErrandKey::ReportClose => (u64::MAX, 5),
    }
}

pub(crate) fn errand_key(event: u64, kind: u8) -> Option<ErrandKey> {
    match (kind, event) {
        (0, 0) => Some(ErrandKey::ReportStart),
        (1, event) => event_id(event).map(ErrandKey::StartChild),
        (2, event) => event_id(event).map(ErrandKey::Signal),
        (3, event) => event_id(event).map(ErrandKey::Cancel),
        (4, event) => event_id(event).map(ErrandKey::CloseChild),
        (5, u64::MAX) => Some(ErrandKey::ReportClose),
        _ => None,
    }
}

pub(crate) fn note_codes(key: NoteKey) -> (u8, u64) {
    match key {
        NoteKey::Run => (1, 0),
        NoteKey::Activity(event) => (2, unsigned(event)),
        NoteKey::Buffered(number) => (3, u64::from(number)),
    }
}

pub(crate) fn note_key(kind: u8, id: u64) -> Option<NoteKey> {
    match (kind, id) {
        (1, 0) => Some(NoteKey::Run),
        (2, event) => event_id(event).map(NoteKey::Activity),
        (3, number) => u32::try_from(number).ok().map(NoteKey::Buffered),
        _ => None,
    }
}
