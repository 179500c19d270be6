//! Random calls to a queue and to lists, which must come to the same pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use piton_core::id::ShardId;
use piton_core::matching::{Class, Match, Offered, Poll, Polled, Standing, Task, stride};

use crate::{Queue, Random, at, bounds, poll};

type Met = Option<(u64, u64)>;

/// The same in lists.
#[derive(Default)]
struct Naive {
    tasks: Vec<Task<u64>>,
    polls: Vec<Poll<u64>>,
    spent: BTreeSet<u64>,
    shut_down: BTreeSet<String>,
    /// By version, priority and key: where its turn stands, and since when.
    turns: BTreeMap<Class, (u64, usize)>,
    now: BTreeMap<(Arc<str>, u8), u64>,
    steps: usize,
}

impl Naive {
    fn offer(&mut self, task: &Task<u64>) -> Met {
        if self.tasks.iter().any(|t| t.id == task.id) {
            return None;
        }
        if let Some(at) = self.polls.iter().position(|p| p.version == task.class.version) {
            let poll = self.polls.remove(at);
            self.spent.insert(poll.id);
            return Some((task.id, poll.id));
        }
        self.begin_turn(task);
        self.tasks.push(task.clone());
        None
    }

    fn begin_turn(&mut self, task: &Task<u64>) {
        let is_row = task.standing == Standing::Row;
        let waits = |t: &Task<u64>| t.class == task.class && t.standing == Standing::Row;
        if is_row && !self.tasks.iter().any(waits) {
            self.steps += 1;
            let level = (Arc::clone(&task.class.version), task.class.priority);
            let now = self.now.get(&level).copied().unwrap_or(0);
            let turn = self.turns.entry(task.class.clone()).or_default();
            *turn = (turn.0.max(now), self.steps);
        }
    }

    fn poll(&mut self, poll: &Poll<u64>) -> Met {
        let is_known = self.spent.contains(&poll.id) || self.polls.iter().any(|p| p.id == poll.id);
        if is_known || self.shut_down.contains(&poll.worker) {
            return None;
        }
        let rank = |(at, t): (usize, &Task<u64>)| {
            let is_row = t.standing == Standing::Row;
            let turn = if is_row { self.turns[&t.class] } else { (0, 0) };
            (t.class.priority, is_row, turn, t.created, at)
        };
        let of_version = |(_, t): &(usize, &Task<u64>)| t.class.version == poll.version;
        let first = self.tasks.iter().enumerate().filter(of_version).map(rank).min();
        let Some((_, is_row, turn, _, at)) = first else {
            self.polls.push(poll.clone());
            return None;
        };
        let task = self.tasks.remove(at);
        self.spent.insert(poll.id);
        if is_row {
            self.steps += 1;
            let level = (Arc::clone(&task.class.version), task.class.priority);
            self.now.insert(level, turn.0);
            self.turns.insert(task.class.clone(), (turn.0 + u64::from(task.stride), self.steps));
        }
        Some((task.id, poll.id))
    }

    fn take_poll(&mut self, version: &str) -> Option<u64> {
        let at = self.polls.iter().position(|p| &*p.version == version)?;
        let poll = self.polls.remove(at);
        self.spent.insert(poll.id);
        Some(poll.id)
    }

    fn shut_down(&mut self, worker: &str) -> Vec<u64> {
        self.shut_down.insert(worker.to_owned());
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.polls).into_iter().partition(|p| p.worker == worker);
        self.polls = kept;
        self.spent.extend(gone.iter().map(|p| p.id));
        gone.into_iter().map(|p| p.id).collect()
    }
}

fn ids(met: Match<u64, u64>) -> Met {
    Some((met.task.id, met.poll.id))
}

struct Pair {
    random: Random,
    queue: Queue,
    naive: Naive,
    next: u64,
    offered: Vec<u64>,
    polled: Vec<Poll<u64>>,
    matches: usize,
}

