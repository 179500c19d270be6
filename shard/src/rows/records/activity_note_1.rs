//! Version 1 of an activity's note: it did not know the worker's build. Never changed.

use std::sync::Arc;

use piton_core::message::Proto;
use piton_core::note::{ActivityNote, ActivityStart};
use piton_core::proto::common::Payloads;
use piton_core::proto::failure::Failure;
use piton_core::time::{Span, Timestamp};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Note {
    attempt: u32,
    stamp: u32,
    attempt_scheduled_at: Timestamp,
    started: Option<Start>,
    last_failure: Option<Proto<Failure>>,
    last_worker_identity: String,
    last_attempt_completed_at: Option<Timestamp>,
    heartbeat_details: Option<Proto<Payloads>>,
    heartbeat_at: Option<Timestamp>,
    retry_wait: Option<Span>,
}

#[derive(Deserialize)]
struct Start {
    at: Timestamp,
    identity: String,
    request_id: Arc<str>,
}

impl From<Note> for ActivityNote {
    fn from(note: Note) -> Self {
        let started = note.started.map(|Start { at, identity, request_id }| ActivityStart {
            at,
            identity,
            request_id,
            worker_version: None,
        });
        Self {
            attempt: note.attempt,
            stamp: note.stamp,
            attempt_scheduled_at: note.attempt_scheduled_at,
            started,
            last_failure: note.last_failure,
            last_worker_identity: note.last_worker_identity,
            last_attempt_completed_at: note.last_attempt_completed_at,
            heartbeat_details: note.heartbeat_details,
            heartbeat_at: note.heartbeat_at,
            retry_wait: note.retry_wait,
        }
    }
}
