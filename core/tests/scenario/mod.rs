//! Reads scenarios and plays them against one workflow, as its shard would: each decision is
//! committed at once, and after each the state is checked against what was stored.

use std::collections::BTreeMap;

use piton_core::effect::{Effect, EffectKey, TaskKey};
use piton_core::id::{NamespaceId, RunId, WorkflowKey};
use piton_core::invariant;
use piton_core::limits::Limits;
use piton_core::note::{Note, NoteKey};
use piton_core::proto::common::SearchAttributes;
use piton_core::proto::history::HistoryEvent;
use piton_core::request::{ActivityRef, Drawn, RunRequest, SearchAttributeCheck, WorkflowTaskRef};
use piton_core::run::{ActivityTask, Decided, Met, Reply, RunState, StartedTask, decide_start};
use piton_core::time::{Span, Timestamp};
use piton_core::transition::Change;

mod arguments;
mod command;
mod request;
mod show;

pub(crate) use arguments::{Block, Step, blocks};

/// The time at which every scenario begins.
pub(crate) const BEGINNING: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// How long the caller of a query waits.
const QUERY_TIME: Span = Span::from_secs(10);

/// What a shard would have stored of one run.
#[derive(Default)]
struct Stored {
    events: Vec<HistoryEvent>,
    notes: BTreeMap<NoteKey, Note>,
    effects: BTreeMap<EffectKey, Effect>,
}

/// One workflow and who talks to it.
pub(crate) struct World {
    now: Timestamp,
    number: u64,
    runs: u64,
    limits: Limits,
    live: Option<RunState>,
    stored: BTreeMap<RunId, Stored>,
    /// The token of the workflow task that was handed out last.
    task: Option<WorkflowTaskRef>,
    /// Tokens of activity tasks: the last one by the activity's id, others by the name given.
    activities: BTreeMap<String, ActivityRef>,
}

struct NamesOnly;

impl SearchAttributeCheck for NamesOnly {
    fn check(&self, attributes: &mut SearchAttributes) -> Result<(), String> {
        for (name, value) in &mut attributes.indexed_fields {
            if name == "Unknown" {
                return Err(format!("{name} is not a search attribute"));
            }
            value.metadata.insert("type".into(), "Keyword".into());
        }
        Ok(())
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now: BEGINNING,
            number: 0,
            runs: 0,
            limits: Limits::default(),
            live: None,
            stored: BTreeMap::new(),
            task: None,
            activities: BTreeMap::new(),
        }
    }

    /// Plays one step and tells what it comes to.
    pub(crate) fn step(&mut self, step: &Step, place: &str) -> String {
        let mut out = String::new();
        match step.verb.as_str() {
            "wait" => self.now = self.now + step.span_at(0),
            "limit" => {
                for (name, value) in &step.named {
                    let value = value.parse().expect("a limit is a number");
                    assert!(self.limits.set(name, value), "{place}: no limit is called {name}");
                }
            }
            "describe" => out = show::description(&self.run(place).describe()),
            "query-route" => {
                let waits = step.get("for").map_or(QUERY_TIME, span);
                let until = self.now + waits;
                out = format!("{:?}\n", self.run(place).query_route(until));
            }
            "shown" => out = show::record(&self.run(place).visibility()),
            "owes" => out = show::effects(&owed(self.run(place))),
            "rehost" => {
                let folded = self.fold(self.run(place), place);
                self.live = Some(folded);
                let decided = self.decide(step, RunRequest::Rehosted, place);
                out = self.conclude(decided, place);
            }
            "start" => {
                let request = request::start(step);
                let current = self.live.clone();
                let decided = self
                    .drawn(|d| decide_start(&key(), current.as_ref().map(Met::from), request, d));
                out = self.conclude(decided, place);
            }
            _ => {
                let request = self.request(step, place);
                let decided = self.decide(step, request, place);
                if let (Some(name), Ok(decided)) = (step.get("keep"), &decided) {
                    self.keep(name, decided);
                }
                out = self.conclude(decided, place);
            }
        }
        out
    }

    fn run(&self, place: &str) -> &RunState {
        self.live.as_ref().unwrap_or_else(|| panic!("{place}: nothing was started"))
    }

    fn decide(
        &mut self,
        step: &Step,
        request: RunRequest,
        place: &str,
    ) -> Result<Decided, piton_core::error::Rejection> {
        if step.flag("twice") {
            let first = self.run(place).clone();
            let request = request.clone();
            let decided = self.drawn(|d| first.decide(request, d));
            self.conclude(decided, place);
        }
        let run = self.run(place).clone();
        self.drawn(|d| run.decide(request, d))
    }

    fn drawn<R>(&mut self, with: impl FnOnce(&Drawn<'_>) -> R) -> R {
        self.number += 1;
        let namespaces = [("payments".into(), NamespaceId::from("ns-payments"))];
        with(&Drawn {
            now: self.now,
            term: 1,
            number: self.number,
            run_id: RunId::from(format!("run-{}", self.runs + 1)),
            limits: &self.limits,
            namespace_name: "default",
            namespaces: &namespaces,
            search_attributes: &NamesOnly,
        })
    }

    /// Commits a decision and tells of it.
    fn conclude(
        &mut self,
        decided: Result<Decided, piton_core::error::Rejection>,
        place: &str,
    ) -> String {
        let decided = match decided {
            Ok(decided) => decided,
            Err(refusal) => return format!("refused: {refusal}\n"),
        };
        let mut out = match &decided.reply {
            Ok(reply) => show::reply(reply),
            Err(refusal) => format!("refused and recorded: {refusal}\n"),
        };
        self.remember(&decided);
        if let Some(run) = decided.run {
            out.push_str(&self.commit(run, place));
        }
        if let Some(next) = decided.successor {
            self.runs += 1;
            out.push_str(&format!("{} is the current run\n", next.run_id));
            self.live = None;
            out.push_str(&self.commit(next, place));
        }
        out
    }

    fn remember(&mut self, decided: &Decided) {
        let held = |task: &StartedTask| WorkflowTaskRef { term: task.term, number: task.number };
        match &decided.reply {
            Ok(Reply::WorkflowTask(task)) => self.task = Some(held(task)),
            Ok(Reply::Started { eager: Some(task), .. }) => self.task = Some(held(task)),
            Ok(Reply::WorkflowTaskCompleted { next, eager_activities }) => {
                if let Some(task) = next {
                    self.task = Some(held(task));
                }
                for task in eager_activities {
                    self.activities.insert(task.response.activity_id.clone(), token(task));
                }
            }
            Ok(Reply::Activity(task)) => {
                self.activities.insert(task.response.activity_id.clone(), token(task));
            }
            _ => {}
        }
    }

    fn keep(&mut self, name: &str, decided: &Decided) {
        if let Ok(Reply::Activity(task)) = &decided.reply {
            self.activities.insert(name.to_owned(), token(task));
        }
    }

    fn commit(&mut self, mut run: RunState, place: &str) -> String {
        let before = self.live.take().filter(|before| before.run_id == run.run_id);
        let change = Change::between(before.as_ref(), &mut run);
        let out = show::change(&change);
        let stored = self.stored.entry(run.run_id.clone()).or_default();
        stored.put(change, place);
        if let Err(broken) = invariant::check(&run) {
            panic!("{place}: {broken}");
        }
        let folded = self.fold(&run, place);
        let settled = RunState { held: None, ..run.clone() };
        assert_eq!(folded, settled, "{place}: the fold of what is stored differs from the state");
        let stored = &self.stored[&run.run_id];
        assert_eq!(owed(&folded), stored.effects, "{place}: the effects differ");
        self.live = Some(run);
        out
    }

    fn fold(&self, run: &RunState, place: &str) -> RunState {
        let stored = &self.stored[&run.run_id];
        let notes: Vec<_> = stored.notes.iter().map(|(k, n)| (*k, n.clone())).collect();
        RunState::from_history(key(), run.run_id.clone(), stored.events.clone(), notes)
            .unwrap_or_else(|e| panic!("{place}: {e}"))
    }
}

