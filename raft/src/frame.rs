//! What nodes say to each other about a group, as bytes.
//!
//! ```text
//! frame  version(1) kind(1) group(4) number(8) body
//! ```
//! `number` pairs an answer with its request, or names an append session.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{StreamAppendError, TransferLeaderError, TransferLeaderRequest};

use crate::config::NodeId;
use crate::log::GroupId;
use crate::types::{
    AppendRequest, AppendResult, LogId, TypeConfig, Vote, VoteRequest, VoteResponse, term_of,
};
use crate::wire::{
    Reader, WireError, entry_from_parts, entry_to_record, length, put_bytes, put_log_id,
    put_log_id_option, put_vote,
};

mod check;

pub(crate) use check::{is_append_answer, is_of_another, is_vote_answer};

const VERSION: u8 = 1;
const WHAT: &str = "a frame";

const KIND_APPEND: u8 = 1;
const KIND_APPENDED: u8 = 2;
const KIND_HEARTBEAT: u8 = 3;
const KIND_VOTE: u8 = 4;
const KIND_PRE_VOTE: u8 = 5;
const KIND_TRANSFER: u8 = 6;
const KIND_SNAPSHOT_PART: u8 = 7;
const KIND_SNAPSHOT_INSTALL: u8 = 8;
const KIND_ANSWER_APPEND: u8 = 9;
const KIND_ANSWER_VOTE: u8 = 10;
const KIND_ANSWER_TRANSFER: u8 = 11;
const KIND_ANSWER_SNAPSHOT: u8 = 12;
const KIND_REFUSED: u8 = 13;
const KIND_SNAPSHOT_BEGIN: u8 = 14;
const KIND_PEER_LOST: u8 = 15;
const KIND_ANSWER_PEER_LOST: u8 = 16;

/// One message about one group.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) group: GroupId,
    pub(crate) number: u64,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    /// Entry requests flow in sessions: numbered, answered in order, many under way at once.
    Append {
        sequence: u64,
        request: AppendRequest,
    },
    /// The answer; `None`: the session is over, begin another.
    Appended {
        sequence: u64,
        result: Option<AppendResult>,
    },
    Request(Request),
    Answer(Answer),
}

/// A question with one answer.
#[derive(Debug)]
pub(crate) enum Request {
    Heartbeat(AppendRequest),
    Vote(VoteRequest),
    PreVote(VoteRequest),
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// Take the snapshot of that name, or say how far it has come.
    SnapshotBegin {
        name: SnapshotName,
    },
    /// A part of the snapshot at that index. Parts flow one behind the other.
    SnapshotPart {
        index: u64,
        offset: u64,
        part: Bytes,
    },
    /// Install what was sent, or say how far that is. Asked again until it is done.
    SnapshotInstall {
        name: SnapshotName,
        vote: Vote,
    },
    /// Whether that node is gone for you, too.
    PeerLost {
        peer: NodeId,
    },
}

/// Names a snapshot of one node, for as long as it has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotName {
    pub(crate) index: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Append(AppendResult),
    Vote(VoteResponse),
    Transfer(Result<(), TransferLeaderError<TypeConfig>>),
    Snapshot(SnapshotAnswer),
    PeerLost(bool),
    /// The group does not run there, or cannot go on.
    Refused,
}

#[derive(Debug, Clone)]
pub(crate) enum SnapshotAnswer {
    /// The snapshot is being installed.
    Going,
    /// It is there up to this offset.
    Through {
        offset: u64,
    },
    Installed {
        vote: Vote,
    },
    /// The transfer is not known or has failed: begin again.
    Lost,
}

