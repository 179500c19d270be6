//! Every key's byte layout, in one table. Builders and parsers only: what the values hold is in
//! `values` and `meta::state`. A parser never panics; bytes that are no such key give `None`.
//!
//! Keys of one group; which group it is, the store's table puts in front. Numbers are big endian.
//! `text 0` is a string in which 00 is written 01 01 and 01 is written 01 02, and which ends with 00:
//! so no string is the beginning of another one, and keys sort as their strings do. `time(8)` is in
//! nanoseconds since 1970, its sign bit flipped, so that it sorts as the signed number; `~time(8)`
//! sorts the other way round.
//!
//! ```text
//! E           slot(2) kind(1) namespace-id 0 id 0          an entity; a slot is below 4000 (hex)
//! kind        1 = workflow; schedules, batch jobs and activities on their own will follow
//!
//! current     E 'c'
//! request     E 'q' request-id 0
//! event       E 'r' run-id 0 'e' first-event-id(8)         a batch of history
//! milestone   E 'r' run-id 0 'm'                           where a long history's fold goes on
//! note        E 'r' run-id 0 'n' kind(1) id(8)
//!
//! range       'R'                                          the slots this shard owns
//! timer       'T' due time(8) E run-id 0 kind(1) event-id(8)
//! errand      'O' E run-id 0 event-id(8) kind(1)           the outbox, in event order
//! task        'Q' namespace-id 0 queue 0 type(1) sticky(1)
//!                 version 0 priority(1) fairness-key 0     the task's class
//!                 created time(8) slot(2) kind(1) id 0 run-id 0 event-id(8) stamp(4)
//! visibility  'V' namespace-id 0 kind(1) order(1), and then by the order:
//!                 1 = by time: closed(1) ~close time(8) ~start time(8) run-id 0 slot(2) id 0
//!                     close time of an open run: all ff
//!                 others are free for orders by another column or by a custom attribute, whose rows
//!                 stand beside that of order 1 and go with it
//! expire      'E' when time(8) E ('r' run-id 0 | 'q' request-id 0)
//!
//! The meta group:
//! version     'v'
//! namespace   'n' namespace-id 0
//! attributes  'a' namespace-id 0                           search attributes
//! limits      'l'
//! routes      's'
//! ```
//!
//! The first byte of an index row is a letter, above every slot's first byte: the ranges never mix.

use bytes::{BufMut, Bytes, BytesMut};

pub(crate) mod meta;
mod parts;

#[cfg(any(test, feature = "fuzzing"))]
use parts::signed;
use parts::{
    build, parse, put_text, put_time, sortable, take_flag, take_tag, take_text, take_time, take_u8,
    take_u16, take_u32, take_u64,
};

/// The first key that is not an entity's.
const ENTITIES_END: &[u8] = &[0x40];

const CURRENT: u8 = b'c';
const REQUEST: u8 = b'q';
const RUN: u8 = b'r';
const EVENT: u8 = b'e';
const MILESTONE: u8 = b'm';
const NOTE: u8 = b'n';
const RANGE: u8 = b'R';
const TIMER: u8 = b'T';
const ERRAND: u8 = b'O';
const TASK: u8 = b'Q';
const VISIBILITY: u8 = b'V';
const EXPIRE: u8 = b'E';
/// The order of visibility rows that every run stands in.
const BY_TIME: u8 = 1;

/// What a key belongs to; see `E` in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entity<Text> {
    pub(crate) slot: u16,
    pub(crate) kind: EntityKind,
    pub(crate) namespace: Text,
    pub(crate) id: Text,
}

/// What has an actor, a fence and rows of its own. Frozen: the numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum EntityKind {
    Workflow = 1,
    /// Shows that the shell of entities hosts more than workflows; never on disk.
    #[cfg(test)]
    Counter = 255,
}

impl EntityKind {
    /// The kind with this number, if this release knows one.
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Workflow),
            #[cfg(test)]
            255 => Some(Self::Counter),
            _ => None,
        }
    }

    /// What an entity of this kind is called before people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Workflow => "workflow",
            #[cfg(test)]
            Self::Counter => "counter",
        }
    }
}

/// A row below an entity's prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntityRow {
    Current,
    Request { request_id: String },
    Event { run_id: String, first_event_id: u64 },
    Milestone { run_id: String },
    Note { run_id: String, kind: u8, id: u64 },
}

