//! What a Raft entry of a shard is: transitions of many workflows as finished bytes, or the shard's
//! slot range. Between step 3 and step 5 of a request's way; knows layouts, decides nothing.
//!
//! ```text
//! entry        format(1) kind(1): 1 = transitions, 2 = range
//! transitions  count(4), then of each:
//!              term(8) base(8) entity's kind(1) namespace-id id, count of writes(4), then of each:
//!              kind(1): 0 = delete, key | 1 = put, key, value
//! range        see `rows::range`
//! strings, keys and values: length(4), bytes. Numbers are big endian.
//! verdicts     one byte for each transition (one for a range)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use piton_core::id::{NamespaceId, Position, WorkflowId, WorkflowKey};
use piton_store::Write;

use crate::release;
use crate::rows::EntityKey;
use crate::rows::keys::EntityKind;
use crate::rows::range::{RangeError, SlotRange};

/// Events of one transition; a larger request is several transitions.
pub(crate) const TRANSITION_EVENTS_MAX: usize = 256;
/// Bytes of one transition that shares an entry; a larger one travels alone.
pub(crate) const TRANSITION_BYTES_MAX: usize = 1 << 20;

/// From which feature level on each format is written, the first one first.
const FORMATS: &[u32] = &[1];
/// Those that tests of rolling upgrades take for the next release's.
const NEXT_FORMATS: &[u32] = &[1, 2];
const TRANSITIONS: u8 = 1;
const RANGE: u8 = 2;
const DELETE: u8 = 0;
const PUT: u8 = 1;
/// Version, kind, count.
const ENTRY_HEADER_BYTES: usize = 6;

/// What was decided for one entity, with the fence it is checked by (D4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransitionRecord {
    /// The term it was decided in.
    pub(crate) term: u64,
    pub(crate) key: EntityKey,
    /// The entity's position it was decided on; 0 when the entity does not exist.
    pub(crate) base: Position,
    /// INVARIANT: one of them puts the entity's `current` row with position `base + 1`, or
    /// deletes it. Without it the next transition on the same base would be applied too.
    pub(crate) writes: Vec<Write>,
}

/// A decoded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Transitions(Vec<TransitionRecord>),
    Range(SlotRange),
}

/// What became of a transition; the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Applied,
    /// Decided in another term than that of the entry that carries it.
    WrongTerm,
    /// The workflow's position is not the one it was decided on.
    Moved,
    /// The shard does not own the workflow's slot at this entry.
    SlotNotHere,
}

