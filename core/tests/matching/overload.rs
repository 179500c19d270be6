//! Shards with more rows than the queue's window holds, and messages between them that may be late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use piton_core::id::ShardId;
use piton_core::matching::{Bounds, Class, Match, Offered, Polled, Task, Want};
use piton_core::time::Timestamp;

use crate::{Queue, Random, at, bounds, class, poll, task};

/// What goes between a queue and the shards; late, in any order between two shards.
#[derive(Debug)]
enum Message {
    Offer { task: Task<u64>, more_behind: bool },
    Want(Want),
}

/// A shard's rows by class, the oldest first.
type Rows = BTreeMap<Class, BTreeMap<(Timestamp, u64), Task<u64>>>;

/// Shards with rows, and a queue whose window is too small for them.
struct Cluster {
    random: Random,
    queue: Queue,
    bounds: Bounds,
    rows: BTreeMap<ShardId, Rows>,
    /// Every lane that there has been.
    lanes: BTreeSet<(ShardId, Class)>,
    under_way: BTreeMap<ShardId, VecDeque<Message>>,
    next: u64,
    given: Vec<Task<u64>>,
    polls_waiting: usize,
    /// What is sent arrives at once, as between actors of one node.
    is_prompt: bool,
    has_too_many_lanes: bool,
}

impl Cluster {
    fn new(seed: u64, shards: u32, bounds: Bounds, is_prompt: bool) -> Self {
        Self {
            random: Random(seed),
            queue: Queue::new(bounds.clone(), at(0)),
            rows: (0..shards).map(|shard| (ShardId(shard), BTreeMap::new())).collect(),
            lanes: BTreeSet::new(),
            under_way: BTreeMap::new(),
            next: 0,
            given: Vec::new(),
            polls_waiting: 0,
            is_prompt,
            has_too_many_lanes: bounds.lanes < 1_000,
            bounds,
        }
    }

    fn commit(&mut self, shard: ShardId, class: Class, created: Timestamp) {
        self.next += 1;
        self.lanes.insert((shard, class.clone()));
        let task = task(self.next, shard.0, class, created);
        let rows = self.rows.get_mut(&shard).unwrap().entry(task.class.clone()).or_default();
        rows.insert((created, task.id), task.clone());
        self.send(shard, Message::Offer { task, more_behind: false });
    }

    fn send(&mut self, shard: ShardId, message: Message) {
        self.under_way.entry(shard).or_default().push_back(message);
        if self.is_prompt {
            self.deliver_all();
        }
    }

    fn deliver_all(&mut self) {
        for _ in 0..100_000 {
            let Some(shard) = self.under_way.keys().next().copied() else { return };
            self.deliver(shard);
        }
        panic!("the queue asks for ever");
    }

    fn deliver(&mut self, shard: ShardId) {
        let queue = self.under_way.get_mut(&shard);
        let Some(message) = queue.and_then(VecDeque::pop_front) else { return };
        if self.under_way[&shard].is_empty() {
            self.under_way.remove(&shard);
        }
        match message {
            Message::Offer { task, more_behind } => {
                match self.queue.offer(task, more_behind, at(0)) {
                    Offered::Matched(met) => {
                        self.polls_waiting -= 1;
                        self.take(met);
                    }
                    Offered::Waits | Offered::Declined => {}
                    Offered::Refused(task) => panic!("nobody refuses {task:?}"),
                }
                self.ask();
            }
            Message::Want(want) => self.offer_rows(&want),
        }
        self.check_bounds();
    }

    fn ask(&mut self) {
        for want in self.queue.wants() {
            self.under_way.entry(want.shard).or_default().push_back(Message::Want(want));
        }
    }

    /// A shard offers the first rows of a class, or of each.
    fn offer_rows(&mut self, want: &Want) {
        for (class, rows) in &self.rows[&want.shard] {
            if want.class.as_ref().is_none_or(|wanted| wanted == class) {
                let first = rows.len().min(want.limit);
                for (task, place) in rows.values().zip(1..=first) {
                    let more_behind = place == first && first < rows.len();
                    let message = Message::Offer { task: task.clone(), more_behind };
                    self.under_way.entry(want.shard).or_default().push_back(message);
                }
            }
        }
    }

    fn poll(&mut self) {
        self.next += 1;
        match self.queue.poll(poll(self.next, "w"), at(0)) {
            Polled::Matched(met) => self.take(met),
            Polled::Waits => self.polls_waiting += 1,
            other @ (Polled::Known | Polled::ShutDown(_)) => panic!("{other:?}"),
        }
        self.ask();
        if self.is_prompt {
            self.deliver_all();
        }
    }

    /// The task's row goes with it. Where all that was asked for has come, none has a better class.
    fn take(&mut self, met: Match<u64, u64>) {
        let task = met.task;
        let rows = self.rows.get_mut(&task.origin).unwrap();
        let of_class = rows.entry(task.class.clone()).or_default();
        let row = of_class.remove(&(task.created, task.id));
        if of_class.is_empty() {
            rows.remove(&task.class);
        }
        if row.is_none() {
            // It was offered again while it was on its way to a worker; its shard knows better.
            assert!(!self.is_prompt && self.given.iter().any(|given| given.id == task.id));
            return;
        }
        if self.is_prompt && !self.has_too_many_lanes {
            let first = self.rows.values().filter_map(|rows| rows.keys().next());
            let best = first.map(|class| class.priority).min();
            assert!(best.is_none_or(|best| task.class.priority <= best), "a better one waits");
        }
        self.given.push(task);
    }

