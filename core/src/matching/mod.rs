//! What waits at one task queue, and who meets whom (D8). A function of values: the
//! owner's actor hands in what it is told and `now`, and carries out what it gets back.
//!
//! The window is the part of the backlog that is in memory: of each lane (one shard's tasks of one
//! class) its first tasks. A lane of which more stands in its shard's rows is *cut*; it takes
//! nothing behind its last task until its shard, asked by [`Matching::wants`], offers it anew. So
//! each shard's first task of each class is here, and the order across shards is exact, but for the
//! time that a shard takes to answer.

mod backlog;
mod polls;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::ShardId;
use crate::proto::common::WorkerVersionStamp;
use crate::time::{Span, Timestamp};

use backlog::Backlog;
use polls::Polls;

/// Tasks that are equal before all others of their queue: within a class the oldest goes first.
/// Ordered by priority first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Class {
    /// 1 (first) to 5.
    pub priority: u8,
    /// The version of the worker that must take it; empty: any that names none.
    pub version: Arc<str>,
    /// Keys of one priority take turns; empty for tasks that name none.
    pub fairness_key: Arc<str>,
}

/// A task seeks a worker. Tasks with the same id are the same task, unless one was created later: then the
/// other is of a commit that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task<T> {
    pub id: T,
    /// The shard that the task stands in.
    pub origin: ShardId,
    pub class: Class,
    /// How far its key's turn moves on when it is taken; see [`stride`].
    pub stride: u32,
    pub created: Timestamp,
    pub standing: Standing,
}

/// Whether a task that is dropped here can be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In a row of its shard.
    Row,
    /// Nowhere else. Somebody waits for its answer: it goes before the rows of its priority, counts
    /// for no key, and is refused where nobody polls.
    Volatile,
}

/// A worker seeks a task. Ids are used once: a poll that goes on waiting comes back under another.
#[derive(Clone, Debug, PartialEq)]
pub struct Poll<P> {
    pub id: P,
    /// It takes tasks of this version only.
    pub version: Arc<str>,
    pub identity: String,
    /// What it says of its build, for the events of the task.
    pub worker_version: Option<WorkerVersionStamp>,
    /// Names the worker that may shut down; empty if it gave no name.
    pub worker: String,
}

/// What one queue is bounded by.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Tasks in memory that stand in rows; more only where lanes are many: [`Bounds::LANE_MIN`] each.
    pub window: usize,
    /// Lanes in memory. Beyond it the worst go, and their shards are asked when there is room.
    pub lanes: usize,
    /// Tasks that stand nowhere else.
    pub volatile: usize,
    /// Polls that are remembered after they were matched or withdrawn.
    pub spent: usize,
    /// A task that stands in a row is refused after this long without a poll; `None`: it waits.
    pub patience_of_rows: Option<Span>,
    /// The same for volatile tasks.
    pub patience_of_volatile: Option<Span>,
    /// How long pollers and workers that have shut down are remembered.
    pub memory: Span,
}

impl Bounds {
    /// A lane is asked for when it falls below this, so that its first task is never missing.
    pub const LANE_MIN: usize = 2;
}

/// A task and a poll that have met; neither is here any more.
#[derive(Clone, Debug, PartialEq)]
pub struct Match<T, P> {
    pub task: Task<T>,
    pub poll: Poll<P>,
}

/// What became of an offer.
#[derive(Clone, Debug, PartialEq)]
pub enum Offered<T, P> {
    Matched(Match<T, P>),
    /// It waits here.
    Waits,
    /// Its shard will be asked for it when there is room.
    Declined,
    /// Nobody polls, or too many volatile tasks wait: it goes back.
    Refused(Task<T>),
}

/// What became of a poll.
#[derive(Clone, Debug, PartialEq)]
pub enum Polled<T, P> {
    Matched(Match<T, P>),
    Waits,
    /// It waits already, or has been matched or withdrawn: this is a repetition.
    Known,
    /// Its worker has shut down: it gets nothing more.
    ShutDown(Poll<P>),
}

/// Those who leave the queue with a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving<T, P> {
    pub polls: Vec<Poll<P>>,
    /// Nobody will come for them here.
    pub tasks: Vec<Task<T>>,
}

/// The queue has room: the shard is to offer its first tasks of a class, or of all.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    pub shard: ShardId,
    pub class: Option<Class>,
    /// How many of each class.
    pub limit: usize,
}

/// One task queue.
pub struct Matching<T, P> {
    bounds: Bounds,
    backlog: Backlog<T>,
    polls: Polls<P>,
}

impl<T: Ord + Clone, P: Ord + Clone> Matching<T, P> {
    /// Nothing waits. `since`: pollers of an earlier owner may have polled until then.
    pub fn new(bounds: Bounds, since: Timestamp) -> Self {
        let backlog = Backlog::new(bounds.window, bounds.lanes);
        let polls = Polls::new(bounds.spent, since);
        Self { bounds, backlog, polls }
    }

