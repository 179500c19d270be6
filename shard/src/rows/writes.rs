//! A change as rows: history, notes, timers, tasks, errands, visibility, expiry. Between step 3 and
//! step 4 of a request's way. Pure: the same change gives the same bytes.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use piton_core::effect::{Effect, EffectKey, ErrandKey, TaskKey, TaskOffer, TimerKind};
use piton_core::id::{EventId, RequestId, RunId, ShardId, WorkflowKey};
use piton_core::matching::{self, Class};
use piton_core::proto::history::HistoryEvent;
use piton_core::run::{Milestone, RunState};
use piton_core::time::{Span, Timestamp};
use piton_core::transition::{Change, first_event};
use piton_core::visibility::VisibilityRecord;
use piton_store::Write;
use piton_store::codec::CodecError;
use prost::Message;

use crate::message::{Offer, OfferedTask, QueueKey, QueueType};
use crate::rows::codes::{errand_codes, note_codes, task_codes, timer_codes, unsigned};
use crate::rows::range::SlotRange;
use crate::rows::values::{
    Current, EntityKey, HistoryBatch, RequestRow, TaskValue, encode_current, encode_range, workflow,
};
use crate::rows::{keys, records};

/// Tag of `History.events` on the wire: field 1, length-delimited.
const EVENTS_TAG: u8 = 0x0a;

/// A run leaves a milestone behind each time its history passes a multiple of so many events.
const MILESTONE_EVENTS: i64 = 1_000;
const MILESTONE_BYTES_MAX: usize = 256 << 10;

/// The rows of one run's change, all but `current`, for a cluster of this feature level. `retention`: how
/// long its namespace keeps a closed run.
///
/// # Errors
/// When a record is too large to be encoded; then nothing may be proposed.
pub(crate) fn change_writes(
    level: u32,
    key: &WorkflowKey,
    change: &Change,
    retention: Span,
) -> Result<Vec<Write>, CodecError> {
    let mut writes = Vec::new();
    let run_id = &change.run_id;
    // ORDER: first, where `batch_in` finds it.
    if let Some(first) = first_event(change) {
        let row = workflow(key).event(run_id.as_str(), unsigned(first));
        writes.push(Write::put(row, encode_batch(&change.events)));
    }
    for (&note_key, note) in &change.notes {
        let (kind, id) = note_codes(note_key);
        let row = workflow(key).note(run_id.as_str(), kind, id);
        writes.push(match note {
            Some(note) => Write::put(row, records::encode_note(level, note)?),
            None => Write::delete(row),
        });
    }
    for effect in &change.settled {
        match effect {
            EffectKey::Timer(due, kind) => {
                writes.push(Write::delete(timer_key(key, run_id, *due, kind)));
            }
            EffectKey::Errand(errand) => {
                writes.push(Write::delete(errand_key(key, run_id, *errand)))
            }
            // The key of a task's row names its queue, so the offer itself is needed: below.
            EffectKey::Task(_) => {}
        }
    }
    for offer in &change.settled_tasks {
        writes.push(Write::delete(task_key(key, run_id, offer)));
    }
    for effect in change.owed.values() {
        writes.push(effect_write(level, key, run_id, effect)?);
    }
    if let Some((before, after)) = &change.visibility {
        let visibility = visibility_writes(level, key, before.as_ref(), after, retention)?;
        writes.extend(visibility);
    }
    Ok(writes)
}

/// The batch of history among the rows of a change.
pub(crate) fn batch_in(change: &Change, writes: &[Write]) -> Option<HistoryBatch> {
    let first = first_event(change)?;
    let Some(Write::Put { value, .. }) = writes.first() else { return None };
    let raw = records::EVENTS.body(value).ok()?;
    Some(HistoryBatch { first, raw: value.slice_ref(raw) })
}

/// Puts the milestone of a run whose history has become long by `change`: the state before it, which is
/// a fold of whole batches. `None`: not now, or what is pending is so much that it would cost more
/// than it saves.
///
/// # Errors
/// As [`change_writes`].
pub(crate) fn milestone_write(
    level: u32,
    key: &WorkflowKey,
    before: &RunState,
    change: &Change,
) -> Result<Option<Write>, CodecError> {
    let stretch = |EventId(next): EventId| next / MILESTONE_EVENTS;
    let end = change.events.last().map(|event| EventId(event.event_id).next());
    if end.is_none_or(|end| stretch(before.next_event_id) == stretch(end)) {
        return Ok(None);
    }
    let Some(milestone) = Milestone::of(before) else { return Ok(None) };
    let value = records::MILESTONE.encode_at(level, &milestone)?;
    let row = workflow(key).milestone(before.run_id.as_str());
    Ok((value.len() <= MILESTONE_BYTES_MAX).then(|| Write::put(row, value)))
}

/// Puts the workflow's `current` row, the position that fences it included.
///
/// # Errors
/// As [`change_writes`].
pub(crate) fn current_write(
    level: u32,
    key: &WorkflowKey,
    current: &Current,
) -> Result<Write, CodecError> {
    Ok(Write::put(workflow(key).current(), encode_current(level, current)?))
}

/// Deletes the workflow: its position is 0 again. Only with the last rows of its last run.
pub(crate) fn current_delete(key: &WorkflowKey) -> Write {
    Write::delete(workflow(key).current())
}

