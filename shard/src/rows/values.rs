//! What rows hold beside history and notes, and how it lies in keys and values. Pure: reads and
//! writes nothing. The key layouts are in `keys`.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use piton_core::effect::{ErrandKey, QueueName, TaskKey, TimerKind};
use piton_core::id::{EventId, NamespaceId, Position, RequestId, RunId, WorkflowId, WorkflowKey};
use piton_core::placement::slot_of;
use piton_core::proto::history::HistoryEvent;
use piton_core::run::{RunState, StartedRun, Status};
use piton_core::time::Timestamp;
use piton_store::codec::CodecError;
use piton_store::prefix_end;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::message::{QueueKey, QueueType};
use crate::rows::codes::{ACTIVITY_QUEUE, WORKFLOW_QUEUE, errand_key, event_id, timer_kind};
use crate::rows::keys::EntityKind;
use crate::rows::range::SlotRange;
use crate::rows::{keys, records};

/// Names what has an actor, a fence and rows of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntityKey {
    pub(crate) kind: EntityKind,
    /// Its namespace and its id among its kind.
    pub(crate) key: WorkflowKey,
}

impl From<WorkflowKey> for EntityKey {
    fn from(key: WorkflowKey) -> Self {
        Self { kind: EntityKind::Workflow, key }
    }
}

impl EntityKey {
    /// The entity as the key builders want it.
    pub(crate) fn rows(&self) -> keys::Entity<&str> {
        keys::Entity { kind: self.kind, ..workflow(&self.key) }
    }
}

/// The workflow's current run, and the position that fences its transitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) position: Position,
    pub(crate) run: CurrentRun,
}

/// What is known of the current run without loading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CurrentRun {
    pub(crate) run_id: RunId,
    pub(crate) status: Status,
    /// First run of the chain.
    pub(crate) first_run_id: RunId,
    pub(crate) start_request_id: RequestId,
    pub(crate) start_time: Timestamp,
    /// When the last transition was decided: the workflow's times never go back.
    pub(crate) last_time: Timestamp,
}

/// A request id that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestRow {
    pub(crate) run_id: RunId,
    pub(crate) event_id: EventId,
    pub(crate) at: Timestamp,
    pub(crate) kind: RequestKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RequestKind {
    /// It started the run.
    Start,
    /// It asked for a start and was answered with a run that was there.
    Attached,
    Signal,
    Cancel,
}

/// A timer that is armed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimerRow {
    pub(crate) due: Timestamp,
    pub(crate) key: EntityKey,
    pub(crate) run_id: RunId,
    pub(crate) kind: TimerKind,
}

/// A task that waits for a worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskRow {
    pub(crate) queue: QueueKey,
    pub(crate) key: WorkflowKey,
    pub(crate) run_id: RunId,
    pub(crate) task: TaskKey,
    /// The version of the workers that must take it; empty: any that names none.
    pub(crate) version: Arc<str>,
    pub(crate) priority: u8,
    /// Keys of one priority take turns, by weight; empty and 0 where nothing is said.
    pub(crate) fairness_key: Arc<str>,
    pub(crate) fairness_weight: f32,
    pub(crate) created: Timestamp,
}

/// A task row's value: what its key does not say.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskValue {
    /// For a sticky queue: the normal queue of the same worker.
    pub(crate) normal: Option<Arc<str>>,
    pub(crate) fairness_weight: f32,
}

/// An errand that is not settled. What it carries is in the run's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrandRow {
    pub(crate) key: EntityKey,
    pub(crate) run_id: RunId,
    pub(crate) errand: ErrandKey,
}

/// Events that were committed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HistoryBatch {
    pub(crate) first: EventId,
    /// The bytes of a protobuf `History` holding just these events.
    pub(crate) raw: Bytes,
}

impl Current {
    /// The row of a workflow whose current run stands so.
    pub(crate) fn of(run: &RunState, position: Position) -> Current {
        let first = run.started.first_execution_run_id.as_str();
        let request_id = run.note.start_request_id.clone();
        let current = CurrentRun {
            run_id: run.run_id.clone(),
            status: run.status,
            first_run_id: if first.is_empty() { run.run_id.clone() } else { first.into() },
            start_request_id: request_id.unwrap_or_else(|| "".into()),
            start_time: run.start_time,
            last_time: run.last_event_time,
        };
        Current { position, run: current }
    }

    /// What a start has to know of it, if it is closed.
    pub(crate) fn as_closed(&self) -> Option<StartedRun> {
        let CurrentRun { run_id, status, first_run_id, start_request_id, .. } = self.run.clone();
        let run = StartedRun { run_id, first_run_id, status, start_request_id };
        (!status.is_open()).then_some(run)
    }
}

impl HistoryBatch {
    /// How many events it holds, without decoding them.
    pub(crate) fn len(&self) -> usize {
        self.encoded_events().count()
    }

