//! Every key's byte layout, in one table. Builders and parsers only: what the values hold is in
//! `values` and `meta::state`. A parser never panics; bytes that are no such key give `None`.
//!
//! Keys of one group; which group it is, the store's table puts in front. Numbers are big endian.
//! `text 0` is a string in which 00 is written 01 01 and 01 is written 01 02, and which ends with 00:
//! so no string is the beginning of another one, and keys sort as their strings do. `time(8)` has its
//! sign bit flipped, so that it sorts as the signed number; `~time(8)` sorts the other way round.
//!
//! ```text
//! W           slot(2) namespace-id 0 workflow-id 0         a slot is below 4000 (hex)
//!
//! current     W 'c'
//! request     W 'q' request-id 0
//! event       W 'r' run-id 0 'e' first-event-id(8)         a batch of history
//! note        W 'r' run-id 0 'n' kind(1) id(8)
//!
//! range       'R'                                          the slots this shard owns
//! timer       'T' due time(8) W run-id 0 kind(1) event-id(8)
//! errand      'O' W run-id 0 event-id(8) kind(1)           the outbox, in event order
//! task        'Q' namespace-id 0 queue 0 type(1) sticky(1) priority(1) created time(8)
//!                 W run-id 0 event-id(8) stamp(4)
//! visibility  'V' namespace-id 0 closed(1) ~close time(8) ~start time(8) run-id 0
//!                 slot(2) workflow-id 0                    close time of an open run: all ff
//! expire      'E' when time(8) W ('r' run-id 0 | 'q' request-id 0)
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

/// The first key that is not a workflow's.
pub(crate) const WORKFLOWS_END: &[u8] = &[0x40];

const CURRENT: u8 = b'c';
const REQUEST: u8 = b'q';
const RUN: u8 = b'r';
const EVENT: u8 = b'e';
const NOTE: u8 = b'n';
const RANGE: u8 = b'R';
const TIMER: u8 = b'T';
const ERRAND: u8 = b'O';
const TASK: u8 = b'Q';
const VISIBILITY: u8 = b'V';
const EXPIRE: u8 = b'E';

/// The workflow that a key belongs to; see `W` in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Workflow<Text> {
    pub(crate) slot: u16,
    pub(crate) namespace: Text,
    pub(crate) workflow_id: Text,
}

/// A row below a workflow's prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WorkflowRow {
    Current,
    Request { request_id: String },
    Event { run_id: String, first_event_id: u64 },
    Note { run_id: String, kind: u8, id: u64 },
}

/// A timer's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timer<Text> {
    pub(crate) due: i64,
    pub(crate) workflow: Workflow<Text>,
    pub(crate) run_id: Text,
    pub(crate) kind: u8,
    pub(crate) event_id: u64,
}

/// An errand's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Errand<Text> {
    pub(crate) workflow: Workflow<Text>,
    pub(crate) run_id: Text,
    pub(crate) event_id: u64,
    pub(crate) kind: u8,
}

/// A pending task's key. Its namespace is the workflow's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task<Text> {
    pub(crate) queue: Text,
    pub(crate) queue_type: u8,
    pub(crate) sticky: bool,
    pub(crate) priority: u8,
    pub(crate) created: i64,
    pub(crate) workflow: Workflow<Text>,
    pub(crate) run_id: Text,
    pub(crate) event_id: u64,
    pub(crate) stamp: u32,
}

/// A visibility row's key: open runs first by start time, then closed ones by close time and start
/// time, the latest first; ties by run id. Its namespace is the workflow's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visibility<Text> {
    /// `None`: the run is open.
    pub(crate) closed: Option<i64>,
    pub(crate) started: i64,
    pub(crate) run_id: Text,
    pub(crate) workflow: Workflow<Text>,
}

/// An expiry's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expire<Text> {
    pub(crate) when: i64,
    pub(crate) workflow: Workflow<Text>,
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

impl<Text: AsRef<str>> Workflow<Text> {
    /// What all rows of the workflow begin with.
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

    /// What all rows of all its runs begin with.
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
        put_text(key, self.namespace.as_ref());
        put_text(key, self.workflow_id.as_ref());
    }
}

impl Workflow<String> {
    fn take(rest: &mut &[u8]) -> Option<Self> {
        let slot = take_u16(rest)?;
        Some(Self { slot, namespace: take_text(rest)?, workflow_id: take_text(rest)? })
    }
}

/// Parses any row below a workflow's prefix.
pub(crate) fn parse_workflow_row(key: &[u8]) -> Option<(Workflow<String>, WorkflowRow)> {
    if key >= WORKFLOWS_END {
        return None;
    }
    parse(key, |rest| {
        let workflow = Workflow::take(rest)?;
        let row = match take_u8(rest)? {
            CURRENT => WorkflowRow::Current,
            REQUEST => WorkflowRow::Request { request_id: take_text(rest)? },
            RUN => take_run_row(rest)?,
            _ => return None,
        };
        Some((workflow, row))
    })
}

