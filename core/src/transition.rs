//! What one batch of decisions changes of one run: the difference of two states.
//!
//! Events, notes and effects are not collected while deciding but read off the states before and
//! after, so that a decision cannot forget one. The shell turns a [`Change`] into rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use piton_proto::history::HistoryEvent;

use crate::effect::{Effect, EffectKey, TaskOffer};
use crate::id::{EventId, RunId};
use crate::note::{Note, NoteKey};
use crate::run::{Activity, RunState};
use crate::visibility::VisibilityRecord;

/// Everything that a batch of decisions changes of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub run_id: RunId,
    /// The first event's id is that of the history batch.
    pub events: Vec<Arc<HistoryEvent>>,
    pub notes: BTreeMap<NoteKey, Option<Note>>,
    pub settled: BTreeSet<EffectKey>,
    /// The offers of the tasks among the settled: their rows' keys name the queue.
    pub settled_tasks: Vec<TaskOffer>,
    pub owed: BTreeMap<EffectKey, Effect>,
    /// The record before and after, when it differs.
    pub visibility: Option<(Option<VisibilityRecord>, VisibilityRecord)>,
}

impl Change {
    /// The difference between a run before (`None`: it did not exist) and after; takes the events
    /// that are to be committed out of `after`.
    pub fn between(before: Option<&RunState>, after: &mut RunState) -> Self {
        let events = after.take_uncommitted();
        let mut change = Self {
            run_id: after.run_id.clone(),
            events,
            notes: BTreeMap::new(),
            settled: BTreeSet::new(),
            settled_tasks: Vec::new(),
            owed: BTreeMap::new(),
            visibility: None,
        };
        change.compare_notes(before, after);
        change.compare_effects(before, after);
        let shown = before.map(RunState::visibility);
        if before.is_none_or(|b| !b.is_shown_like(after)) {
            change.visibility = Some((shown, after.visibility()));
        }
        change
    }

    /// Nothing to commit: the decisions were volatile or changed nothing.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.notes.is_empty()
            && self.settled.is_empty()
            && self.owed.is_empty()
            && self.visibility.is_none()
    }

    fn compare_notes(&mut self, before: Option<&RunState>, after: &RunState) {
        if before.is_none_or(|b| b.note != after.note) {
            self.notes.insert(NoteKey::Run, Some(Note::Run(after.note.clone())));
        }
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.activities);
        each_changed(old, &after.activities, |id, was, is| {
            if is.map(|a| &a.note) != was.map(|a| &a.note) {
                let note = is.map(|a| Note::Activity(a.note.clone()));
                self.notes.insert(NoteKey::Activity(id), note);
            }
        });
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.buffered);
        each_changed(old, &after.buffered, |number, _, is: Option<&HistoryEvent>| {
            let note = is.map(|e| Note::Buffered(crate::message::Proto(e.clone())));
            self.notes.insert(NoteKey::Buffered(number), note);
        });
    }

    fn compare_effects(&mut self, before: Option<&RunState>, after: &RunState) {
        let mut was = Vec::new();
        let mut is = Vec::new();
        if let Some(before) = before {
            before.single_effects(&mut was);
        }
        after.single_effects(&mut is);
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.activities);
        each_changed(old, &after.activities, |_, a: Option<&Activity>, b: Option<&Activity>| {
            if let (Some(a), Some(run)) = (a, before) {
                run.activity_effects(a, &mut was);
            }
            if let Some(b) = b {
                after.activity_effects(b, &mut is);
            }
        });
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.timers);
        each_changed(old, &after.timers, |_, a, b| {
            was.extend(a.map(crate::run::Timer::effect));
            is.extend(b.map(crate::run::Timer::effect));
        });
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.children);
        each_changed(old, &after.children, |_, a, b| {
            was.extend(a.and_then(|c| before.and_then(|run| run.child_effect(c))));
            is.extend(b.and_then(|c| after.child_effect(c)));
        });
        // A close turns pending starts and policies around for children that did not change.
        if before.is_some_and(|b| b.status != after.status) {
            for child in after.children.values() {
                was.extend(before.and_then(|b| b.child_effect(child)));
                is.extend(after.child_effect(child));
            }
        }
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.external_signals);
        each_changed(old, &after.external_signals, |id, a, b| {
            was.extend(a.map(|a| RunState::external_signal_effect(id, a)));
            is.extend(b.map(|b| RunState::external_signal_effect(id, b)));
        });
        let none = BTreeMap::new();
        let old = before.map_or(&none, |b| &b.external_cancels);
        each_changed(old, &after.external_cancels, |id, a, b| {
            was.extend(a.map(|a| RunState::external_cancel_effect(id, a)));
            is.extend(b.map(|b| RunState::external_cancel_effect(id, b)));
        });
        self.settle(was, is);
    }

    fn settle(&mut self, was: Vec<Effect>, is: Vec<Effect>) {
        let old: BTreeSet<EffectKey> = was.iter().map(Effect::key).collect();
        let new: BTreeMap<EffectKey, Effect> = is.into_iter().map(|e| (e.key(), e)).collect();
        self.settled = old.iter().filter(|k| !new.contains_key(k)).cloned().collect();
        self.settled_tasks = was.into_iter().filter_map(|e| settled_task(e, &new)).collect();
        self.owed = new.into_iter().filter(|(k, _)| !old.contains(k)).collect();
    }
}