    /// Its first and its last event; the others are not decoded.
    pub(crate) fn ends(&self) -> Result<Option<(HistoryEvent, HistoryEvent)>, prost::DecodeError> {
        let mut events = self.encoded_events();
        let Some(first) = events.next() else { return Ok(None) };
        let last = events.last().unwrap_or(first);
        Ok(Some((HistoryEvent::decode(first)?, HistoryEvent::decode(last)?)))
    }

    /// The bytes of each event.
    fn encoded_events(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.raw[..];
        // Each event is a tag byte, a length and so many bytes; see `writes`.
        std::iter::from_fn(move || {
            let (_, mut after_tag) = rest.split_first()?;
            let len = prost::decode_length_delimiter(&mut after_tag).ok()?;
            let event = after_tag.get(..len)?;
            rest = &after_tag[len..];
            Some(event)
        })
    }
}

/// A workflow as the key builders want it.
pub(crate) fn workflow(key: &WorkflowKey) -> keys::Entity<&str> {
    keys::Entity {
        slot: slot_of(key).0,
        kind: EntityKind::Workflow,
        namespace: key.namespace.as_str(),
        id: key.workflow_id.as_str(),
    }
}

/// The entity that an index row belongs to.
pub(crate) fn entity_key(entity: keys::Entity<String>) -> EntityKey {
    let key = WorkflowKey {
        namespace: NamespaceId::new(entity.namespace),
        workflow_id: WorkflowId::new(entity.id),
    };
    EntityKey { kind: entity.kind, key }
}

/// The workflow that a task's row belongs to. No other kind has tasks yet.
fn workflow_key(entity: keys::Entity<String>) -> Option<WorkflowKey> {
    let EntityKey { kind, key } = entity_key(entity);
    (kind == EntityKind::Workflow).then_some(key)
}

/// The first key behind a prefix. All our prefixes have one: they begin below ff.
pub(crate) fn end_of(prefix: &[u8]) -> Bytes {
    prefix_end(prefix).map_or_else(|| Bytes::from_static(&[0xff; 8]), Bytes::from)
}

pub(crate) fn encode_range(range: &SlotRange) -> Bytes {
    let mut value = records::RANGE.begin(12);
    range.put(&mut value);
    value.freeze()
}

pub(crate) fn decode_range(
    value: Bytes,
) -> Result<SlotRange, Box<dyn std::error::Error + Send + Sync>> {
    let mut rest = value.slice_ref(records::RANGE.body(&value)?);
    Ok(SlotRange::take(&mut rest)?)
}

/// `version(1) position(8) run`: the position is read at each fence, the rest is not.
pub(crate) fn encode_current(level: u32, current: &Current) -> Result<Bytes, CodecError> {
    let run = records::CURRENT_RUN.encode_at(level, &current.run)?;
    let mut value = records::CURRENT.begin(8 + run.len());
    value.put_u64(current.position.0);
    value.put_slice(&run);
    Ok(value.freeze())
}

pub(crate) fn decode_current(value: &[u8]) -> Result<Current, CodecError> {
    let position = decode_position(value)?;
    Ok(Current { position, run: records::CURRENT_RUN.decode(&value[9..])? })
}

/// The position in a `current` row's value.
pub(crate) fn decode_position(value: &[u8]) -> Result<Position, CodecError> {
    let body = records::CURRENT.body(value)?;
    let bytes = body.first_chunk().ok_or(CodecError::Short { kind: records::CURRENT.name() })?;
    Ok(Position(u64::from_be_bytes(*bytes)))
}

pub(crate) fn timer_row(key: &[u8]) -> Option<TimerRow> {
    let timer = keys::parse_timer(key)?;
    Some(TimerRow {
        due: Timestamp::from_nanos(timer.due),
        kind: timer_kind(timer.kind, timer.event_id)?,
        key: entity_key(timer.entity),
        run_id: RunId::new(timer.run_id),
    })
}

pub(crate) fn task_row(key: &[u8], value: TaskValue) -> Option<TaskRow> {
    let task = keys::parse_task(key)?;
    let (scheduled, stamp) = (event_id(task.event_id)?, task.stamp);
    let (kind, task_key) = match task.queue_type {
        WORKFLOW_QUEUE => (QueueType::Workflow, TaskKey::Workflow { scheduled, stamp }),
        ACTIVITY_QUEUE => (QueueType::Activity, TaskKey::Activity { scheduled, stamp }),
        _ => return None,
    };
    let queue = QueueName { name: task.queue.into(), normal: value.normal };
    let key = workflow_key(task.entity)?;
    Some(TaskRow {
        queue: QueueKey { namespace: key.namespace.clone(), queue, kind },
        key,
        run_id: RunId::new(task.run_id),
        task: task_key,
        version: task.version.into(),
        priority: task.priority,
        fairness_key: task.fairness_key.into(),
        fairness_weight: value.fairness_weight,
        created: Timestamp::from_nanos(task.created),
    })
}

pub(crate) fn errand_row(key: &[u8]) -> Option<ErrandRow> {
    let errand = keys::parse_errand(key)?;
    Some(ErrandRow {
        errand: errand_key(errand.event_id, errand.kind)?,
        key: entity_key(errand.entity),
        run_id: RunId::new(errand.run_id),
    })
}