/// A timer's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timer<Text> {
    pub(crate) due: i64,
    pub(crate) entity: Entity<Text>,
    pub(crate) run_id: Text,
    pub(crate) kind: u8,
    pub(crate) event_id: u64,
}

/// An errand's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Errand<Text> {
    pub(crate) entity: Entity<Text>,
    pub(crate) run_id: Text,
    pub(crate) event_id: u64,
    pub(crate) kind: u8,
}

/// A pending task's key. Its namespace is the entity's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task<Text> {
    pub(crate) queue: Text,
    pub(crate) queue_type: u8,
    pub(crate) sticky: bool,
    pub(crate) version: Text,
    pub(crate) priority: u8,
    pub(crate) fairness_key: Text,
    pub(crate) created: i64,
    pub(crate) entity: Entity<Text>,
    pub(crate) run_id: Text,
    pub(crate) event_id: u64,
    pub(crate) stamp: u32,
}

/// A visibility row's key: open runs first by start time, then closed ones by close time and start
/// time, the latest first; ties by run id. Its namespace is the entity's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visibility<Text> {
    /// `None`: the run is open.
    pub(crate) closed: Option<i64>,
    pub(crate) started: i64,
    pub(crate) run_id: Text,
    pub(crate) entity: Entity<Text>,
}

/// An expiry's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expire<Text> {
    pub(crate) when: i64,
    pub(crate) entity: Entity<Text>,
    pub(crate) what: Expires<Text>,
}

/// What is to be deleted then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expires<Text> {
    /// All rows of a closed run.
    Run(Text),
    /// A request row.
    Request(Text),
}

impl<Text: AsRef<str>> Entity<Text> {
    /// What all rows of the entity begin with.
    #[cfg(test)]
    pub(crate) fn prefix(&self) -> Bytes {
        self.key(|_| ())
    }

    pub(crate) fn current(&self) -> Bytes {
        self.key(|key| key.put_u8(CURRENT))
    }

    pub(crate) fn request(&self, request_id: &str) -> Bytes {
        self.key(|key| {
            key.put_u8(REQUEST);
            put_text(key, request_id);
        })
    }

    /// What all rows of all runs begin with.
    pub(crate) fn runs(&self) -> Bytes {
        self.key(|key| key.put_u8(RUN))
    }

    /// What all rows of one run begin with.
    pub(crate) fn run(&self, run_id: &str) -> Bytes {
        self.run_key(run_id, |_| ())
    }

    /// What all history batches of one run begin with.
    pub(crate) fn events(&self, run_id: &str) -> Bytes {
        self.run_key(run_id, |key| key.put_u8(EVENT))
    }

    pub(crate) fn event(&self, run_id: &str, first_event_id: u64) -> Bytes {
        self.run_key(run_id, |key| {
            key.put_u8(EVENT);
            key.put_u64(first_event_id);
        })
    }

    pub(crate) fn milestone(&self, run_id: &str) -> Bytes {
        self.run_key(run_id, |key| key.put_u8(MILESTONE))
    }

    /// What all notes of one run begin with.
    pub(crate) fn notes(&self, run_id: &str) -> Bytes {
        self.run_key(run_id, |key| key.put_u8(NOTE))
    }

    pub(crate) fn note(&self, run_id: &str, kind: u8, id: u64) -> Bytes {
        self.run_key(run_id, |key| {
            key.put_u8(NOTE);
            key.put_u8(kind);
            key.put_u64(id);
        })
    }

    fn run_key(&self, run_id: &str, rest: impl FnOnce(&mut BytesMut)) -> Bytes {
        self.key(|key| {
            key.put_u8(RUN);
            put_text(key, run_id);
            rest(key);
        })
    }

    fn key(&self, rest: impl FnOnce(&mut BytesMut)) -> Bytes {
        build(|key| {
            self.put(key);
            rest(key);
        })
    }

    fn put(&self, key: &mut BytesMut) {
        key.put_u16(self.slot);
        key.put_u8(self.kind as u8);
        put_text(key, self.namespace.as_ref());
        put_text(key, self.id.as_ref());
    }
}

impl Entity<String> {
    fn take(rest: &mut &[u8]) -> Option<Self> {
        let (slot, kind) = (take_u16(rest)?, take_kind(rest)?);
        Some(Self { slot, kind, namespace: take_text(rest)?, id: take_text(rest)? })
    }
}

