//! A leader's duties in one term: dispatch, offers, matching, timers, outbox, recovery, reads.

pub(crate) mod child_start;
pub(crate) mod mailbox;
pub(crate) mod matching;
pub(crate) mod outbox;
pub(crate) mod panics;
pub(crate) mod reads;
pub(crate) mod recovery;
pub(crate) mod term;
pub(crate) mod timers;