impl Pair {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            queue: Queue::new(bounds(1_000_000, 1_000), at(0)),
            naive: Naive::default(),
            next: 0,
            offered: Vec::new(),
            polled: Vec::new(),
            matches: 0,
        }
    }

    fn step(&mut self) {
        self.next += 1;
        match self.random.below(13) {
            0..=4 => self.offer(),
            5..=7 => self.poll(),
            8 => {
                if let Some(again) = self.random.pick(&self.polled) {
                    self.poll_with(again);
                }
            }
            9 => {
                if let Some(id) = self.random.pick(&self.offered) {
                    self.queue.withdraw(&id);
                    self.naive.tasks.retain(|t| t.id != id);
                }
            }
            10 => {
                if let Some(gone) = self.random.pick(&self.polled) {
                    self.queue.withdraw_poll(&gone.id);
                    self.naive.polls.retain(|p| p.id != gone.id);
                    self.naive.spent.insert(gone.id);
                }
            }
            11 => {
                let version = self.version();
                let taken = self.queue.take_poll(&version).map(|poll| poll.id);
                assert_eq!(taken, self.naive.take_poll(&version), "another poll is taken");
            }
            _ if self.random.one_in(10) => {
                let worker = format!("worker {}", self.next / 100);
                let left = self.queue.shut_down(&worker, at(0));
                let left: BTreeSet<_> = left.into_iter().map(|p| p.id).collect();
                assert_eq!(left, self.naive.shut_down(&worker).into_iter().collect());
            }
            _ => self.poll(),
        }
        let waiting: BTreeSet<_> = self.naive.polls.iter().map(|p| &p.version).collect();
        let unmatched = self.naive.tasks.iter().find(|t| waiting.contains(&t.class.version));
        assert_eq!(unmatched, None, "it waits while a poll waits that could take it");
        assert_eq!(self.queue.len(), self.naive.tasks.len());
        assert_eq!(self.queue.oldest(), self.naive.tasks.iter().map(|t| t.created).min());
        assert!(self.queue.wants().is_empty(), "there is room for all");
    }

    fn version(&mut self) -> Arc<str> {
        ["", "", "build"][self.random.below(3)].into()
    }

    fn offer(&mut self) {
        let weight = [0.0, 1.0, 5.0, 0.1][self.random.below(4)];
        let is_volatile = self.random.one_in(6);
        let class = Class {
            priority: 1 + self.random.below(5) as u8,
            version: self.version(),
            fairness_key: ["", "a", "b", "c"][self.random.below(4)].into(),
        };
        let task = Task {
            id: self.next,
            origin: ShardId(self.random.below(3) as u32),
            class,
            stride: stride(weight),
            created: at(self.random.below(1_000) as i64),
            standing: if is_volatile { Standing::Volatile } else { Standing::Row },
        };
        self.offered.push(task.id);
        for _ in 0..1 + self.random.below(2) {
            let met = match self.queue.offer(task.clone(), false, at(0)) {
                Offered::Matched(met) => ids(met),
                Offered::Waits => None,
                other @ (Offered::Declined | Offered::Refused(_)) => panic!("{other:?}"),
            };
            assert_eq!(met, self.naive.offer(&task), "another pair for the offer {task:?}");
            if met.is_some() {
                self.matches += 1;
                return;
            }
        }
    }

    fn poll(&mut self) {
        let worker = format!("worker {}", self.next / 100);
        let poll = Poll { version: self.version(), ..poll(self.next, &worker) };
        self.polled.push(poll.clone());
        self.poll_with(poll);
    }

    fn poll_with(&mut self, poll: Poll<u64>) {
        let met = match self.queue.poll(poll.clone(), at(0)) {
            Polled::Matched(met) => ids(met),
            Polled::Waits | Polled::Known | Polled::ShutDown(_) => None,
        };
        self.matches += usize::from(met.is_some());
        assert_eq!(met, self.naive.poll(&poll), "another pair for the poll {poll:?}");
    }
}

#[test]
fn random_offers_and_polls_meet_as_in_the_naive_model() {
    let mut matches = 0;
    for seed in 0..40 {
        let mut pair = Pair::new(seed);
        for _ in 0..1_500 {
            pair.step();
        }
        matches += pair.matches;
    }
    assert!(matches > 10_000, "hardly anything met: {matches}");
}