/// Parses any row below an entity's prefix.
pub(crate) fn parse_entity_row(key: &[u8]) -> Option<(Entity<String>, EntityRow)> {
    if key >= ENTITIES_END {
        return None;
    }
    parse(key, |rest| {
        let entity = Entity::take(rest)?;
        let row = match take_u8(rest)? {
            CURRENT => EntityRow::Current,
            REQUEST => EntityRow::Request { request_id: take_text(rest)? },
            RUN => take_run_row(rest)?,
            _ => return None,
        };
        Some((entity, row))
    })
}

fn take_run_row(rest: &mut &[u8]) -> Option<EntityRow> {
    let run_id = take_text(rest)?;
    match take_u8(rest)? {
        EVENT => Some(EntityRow::Event { run_id, first_event_id: take_u64(rest)? }),
        MILESTONE => Some(EntityRow::Milestone { run_id }),
        NOTE => Some(EntityRow::Note { run_id, kind: take_u8(rest)?, id: take_u64(rest)? }),
        _ => None,
    }
}

/// The row that says which slots the shard owns.
pub(crate) fn range() -> Bytes {
    Bytes::from_static(&[RANGE])
}

/// What all timers begin with.
pub(crate) fn timers() -> Bytes {
    Bytes::from_static(&[TIMER])
}

/// The first key of a timer that is due later than `due`.
pub(crate) fn timers_after(due: i64) -> Bytes {
    build(|key| match due.checked_add(1) {
        Some(next) => {
            key.put_u8(TIMER);
            put_time(key, next);
        }
        None => key.put_u8(TIMER + 1),
    })
}

impl<Text: AsRef<str>> Timer<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            key.put_u8(TIMER);
            put_time(key, self.due);
            self.entity.put(key);
            put_text(key, self.run_id.as_ref());
            key.put_u8(self.kind);
            key.put_u64(self.event_id);
        })
    }
}

pub(crate) fn parse_timer(key: &[u8]) -> Option<Timer<String>> {
    parse(key, |rest| {
        take_tag(rest, TIMER)?;
        Some(Timer {
            due: take_time(rest)?,
            entity: Entity::take(rest)?,
            run_id: take_text(rest)?,
            kind: take_u8(rest)?,
            event_id: take_u64(rest)?,
        })
    })
}

/// What all errands begin with.
pub(crate) fn errands() -> Bytes {
    Bytes::from_static(&[ERRAND])
}

/// What all errands of one entity begin with.
pub(crate) fn errands_of<Text: AsRef<str>>(entity: &Entity<Text>) -> Bytes {
    build(|key| {
        key.put_u8(ERRAND);
        entity.put(key);
    })
}

impl<Text: AsRef<str>> Errand<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            key.put_u8(ERRAND);
            self.entity.put(key);
            put_text(key, self.run_id.as_ref());
            key.put_u64(self.event_id);
            key.put_u8(self.kind);
        })
    }
}

pub(crate) fn parse_errand(key: &[u8]) -> Option<Errand<String>> {
    parse(key, |rest| {
        take_tag(rest, ERRAND)?;
        Some(Errand {
            entity: Entity::take(rest)?,
            run_id: take_text(rest)?,
            event_id: take_u64(rest)?,
            kind: take_u8(rest)?,
        })
    })
}

/// What all tasks begin with.
pub(crate) fn tasks() -> Bytes {
    Bytes::from_static(&[TASK])
}

/// What all tasks of one queue begin with.
pub(crate) fn tasks_of(namespace: &str, queue: &str, queue_type: u8, sticky: bool) -> Bytes {
    build(|key| put_queue(key, namespace, queue, queue_type, sticky))
}

/// What all tasks of one class in one queue begin with.
pub(crate) fn tasks_of_class(
    queue: &[u8],
    version: &str,
    priority: u8,
    fairness_key: &str,
) -> Bytes {
    build(|key| {
        key.put_slice(queue);
        put_class(key, version, priority, fairness_key);
    })
}

fn put_class(key: &mut BytesMut, version: &str, priority: u8, fairness_key: &str) {
    put_text(key, version);
    key.put_u8(priority);
    put_text(key, fairness_key);
}

fn put_queue(key: &mut BytesMut, namespace: &str, queue: &str, queue_type: u8, sticky: bool) {
    key.put_u8(TASK);
    put_text(key, namespace);
    put_text(key, queue);
    key.put_u8(queue_type);
    key.put_u8(u8::from(sticky));
}