    fn check_bounds(&self) {
        let lanes = self.lanes.len().min(self.bounds.lanes);
        let max = self.bounds.window.max(Bounds::LANE_MIN * lanes);
        assert!(self.queue.len() <= max, "{} tasks are in memory", self.queue.len());
    }

    fn waiting(&self) -> usize {
        self.rows.values().flat_map(BTreeMap::values).map(BTreeMap::len).sum()
    }

    fn some_class(&mut self, keys: usize) -> Class {
        let key = format!("key {}", self.random.below(keys));
        class(1 + self.random.below(5) as u8, &key)
    }
}

/// `keys` times 5 priorities times 5 shards: from fewer lanes than the window to far more.
fn overload(seed: u64, keys: usize, lanes: usize, is_prompt: bool) -> usize {
    let mut cluster = Cluster::new(seed, 5, bounds(60, lanes), is_prompt);
    for step in 0..3_000 {
        let shard = ShardId(cluster.random.below(5) as u32);
        match cluster.random.below(8) {
            0..=3 => {
                let class = cluster.some_class(keys);
                cluster.commit(shard, class, at(step));
            }
            4 | 5 => cluster.poll(),
            _ => cluster.deliver(shard),
        }
    }
    let backlog = cluster.waiting();
    while cluster.waiting() > 0 {
        cluster.deliver_all();
        cluster.poll();
        cluster.deliver_all();
        let idle = cluster.waiting() > 0 && cluster.polls_waiting > 0;
        assert!(!idle, "seed {seed}: {} tasks wait for ever", cluster.waiting());
    }
    let given: BTreeSet<_> = cluster.given.iter().map(|task| task.id).collect();
    assert_eq!(given.len(), cluster.given.len(), "a task was given twice");
    backlog
}

#[test]
fn what_does_not_fit_into_the_window_comes_all_the_same() {
    for seed in 0..10 {
        let backlog = overload(seed, 2, 1_000, false);
        assert!(backlog > 300, "the window was hardly too small: {backlog}");
    }
}

#[test]
fn priority_is_exact_across_shards() {
    for seed in 0..5 {
        overload(seed, 1, 1_000, true);
        overload(seed, 10, 1_000, true);
    }
}

#[test]
fn more_lanes_than_there_is_room_for_are_served_too() {
    for seed in 0..5 {
        overload(seed, 30, 20, false);
        overload(seed, 30, 20, true);
    }
}

/// A backlog of 16 x 5,000 tasks that grows as fast as it is worked off. How long a shard waits:
/// how many tasks of others go between two of its own.
fn longest_waits(window: usize, seed: u64) -> BTreeMap<ShardId, usize> {
    const SHARDS: u32 = 16;
    let mut cluster = Cluster::new(seed, SHARDS, bounds(window, 8_192), true);
    let mut clock = 0;
    let mut commit_one_each = |cluster: &mut Cluster| {
        clock += 1;
        for shard in 0..SHARDS {
            cluster.commit(ShardId(shard), class(3, ""), at(clock));
        }
    };
    for _ in 0..5_000 {
        commit_one_each(&mut cluster);
    }
    assert_eq!(cluster.waiting(), 80_000);
    for taken in 0..40_000 {
        if taken % SHARDS as usize == 0 {
            commit_one_each(&mut cluster);
        }
        cluster.poll();
    }
    let mut last: BTreeMap<ShardId, usize> = BTreeMap::new();
    let mut longest: BTreeMap<ShardId, usize> = BTreeMap::new();
    for (at, task) in cluster.given.iter().enumerate() {
        let since = last.insert(task.origin, at).unwrap_or(0);
        let wait = longest.entry(task.origin).or_default();
        *wait = (*wait).max(at - since);
    }
    longest
}

#[test]
fn no_shard_waits_longer_than_twice_its_fair_share() {
    for (window, seed) in [(1_000, 1), (100, 2)] {
        let longest = longest_waits(window, seed);
        println!("window {window}: longest waits of 16 shards, in tasks: {longest:?}");
        assert_eq!(longest.len(), 16, "a shard got nothing");
        let fair = 16;
        assert!(longest.values().all(|&wait| wait <= 2 * fair), "{longest:?}");
    }
}

/// A window full of the last priority does not hide a task of the first, whichever shard has it.
#[test]
fn a_first_priority_behind_a_full_window_goes_next() {
    let mut cluster = Cluster::new(1, 16, bounds(100, 8_192), true);
    for second in 0..500 {
        for shard in 0..16 {
            cluster.commit(ShardId(shard), class(5, ""), at(second));
        }
    }
    for shard in (0..16).rev() {
        cluster.commit(ShardId(shard), class(1, ""), at(1_000));
        cluster.poll();
        let first = cluster.given.last().unwrap();
        assert_eq!((first.origin, first.class.priority), (ShardId(shard), 1));
    }
}
