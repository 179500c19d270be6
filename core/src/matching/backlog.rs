//! The tasks that wait: in which order they go, and which of them have to be in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Added, Bounds, Class, Standing, Task, Want};
use crate::id::ShardId;
use crate::time::Timestamp;

/// Keys whose turn is remembered although none of their tasks waits.
const RESTING_MAX: usize = 1_024;

/// Age, then order of arrival.
pub(super) type Rank = (Timestamp, u64);

/// One shard's tasks of one class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    class: Class,
    shard: ShardId,
}

impl Lane {
    pub(super) fn of<T>(task: &Task<T>) -> Self {
        Self { class: task.class.clone(), shard: task.origin }
    }
}

/// The part of a lane that is in memory: always its first tasks.
#[derive(Default)]
struct Part {
    ranks: BTreeSet<Rank>,
    /// More tasks stand behind these, in rows alone.
    is_cut: bool,
}

pub(super) struct Backlog<T> {
    window: usize,
    lanes_max: usize,
    /// By version and priority.
    levels: BTreeMap<(Arc<str>, u8), Level<T>>,
    lanes: BTreeMap<Lane, Part>,
    /// The same lanes by how many of their tasks are here.
    lengths: BTreeSet<(usize, Lane)>,
    /// How many of them are cut.
    cut: usize,
    /// Lanes that are cut and have run low.
    low: BTreeSet<Lane>,
    /// Shards with lanes that are not here at all.
    unlisted: BTreeSet<ShardId>,
    places: BTreeMap<T, (Lane, Rank)>,
    ages: BTreeSet<Rank>,
    arrivals: u64,
    volatile: usize,
}

