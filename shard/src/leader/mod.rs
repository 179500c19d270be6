//! A leader's duties in one term: dispatch, offers, matching, timers, errands, recovery, reads.
//!
//! `runtime` holds a term's parts, which know nothing of each other (`hosting`, `queues`, `wakeups`,
//! `errand_lines`); the other files do something with them.

pub(crate) mod child_start;
pub(crate) mod dispatch;
pub(crate) mod errand_lines;
pub(crate) mod hosting;
pub(crate) mod mailbox;
pub(crate) mod matching;
pub(crate) mod offers;
pub(crate) mod outbox;
pub(crate) mod panics;
pub(crate) mod queues;
pub(crate) mod reads;
pub(crate) mod recovery;
pub(crate) mod runtime;
pub(crate) mod sweep;
pub(crate) mod term;
pub(crate) mod timers;
pub(crate) mod wakeups;