/// The tasks that a run offers after a batch of decisions and did not offer before (`None`: it did not
/// exist).
pub fn new_tasks(before: Option<&RunState>, after: &RunState) -> Vec<TaskOffer> {
    let (mut was, mut is) = (Vec::new(), Vec::new());
    was.extend(before.and_then(RunState::offered_workflow_task));
    is.extend(after.offered_workflow_task());
    let none = BTreeMap::new();
    let old = before.map_or(&none, |b| &b.activities);
    each_changed(old, &after.activities, |_, a: Option<&Activity>, b: Option<&Activity>| {
        was.extend(a.and_then(|a| before.and_then(|run| run.offered_activity(a))));
        is.extend(b.and_then(|b| after.offered_activity(b)));
    });
    let was: BTreeSet<_> = was.into_iter().map(|offer| offer.key).collect();
    is.retain(|offer| !was.contains(&offer.key));
    is
}

fn settled_task(effect: Effect, new: &BTreeMap<EffectKey, Effect>) -> Option<TaskOffer> {
    match effect {
        Effect::Task(offer) if !new.contains_key(&EffectKey::Task(offer.key.clone())) => {
            Some(offer)
        }
        Effect::Task(_) | Effect::Timer(..) | Effect::Errand(..) => None,
    }
}

/// Calls `changed` for each key whose value is not the same allocation in both maps.
fn each_changed<K: Ord + Copy, V>(
    before: &BTreeMap<K, Arc<V>>,
    after: &BTreeMap<K, Arc<V>>,
    mut changed: impl FnMut(K, Option<&V>, Option<&V>),
) {
    let mut old = before.iter().peekable();
    let mut new = after.iter().peekable();
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some((a, _)), Some((b, _))) if a == b => {
                let ((key, was), (_, is)) =
                    (old.next().expect("peeked"), new.next().expect("peeked"));
                if !Arc::ptr_eq(was, is) {
                    changed(*key, Some(&**was), Some(&**is));
                }
            }
            (Some((a, _)), next) if next.is_none_or(|(b, _)| a < b) => {
                let (key, was) = old.next().expect("peeked");
                changed(*key, Some(&**was), None);
            }
            _ => {
                let (key, is) = new.next().expect("peeked");
                changed(*key, None, Some(&**is));
            }
        }
    }
}

/// The id of the first event of a change, where its history batch is stored.
pub fn first_event(change: &Change) -> Option<EventId> {
    change.events.first().map(|e| EventId(e.event_id))
}
