//! Frames and marks survive their encoding, and damaged ones are refused without harm.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{StreamAppendError, TransferLeaderError, TransferLeaderRequest};

use crate::config::NodeId;
use crate::frame::{Answer, Body, Frame, Request, SnapshotAnswer, SnapshotName};
use crate::log::GroupId;
use crate::types::{
    AppendRequest, Entry, Membership, Payload, Proposal, StoredMembership, Vote, VoteRequest,
    VoteResponse, log_id,
};
use crate::wire;
use piton_store::golden::Golden;

const GOLDEN: &str = include_str!("../testdata/records.txt");

/// What the frames of [`frames`] are called in the file of golden bytes, in order.
const NAMES: [&str; 25] = [
    "append",
    "session over",
    "appended",
    "heartbeat",
    "vote",
    "pre-vote",
    "transfer",
    "snapshot part",
    "snapshot install",
    "snapshot begin",
    "peer lost",
    "answer, nothing matches",
    "answer, matches",
    "answer, conflict",
    "answer, higher vote",
    "answer, vote",
    "answer, transfer",
    "answer, vote changed",
    "answer, not flushed",
    "answer, snapshot going",
    "answer, snapshot installed",
    "answer, snapshot lost",
    "answer, snapshot through",
    "answer, peer lost",
    "refused",
];

fn membership() -> Membership {
    let joint = vec![BTreeSet::from([NodeId(1), NodeId(2)]), BTreeSet::from([NodeId(2)])];
    Membership::new_with_defaults(joint, [NodeId(9)])
}

fn append() -> AppendRequest {
    let payloads = [
        Payload::Blank,
        Payload::Normal(Proposal::new(b"some payload")),
        Payload::Normal(Proposal::new(b"")),
        Payload::Membership(membership()),
    ];
    let entries = (8..).zip(payloads);
    AppendRequest {
        vote: Vote::new_committed(5, NodeId(2)),
        prev_log_id: Some(log_id(4, 7)),
        entries: entries
            .map(|(index, payload)| Entry { log_id: log_id(5, index), payload })
            .collect(),
        leader_commit: Some(log_id(4, 6)),
    }
}

fn bodies() -> Vec<Body> {
    let vote = Vote::new(7, NodeId(3));
    let first = AppendRequest { prev_log_id: None, entries: Vec::new(), ..append() };
    let mut vote_request = VoteRequest::new(vote, Some(log_id(4, 7)));
    vote_request.leadership_transfer = true;
    let transfer = TransferLeaderRequest::new(vote, NodeId(4), None);
    let changed = TransferLeaderError::VoteChanged { expected: vote, actual: vote };
    let unflushed = TransferLeaderError::LogNotFlushed { expected: None, actual: None };
    let name = SnapshotName { index: 8, bytes: 13 };
    let requests = [
        Request::Heartbeat(first),
        Request::Vote(vote_request.clone()),
        Request::PreVote(vote_request),
        Request::Transfer(transfer),
        Request::SnapshotPart { index: 8, offset: 9, part: Bytes::from_static(b"part") },
        Request::SnapshotInstall { name, vote },
        Request::SnapshotBegin { name },
        Request::PeerLost { peer: NodeId(5) },
    ];
    let answers = [
        Answer::Append(Ok(None)),
        Answer::Append(Ok(Some(log_id(1, 2)))),
        Answer::Append(Err(StreamAppendError::Conflict(log_id(1, 2)))),
        Answer::Append(Err(StreamAppendError::HigherVote(vote))),
        Answer::Vote(VoteResponse::new(vote, Some(log_id(1, 2)), true)),
        Answer::Transfer(Ok(())),
        Answer::Transfer(Err(changed)),
        Answer::Transfer(Err(unflushed)),
        Answer::Snapshot(SnapshotAnswer::Going),
        Answer::Snapshot(SnapshotAnswer::Installed { vote }),
        Answer::Snapshot(SnapshotAnswer::Lost),
        Answer::Snapshot(SnapshotAnswer::Through { offset: 9 }),
        Answer::PeerLost(true),
        Answer::Refused,
    ];
    let mut bodies = vec![
        Body::Append { sequence: 6, request: append() },
        Body::Appended { sequence: 6, result: None },
        Body::Appended { sequence: 6, result: Some(Ok(Some(log_id(1, 2)))) },
    ];
    bodies.extend(requests.map(Body::Request));
    bodies.extend(answers.map(Body::Answer));
    bodies
}

pub(crate) fn frames() -> Vec<Frame> {
    let frame = |body| Frame { group: GroupId(11), number: u64::MAX - 1, body };
    bodies().into_iter().map(frame).collect()
}

#[test]
fn every_frame_decodes_to_what_was_encoded() {
    for frame in frames() {
        let decoded = Frame::decode(frame.encode()).expect("decode");
        // Payloads show their length only; encoding again shows the bytes, too.
        assert_eq!(format!("{decoded:?}"), format!("{frame:?}"));
        assert_eq!(decoded.encode(), frame.encode());
    }
}

#[test]
fn frames_are_encoded_as_ever_and_read() {
    let mut golden = Golden::of(GOLDEN);
    let frames = frames();
    assert_eq!(frames.len(), NAMES.len());
    for (name, frame) in NAMES.iter().zip(&frames) {
        let name = format!("a frame, {name} (version 1)");
        golden.bytes(&name, &frame.encode());
        let Some(written) = golden.get(&name) else { continue };
        let read = Frame::decode(written.into()).expect(&name);
        assert_eq!(format!("{read:?}"), format!("{frame:?}"));
    }
    golden.finish();
}

