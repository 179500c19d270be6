//! Kinds of faults.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL of a node, started again a little later.
    Kill,
    /// SIGKILL of so many that there is no majority.
    KillMost,
    /// SIGKILL of all at once.
    KillAll,
    /// SIGTERM, and a new start.
    Restart,
    /// SIGTERM of all nodes, one after the other.
    RollingRestart,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// A node cut off from all others.
    Partition,
    /// What a node sends is lost, or what is sent to it.
    OneWay,
    /// Two nodes that do not reach each other, while others reach both.
    Bridge,
    /// Delay and little bandwidth from and to a node.
    Slow,
    /// All connections between nodes broken at once, several times.
    Reset,
    /// Connections break again and again.
    Flaky,
    /// A node that is away for so long that it needs a snapshot.
    Away,
    /// Bits flip in the state store of a node that was killed.
    RotStore,
    /// The same in its log: it may come back under another id.
    RotLog,
    /// The same in a snapshot.
    RotSnapshot,
    /// An operator drains a node, restarts it, and lets it lead again.
    Drain,
    /// A shard's leadership is handed to another node.
    Transfer,
    /// Another node joins, some is moved to it by hand, and one that was there is removed for good.
    Swap,
    /// A node is killed and all that it kept is gone; it joins anew, and replaces what it was.
    Replace,
    /// Many timers come due in the same second; the node that leads most is killed in it.
    Storm,
    /// The power fails on all nodes at once: what was not synced is lost. With `--faulty`.
    PowerCut,
    /// A node's wall clock is wrong. With `--faulty`.
    Clock,
}

impl Kind {
    pub(crate) const ALL: &[Kind] = &[
        Kind::Kill,
        Kind::KillMost,
        Kind::KillAll,
        Kind::Restart,
        Kind::RollingRestart,
        Kind::Pause,
        Kind::Partition,
        Kind::OneWay,
        Kind::Bridge,
        Kind::Slow,
        Kind::Reset,
        Kind::Flaky,
        Kind::Away,
        Kind::RotStore,
        Kind::RotLog,
        Kind::RotSnapshot,
        Kind::Drain,
        Kind::Transfer,
        Kind::Swap,
        Kind::Replace,
        Kind::Storm,
        Kind::PowerCut,
        Kind::Clock,
    ];

    /// Whether it takes the node's shards away from it, so that there is a failover to measure.
    pub(crate) fn fails_over(self) -> bool {
        matches!(self, Self::Kill | Self::Restart | Self::Pause | Self::Partition | Self::Away)
    }

    /// Whether it takes nodes whose disks and clocks can be made to fail.
    pub(crate) fn needs_faulty(self) -> bool {
        matches!(self, Self::PowerCut | Self::Clock)
    }

    /// Whether an operator means to do it, so that clients are to notice nothing.
    pub(crate) fn is_planned(self) -> bool {
        matches!(self, Self::Restart | Self::RollingRestart | Self::Drain | Self::Transfer)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}

/// Kinds of faults, by commas.
#[derive(Clone, Debug)]
pub(crate) struct Kinds(pub(crate) Vec<Kind>);

impl Kinds {
    /// Those that nodes of the shipped binary can have.
    pub(crate) fn without_faulty(&self) -> Self {
        Self(self.0.iter().copied().filter(|kind| !kind.needs_faulty()).collect())
    }

    /// Whether nothing is to happen but what an operator means to do.
    pub(crate) fn are_planned(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|kind| kind.is_planned())
    }
}

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self(Kind::ALL.to_vec())),
            "none" => Ok(Self(Vec::new())),
            _ => text
                .split(',')
                .map(|name| Kind::from_str(name, false))
                .collect::<Result<_, _>>()
                .map(Self),
        }
    }
}
