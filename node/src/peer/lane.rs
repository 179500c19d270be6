//! The four lanes between two nodes. Each has a connection of its own, so that none waits behind
//! another's bytes; [`piton_raft::Lane`] knows the three that Raft uses.

use piton_raft::Lane;

/// Which connection something goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerLane {
    /// Raft's heartbeats and votes, and the pings that tell if the peer is there.
    Urgent,
    /// Raft's entries and their acknowledgements.
    Entries,
    /// Raft's snapshots.
    Bulk,
    /// Requests between shards, and their answers.
    Calls,
}

impl PeerLane {
    pub const ALL: [PeerLane; 4] = [Self::Urgent, Self::Entries, Self::Bulk, Self::Calls];

    /// As it stands in a handshake, and as an index into what is kept by lane.
    pub(super) fn number(self) -> usize {
        self as usize
    }

    pub(super) fn of_number(number: u32) -> Option<PeerLane> {
        Self::ALL.into_iter().find(|lane| lane.number() as u32 == number)
    }

    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Entries => "entries",
            Self::Bulk => "bulk",
            Self::Calls => "calls",
        }
    }

    /// The largest frame, which both sides must agree on: a longer one ends its connection. Far
    /// above what is sent on purpose: 4 MiB of entries and one too many, a snapshot's part of 1 MiB,
    /// an answer of 4 MiB.
    pub fn frame_bytes_max(self) -> usize {
        match self {
            Self::Urgent => 256 << 10,
            Self::Entries | Self::Calls => 32 << 20,
            Self::Bulk => 8 << 20,
        }
    }

    /// What is read at once. Small frames arrive by the hundred in one read.
    pub(super) fn read_bytes(self) -> usize {
        match self {
            Self::Urgent => 16 << 10,
            Self::Entries | Self::Bulk => 256 << 10,
            Self::Calls => 64 << 10,
        }
    }
}

impl From<Lane> for PeerLane {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Urgent => Self::Urgent,
            Lane::Entries => Self::Entries,
            Lane::Bulk => Self::Bulk,
        }
    }
}

impl std::fmt::Display for PeerLane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