impl<T: Ord + Clone> Backlog<T> {
    pub(super) fn new(window: usize, lanes_max: usize) -> Self {
        Self {
            window,
            lanes_max: lanes_max.max(1),
            levels: BTreeMap::new(),
            lanes: BTreeMap::new(),
            lengths: BTreeSet::new(),
            cut: 0,
            low: BTreeSet::new(),
            unlisted: BTreeSet::new(),
            places: BTreeMap::new(),
            ages: BTreeSet::new(),
            arrivals: 0,
            volatile: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn volatile(&self) -> usize {
        self.volatile
    }

    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.ages.first().map(|(created, _)| *created)
    }

    pub(super) fn is_beyond(&self) -> bool {
        !self.unlisted.is_empty() || self.cut > 0
    }

    pub(super) fn beyond(&self) -> BTreeSet<ShardId> {
        let cut = self.lanes.iter().filter(|(_, part)| part.is_cut).map(|(lane, _)| lane.shard);
        cut.chain(self.unlisted.iter().copied()).collect()
    }

    pub(super) fn find(&self, id: &T) -> Option<Rank> {
        self.places.get(id).map(|(_, rank)| *rank)
    }

    /// Adds a task that is not here. `None`: it has no place in memory, and is left to its row.
    pub(super) fn add(&mut self, task: Task<T>) -> Option<Rank> {
        let lane = Lane::of(&task);
        let rank = (task.created, self.arrivals + 1);
        if task.standing == Standing::Row && !self.admit(&lane, rank) {
            return None;
        }
        self.arrivals += 1;
        self.places.insert(task.id.clone(), (lane.clone(), rank));
        self.ages.insert(rank);
        let level = (Arc::clone(&lane.class.version), lane.class.priority);
        let level = self.levels.entry(level).or_default();
        if task.standing == Standing::Volatile {
            self.volatile += 1;
            level.volatile.insert(rank, task);
            return Some(rank);
        }
        level.add(rank, task);
        self.resize(&lane, |part| {
            part.ranks.insert(rank);
        });
        self.shorten_longest();
        self.ages.contains(&rank).then_some(rank)
    }

    /// Whether a row may come into memory: not behind a cut, and not as one lane too many.
    fn admit(&mut self, lane: &Lane, rank: Rank) -> bool {
        if let Some(part) = self.lanes.get(lane) {
            return !part.is_cut || part.ranks.last().is_some_and(|last| rank < *last);
        }
        if self.lanes.len() < self.lanes_max {
            return true;
        }
        let worst = self.lanes.last_key_value().map(|(worst, _)| worst.clone());
        match worst.filter(|worst| lane.class.priority < worst.class.priority) {
            Some(worst) => {
                self.unlist(&worst);
                true
            }
            None => {
                self.unlisted.insert(lane.shard);
                false
            }
        }
    }

    /// Too many are in memory: the longest lane is cut, so that all come to the same length.
    fn shorten_longest(&mut self) {
        while self.ages.len() - self.volatile > self.window {
            let Some((length, lane)) = self.lengths.last().cloned() else { return };
            if length <= Bounds::LANE_MIN {
                return;
            }
            let last = self.lanes.get(&lane).and_then(|part| part.ranks.last().copied());
            let Some(last) = last else { return };
            self.drop_row(&lane, last);
            self.resize(&lane, |part| part.is_cut = true);
        }
    }

    /// More tasks stand behind the one that was just offered. What of its lane is here behind that
    /// one would overtake them, and stands in a row too.
    pub(super) fn cut<P>(&mut self, lane: Lane, offered: &Added<T, P>) {
        match offered {
            Added::At(rank) => {
                let part = self.lanes.get(&lane);
                let behind: Vec<_> = part
                    .map(|part| part.ranks.range(rank..).filter(|r| *r > rank).copied().collect())
                    .unwrap_or_default();
                for rank in behind {
                    self.drop_row(&lane, rank);
                }
                self.resize(&lane, |part| part.is_cut = true);
            }
            // The first task of a lane that has another of its tasks here is behind that one.
            Added::Matched(_) | Added::Refused(_) if self.can_list(&lane) => {
                self.resize(&lane, |part| part.is_cut = true);
            }
            Added::Matched(_) | Added::Refused(_) => {
                self.unlisted.insert(lane.shard);
            }
            // It is cut, or its shard is not listed.
            Added::Declined => {}
        }
        self.note_low(&lane);
    }

    fn can_list(&self, lane: &Lane) -> bool {
        self.lanes.contains_key(lane) || self.lanes.len() < self.lanes_max
    }

    /// The next task of this version: by priority, by turn of its key, by age.
    pub(super) fn take(&mut self, version: &Arc<str>) -> Option<Task<T>> {
        let of_version = (Arc::clone(version), u8::MIN)..=(Arc::clone(version), u8::MAX);
        let mut levels = self.levels.range_mut(of_version);
        let (rank, task) = levels.find_map(|(_, level)| level.take())?;
        self.forget(rank, &task);
        Some(task)
    }

    pub(super) fn remove(&mut self, id: &T) {
        let Some((lane, rank)) = self.places.get(id).cloned() else { return };
        if let Some(task) = self.level(&lane).and_then(|level| level.remove(rank, &lane.class)) {
            self.forget(rank, &task);
        }
    }

    /// All tasks leave; shards that have more are asked for it.
    pub(super) fn drain(&mut self) -> Vec<Task<T>> {
        let ids: Vec<_> = self.places.keys().cloned().collect();
        let mut tasks = Vec::new();
        for id in ids {
            let Some((lane, rank)) = self.places.get(&id).cloned() else { continue };
            let task = self.level(&lane).and_then(|level| level.remove(rank, &lane.class));
            if let Some(task) = task {
                self.forget(rank, &task);
                tasks.push(task);
            }
        }
        tasks
    }

    pub(super) fn wants(&mut self) -> Vec<Want> {
        let limit = (self.window / self.lanes.len().max(1)).max(Bounds::LANE_MIN);
        let mut wants = Vec::new();
        for lane in std::mem::take(&mut self.low) {
            // ORDER: no longer cut before its shard is asked. What is offered meanwhile comes in,
            // and is dropped again if older ones turn out to stand before it.
            self.resize(&lane, |part| part.is_cut = false);
            wants.push(Want { shard: lane.shard, class: Some(lane.class), limit });
        }
        if self.lanes.len() <= self.lanes_max / 2 {
            let unlisted = std::mem::take(&mut self.unlisted);
            wants.extend(unlisted.into_iter().map(|shard| Want { shard, class: None, limit }));
        }
        wants
    }

    fn level(&mut self, lane: &Lane) -> Option<&mut Level<T>> {
        self.levels.get_mut(&(Arc::clone(&lane.class.version), lane.class.priority))
    }

    /// A task that has left its level leaves the rest.
    fn forget(&mut self, rank: Rank, task: &Task<T>) {
        self.places.remove(&task.id);
        self.ages.remove(&rank);
        if task.standing == Standing::Volatile {
            self.volatile -= 1;
            return;
        }
        let lane = Lane::of(task);
        self.resize(&lane, |part| {
            part.ranks.remove(&rank);
        });
        self.note_low(&lane);
    }

    /// Drops a task whose row stays.
    fn drop_row(&mut self, lane: &Lane, rank: Rank) {
        if let Some(task) = self.level(lane).and_then(|level| level.remove(rank, &lane.class)) {
            self.forget(rank, &task);
        }
    }

    fn unlist(&mut self, lane: &Lane) {
        let ranks = self.lanes.get(lane).map(|part| part.ranks.clone()).unwrap_or_default();
        for rank in ranks {
            self.drop_row(lane, rank);
        }
        self.resize(lane, |part| part.is_cut = false);
        self.low.remove(lane);
        self.unlisted.insert(lane.shard);
    }

    /// Changes a lane; one with nothing to remember goes.
    fn resize(&mut self, lane: &Lane, change: impl FnOnce(&mut Part)) {
        let part = self.lanes.entry(lane.clone()).or_default();
        let before = part.ranks.len();
        self.cut -= usize::from(part.is_cut);
        change(part);
        self.cut += usize::from(part.is_cut);
        let (after, is_over) = (part.ranks.len(), part.ranks.is_empty() && !part.is_cut);
        if before != after {
            self.lengths.remove(&(before, lane.clone()));
        }
        if is_over {
            self.lanes.remove(lane);
            self.lengths.remove(&(after, lane.clone()));
        } else {
            self.lengths.insert((after, lane.clone()));
        }
    }

    fn note_low(&mut self, lane: &Lane) {
        let share = (self.window / self.lanes.len().max(1)).max(Bounds::LANE_MIN);
        let part = self.lanes.get(lane);
        if part.is_some_and(|part| part.is_cut && part.ranks.len() <= share / 2) {
            self.low.insert(lane.clone());
        }
    }
}

/// The tasks of one version and priority. Keys take turns (stride scheduling): the one goes next
/// whose turn stands lowest, and its turn moves on by its task's stride.
struct Level<T> {
    volatile: BTreeMap<Rank, Task<T>>,
    keys: BTreeMap<Arc<str>, Key<T>>,
    /// The same keys, the next one first.
    turns: BTreeSet<(Turn, Arc<str>)>,
    /// Keys of which no task waits, but whose turn is not over.
    resting: BTreeMap<Arc<str>, u64>,
    /// Where the turn of the key stood that went last: a key that comes now begins there.
    now: u64,
    order: u64,
}

/// Where a key stands; of equals the one goes first that has waited longest.
type Turn = (u64, u64);

struct Key<T> {
    turn: Turn,
    tasks: BTreeMap<Rank, Task<T>>,
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self {
            volatile: BTreeMap::new(),
            keys: BTreeMap::new(),
            turns: BTreeSet::new(),
            resting: BTreeMap::new(),
            now: 0,
            order: 0,
        }
    }
}

