//! This crate's decoders, to be given hostile bytes: by its tests, and by the targets in
//! `tests/fuzz`. See `piton_store::fuzzing` for what a decoder function is and how bytes go wrong.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use piton_core::proto::history::History;
use piton_raft::{CommittedEntry, Replica};
use piton_store::{Mark, MemoryStore, Table};
use prost::Message;

use crate::message::{PeerAnswer, PeerRequest, TaskToken};
use crate::meta::state::MetaReplica;
use crate::replica::entry::{self, Entry};
use crate::rows::codes::note_key;
use crate::rows::values::{
    HistoryBatch, decode_current, decode_position, decode_range, encode_current, encode_range,
    errand_row, task_row, timer_row,
};
use crate::rows::{history, keys, records};

/// An entry of a shard's log, and the verdicts that answer it.
pub fn entry(bytes: &[u8]) {
    match entry::decode_entry(Bytes::copy_from_slice(bytes)) {
        Ok(Entry::Transitions(transitions)) => {
            assert_eq!(entry::encode_entry(1, &transitions), bytes)
        }
        Ok(Entry::Range(range)) => assert_eq!(entry::encode_range(1, &range), bytes),
        Err(_) => {}
    }
    if let Ok(verdicts) = entry::decode_verdicts(bytes) {
        assert_eq!(entry::encode_verdicts(&verdicts), bytes);
    }
}

/// An entry of the meta group's log, applied to an empty state and read back from its rows.
pub fn meta_entry(bytes: &[u8]) {
    let table = Table::open(Arc::new(MemoryStore::new()), 0).expect("an empty store opens");
    let (mut replica, state) = MetaReplica::open(table.clone()).expect("an empty table opens");
    let payload = Bytes::copy_from_slice(bytes);
    let mark = Mark { index: 1, bytes: Bytes::new() };
    if replica.apply(vec![CommittedEntry { term: 1, index: 1, payload }], mark).is_ok() {
        let (_, again) = MetaReplica::open(table).expect("what was applied is read");
        assert_eq!(*state.borrow(), *again.borrow());
    }
}

/// A task token as a worker hands it back, and a history page token.
pub fn token(bytes: &[u8]) {
    if let Ok(token) = TaskToken::decode(bytes) {
        assert_eq!(TaskToken::decode(&token.encode()).expect("it was encoded"), token);
    }
    let _ = history::token_run(bytes);
}

/// A request of another node, and an answer.
pub fn peer(bytes: &[u8]) {
    if let Ok(request) = PeerRequest::decode(bytes) {
        let again = PeerRequest::decode(&request.encode().expect("it was decoded"));
        assert_same(&request, &again.expect("it was encoded"));
    }
    if let Ok(answer) = PeerAnswer::decode(bytes) {
        assert_same(&answer, &PeerAnswer::decode(&answer.encode()).expect("it was encoded"));
    }
}

fn assert_same<T: Clone + PartialEq + Debug>(one: &T, other: &T) {
    // What holds a weight that is not a number does not even equal itself.
    let is_itself = *one == one.clone();
    assert!(one == other || !is_itself, "{one:?} became {other:?}");
}

/// A row's key, as each kind of it.
pub fn key(bytes: &[u8]) {
    let same = |key: Option<Bytes>| assert!(key.is_none_or(|key| key == bytes), "{bytes:02x?}");
    same(keys::parse_timer(bytes).map(|timer| timer.key()));
    same(keys::parse_errand(bytes).map(|errand| errand.key()));
    same(keys::parse_task(bytes).map(|task| task.key()));
    same(keys::parse_visibility(bytes).map(|visibility| visibility.key()));
    same(keys::parse_expire(bytes).map(|expire| expire.key()));
    same(keys::meta::parse_search_attributes(bytes).map(|id| keys::meta::search_attributes(&id)));
    same(keys::parse_entity_row(bytes).map(|(entity, row)| match row {
        keys::EntityRow::Current => entity.current(),
        keys::EntityRow::Request { request_id } => entity.request(&request_id),
        keys::EntityRow::Event { run_id, first_event_id } => entity.event(&run_id, first_event_id),
        keys::EntityRow::Milestone { run_id } => entity.milestone(&run_id),
        keys::EntityRow::Note { run_id, kind, id } => entity.note(&run_id, kind, id),
    }));
}

/// A row: the length of its key in two bytes, the key, the value.
pub fn row(bytes: &[u8]) {
    let Some((&[high, low], rest)) = bytes.split_first_chunk() else { return };
    let (key, value) = rest.split_at(rest.len().min(usize::from(high) << 8 | usize::from(low)));
    key_and_value(key, value);
}

fn key_and_value(key: &[u8], value: &[u8]) {
    if let Some((_, row)) = keys::parse_entity_row(key) {
        match row {
            keys::EntityRow::Current => {}
            keys::EntityRow::Request { .. } => drop(records::REQUEST.decode(value)),
            keys::EntityRow::Event { .. } => history_batch(value),
            keys::EntityRow::Milestone { .. } => drop(records::MILESTONE.decode(value)),
            keys::EntityRow::Note { kind, id, .. } => {
                drop(note_key(kind, id).map(|key| records::decode_note(key, value)));
            }
        }
    }
    // Rows of one value each, whatever key they came with.
    let position = decode_position(value);
    if let Ok(current) = decode_current(value) {
        assert_eq!(Some(current.position), position.ok());
        let again = encode_current(1, &current).expect("it was decoded");
        assert_eq!(decode_current(&again).expect("it was encoded"), current);
    }
    if let Ok(range) = decode_range(Bytes::copy_from_slice(value)) {
        assert!(encode_range(&range).starts_with(&value[..13]));
    }
    let _ = timer_row(key);
    let _ = errand_row(key);
    if let Ok(task) = records::TASK.decode(value) {
        let _ = task_row(key, task);
    }
    if let Ok(record) = records::VISIBILITY.decode(value) {
        let _ = record.to_proto();
    }
}

fn history_batch(value: &[u8]) {
    let raw = Bytes::copy_from_slice(value.get(1..).unwrap_or_default());
    let batch = HistoryBatch { first: piton_core::id::EventId(1), raw: raw.clone() };
    let counted = batch.len();
    assert!(counted <= raw.len());
    drop(History::decode(raw));
}

#[cfg(test)]
mod tests;
