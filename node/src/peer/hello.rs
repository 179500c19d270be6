//! What both sides say before anything else, and why one is sent away. Protobuf, so that a later
//! release can say more: what is not known is skipped.
//!
//! ```text
//! | "PITONPR1" | length: u32, little endian | Hello |      from the side that dialled
//! | "PITONPR1" | length: u32, little endian | Welcome |    from the side that was called
//! ```

use std::io;
use std::ops::RangeInclusive;

use bytes::BufMut;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use piton_raft::NodeId;

use super::lane::PeerLane;

const MAGIC: &[u8; 8] = b"PITONPR1";
/// Far more than a hello takes: names and numbers.
const HELLO_BYTES_MAX: usize = 4 << 10;

/// Versions of what is spoken behind the handshake.
pub(super) const VERSIONS: RangeInclusive<u32> = 1..=1;

/// Who calls, and what for.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(super) lowest_version: u32,
    #[prost(uint32, tag = "2")]
    pub(super) highest_version: u32,
    /// Empty from a stranger.
    #[prost(string, tag = "3")]
    pub(super) cluster: String,
    #[prost(fixed64, tag = "4")]
    pub(super) node: u64,
    /// Who is expected at this address; 0 from a stranger.
    #[prost(fixed64, tag = "5")]
    pub(super) target: u64,
    /// Drawn when the process started.
    #[prost(fixed64, tag = "6")]
    pub(super) incarnation: u64,
    /// Grows with each connection of a process.
    #[prost(uint64, tag = "7")]
    pub(super) epoch: u64,
    #[prost(uint32, tag = "8")]
    pub(super) lane: u32,
    #[prost(uint32, tag = "9")]
    pub(super) feature_level: u32,
    #[prost(fixed64, tag = "10")]
    pub(super) unix_nanos: u64,
    /// A node that wants to join, and knows neither the cluster nor whom it has called.
    #[prost(bool, tag = "11")]
    pub(super) stranger: bool,
    /// Where the caller's process is reached. It may have moved since the cluster recorded it.
    #[prost(string, tag = "12")]
    pub(super) address: String,
}

/// What is said to it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Welcome {
    /// What will be spoken.
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(string, tag = "2")]
    pub(super) cluster: String,
    #[prost(fixed64, tag = "3")]
    pub(super) node: u64,
    #[prost(uint32, tag = "4")]
    pub(super) feature_level: u32,
    #[prost(fixed64, tag = "5")]
    pub(super) unix_nanos: u64,
    /// Why the connection is refused, in words; empty where it is not.
    #[prost(string, tag = "6")]
    pub(super) refusal: String,
    /// The same as a name that does not change.
    #[prost(string, tag = "7")]
    pub(super) refusal_kind: String,
}

/// Why a node is sent away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "node {node} speaks versions {lowest} to {highest} of the peer protocol, and node {here} \
         {} to {}: upgrade the older one", VERSIONS.start(), VERSIONS.end()
    )]
    Version { node: NodeId, lowest: u32, highest: u32, here: NodeId },
    #[error(
        "node {node} belongs to cluster {theirs}, and node {here} to cluster {ours}: one of them has \
         the other cluster's address or certificates"
    )]
    OtherCluster { node: NodeId, theirs: String, here: NodeId, ours: String },
    #[error(
        "node {node} expected node {expected} at this address, and it is node {here}: the address \
         was given to another node"
    )]
    OtherNode { node: NodeId, expected: NodeId, here: NodeId },
    #[error("node {node} called itself: its own address is given for another node")]
    Itself { node: NodeId },
    #[error("node {node} is not known to node {here} as a member of the cluster: has it joined?")]
    NotMember { node: NodeId, here: NodeId },
    #[error(
        "node {node} was removed from the cluster; to come back, it joins as another node: start it \
         with --join and an empty data directory"
    )]
    Removed { node: NodeId },
    #[error(
        "another process of node {node} has started since: two processes run with the same node id, \
         perhaps on copies of one data directory"
    )]
    OlderProcess { node: NodeId },
    #[error("node {node} has made a newer connection for {lane} since")]
    OlderConnection { node: NodeId, lane: PeerLane },
    #[error("node {node} asks for lane {lane}, which is not known here")]
    UnknownLane { node: NodeId, lane: u32 },
    #[error("a node that wants to join may only ask for that")]
    StrangerLane,
    #[error("too many nodes want to join at once; try again")]
    TooManyStrangers,
}