/// Puts a request id, and the row by which it is deleted after `keep`.
///
/// # Errors
/// As [`change_writes`].
pub(crate) fn request_writes(
    level: u32,
    key: &EntityKey,
    id: &RequestId,
    row: &RequestRow,
    keep: Span,
) -> Result<[Write; 2], CodecError> {
    let what = keys::Expires::Request(id.as_str());
    let expire = keys::Expire { when: (row.at + keep).as_nanos(), entity: key.rows(), what };
    Ok([
        Write::put(key.rows().request(id.as_str()), records::REQUEST.encode_at(level, row)?),
        Write::put(expire.key(), records::EXPIRY.begin(0)),
    ])
}

/// A task as it is offered to its queue.
pub(crate) fn offer_of(
    origin: ShardId,
    key: &WorkflowKey,
    run_id: &RunId,
    offer: &TaskOffer,
) -> Offer {
    let kind = match offer.key {
        TaskKey::Workflow { .. } => QueueType::Workflow,
        TaskKey::Activity { .. } => QueueType::Activity,
    };
    let namespace = key.namespace.clone();
    Offer {
        queue: QueueKey { namespace, queue: offer.queue.clone(), kind },
        origin,
        key: key.clone(),
        run_id: run_id.clone(),
        task: OfferedTask::Task(offer.key.clone()),
        class: Class {
            priority: offer.priority,
            version: Arc::clone(&offer.version),
            fairness_key: Arc::clone(&offer.fairness_key),
        },
        stride: matching::stride(offer.fairness_weight),
        created: offer.created,
        more_behind: false,
    }
}

/// Puts the shard's slot range; only `apply` of a range entry does.
pub(crate) fn range_write(range: &SlotRange) -> Write {
    Write::put(keys::range(), encode_range(range))
}

/// `version(1)`, then the bytes of a protobuf `History` with these events: an answer to a reader
/// copies them as they are.
fn encode_batch(events: &[Arc<HistoryEvent>]) -> Bytes {
    let lens = events.iter().map(|event| event.encoded_len() + 6).sum::<usize>();
    let mut batch = records::EVENTS.begin(lens);
    for event in events {
        batch.put_u8(EVENTS_TAG);
        event.encode_length_delimited(&mut batch).expect("a BytesMut grows as it is written to");
    }
    batch.freeze()
}

pub(crate) fn effect_write(
    level: u32,
    key: &WorkflowKey,
    run_id: &RunId,
    effect: &Effect,
) -> Result<Write, CodecError> {
    Ok(match effect {
        Effect::Timer(due, kind) => {
            Write::put(timer_key(key, run_id, *due, kind), records::TIMER.begin(0))
        }
        Effect::Errand(errand, _) => {
            Write::put(errand_key(key, run_id, *errand), records::ERRAND.begin(0))
        }
        Effect::Task(offer) => {
            let fairness_weight = offer.fairness_weight;
            let value = TaskValue { normal: offer.queue.normal.clone(), fairness_weight };
            Write::put(task_key(key, run_id, offer), records::TASK.encode_at(level, &value)?)
        }
    })
}

fn timer_key(key: &WorkflowKey, run_id: &RunId, due: Timestamp, kind: &TimerKind) -> Bytes {
    let (kind, event_id) = timer_codes(kind);
    let entity = workflow(key);
    keys::Timer { due: due.as_nanos(), entity, run_id: run_id.as_str(), kind, event_id }.key()
}

pub(crate) fn errand_key(key: &WorkflowKey, run_id: &RunId, errand: ErrandKey) -> Bytes {
    let (event_id, kind) = errand_codes(errand);
    keys::Errand { entity: workflow(key), run_id: run_id.as_str(), event_id, kind }.key()
}

fn task_key(key: &WorkflowKey, run_id: &RunId, offer: &TaskOffer) -> Bytes {
    let (queue_type, event_id, stamp) = task_codes(&offer.key);
    let task = keys::Task {
        queue: &*offer.queue.name,
        queue_type,
        sticky: offer.queue.is_sticky(),
        version: &*offer.version,
        priority: offer.priority,
        fairness_key: &*offer.fairness_key,
        created: offer.created.as_nanos(),
        entity: workflow(key),
        run_id: run_id.as_str(),
        event_id,
        stamp,
    };
    task.key()
}

fn visibility_writes(
    level: u32,
    key: &WorkflowKey,
    before: Option<&VisibilityRecord>,
    after: &VisibilityRecord,
    retention: Span,
) -> Result<Vec<Write>, CodecError> {
    let row_of = |record: &VisibilityRecord| {
        visibility_key(key, &record.run_id, record.start_time, record.close_time)
    };
    let row = row_of(after);
    let old = before.map(row_of);
    let old = old.filter(|old| *old != row).map(Write::delete);
    let mut writes: Vec<Write> = old.into_iter().collect();
    writes.push(Write::put(row.clone(), records::VISIBILITY.encode_at(level, after)?));
    let closes = before.is_none_or(|record| record.close_time.is_none());
    if let (true, Some(close_time)) = (closes, after.close_time) {
        let what = keys::Expires::Run(after.run_id.as_str());
        let when = (close_time + retention).as_nanos();
        let expire = keys::Expire { when, entity: workflow(key), what };
        // The value names the visibility row, which only the run's times would lead to.
        let mut value = records::EXPIRY.begin(row.len());
        value.put_slice(&row);
        writes.push(Write::put(expire.key(), value.freeze()));
    }
    Ok(writes)
}

/// Where a run stands in the order by time; `closed`: `None` while it is open.
pub(crate) fn visibility_key(
    key: &WorkflowKey,
    run_id: &RunId,
    started: Timestamp,
    closed: Option<Timestamp>,
) -> Bytes {
    let row = keys::Visibility {
        closed: closed.map(Timestamp::as_nanos),
        started: started.as_nanos(),
        run_id: run_id.as_str(),
        entity: workflow(key),
    };
    row.key()
}