    /// `more_behind`: tasks of its lane stand behind it that have not been offered.
    pub fn offer(&mut self, task: Task<T>, more_behind: bool, now: Timestamp) -> Offered<T, P> {
        let row_with_more =
            (more_behind && task.standing == Standing::Row).then(|| backlog::Lane::of(&task));
        let offered = self.try_offer(task, now);
        if let Some(lane) = row_with_more {
            // ORDER: afterwards; the last task here is the one with more behind it.
            self.backlog.cut(lane, &offered);
        }
        match offered {
            Added::Matched(met) => Offered::Matched(met),
            Added::At(_) => Offered::Waits,
            Added::Declined => Offered::Declined,
            Added::Refused(task) => Offered::Refused(task),
        }
    }

    fn try_offer(&mut self, task: Task<T>, now: Timestamp) -> Added<T, P> {
        if let Some(rank) = self.backlog.find(&task.id) {
            let (created, _) = rank;
            if created >= task.created {
                return Added::At(rank);
            }
            self.backlog.remove(&task.id);
        }
        if let Some(poll) = self.polls.take(&task.class.version) {
            return Added::Matched(Match { task, poll });
        }
        let (patience, has_room) = match task.standing {
            Standing::Row => (self.bounds.patience_of_rows, true),
            Standing::Volatile => {
                (self.bounds.patience_of_volatile, self.backlog.volatile() < self.bounds.volatile)
            }
        };
        let is_deserted = patience.is_some_and(|patience| self.polls.is_older(patience, now));
        if is_deserted || !has_room {
            return Added::Refused(task);
        }
        self.backlog.add(task).map_or(Added::Declined, Added::At)
    }

    /// A poll that waits for a new task of this version, which has no place here and needs none now. Where
    /// one waits, no task does.
    pub fn take_poll(&mut self, version: &str) -> Option<Poll<P>> {
        self.polls.take(version)
    }

    /// The task is settled, or must not be taken any more.
    pub fn withdraw(&mut self, id: &T) {
        self.backlog.remove(id);
    }

    pub fn poll(&mut self, poll: Poll<P>, now: Timestamp) -> Polled<T, P> {
        if self.polls.has_shut_down(&poll.worker) {
            return Polled::ShutDown(poll);
        }
        if self.polls.knows(&poll.id) {
            return Polled::Known;
        }
        self.polls.see(&poll.identity, now, self.bounds.memory);
        match self.backlog.take(&poll.version) {
            Some(task) => {
                self.polls.spend(poll.id.clone());
                Polled::Matched(Match { task, poll })
            }
            None => {
                self.polls.wait(poll);
                Polled::Waits
            }
        }
    }

    pub fn withdraw_poll(&mut self, id: &P) {
        self.polls.withdraw(id);
    }

    /// A worker has shut down: its polls leave, also those that are still on their way here.
    pub fn shut_down(&mut self, worker: &str, now: Timestamp) -> Vec<Poll<P>> {
        self.polls.shut_down(worker, now, self.bounds.memory)
    }

    /// The only worker of this queue has shut down: whatever waits leaves, and what is offered from
    /// now on is refused until somebody polls.
    pub fn close(&mut self, worker: &str, now: Timestamp) -> Leaving<T, P> {
        let mut polls = self.polls.shut_down(worker, now, self.bounds.memory);
        polls.extend(self.polls.leave());
        Leaving { polls, tasks: self.backlog.drain() }
    }

    /// Which shards are to offer more. Each is named once, and again when it has offered and there
    /// is room again.
    pub fn wants(&mut self) -> Vec<Want> {
        self.backlog.wants()
    }

    /// Ends the queue here: the polls that wait.
    pub fn stop(&mut self) -> Vec<Poll<P>> {
        self.polls.leave()
    }

    pub fn len(&self) -> usize {
        self.backlog.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When the oldest task that waits here was created.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.backlog.oldest()
    }

    /// Shards of which more tasks stand in rows than wait here.
    pub fn beyond(&self) -> BTreeSet<ShardId> {
        self.backlog.beyond()
    }

    pub fn is_beyond(&self) -> bool {
        self.backlog.is_beyond()
    }

    /// Polls that wait for a task.
    pub fn waiting_polls(&self) -> usize {
        self.polls.len()
    }

    /// Who has polled lately, and when.
    pub fn pollers(&mut self, now: Timestamp) -> impl Iterator<Item = (&str, Timestamp)> {
        self.polls.seen_since(now, self.bounds.memory)
    }

    /// Nothing waits, nobody has polled for long, and no worker has shut down whose polls may still
    /// be on their way here: the queue may be forgotten.
    pub fn is_abandoned(&self, now: Timestamp) -> bool {
        self.is_empty() && !self.is_beyond() && self.polls.is_abandoned(now, self.bounds.memory)
    }
}

/// An offer before its lane has heard of what stands behind it.
enum Added<T, P> {
    Matched(Match<T, P>),
    At(backlog::Rank),
    Declined,
    Refused(Task<T>),
}

/// How far a key's turn moves on with a task of this weight: a thousand parts for the weight 1, which
/// is also that of no weight.
pub fn stride(weight: f32) -> u32 {
    const PARTS: f32 = 1_000.0;
    const WEIGHT_MIN: f32 = 0.001;
    let weight = if weight > 0.0 { weight.max(WEIGHT_MIN) } else { 1.0 };
    ((PARTS / weight) as u32).max(1)
}
