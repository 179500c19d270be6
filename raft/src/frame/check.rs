//! What a frame may say, beyond what its bytes must be: openraft takes it for granted of its peers,
//! and ends its group where it is not so. A frame that says something else is dropped like one that
//! does not decode.

use super::{Body, Frame, Request};
use crate::config::NodeId;
use crate::types::{AppendRequest, AppendResult, LogId, Vote, VoteRequest, VoteResponse, term_of};

/// Terms end long before numbers do, so that there is always a next one.
const TERM_MAX: u64 = 1 << 62;

impl Frame {
    /// Whether a node may say that.
    pub(crate) fn may_come_from(&self, from: NodeId) -> bool {
        match &self.body {
            Body::Append { request, .. } | Body::Request(Request::Heartbeat(request)) => {
                is_from_leader(&request.vote, from) && is_in_order(request)
            }
            Body::Request(Request::Vote(request) | Request::PreVote(request)) => {
                is_from_candidate(request, from)
            }
            Body::Request(Request::Transfer(request)) => {
                is_from_leader(request.from_leader(), from)
                    && is_within(request.last_log_id(), request.from_leader())
            }
            Body::Request(Request::SnapshotInstall { vote, .. }) => is_from_leader(vote, from),
            // What is answered is checked by who asked, and knows the question.
            Body::Request(
                Request::SnapshotBegin { .. }
                | Request::SnapshotPart { .. }
                | Request::PeerLost { .. },
            )
            | Body::Appended { .. }
            | Body::Answer(_) => true,
        }
    }
}

/// A leader speaks for itself, once its vote is committed.
fn is_from_leader(vote: &Vote, from: NodeId) -> bool {
    vote.committed && vote.leader_id.voted_for == from && vote.leader_id.term < TERM_MAX
}

fn is_from_candidate(request: &VoteRequest, from: NodeId) -> bool {
    let vote = &request.vote;
    !vote.committed
        && vote.leader_id.voted_for == from
        && vote.leader_id.term < TERM_MAX
        && is_within(request.last_log_id.as_ref(), vote)
}

/// Nobody has an entry of a later term than its own.
fn is_within(id: Option<&LogId>, vote: &Vote) -> bool {
    id.is_none_or(|id| term_of(id) <= vote.leader_id.term)
}

/// Terms do not fall along a log, and end with the leader's.
fn is_in_order(request: &AppendRequest) -> bool {
    let mut last = request.prev_log_id.as_ref();
    for id in request.entries.iter().map(|entry| &entry.log_id) {
        if last.is_some_and(|last| term_of(last) > term_of(id)) {
            return false;
        }
        last = Some(id);
    }
    is_within(last, &request.vote) && is_within(request.leader_commit.as_ref(), &request.vote)
}

/// Whether a follower may answer so to the leader `asked_by`, which sent entries from behind `prev`
/// up to `last`.
pub(crate) fn is_append_answer(
    result: &AppendResult,
    asked_by: NodeId,
    prev: Option<LogId>,
    last: Option<LogId>,
) -> bool {
    use openraft::raft::StreamAppendError::{Conflict, HigherVote};
    match result {
        Ok(matching) => *matching == last,
        Err(Conflict(at)) => Some(*at) == prev,
        Err(HigherVote(vote)) => is_of_another(vote, asked_by),
    }
}

/// Whether that may answer the candidate's request.
pub(crate) fn is_vote_answer(response: &VoteResponse, request: &VoteRequest) -> bool {
    let candidate = request.vote.leader_id.voted_for;
    response.vote == request.vote
        || response.vote.leader_id.term < request.vote.leader_id.term
        || is_of_another(&response.vote, candidate)
}

/// Whether a vote is one that can keep this node from leading: of somebody else, in a term that has a
/// next one. Its own votes it knows better.
pub(crate) fn is_of_another(vote: &Vote, asked_by: NodeId) -> bool {
    vote.leader_id.voted_for != asked_by && vote.leader_id.term < TERM_MAX
}