impl Stored {
    fn put(&mut self, change: Change, place: &str) {
        self.events.extend(change.events.into_iter().map(std::sync::Arc::unwrap_or_clone));
        for (key, note) in change.notes {
            match note {
                Some(note) => drop(self.notes.insert(key, note)),
                None => drop(self.notes.remove(&key)),
            }
        }
        for key in change.settled {
            let was_owed = self.effects.remove(&key).is_some();
            assert!(was_owed, "{place}: settles what was not owed: {key:?}");
        }
        for (key, effect) in change.owed {
            let is_new = self.effects.insert(key, effect).is_none();
            assert!(is_new, "{place}: owes a thing twice");
        }
    }
}

fn key() -> WorkflowKey {
    WorkflowKey { namespace: "ns".into(), workflow_id: "order-1".into() }
}

fn token(task: &ActivityTask) -> ActivityRef {
    ActivityRef::Attempt { scheduled: task.scheduled, attempt: task.attempt, stamp: task.stamp }
}

/// All that a run owes.
fn owed(run: &RunState) -> BTreeMap<EffectKey, Effect> {
    Change::between(None, &mut run.clone()).owed
}

/// The offer of the workflow task, or that of an activity.
fn offers(run: &RunState) -> Vec<TaskKey> {
    let tasks = owed(run).into_values().filter_map(|effect| match effect {
        Effect::Task(offer) => Some(offer.key),
        Effect::Timer(..) | Effect::Errand(..) => None,
    });
    tasks.collect()
}

/// `20ns`, `1500ms`, `90s`, `2m`, `1h`.
fn span(text: &str) -> Span {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: i64 = number.parse().unwrap_or_else(|_| panic!("{text} is not a span"));
    match unit {
        "ns" => Span::from_nanos(number),
        "ms" => Span::from_millis(number),
        "s" => Span::from_secs(number),
        "m" => Span::from_secs(number * 60),
        "h" => Span::from_secs(number * 3_600),
        _ => panic!("{text} is not a span"),
    }
}