impl<Text: AsRef<str>> Task<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            let namespace = self.entity.namespace.as_ref();
            put_queue(key, namespace, self.queue.as_ref(), self.queue_type, self.sticky);
            put_class(key, self.version.as_ref(), self.priority, self.fairness_key.as_ref());
            put_time(key, self.created);
            key.put_u16(self.entity.slot);
            key.put_u8(self.entity.kind as u8);
            put_text(key, self.entity.id.as_ref());
            put_text(key, self.run_id.as_ref());
            key.put_u64(self.event_id);
            key.put_u32(self.stamp);
        })
    }
}

pub(crate) fn parse_task(key: &[u8]) -> Option<Task<String>> {
    parse(key, |rest| {
        take_tag(rest, TASK)?;
        let namespace = take_text(rest)?;
        let queue = take_text(rest)?;
        Some(Task {
            queue,
            queue_type: take_u8(rest)?,
            sticky: take_flag(rest)?,
            version: take_text(rest)?,
            priority: take_u8(rest)?,
            fairness_key: take_text(rest)?,
            created: take_time(rest)?,
            entity: Entity {
                slot: take_u16(rest)?,
                kind: take_kind(rest)?,
                namespace,
                id: take_text(rest)?,
            },
            run_id: take_text(rest)?,
            event_id: take_u64(rest)?,
            stamp: take_u32(rest)?,
        })
    })
}

/// What the visibility rows of one kind begin with in a namespace, in the order by time.
pub(crate) fn visibility_of(namespace: &str, kind: EntityKind) -> Bytes {
    build(|key| put_order(key, namespace, kind))
}

fn put_order(key: &mut BytesMut, namespace: &str, kind: EntityKind) {
    key.put_u8(VISIBILITY);
    put_text(key, namespace);
    key.put_u8(kind as u8);
    key.put_u8(BY_TIME);
}

impl<Text: AsRef<str>> Visibility<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            put_order(key, self.entity.namespace.as_ref(), self.entity.kind);
            key.put_u8(u8::from(self.closed.is_some()));
            key.put_u64(self.closed.map_or(u64::MAX, |time| !sortable(time)));
            key.put_u64(!sortable(self.started));
            put_text(key, self.run_id.as_ref());
            key.put_u16(self.entity.slot);
            put_text(key, self.entity.id.as_ref());
        })
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse_visibility(key: &[u8]) -> Option<Visibility<String>> {
    parse(key, |rest| {
        take_tag(rest, VISIBILITY)?;
        let namespace = take_text(rest)?;
        let kind = take_kind(rest)?;
        take_tag(rest, BY_TIME)?;
        let is_closed = take_flag(rest)?;
        let close = take_u64(rest)?;
        if !is_closed && close != u64::MAX {
            return None;
        }
        let closed = is_closed.then(|| signed(!close));
        let started = signed(!take_u64(rest)?);
        let run_id = take_text(rest)?;
        let entity = Entity { slot: take_u16(rest)?, kind, namespace, id: take_text(rest)? };
        Some(Visibility { closed, started, run_id, entity })
    })
}

/// What all expiries begin with.
pub(crate) fn expiries() -> Bytes {
    Bytes::from_static(&[EXPIRE])
}

/// The first key of an expiry later than `when`.
pub(crate) fn expiries_after(when: i64) -> Bytes {
    build(|key| match when.checked_add(1) {
        Some(next) => {
            key.put_u8(EXPIRE);
            put_time(key, next);
        }
        None => key.put_u8(EXPIRE + 1),
    })
}

impl<Text: AsRef<str>> Expire<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            key.put_u8(EXPIRE);
            put_time(key, self.when);
            self.entity.put(key);
            match &self.what {
                Expires::Run(run_id) => {
                    key.put_u8(RUN);
                    put_text(key, run_id.as_ref());
                }
                Expires::Request(request_id) => {
                    key.put_u8(REQUEST);
                    put_text(key, request_id.as_ref());
                }
            }
        })
    }
}

pub(crate) fn parse_expire(key: &[u8]) -> Option<Expire<String>> {
    parse(key, |rest| {
        take_tag(rest, EXPIRE)?;
        let when = take_time(rest)?;
        let entity = Entity::take(rest)?;
        let what = match take_u8(rest)? {
            RUN => Expires::Run(take_text(rest)?),
            REQUEST => Expires::Request(take_text(rest)?),
            _ => return None,
        };
        Some(Expire { when, entity, what })
    })
}

fn take_kind(rest: &mut &[u8]) -> Option<EntityKind> {
    EntityKind::of_number(take_u8(rest)?)
}

#[cfg(test)]
mod tests;
