//! The polls of a queue: those that wait, those that must not come again, and who has polled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Poll;
use crate::time::{Span, Timestamp};

pub(super) struct Polls<P> {
    /// By version, in order of arrival.
    waiting: BTreeMap<Arc<str>, BTreeMap<u64, Poll<P>>>,
    places: BTreeMap<P, (Arc<str>, u64)>,
    arrivals: u64,
    /// Matched or withdrawn lately: a call that comes twice must not bring them back, since a task
    /// that meets them is given to nobody.
    spent: BTreeSet<P>,
    spent_in_order: VecDeque<P>,
    spent_max: usize,
    /// When somebody polled last; `None`: the last one has shut down.
    last: Option<Timestamp>,
    seen: BTreeMap<String, Timestamp>,
    /// Workers that have shut down, and when.
    shut_down: BTreeMap<String, Timestamp>,
}

impl<P: Ord + Clone> Polls<P> {
    pub(super) fn new(spent_max: usize, since: Timestamp) -> Self {
        Self {
            waiting: BTreeMap::new(),
            places: BTreeMap::new(),
            arrivals: 0,
            spent: BTreeSet::new(),
            spent_in_order: VecDeque::new(),
            spent_max,
            last: Some(since),
            seen: BTreeMap::new(),
            shut_down: BTreeMap::new(),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn knows(&self, id: &P) -> bool {
        self.places.contains_key(id) || self.spent.contains(id)
    }

    pub(super) fn see(&mut self, identity: &str, now: Timestamp, memory: Span) {
        self.last = Some(now);
        if self.seen.insert(identity.to_owned(), now).is_none() {
            // Workers come and go with ever new names.
            self.forget(now, memory);
        }
    }

    pub(super) fn wait(&mut self, poll: Poll<P>) {
        self.arrivals += 1;
        self.places.insert(poll.id.clone(), (Arc::clone(&poll.version), self.arrivals));
        let of_version = self.waiting.entry(Arc::clone(&poll.version)).or_default();
        of_version.insert(self.arrivals, poll);
    }

    /// The poll of this version that has waited longest.
    pub(super) fn take(&mut self, version: &str) -> Option<Poll<P>> {
        let of_version = self.waiting.get_mut(version)?;
        let (_, poll) = of_version.pop_first()?;
        if of_version.is_empty() {
            self.waiting.remove(version);
        }
        self.places.remove(&poll.id);
        self.spend(poll.id.clone());
        Some(poll)
    }

    pub(super) fn withdraw(&mut self, id: &P) {
        if let Some((version, arrival)) = self.places.remove(id)
            && let Some(of_version) = self.waiting.get_mut(&version)
        {
            of_version.remove(&arrival);
            if of_version.is_empty() {
                self.waiting.remove(&version);
            }
        }
        self.spend(id.clone());
    }

    pub(super) fn spend(&mut self, id: P) {
        if self.spent.insert(id.clone()) {
            self.spent_in_order.push_back(id);
        }
        if self.spent_in_order.len() > self.spent_max
            && let Some(oldest) = self.spent_in_order.pop_front()
        {
            self.spent.remove(&oldest);
        }
    }

    /// All polls leave.
    pub(super) fn leave(&mut self) -> Vec<Poll<P>> {
        self.places.clear();
        self.last = None;
        std::mem::take(&mut self.waiting).into_values().flat_map(BTreeMap::into_values).collect()
    }

    pub(super) fn shut_down(&mut self, worker: &str, now: Timestamp, memory: Span) -> Vec<Poll<P>> {
        self.shut_down.retain(|_, since| now - *since <= memory);
        if worker.is_empty() {
            return Vec::new();
        }
        self.shut_down.insert(worker.to_owned(), now);
        let is_its = |poll: &&Poll<P>| poll.worker == worker;
        let all = self.waiting.values().flat_map(BTreeMap::values);
        let polls: Vec<_> = all.filter(is_its).cloned().collect();
        for poll in &polls {
            self.seen.remove(&poll.identity);
            self.withdraw(&poll.id);
        }
        polls
    }

    pub(super) fn has_shut_down(&self, worker: &str) -> bool {
        self.shut_down.contains_key(worker)
    }

    /// Whether nobody has polled for this long.
    pub(super) fn is_older(&self, than: Span, now: Timestamp) -> bool {
        self.last.is_none_or(|last| now - last > than)
    }

    pub(super) fn seen_since(
        &mut self,
        now: Timestamp,
        memory: Span,
    ) -> impl Iterator<Item = (&str, Timestamp)> {
        self.forget(now, memory);
        self.seen.iter().map(|(identity, at)| (identity.as_str(), *at))
    }

    fn forget(&mut self, now: Timestamp, memory: Span) {
        self.seen.retain(|_, at| now - *at <= memory);
    }

    pub(super) fn is_abandoned(&self, now: Timestamp, memory: Span) -> bool {
        self.waiting.is_empty()
            && self.is_older(memory, now)
            && self.shut_down.values().all(|&at| now - at > memory)
    }
}