impl Refusal {
    pub(super) const NOT_MEMBER: &str = "not_member";
    pub(super) const REMOVED: &str = "removed";

    /// A name that does not change.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::OtherCluster { .. } => "other_cluster",
            Self::OtherNode { .. } => "other_node",
            Self::Itself { .. } => "itself",
            Self::NotMember { .. } => Self::NOT_MEMBER,
            Self::Removed { .. } => Self::REMOVED,
            Self::OlderProcess { .. } => "older_process",
            Self::OlderConnection { .. } => "older_connection",
            Self::UnknownLane { .. } => "unknown_lane",
            Self::StrangerLane => "stranger_lane",
            Self::TooManyStrangers => "too_many_strangers",
        }
    }
}

/// Who answers, as far as a handshake goes.
#[derive(Clone, Debug)]
pub(super) struct Here {
    pub(super) node: NodeId,
    pub(super) cluster: String,
    /// Where others reach it.
    pub(super) address: String,
}

impl Hello {
    pub(super) fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Checks all that does not depend on what went before, and says which version will be spoken.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub(super) fn check(&self, here: &Here) -> Result<(u32, PeerLane), Refusal> {
        let node = self.node();
        let (lowest, highest) = (self.lowest_version, self.highest_version);
        let version = highest.min(*VERSIONS.end());
        if version < lowest.max(*VERSIONS.start()) {
            return Err(Refusal::Version { node, lowest, highest, here: here.node });
        }
        let lane = PeerLane::of_number(self.lane);
        let lane = lane.ok_or(Refusal::UnknownLane { node, lane: self.lane })?;
        if self.stranger {
            return if lane == PeerLane::Calls {
                Ok((version, lane))
            } else {
                Err(Refusal::StrangerLane)
            };
        }
        if self.cluster != here.cluster {
            let (theirs, ours) = (self.cluster.clone(), here.cluster.clone());
            return Err(Refusal::OtherCluster { node, theirs, here: here.node, ours });
        }
        if node == here.node {
            return Err(Refusal::Itself { node });
        }
        if self.target != here.node.0 {
            let expected = NodeId(self.target);
            return Err(Refusal::OtherNode { node, expected, here: here.node });
        }
        Ok((version, lane))
    }
}

/// Why a handshake could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(
        "what came is not the peer protocol: another kind of server or client is there, or one side \
         uses TLS and the other does not"
    )]
    OtherProtocol,
    #[error("a handshake of {0} bytes was announced, and {HELLO_BYTES_MAX} is the most")]
    TooLong(usize),
    #[error("the handshake is damaged")]
    Damaged(#[from] prost::DecodeError),
}

/// Writes one side's part.
///
/// # Errors
/// When the connection broke.
pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(256);
    bytes.put_slice(MAGIC);
    let length = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
    bytes.put_u32_le(length);
    bytes.extend_from_slice(&message.encode_to_vec());
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Reads the other side's part, and not a byte more.
///
/// # Errors
/// When it is none.
pub(super) async fn read<M: Message + Default>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<M, HelloError> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).await?;
    if &magic != MAGIC {
        return Err(HelloError::OtherProtocol);
    }
    let length = from.read_u32_le().await? as usize;
    // ORDER: before any room is made for it.
    if length > HELLO_BYTES_MAX {
        return Err(HelloError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(M::decode(bytes.as_slice())?)
}
