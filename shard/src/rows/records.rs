//! The kinds of values among a shard's rows, each with versions of its own.
//!
//! What is encoded here is on disk. A change of it, be it a field more in `RunNote` or in what it
//! holds, is a new version: a copy of the old shape goes to a module beside this one and never
//! changes again, and the kind learns to read it. Rows go to all nodes, so the new version is written from a
//! feature level on (`Kind::below`), which is then one more than this release's: see [`crate::release`]. `testdata/records.txt` has the bytes of every
//! version there was; a test turns red when an encoding changes without a new one.

use piton_core::message::Proto;
use piton_core::note::{ActivityNote, Note, NoteKey, RunNote};
use piton_core::proto::history::HistoryEvent;
use piton_core::run::Milestone;
use piton_core::visibility::VisibilityRecord;
use piton_store::codec::{CodecError, Kind, Layout};

use bytes::Bytes;

mod activity_note_1;

use crate::release;
use crate::rows::values::{CurrentRun, RequestRow, TaskValue};

pub(crate) const CURRENT_RUN: Kind<CurrentRun> = Kind::new("a current run", &[]);
pub(crate) const REQUEST: Kind<RequestRow> = Kind::new("a request id", &[]);
pub(crate) const RUN_NOTE: Kind<RunNote> = Kind::new("a run's note", &[]);
/// What tests of rolling upgrades take for the next version.
const NEXT_RUN_NOTE: Kind<RunNote> =
    Kind::new("a run's note", &[|old| old.read()]).below(&[(2, |note| RUN_NOTE.encode(note))]);
pub(crate) const ACTIVITY_NOTE: Kind<ActivityNote> =
    Kind::new("an activity's note", &[|old| Ok(old.read::<activity_note_1::Note>()?.into())]);
pub(crate) const BUFFERED_NOTE: Kind<Proto<HistoryEvent>> = Kind::new("a buffered event", &[]);
/// Not read in any older version: the fold has come to know more since, so it begins anew. Version 1
/// was without the links of the start.
pub(crate) const MILESTONE: Kind<Milestone> = Kind::new("a milestone", &[|old| old.retired()]);
pub(crate) const TASK: Kind<TaskValue> = Kind::new("a task", &[]);
pub(crate) const VISIBILITY: Kind<VisibilityRecord> = Kind::new("a visibility row", &[]);

/// `position(8)` and a current run.
pub(crate) const CURRENT: Layout = Layout::new("a current row", 1);
/// See [`crate::replica::entry`].
pub(crate) const RANGE: Layout = Layout::new("the slot range", 1);
/// Nothing: the key says all.
pub(crate) const TIMER: Layout = Layout::new("a timer", 1);
pub(crate) const ERRAND: Layout = Layout::new("an errand", 1);
/// For a run: the key of its visibility row. For a request id: nothing.
pub(crate) const EXPIRY: Layout = Layout::new("an expiry", 1);
/// The bytes of a protobuf `History`.
pub(crate) const EVENTS: Layout = Layout::new("a batch of history", 1);

fn run_note() -> &'static Kind<RunNote> {
    if release::is_next() { &NEXT_RUN_NOTE } else { &RUN_NOTE }
}

pub(crate) fn encode_note(level: u32, note: &Note) -> Result<Bytes, CodecError> {
    match note {
        Note::Run(note) => run_note().encode_at(level, note),
        Note::Activity(note) => ACTIVITY_NOTE.encode_at(level, note),
        Note::Buffered(event) => BUFFERED_NOTE.encode_at(level, event),
    }
}

/// Decodes a note, whose kind is that of its key.
pub(crate) fn decode_note(key: NoteKey, value: &[u8]) -> Result<Note, CodecError> {
    match key {
        NoteKey::Run => run_note().decode(value).map(Note::Run),
        NoteKey::Activity(_) => ACTIVITY_NOTE.decode(value).map(Note::Activity),
        NoteKey::Buffered(_) => BUFFERED_NOTE.decode(value).map(Note::Buffered),
    }
}

#[cfg(test)]
mod tests;