#[test]
fn what_log_and_store_keep_of_raft_is_encoded_as_ever_and_read() {
    let mut golden = Golden::of(GOLDEN);
    let names = ["a vote", "a log id", "a blank entry", "a proposal", "an empty proposal"];
    let names = names.iter().chain(&["a membership", "a mark (version 1)"]);
    let samples = wire_samples();
    assert_eq!(samples.len(), names.clone().count());
    for (name, bytes) in names.zip(&samples) {
        golden.bytes(name, bytes);
        let written = Bytes::from(golden.get(name).unwrap_or_else(|| bytes.clone()));
        let is_read = match *name {
            "a vote" => wire::vote_from_bytes(written).is_ok(),
            "a log id" => wire::log_id_from_bytes(written).is_ok(),
            "a mark (version 1)" => {
                wire::mark_parts(&piton_store::Mark { index: 4, bytes: written }).is_ok()
            }
            _ => wire::entry_from_parts(5, 8, written).is_ok(),
        };
        assert!(is_read, "{name}");
    }
    golden.finish();
}

#[test]
fn what_a_newer_release_sends_is_refused_by_version_or_kind() {
    let altered = |bytes: &[u8], at: usize, value: u8| {
        let mut altered = BytesMut::from(bytes);
        altered[at] = value;
        altered.freeze()
    };
    let whole = frames().remove(0).encode();
    let refused = |at, value| Frame::decode(altered(&whole, at, value)).expect_err("newer");
    let newer = refused(0, 2).to_string();
    assert_eq!(newer, "decode a frame of version 2: this release knows versions up to 1");
    let kind = refused(1, 17).to_string();
    assert_eq!(kind, "decode a frame of kind 17: this release does not know it");
    let mark = altered(wire_samples().last().expect("a mark"), 0, 2);
    let mark = wire::mark_parts(&piton_store::Mark { index: 4, bytes: mark }).expect_err("newer");
    assert_eq!(mark.to_string(), "decode a mark of version 2: this release knows versions up to 1");
    let mut entry = BytesMut::new();
    entry.put_u8(3);
    let entry = wire::entry_from_parts(5, 8, entry.freeze()).expect_err("newer").to_string();
    assert_eq!(entry, "decode an entry of kind 3: this release does not know it");
}

#[test]
fn frame_cut_short_or_followed_by_more_is_refused() {
    for frame in frames() {
        let whole = frame.encode();
        for length in 0..whole.len() {
            assert!(Frame::decode(whole.slice(..length)).is_err(), "{frame:?} cut to {length}");
        }
        let longer = Bytes::from([&whole[..], &[0]].concat());
        assert!(Frame::decode(longer).is_err(), "{frame:?}");
    }
}

#[test]
fn entries_that_do_not_follow_each_other_are_refused() {
    let mut request = append();
    request.entries.remove(1);
    let frame = Frame { group: GroupId(1), number: 1, body: Body::Append { sequence: 0, request } };
    assert!(Frame::decode(frame.encode()).is_err());
}

/// A vote, a log id, entries, and at last a mark.
pub(crate) fn wire_samples() -> Vec<Vec<u8>> {
    let entries = append().entries;
    let mut samples = vec![
        wire::vote_to_bytes(&Vote::new_committed(5, NodeId(2))),
        wire::log_id_to_bytes(&log_id(5, 8)),
    ];
    samples.extend(entries.iter().map(wire::entry_to_record));
    let membership = StoredMembership::new(Some(log_id(1, 2)), membership());
    samples.push(wire::mark(&log_id(3, 4), &membership).bytes);
    samples.iter().map(|bytes| bytes.to_vec()).collect()
}

/// Goal: of no set of voters, or of an empty one, every set of nodes would be a quorum.
#[test]
fn a_membership_of_nodes_without_a_set_of_voters_is_refused() {
    let entry = |sets: &[&[u64]]| {
        let mut record = BytesMut::new();
        record.put_u8(2);
        record.put_u32(sets.len() as u32);
        for nodes in sets.iter().chain(&[&[1, 2][..]]) {
            record.put_u32(nodes.len() as u32);
            nodes.iter().for_each(|node| record.put_u64(*node));
        }
        wire::entry_from_parts(5, 8, record.freeze())
    };
    entry(&[&[1, 2]]).expect("two voters");
    for sets in [&[][..], &[&[][..]], &[&[1], &[]]] {
        let refused = entry(sets).expect_err("it has no voters").to_string();
        assert_eq!(refused, "decode an entry: the bytes do not fit");
    }
}

#[test]
fn mark_carries_the_applied_id_and_the_membership() {
    let membership = StoredMembership::new(Some(log_id(1, 2)), membership());
    let mark = wire::mark(&log_id(3, 4), &membership);
    assert_eq!(mark.index, 4);
    assert_eq!(wire::mark_parts(&mark).expect("decode"), (log_id(3, 4), membership));
    let empty = wire::mark(&log_id(0, 0), &StoredMembership::default());
    let parts = wire::mark_parts(&empty).expect("decode");
    assert_eq!(parts, (log_id(0, 0), StoredMembership::default()));
}