fn take_run_row(rest: &mut &[u8]) -> Option<WorkflowRow> {
    let run_id = take_text(rest)?;
    match take_u8(rest)? {
        EVENT => Some(WorkflowRow::Event { run_id, first_event_id: take_u64(rest)? }),
        NOTE => Some(WorkflowRow::Note { run_id, kind: take_u8(rest)?, id: take_u64(rest)? }),
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
            self.workflow.put(key);
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
            workflow: Workflow::take(rest)?,
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

/// What all errands of one workflow begin with.
pub(crate) fn errands_of<Text: AsRef<str>>(workflow: &Workflow<Text>) -> Bytes {
    build(|key| {
        key.put_u8(ERRAND);
        workflow.put(key);
    })
}

impl<Text: AsRef<str>> Errand<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            key.put_u8(ERRAND);
            self.workflow.put(key);
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
            workflow: Workflow::take(rest)?,
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
pub(crate) fn tasks_of(namespace: &str, queue: &str, queue_type: u8) -> Bytes {
    build(|key| put_queue(key, namespace, queue, queue_type))
}

fn put_queue(key: &mut BytesMut, namespace: &str, queue: &str, queue_type: u8) {
    key.put_u8(TASK);
    put_text(key, namespace);
    put_text(key, queue);
    key.put_u8(queue_type);
}

impl<Text: AsRef<str>> Task<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            let namespace = self.workflow.namespace.as_ref();
            put_queue(key, namespace, self.queue.as_ref(), self.queue_type);
            key.put_u8(u8::from(self.sticky));
            key.put_u8(self.priority);
            put_time(key, self.created);
            self.workflow.put(key);
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
        let queue_type = take_u8(rest)?;
        let sticky = take_flag(rest)?;
        let task = Task {
            queue,
            queue_type,
            sticky,
            priority: take_u8(rest)?,
            created: take_time(rest)?,
            workflow: Workflow::take(rest)?,
            run_id: take_text(rest)?,
            event_id: take_u64(rest)?,
            stamp: take_u32(rest)?,
        };
        (task.workflow.namespace == namespace).then_some(task)
    })
}

/// What all visibility rows of a namespace begin with.
pub(crate) fn visibility_of(namespace: &str) -> Bytes {
    build(|key| {
        key.put_u8(VISIBILITY);
        put_text(key, namespace);
    })
}

/// The first visibility key of a namespace's closed runs: the end of the open ones.
pub(crate) fn visibility_closed(namespace: &str) -> Bytes {
    build(|key| {
        key.put_u8(VISIBILITY);
        put_text(key, namespace);
        key.put_u8(1);
    })
}

impl<Text: AsRef<str>> Visibility<Text> {
    pub(crate) fn key(&self) -> Bytes {
        build(|key| {
            key.put_u8(VISIBILITY);
            put_text(key, self.workflow.namespace.as_ref());
            key.put_u8(u8::from(self.closed.is_some()));
            key.put_u64(self.closed.map_or(u64::MAX, |time| !sortable(time)));
            key.put_u64(!sortable(self.started));
            put_text(key, self.run_id.as_ref());
            key.put_u16(self.workflow.slot);
            put_text(key, self.workflow.workflow_id.as_ref());
        })
    }
}

pub(crate) fn parse_visibility(key: &[u8]) -> Option<Visibility<String>> {
    parse(key, |rest| {
        take_tag(rest, VISIBILITY)?;
        let namespace = take_text(rest)?;
        let is_closed = take_flag(rest)?;
        let close = take_u64(rest)?;
        if !is_closed && close != u64::MAX {
            return None;
        }
        let closed = is_closed.then(|| signed(!close));
        let started = signed(!take_u64(rest)?);
        let run_id = take_text(rest)?;
        let slot = take_u16(rest)?;
        let workflow = Workflow { slot, namespace, workflow_id: take_text(rest)? };
        Some(Visibility { closed, started, run_id, workflow })
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
            self.workflow.put(key);
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
        let workflow = Workflow::take(rest)?;
        let what = match take_u8(rest)? {
            RUN => Expires::Run(take_text(rest)?),
            REQUEST => Expires::Request(take_text(rest)?),
            _ => return None,
        };
        Some(Expire { when, workflow, what })
    })
}

fn build(fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut key = BytesMut::with_capacity(160);
    fill(&mut key);
    key.freeze()
}

fn put_text(key: &mut BytesMut, text: &str) {
    for &byte in text.as_bytes() {
        match byte {
            0 | 1 => key.put_slice(&[1, byte + 1]),
            _ => key.put_u8(byte),
        }
    }
    key.put_u8(0);
}

fn put_time(key: &mut BytesMut, time: i64) {
    key.put_u64(sortable(time));
}

/// Sorts as the signed number does.
fn sortable(time: i64) -> u64 {
    time.cast_unsigned() ^ (1 << 63)
}

fn signed(sortable: u64) -> i64 {
    (sortable ^ (1 << 63)).cast_signed()
}

/// Runs a parser over the whole key; bytes left over make it fail.
fn parse<T>(key: &[u8], take: impl FnOnce(&mut &[u8]) -> Option<T>) -> Option<T> {
    let mut rest = key;
    let found = take(&mut rest)?;
    rest.is_empty().then_some(found)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let end = rest.iter().position(|&byte| byte == 0)?;
    let mut text = Vec::with_capacity(end);
    let mut bytes = rest[..end].iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            1 => match bytes.next()? {
                escaped @ (1 | 2) => text.push(escaped - 1),
                _ => return None,
            },
            _ => text.push(byte),
        }
    }
    *rest = &rest[end + 1..];
    String::from_utf8(text).ok()
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    take_array(rest).map(u8::from_be_bytes)
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    take_array(rest).map(u16::from_be_bytes)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take_array(rest).map(u32::from_be_bytes)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take_array(rest).map(u64::from_be_bytes)
}

fn take_time(rest: &mut &[u8]) -> Option<i64> {
    take_u64(rest).map(signed)
}

fn take_tag(rest: &mut &[u8], tag: u8) -> Option<()> {
    (take_u8(rest)? == tag).then_some(())
}

fn take_flag(rest: &mut &[u8]) -> Option<bool> {
    match take_u8(rest)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