impl<T> Level<T> {
    fn add(&mut self, rank: Rank, task: Task<T>) {
        let name = Arc::clone(&task.class.fairness_key);
        if let Some(key) = self.keys.get_mut(&name) {
            key.tasks.insert(rank, task);
            return;
        }
        let at = self.resting.remove(&name).unwrap_or(0).max(self.now);
        let turn = (at, self.next_order());
        self.turns.insert((turn, Arc::clone(&name)));
        self.keys.insert(name, Key { turn, tasks: BTreeMap::from([(rank, task)]) });
    }

    fn take(&mut self) -> Option<(Rank, Task<T>)> {
        if let Some(first) = self.volatile.pop_first() {
            return Some(first);
        }
        let (turn, name) = self.turns.pop_first()?;
        let key = self.keys.get_mut(&name)?;
        let (rank, task) = key.tasks.pop_first()?;
        self.now = turn.0;
        let next = turn.0.saturating_add(u64::from(task.stride));
        let is_last = key.tasks.is_empty();
        if is_last {
            self.keys.remove(&name);
            self.rest(name, next);
        } else {
            let turn = (next, self.next_order());
            if let Some(key) = self.keys.get_mut(&name) {
                key.turn = turn;
            }
            self.turns.insert((turn, name));
        }
        Some((rank, task))
    }

    fn remove(&mut self, rank: Rank, class: &Class) -> Option<Task<T>> {
        if let Some(task) = self.volatile.remove(&rank) {
            return Some(task);
        }
        let key = self.keys.get_mut(&class.fairness_key)?;
        let task = key.tasks.remove(&rank)?;
        if key.tasks.is_empty() {
            let turn = key.turn;
            self.turns.remove(&(turn, Arc::clone(&class.fairness_key)));
            self.keys.remove(&class.fairness_key);
            self.rest(Arc::clone(&class.fairness_key), turn.0);
        }
        Some(task)
    }

    /// A key whose tasks come one at a time does not get ahead by that.
    fn rest(&mut self, name: Arc<str>, turn: u64) {
        if self.resting.len() >= RESTING_MAX {
            let now = self.now;
            self.resting.retain(|_, turn| *turn > now);
        }
        if self.resting.len() < RESTING_MAX {
            self.resting.insert(name, turn);
        }
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }
}