/// Bytes that are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("decode an entry: it ends within {what}")]
    Short { what: &'static str },
    #[error("decode an entry of format {found}: this release knows formats up to {known}")]
    Format { found: u8, known: u8 },
    #[error("decode an entry: {what} is not valid")]
    Invalid { what: &'static str },
    #[error("decode an entry")]
    Range(#[from] RangeError),
    #[error("decode an entry: {bytes} bytes are left over")]
    Trailing { bytes: usize },
}

impl TransitionRecord {
    /// Bytes it takes up in an entry.
    pub(crate) fn encoded_len(&self) -> usize {
        let writes: usize = self.writes.iter().map(write_bytes).sum();
        29 + self.key.key.namespace.as_str().len()
            + self.key.key.workflow_id.as_str().len()
            + writes
    }
}

/// Bytes a write takes up in an entry.
pub(crate) fn write_bytes(write: &Write) -> usize {
    match write {
        Write::Put { key, value } => 9 + key.len() + value.len(),
        Write::Delete { key } => 5 + key.len(),
    }
}

/// Encodes transitions as one entry, in their order, for a cluster of this feature level.
pub(crate) fn encode_entry(level: u32, transitions: &[TransitionRecord]) -> Bytes {
    let len: usize = transitions.iter().map(TransitionRecord::encoded_len).sum();
    let mut bytes = begin(level, TRANSITIONS, ENTRY_HEADER_BYTES + len);
    put_len(&mut bytes, transitions.len());
    for transition in transitions {
        bytes.put_u64(transition.term);
        bytes.put_u64(transition.base.0);
        bytes.put_u8(transition.key.kind as u8);
        put_bytes(&mut bytes, transition.key.key.namespace.as_str().as_bytes());
        put_bytes(&mut bytes, transition.key.key.workflow_id.as_str().as_bytes());
        put_len(&mut bytes, transition.writes.len());
        for write in &transition.writes {
            put_write(&mut bytes, write);
        }
    }
    bytes.freeze()
}

/// Encodes the entry that gives a shard its slots; the first one that a new shard proposes.
pub(crate) fn encode_range(level: u32, range: &SlotRange) -> Bytes {
    let mut bytes = begin(level, RANGE, 14);
    range.put(&mut bytes);
    bytes.freeze()
}

fn formats() -> &'static [u32] {
    if release::is_next() { NEXT_FORMATS } else { FORMATS }
}

// INVARIANT: every node of a cluster of this level can read it, the feature level being raised only when
// all of them know it.
fn begin(level: u32, kind: u8, capacity: usize) -> BytesMut {
    let formats = formats().iter().filter(|from| **from <= level).count();
    let mut bytes = BytesMut::with_capacity(capacity);
    bytes.put_u8(formats as u8);
    bytes.put_u8(kind);
    bytes
}

fn put_len(bytes: &mut BytesMut, len: usize) {
    bytes.put_u32(u32::try_from(len).expect("an entry is far below 4 GiB"));
}

fn put_bytes(bytes: &mut BytesMut, part: &[u8]) {
    put_len(bytes, part.len());
    bytes.put_slice(part);
}

fn put_write(bytes: &mut BytesMut, write: &Write) {
    match write {
        Write::Delete { key } => {
            bytes.put_u8(DELETE);
            put_bytes(bytes, key);
        }
        Write::Put { key, value } => {
            bytes.put_u8(PUT);
            put_bytes(bytes, key);
            put_bytes(bytes, value);
        }
    }
}

/// Decodes an entry; keys and values are slices of it.
///
/// # Errors
/// When the bytes are not an entry. Never panics, and allocates no more than the bytes justify.
pub(crate) fn decode_entry(mut bytes: Bytes) -> Result<Entry, EntryError> {
    let rest = &mut bytes;
    let found = take_u8(rest, "the format")?;
    let known = formats().len() as u8;
    if !(1..=known).contains(&found) {
        return Err(EntryError::Format { found, known });
    }
    let entry = match take_u8(rest, "the kind")? {
        TRANSITIONS => Entry::Transitions(take_transitions(rest)?),
        RANGE => Entry::Range(SlotRange::take(rest)?),
        _ => return Err(EntryError::Invalid { what: "the kind" }),
    };
    match rest.len() {
        0 => Ok(entry),
        bytes => Err(EntryError::Trailing { bytes }),
    }
}

fn take_transitions(rest: &mut Bytes) -> Result<Vec<TransitionRecord>, EntryError> {
    let count = take_u32(rest, "the count of transitions")?;
    let mut transitions = Vec::new();
    for _ in 0..count {
        let term = take_u64(rest, "a term")?;
        let base = Position(take_u64(rest, "a position")?);
        let kind = EntityKind::of_number(take_u8(rest, "a kind of entity")?);
        let kind = kind.ok_or(EntryError::Invalid { what: "a kind of entity" })?;
        let namespace = NamespaceId::new(take_text(rest, "a namespace id")?);
        let workflow_id = WorkflowId::new(take_text(rest, "a workflow id")?);
        let writes = take_writes(rest)?;
        let key = EntityKey { kind, key: WorkflowKey { namespace, workflow_id } };
        transitions.push(TransitionRecord { term, key, base, writes });
    }
    Ok(transitions)
}

fn take_writes(rest: &mut Bytes) -> Result<Vec<Write>, EntryError> {
    let count = take_u32(rest, "the count of writes")?;
    let mut writes = Vec::new();
    for _ in 0..count {
        let kind = take_u8(rest, "a write")?;
        let key = take_bytes(rest, "a key")?;
        writes.push(match kind {
            DELETE => Write::Delete { key },
            PUT => Write::Put { key, value: take_bytes(rest, "a value")? },
            _ => return Err(EntryError::Invalid { what: "a write's kind" }),
        });
    }
    Ok(writes)
}

fn take_text(rest: &mut Bytes, what: &'static str) -> Result<String, EntryError> {
    let bytes = take_bytes(rest, what)?;
    String::from_utf8(bytes.into()).map_err(|_| EntryError::Invalid { what })
}

fn take_bytes(rest: &mut Bytes, what: &'static str) -> Result<Bytes, EntryError> {
    let len = take_u32(rest, what)? as usize;
    if len > rest.len() {
        return Err(EntryError::Short { what });
    }
    Ok(rest.split_to(len))
}

fn take_u8(rest: &mut Bytes, what: &'static str) -> Result<u8, EntryError> {
    rest.try_get_u8().map_err(|_| EntryError::Short { what })
}

fn take_u32(rest: &mut Bytes, what: &'static str) -> Result<u32, EntryError> {
    rest.try_get_u32().map_err(|_| EntryError::Short { what })
}

fn take_u64(rest: &mut Bytes, what: &'static str) -> Result<u64, EntryError> {
    rest.try_get_u64().map_err(|_| EntryError::Short { what })
}

impl Verdict {
    fn code(self) -> u8 {
        match self {
            Self::Applied => 0,
            Self::WrongTerm => 1,
            Self::Moved => 2,
            Self::SlotNotHere => 3,
        }
    }
}

/// One verdict for each transition of an entry, in their order.
pub(crate) fn encode_verdicts(verdicts: &[Verdict]) -> Bytes {
    verdicts.iter().map(|verdict| verdict.code()).collect()
}

/// Decodes what [`encode_verdicts`] made.
///
/// # Errors
/// When the bytes are no verdicts.
pub(crate) fn decode_verdicts(bytes: &[u8]) -> Result<Vec<Verdict>, EntryError> {
    let verdict = |&code: &u8| match code {
        0 => Ok(Verdict::Applied),
        1 => Ok(Verdict::WrongTerm),
        2 => Ok(Verdict::Moved),
        3 => Ok(Verdict::SlotNotHere),
        _ => Err(EntryError::Invalid { what: "a verdict" }),
    };
    bytes.iter().map(verdict).collect()
}

#[cfg(test)]
mod tests;
