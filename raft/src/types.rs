//! openraft, told what this crate's terms, votes and entries are. Nothing of it leaves the crate.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::impls::leader_id_std;
use openraft::{EmptyNode, EntryPayload, LogId as OpenraftLogId};
use serde::{Deserialize, Serialize};

use crate::config::NodeId;
use crate::runtime::Runtime;
use crate::state_machine::StateMachine;

openraft::declare_raft_types!(
    /// One leader per term (`leader_id_std`): a term names its leader, so an entry needs no more
    /// than its term to be told from any other.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Bytes,
        NodeId = NodeId,
        Node = EmptyNode,
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, NodeId>,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type DataMetrics = openraft::metrics::RaftDataMetrics<TypeConfig>;
pub(crate) type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;
type CommittedLeader = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type LogId = OpenraftLogId<CommittedLeader>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<NodeId, EmptyNode>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResult = openraft::raft::StreamAppendResult<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeader::new(term), index)
}

pub(crate) fn term_of(id: &LogId) -> u64 {
    id.leader_id.term
}

/// First byte of an entry's record in the log and on the wire.
pub(crate) const RECORD_BLANK: u8 = 0;
pub(crate) const RECORD_PROPOSAL: u8 = 1;
pub(crate) const RECORD_MEMBERSHIP: u8 = 2;

/// A proposed entry as it lies in the log: the record's first byte and then what was proposed.
/// Made once; log, wire and replica share the same bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    record: Bytes,
}

impl Proposal {
    pub(crate) fn new(payload: &[u8]) -> Proposal {
        let mut record = BytesMut::with_capacity(payload.len() + 1);
        record.put_u8(RECORD_PROPOSAL);
        record.put_slice(payload);
        Proposal { record: record.freeze() }
    }

    /// Takes back what [`Proposal::record`] gave; the caller has seen the first byte.
    pub(crate) fn from_record(record: Bytes) -> Proposal {
        Proposal { record }
    }

    pub(crate) fn record(&self) -> &Bytes {
        &self.record
    }

    pub(crate) fn payload(&self) -> Bytes {
        self.record.slice(1..)
    }
}

// Payloads are the users' data: neither form shows them.
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.record.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.record.len())
    }
}

/// The payload of an entry: nothing, a proposal, or a membership.
pub(crate) type Payload = EntryPayload<Proposal, NodeId, EmptyNode>;