impl Frame {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.size_hint());
        out.put_u8(VERSION);
        out.put_u8(self.kind());
        out.put_u32(self.group.0);
        out.put_u64(self.number);
        match &self.body {
            Body::Append { sequence, request } => {
                out.put_u64(*sequence);
                put_append(&mut out, request);
            }
            Body::Appended { sequence, result } => {
                out.put_u64(*sequence);
                out.put_u8(u8::from(result.is_some()));
                if let Some(result) = result {
                    put_append_result(&mut out, result);
                }
            }
            Body::Request(request) => put_request(&mut out, request),
            Body::Answer(answer) => put_answer(&mut out, answer),
        }
        out.freeze()
    }

    fn kind(&self) -> u8 {
        match &self.body {
            Body::Append { .. } => KIND_APPEND,
            Body::Appended { .. } => KIND_APPENDED,
            Body::Request(request) => match request {
                Request::Heartbeat(_) => KIND_HEARTBEAT,
                Request::Vote(_) => KIND_VOTE,
                Request::PreVote(_) => KIND_PRE_VOTE,
                Request::Transfer(_) => KIND_TRANSFER,
                Request::SnapshotBegin { .. } => KIND_SNAPSHOT_BEGIN,
                Request::SnapshotPart { .. } => KIND_SNAPSHOT_PART,
                Request::SnapshotInstall { .. } => KIND_SNAPSHOT_INSTALL,
                Request::PeerLost { .. } => KIND_PEER_LOST,
            },
            Body::Answer(answer) => match answer {
                Answer::Append(_) => KIND_ANSWER_APPEND,
                Answer::Vote(_) => KIND_ANSWER_VOTE,
                Answer::Transfer(_) => KIND_ANSWER_TRANSFER,
                Answer::Snapshot(_) => KIND_ANSWER_SNAPSHOT,
                Answer::PeerLost(_) => KIND_ANSWER_PEER_LOST,
                Answer::Refused => KIND_REFUSED,
            },
        }
    }

    fn size_hint(&self) -> usize {
        let entries = match &self.body {
            Body::Append { request, .. } => request.entries.as_slice(),
            Body::Request(Request::SnapshotPart { part, .. }) => return 64 + part.len(),
            Body::Appended { .. } | Body::Request(_) | Body::Answer(_) => &[],
        };
        128 + entries.iter().map(|entry| 20 + entry_to_record(entry).len()).sum::<usize>()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Frame, WireError> {
        let mut reader = Reader::new(bytes, WHAT);
        reader.version(VERSION)?;
        let kind = reader.u8()?;
        let group = GroupId(reader.u32()?);
        let number = reader.u64()?;
        let body = match kind {
            KIND_APPEND => {
                Body::Append { sequence: reader.u64()?, request: read_append(&mut reader)? }
            }
            KIND_APPENDED => {
                let sequence = reader.u64()?;
                let some = reader.flag()?;
                let result = if some { Some(read_append_result(&mut reader)?) } else { None };
                Body::Appended { sequence, result }
            }
            KIND_HEARTBEAT..=KIND_SNAPSHOT_INSTALL | KIND_SNAPSHOT_BEGIN | KIND_PEER_LOST => {
                Body::Request(read_request(kind, &mut reader)?)
            }
            _ => Body::Answer(read_answer(kind, &mut reader)?),
        };
        reader.end()?;
        Ok(Frame { group, number, body })
    }
}

fn put_append(out: &mut BytesMut, request: &AppendRequest) {
    put_vote(out, &request.vote);
    put_log_id_option(out, request.prev_log_id.as_ref());
    put_log_id_option(out, request.leader_commit.as_ref());
    out.put_u32(length(request.entries.len()));
    for entry in &request.entries {
        out.put_u64(term_of(&entry.log_id));
        out.put_u64(entry.log_id.index);
        put_bytes(out, &entry_to_record(entry));
    }
}

