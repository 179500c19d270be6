//! How log ids, votes, memberships and entries lie in bytes: in the log, in marks, in snapshots and
//! in frames. Big endian, fixed width. Decoding never panics and never allocates more than the
//! input is long.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EmptyNode;
use piton_store::Mark;

use crate::config::NodeId;
use crate::log::EntryRecord;
use crate::types::{
    Entry, LogId, Membership, Payload, Proposal, RECORD_BLANK, RECORD_MEMBERSHIP, RECORD_PROPOSAL,
    StoredMembership, Vote, log_id, term_of,
};

/// Indices end long before numbers do, so that there is always a next one.
pub(crate) const INDEX_MAX: u64 = 1 << 62;

/// The version byte of marks.
const MARK_VERSION: u8 = 1;

/// Bytes that are not what we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("decode {what}: the bytes do not fit")]
    Misfit { what: &'static str },
    #[error("decode {what} of version {found}: this release knows versions up to {known}")]
    Version { what: &'static str, found: u8, known: u8 },
    #[error("decode {what} of kind {found}: this release does not know it")]
    Kind { what: &'static str, found: u8 },
}

/// Takes values off the front of a byte string.
pub(crate) struct Reader {
    bytes: Bytes,
    what: &'static str,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes, what: &'static str) -> Reader {
        Reader { bytes, what }
    }

    pub(crate) fn error(&self) -> WireError {
        WireError::Misfit { what: self.what }
    }

    /// The version byte; only `known` can be read.
    pub(crate) fn version(&mut self, known: u8) -> Result<(), WireError> {
        match self.u8()? {
            found if found == known => Ok(()),
            found => Err(WireError::Version { what: self.what, found, known }),
        }
    }

    /// The error of a kind that is none of ours.
    pub(crate) fn unknown_kind(&self, found: u8) -> WireError {
        WireError::Kind { what: self.what, found }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.bytes.try_get_u8().map_err(|_| self.error())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.bytes.try_get_u32().map_err(|_| self.error())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.bytes.try_get_u64().map_err(|_| self.error())
    }

    pub(crate) fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.error()),
        }
    }

    /// A byte string with its length before it.
    pub(crate) fn bytes(&mut self) -> Result<Bytes, WireError> {
        let length = self.u32()? as usize;
        if length > self.bytes.len() {
            return Err(self.error());
        }
        Ok(self.bytes.split_to(length))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.error()) }
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, WireError> {
        let (term, index) = (self.u64()?, self.u64()?);
        if index < INDEX_MAX { Ok(log_id(term, index)) } else { Err(self.error()) }
    }

    pub(crate) fn log_id_option(&mut self) -> Result<Option<LogId>, WireError> {
        if self.flag()? { Ok(Some(self.log_id()?)) } else { Ok(None) }
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, WireError> {
        let term = self.u64()?;
        let node = NodeId(self.u64()?);
        let committed = self.flag()?;
        Ok(if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) })
    }

    fn nodes(&mut self) -> Result<BTreeSet<NodeId>, WireError> {
        let count = self.u32()?;
        let mut nodes = BTreeSet::new();
        for _ in 0..count {
            nodes.insert(NodeId(self.u64()?));
        }
        Ok(nodes)
    }

    pub(crate) fn membership(&mut self) -> Result<Membership, WireError> {
        let count = self.u32()?;
        let mut configs = Vec::new();
        for _ in 0..count {
            configs.push(self.nodes()?);
        }
        let nodes: BTreeMap<NodeId, EmptyNode> =
            self.nodes()?.into_iter().map(|node| (node, EmptyNode {})).collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        // With no set of voters every set of nodes would be a quorum. An empty set openraft refuses.
        if configs.is_empty() {
            return Err(self.error());
        }
        Membership::new(configs, nodes).map_err(|_| self.error())
    }
}

pub(crate) fn put_log_id(out: &mut BytesMut, id: &LogId) {
    out.put_u64(term_of(id));
    out.put_u64(id.index);
}

pub(crate) fn put_log_id_option(out: &mut BytesMut, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

pub(crate) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.voted_for.0);
    out.put_u8(u8::from(vote.committed));
}

pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(length(bytes.len()));
    out.put_slice(bytes);
}

/// Lengths are bounded far below 4 GiB by the limits of entries, frames and snapshot blocks.
pub(crate) fn length(length: usize) -> u32 {
    u32::try_from(length).expect("entries, frames and blocks are bounded below 4 GiB")
}

fn put_nodes(out: &mut BytesMut, nodes: impl ExactSizeIterator<Item = NodeId>) {
    out.put_u32(length(nodes.len()));
    for node in nodes {
        out.put_u64(node.0);
    }
}

pub(crate) fn put_membership(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.put_u32(length(configs.len()));
    for config in configs {
        put_nodes(out, config.iter().copied());
    }
    let nodes: Vec<NodeId> = membership.nodes().map(|(node, _)| *node).collect();
    put_nodes(out, nodes.into_iter());
}

pub(crate) fn vote_to_bytes(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    put_vote(&mut out, vote);
    out.freeze()
}

pub(crate) fn vote_from_bytes(bytes: Bytes) -> Result<Vote, WireError> {
    let mut reader = Reader::new(bytes, "a vote");
    let vote = reader.vote()?;
    reader.end()?;
    Ok(vote)
}

pub(crate) fn log_id_to_bytes(id: &LogId) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    put_log_id(&mut out, id);
    out.freeze()
}

pub(crate) fn log_id_from_bytes(bytes: Bytes) -> Result<LogId, WireError> {
    let mut reader = Reader::new(bytes, "a log id");
    let id = reader.log_id()?;
    reader.end()?;
    Ok(id)
}

/// The part of an entry that the log and the wire carry beside its term and index.
pub(crate) fn entry_to_record(entry: &Entry) -> Bytes {
    match &entry.payload {
        Payload::Blank => Bytes::from_static(&[RECORD_BLANK]),
        Payload::Normal(proposal) => proposal.record().clone(),
        Payload::Membership(membership) => {
            let mut out = BytesMut::new();
            out.put_u8(RECORD_MEMBERSHIP);
            put_membership(&mut out, membership);
            out.freeze()
        }
    }
}

pub(crate) fn entry_from_parts(term: u64, index: u64, record: Bytes) -> Result<Entry, WireError> {
    let what = "an entry";
    let payload = match record.first() {
        Some(&RECORD_PROPOSAL) => Payload::Normal(Proposal::from_record(record)),
        Some(&RECORD_BLANK) if record.len() == 1 => Payload::Blank,
        Some(&RECORD_MEMBERSHIP) => {
            let mut reader = Reader::new(record.slice(1..), what);
            let membership = reader.membership()?;
            reader.end()?;
            Payload::Membership(membership)
        }
        Some(&found) if found > RECORD_MEMBERSHIP => return Err(WireError::Kind { what, found }),
        _ => return Err(WireError::Misfit { what }),
    };
    Ok(Entry { log_id: log_id(term, index), payload })
}

pub(crate) fn entry_from_log(record: EntryRecord) -> Result<Entry, WireError> {
    entry_from_parts(record.term, record.index, record.bytes)
}

/// What the adapter keeps with a replica's state: the applied log id and the membership.
pub(crate) fn mark(applied: &LogId, membership: &StoredMembership) -> Mark {
    let mut out = BytesMut::new();
    out.put_u8(MARK_VERSION);
    out.put_u64(term_of(applied));
    put_log_id_option(&mut out, membership.log_id().as_ref());
    put_membership(&mut out, membership.membership());
    Mark { index: applied.index, bytes: out.freeze() }
}

pub(crate) fn mark_parts(mark: &Mark) -> Result<(LogId, StoredMembership), WireError> {
    let mut reader = Reader::new(mark.bytes.clone(), "a mark");
    reader.version(MARK_VERSION)?;
    if mark.index >= INDEX_MAX {
        return Err(reader.error());
    }
    let applied = log_id(reader.u64()?, mark.index);
    let membership_id = reader.log_id_option()?;
    let membership = reader.membership()?;
    reader.end()?;
    Ok((applied, StoredMembership::new(membership_id, membership)))
}