fn read_append(reader: &mut Reader) -> Result<AppendRequest, WireError> {
    let vote = reader.vote()?;
    let prev_log_id = reader.log_id_option()?;
    let leader_commit = reader.log_id_option()?;
    let count = reader.u32()?;
    let mut entries: Vec<crate::types::Entry> = Vec::new();
    for _ in 0..count {
        let (term, index) = (reader.u64()?, reader.u64()?);
        entries.push(entry_from_parts(term, index, reader.bytes()?)?);
    }
    // openraft takes it for granted that entries follow each other and what is before them.
    let mut next = prev_log_id.map_or(0, |id: LogId| id.index.wrapping_add(1));
    for entry in &entries {
        if entry.log_id.index != next {
            return Err(reader.error());
        }
        next = next.wrapping_add(1);
    }
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

fn put_append_result(out: &mut BytesMut, result: &AppendResult) {
    match result {
        Ok(matching) => {
            out.put_u8(0);
            put_log_id_option(out, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(at)) => {
            out.put_u8(1);
            put_log_id(out, at);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(out, vote);
        }
    }
}

fn read_append_result(reader: &mut Reader) -> Result<AppendResult, WireError> {
    match reader.u8()? {
        0 => Ok(Ok(reader.log_id_option()?)),
        1 => Ok(Err(StreamAppendError::Conflict(reader.log_id()?))),
        2 => Ok(Err(StreamAppendError::HigherVote(reader.vote()?))),
        _ => Err(reader.error()),
    }
}

fn put_request(out: &mut BytesMut, request: &Request) {
    match request {
        Request::Heartbeat(request) => put_append(out, request),
        Request::Vote(request) | Request::PreVote(request) => {
            put_vote(out, &request.vote);
            put_log_id_option(out, request.last_log_id.as_ref());
            out.put_u8(u8::from(request.leadership_transfer));
        }
        Request::Transfer(request) => {
            put_vote(out, request.from_leader());
            out.put_u64(request.to_node_id().0);
            put_log_id_option(out, request.last_log_id());
        }
        Request::SnapshotBegin { name } => put_snapshot_name(out, name),
        Request::SnapshotPart { index, offset, part } => {
            out.put_u64(*index);
            out.put_u64(*offset);
            put_bytes(out, part);
        }
        Request::SnapshotInstall { name, vote } => {
            put_snapshot_name(out, name);
            put_vote(out, vote);
        }
        Request::PeerLost { peer } => out.put_u64(peer.0),
    }
}

fn read_request(kind: u8, reader: &mut Reader) -> Result<Request, WireError> {
    Ok(match kind {
        KIND_HEARTBEAT => Request::Heartbeat(read_append(reader)?),
        KIND_VOTE => Request::Vote(read_vote_request(reader)?),
        KIND_PRE_VOTE => Request::PreVote(read_vote_request(reader)?),
        KIND_TRANSFER => {
            let from = reader.vote()?;
            let to = NodeId(reader.u64()?);
            Request::Transfer(TransferLeaderRequest::new(from, to, reader.log_id_option()?))
        }
        KIND_SNAPSHOT_BEGIN => Request::SnapshotBegin { name: read_snapshot_name(reader)? },
        KIND_SNAPSHOT_PART => {
            let (index, offset) = (reader.u64()?, reader.u64()?);
            Request::SnapshotPart { index, offset, part: reader.bytes()? }
        }
        KIND_SNAPSHOT_INSTALL => {
            Request::SnapshotInstall { name: read_snapshot_name(reader)?, vote: reader.vote()? }
        }
        KIND_PEER_LOST => Request::PeerLost { peer: NodeId(reader.u64()?) },
        _ => return Err(reader.error()),
    })
}

fn put_snapshot_name(out: &mut BytesMut, name: &SnapshotName) {
    out.put_u64(name.index);
    out.put_u64(name.bytes);
}

fn read_snapshot_name(reader: &mut Reader) -> Result<SnapshotName, WireError> {
    Ok(SnapshotName { index: reader.u64()?, bytes: reader.u64()? })
}

fn read_vote_request(reader: &mut Reader) -> Result<VoteRequest, WireError> {
    let mut request = VoteRequest::new(reader.vote()?, reader.log_id_option()?);
    request.leadership_transfer = reader.flag()?;
    Ok(request)
}

fn put_answer(out: &mut BytesMut, answer: &Answer) {
    match answer {
        Answer::Append(result) => put_append_result(out, result),
        Answer::Vote(response) => {
            put_vote(out, &response.vote);
            out.put_u8(u8::from(response.vote_granted));
            put_log_id_option(out, response.last_log_id.as_ref());
        }
        Answer::Transfer(Ok(())) => out.put_u8(0),
        Answer::Transfer(Err(TransferLeaderError::VoteChanged { expected, actual })) => {
            out.put_u8(1);
            put_vote(out, expected);
            put_vote(out, actual);
        }
        Answer::Transfer(Err(TransferLeaderError::LogNotFlushed { expected, actual })) => {
            out.put_u8(2);
            put_log_id_option(out, expected.as_ref());
            put_log_id_option(out, actual.as_ref());
        }
        Answer::Snapshot(SnapshotAnswer::Going) => out.put_u8(0),
        Answer::Snapshot(SnapshotAnswer::Installed { vote }) => {
            out.put_u8(1);
            put_vote(out, vote);
        }
        Answer::Snapshot(SnapshotAnswer::Lost) => out.put_u8(2),
        Answer::Snapshot(SnapshotAnswer::Through { offset }) => {
            out.put_u8(3);
            out.put_u64(*offset);
        }
        Answer::PeerLost(lost) => out.put_u8(u8::from(*lost)),
        Answer::Refused => {}
    }
}

fn read_answer(kind: u8, reader: &mut Reader) -> Result<Answer, WireError> {
    Ok(match kind {
        KIND_ANSWER_APPEND => Answer::Append(read_append_result(reader)?),
        KIND_ANSWER_VOTE => {
            let vote = reader.vote()?;
            let granted = reader.flag()?;
            Answer::Vote(VoteResponse::new(vote, reader.log_id_option()?, granted))
        }
        KIND_ANSWER_TRANSFER => Answer::Transfer(match reader.u8()? {
            0 => Ok(()),
            1 => Err(TransferLeaderError::VoteChanged {
                expected: reader.vote()?,
                actual: reader.vote()?,
            }),
            2 => Err(TransferLeaderError::LogNotFlushed {
                expected: reader.log_id_option()?,
                actual: reader.log_id_option()?,
            }),
            _ => return Err(reader.error()),
        }),
        KIND_ANSWER_SNAPSHOT => Answer::Snapshot(match reader.u8()? {
            0 => SnapshotAnswer::Going,
            1 => SnapshotAnswer::Installed { vote: reader.vote()? },
            2 => SnapshotAnswer::Lost,
            3 => SnapshotAnswer::Through { offset: reader.u64()? },
            _ => return Err(reader.error()),
        }),
        KIND_ANSWER_PEER_LOST => Answer::PeerLost(reader.flag()?),
        KIND_REFUSED => Answer::Refused,
        _ => return Err(reader.unknown_kind(kind)),
    })
}
