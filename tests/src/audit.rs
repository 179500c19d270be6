//! Holds what clients and workers were answered against the histories and the index after a run.
//! Each finding begins with the rule that is broken:
//!
//! - A1 what was acknowledged is in the history exactly once;
//! - A2 event ids are one chain without a gap, times do not go back;
//! - A3 at most one open run of a workflow; a workflow task is completed once;
//! - A4 an activity ends once, by the attempt that was under way;
//! - A5 a timer fires once, never early, and not late while there are no faults;
//! - A6 everything ends once the faults are over;
//! - A7 the index shows what the histories say;
//! - A8 what was refused for good did not happen; a query shows what was acknowledged before it was
//!   asked.
//!
//! What needs a look at the nodes themselves is for those who run them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use piton_proto::enums::{EventType, WorkflowExecutionStatus};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;

use crate::orders::signals_in;

/// Events that are shown of a run that does not end.
const LATEST: usize = 12;

/// Workflow id and run id.
pub type Run = (String, String);
pub type Histories = BTreeMap<Run, Vec<HistoryEvent>>;
pub type Listed = BTreeMap<Run, WorkflowExecutionStatus>;

/// How a request ended, over all its tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Acknowledged; for a start with the run's id.
    Done(String),
    /// Refused for good, by the first answer that came.
    Refused(String),
    /// Nobody knows: no answer, or a refusal after a try without an answer.
    Unknown,
}

/// What was asked. The text is its own, and is found again in the history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// By identity, which is the request id.
    Start(String),
    /// The same, with a policy under which the answer may name a run that was there.
    StartOrUse(String),
    /// By the signal's name.
    Signal(String),
    /// By identity.
    Cancel(String),
    Terminate(String),
    WorkflowTask(String),
    /// By identity, with the attempt behind a slash.
    Activity(String),
}

impl Asked {
    pub fn text(&self) -> &str {
        match self {
            Self::Start(text)
            | Self::StartOrUse(text)
            | Self::Signal(text)
            | Self::Cancel(text)
            | Self::Terminate(text)
            | Self::WorkflowTask(text)
            | Self::Activity(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub workflow_id: String,
    pub asked: Asked,
    pub ending: Ending,
    /// A try before the last one was not answered, and may have come late.
    pub is_retried: bool,
}

/// What a query's worker had seen, and what was acknowledged before it was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    pub workflow_id: String,
    pub run_id: String,
    pub signals: Vec<String>,
    pub acknowledged: Vec<String>,
}

/// A rule that does not hold, and where to look.
#[derive(Clone, Debug)]
pub struct Broken {
    pub text: String,
    pub workflow_id: Option<String>,
    pub run_id: Option<String>,
    pub event_id: Option<i64>,
}

impl Broken {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), workflow_id: None, run_id: None, event_id: None }
    }

    pub fn of(workflow_id: &str, text: impl Into<String>) -> Self {
        Self { workflow_id: Some(workflow_id.to_owned()), ..Self::new(text) }
    }

    pub fn at(run: &Run, event_id: i64, text: impl Into<String>) -> Self {
        let run_id = Some(run.1.clone());
        Self { run_id, event_id: Some(event_id), ..Self::of(&run.0, text) }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(workflow_id) = &self.workflow_id {
            write!(f, " [workflow {workflow_id}")?;
            if let Some(run_id) = &self.run_id {
                write!(f, ", run {run_id}")?;
            }
            if let Some(event_id) = &self.event_id {
                write!(f, ", event {event_id}")?;
            }
            f.write_str("]")?;
        }
        Ok(())
    }
}

/// Events that close a run.
pub const CLOSING: &[EventType] = &[
    EventType::WorkflowExecutionCompleted,
    EventType::WorkflowExecutionFailed,
    EventType::WorkflowExecutionTimedOut,
    EventType::WorkflowExecutionCanceled,
    EventType::WorkflowExecutionTerminated,
    EventType::WorkflowExecutionContinuedAsNew,
];

pub fn closing(events: &[HistoryEvent]) -> Option<EventType> {
    events.last().map(HistoryEvent::event_type).filter(|kind| CLOSING.contains(kind))
}

pub fn time_ms(event: &HistoryEvent) -> i64 {
    event.event_time.map_or(0, |time| time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000)
}

/// The runs that a history names: its successor and its children.
pub fn named_in(workflow_id: &str, events: &[HistoryEvent]) -> Vec<Run> {
    let name = |event: &HistoryEvent| match event.attributes.as_ref()? {
        Event::WorkflowExecutionContinuedAsNewEventAttributes(next) => {
            Some((workflow_id.to_owned(), next.new_execution_run_id.clone()))
        }
        Event::ChildWorkflowExecutionStartedEventAttributes(child) => {
            let child = child.workflow_execution.clone().unwrap_or_default();
            Some((child.workflow_id, child.run_id))
        }
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

/// What may be written later than it happened, with the time at which it did: events wait while a worker
/// holds the workflow task, and an attempt's start is written once the attempt has ended.
fn keeps_its_time(kind: EventType) -> bool {
    matches!(
        kind,
        EventType::ActivityTaskStarted
            | EventType::ActivityTaskCompleted
            | EventType::ActivityTaskFailed
            | EventType::ActivityTaskTimedOut
            | EventType::ActivityTaskCanceled
            | EventType::TimerFired
            | EventType::WorkflowExecutionSignaled
            | EventType::WorkflowExecutionCancelRequested
            | EventType::StartChildWorkflowExecutionFailed
            | EventType::ChildWorkflowExecutionStarted
            | EventType::ChildWorkflowExecutionCompleted
            | EventType::ChildWorkflowExecutionFailed
            | EventType::ChildWorkflowExecutionCanceled
            | EventType::ChildWorkflowExecutionTimedOut
            | EventType::ChildWorkflowExecutionTerminated
            | EventType::SignalExternalWorkflowExecutionFailed
            | EventType::ExternalWorkflowExecutionSignaled
            | EventType::RequestCancelExternalWorkflowExecutionFailed
            | EventType::ExternalWorkflowExecutionCancelRequested
    )
}

/// Everything that the histories alone show.
pub fn check_histories(histories: &Histories, broken: &mut Vec<Broken>) {
    for (run, events) in histories {
        check_chain(run, events, broken);
        check_once(run, events, broken);
    }
    check_runs(histories, broken);
}

fn check_chain(run: &Run, events: &[HistoryEvent], broken: &mut Vec<Broken>) {
    for (event, id) in events.iter().zip(1..) {
        if event.event_id != id {
            let text = format!("A2: event {} stands at {id}", event.event_id);
            broken.push(Broken::at(run, id, text));
        }
    }
    let mut latest = 0;
    for event in events {
        if time_ms(event) < latest && !keeps_its_time(event.event_type()) {
            broken.push(Broken::at(run, event.event_id, "A2: time goes back"));
        }
        latest = latest.max(time_ms(event));
    }
    for pair in events.windows(2) {
        if CLOSING.contains(&pair[0].event_type()) {
            broken.push(Broken::at(run, pair[1].event_id, "A2: goes on after its end"));
        }
    }
    let starts = events.iter().filter(|e| e.event_type() == EventType::WorkflowExecutionStarted);
    if starts.count() != 1
        || events.first().map(HistoryEvent::event_type) != Some(EventType::WorkflowExecutionStarted)
    {
        broken.push(Broken::at(run, 1, "A2: does not begin with its one start"));
    }
}

/// Workflow tasks complete once, activities end once and by their last attempt.
fn check_once(run: &Run, events: &[HistoryEvent], broken: &mut Vec<Broken>) {
    let mut attempts = BTreeMap::new();
    let mut tasks = BTreeSet::new();
    let mut activities = BTreeSet::new();
    for event in events {
        let (set, scheduled, rule) = match event.attributes.as_ref() {
            Some(Event::WorkflowTaskCompletedEventAttributes(of)) => {
                (&mut tasks, of.scheduled_event_id, "A3: a workflow task completed twice")
            }
            Some(Event::ActivityTaskStartedEventAttributes(of)) => {
                attempts.insert(of.scheduled_event_id, of.attempt);
                continue;
            }
            Some(Event::ActivityTaskCompletedEventAttributes(of)) => {
                // A worker of another kind does not write its attempt there.
                let attempt = of.identity.split('/').nth(1).and_then(|n| n.parse().ok());
                let found = attempts.get(&of.scheduled_event_id);
                if attempt.is_some() && found != attempt.as_ref() {
                    let text = format!("A4: {} ended attempt {found:?}", of.identity);
                    broken.push(Broken::at(run, event.event_id, text));
                }
                (&mut activities, of.scheduled_event_id, "A4: an activity ended twice")
            }
            Some(Event::ActivityTaskFailedEventAttributes(of)) => {
                (&mut activities, of.scheduled_event_id, "A4: an activity ended twice")
            }
            Some(Event::ActivityTaskTimedOutEventAttributes(of)) => {
                (&mut activities, of.scheduled_event_id, "A4: an activity ended twice")
            }
            _ => continue,
        };
        if !set.insert(scheduled) {
            let text = format!("{rule}, scheduled by event {scheduled}");
            broken.push(Broken::at(run, event.event_id, text));
        }
    }
}

/// All runs are closed; those of one workflow do not overlap, as its times never go back.
fn check_runs(histories: &Histories, broken: &mut Vec<Broken>) {
    let mut of_workflow: BTreeMap<&str, Vec<(i64, i64, &str)>> = BTreeMap::new();
    for (run, events) in histories {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { continue };
        if closing(events).is_none() {
            let latest = &events[events.len().saturating_sub(LATEST)..];
            let kinds: Vec<_> = latest.iter().map(HistoryEvent::event_type).collect();
            let text = format!("A6: is still open, at last {kinds:?}");
            broken.push(Broken::at(run, last.event_id, text));
            continue;
        }
        let runs = of_workflow.entry(&run.0).or_default();
        runs.push((time_ms(first), time_ms(last), &run.1));
    }
    for (workflow_id, mut runs) in of_workflow {
        runs.sort_unstable();
        for pair in runs.windows(2) {
            if pair[0].1 > pair[1].0 {
                broken.push(Broken::of(workflow_id, format!("A3: runs overlap: {pair:?}")));
            }
        }
    }
}

/// When the timer comes due that this event starts, in milliseconds.
pub fn due_ms(event: &HistoryEvent) -> Option<i64> {
    let Some(Event::TimerStartedEventAttributes(timer)) = event.attributes.as_ref() else {
        return None;
    };
    let span = timer.start_to_fire_timeout.unwrap_or_default();
    Some(time_ms(event) + span.seconds * 1_000 + i64::from(span.nanos) / 1_000_000)
}

/// When a timer was late, in milliseconds without faults, as `healthy_ms` counts them between two
/// times of the wall clock.
pub fn check_timers(
    histories: &Histories,
    late_ms_max: i64,
    healthy_ms: &dyn Fn(i64, i64) -> i64,
    broken: &mut Vec<Broken>,
) {
    for (run, events) in histories {
        let mut due = BTreeMap::new();
        for event in events {
            match event.attributes.as_ref() {
                Some(Event::TimerStartedEventAttributes(_)) => {
                    due.insert(event.event_id, due_ms(event).unwrap_or_default());
                }
                Some(Event::TimerFiredEventAttributes(timer)) => {
                    let fired = time_ms(event);
                    let text = match due.remove(&timer.started_event_id) {
                        None => "A5: a timer fired twice".to_owned(),
                        Some(due) if fired < due => {
                            format!("A5: a timer fired {} ms early", due - fired)
                        }
                        Some(due) => {
                            let late = healthy_ms(due, fired);
                            if late <= late_ms_max {
                                continue;
                            }
                            format!("A5: a timer fired {late} ms late")
                        }
                    };
                    broken.push(Broken::at(run, event.event_id, text));
                }
                _ => {}
            }
        }
    }
}

pub fn check_index(histories: &Histories, listed: &Listed, counted: u64, broken: &mut Vec<Broken>) {
    use WorkflowExecutionStatus as Status;
    if counted != listed.len() as u64 {
        let text = format!("A7: {counted} are counted, {} are listed", listed.len());
        broken.push(Broken::new(text));
    }
    for (run, events) in histories {
        let expected = match closing(events) {
            Some(EventType::WorkflowExecutionCompleted) => Status::Completed,
            Some(EventType::WorkflowExecutionFailed) => Status::Failed,
            Some(EventType::WorkflowExecutionTimedOut) => Status::TimedOut,
            Some(EventType::WorkflowExecutionCanceled) => Status::Canceled,
            Some(EventType::WorkflowExecutionTerminated) => Status::Terminated,
            Some(EventType::WorkflowExecutionContinuedAsNew) => Status::ContinuedAsNew,
            _ => Status::Running,
        };
        let last = events.len() as i64;
        match listed.get(run) {
            None => broken.push(Broken::at(run, last, "A7: is not in the list")),
            Some(status) if *status != expected => {
                let text = format!("A7: is listed as {status:?}, but is {expected:?}");
                broken.push(Broken::at(run, last, text));
            }
            Some(_) => {}
        }
    }
}

/// What an event says that was asked for, and by which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Start,
    Signal,
    Cancel,
    Terminate,
    WorkflowTask,
    Activity,
}

impl Kind {
    fn of(asked: &Asked) -> Kind {
        match asked {
            Asked::Start(_) | Asked::StartOrUse(_) => Kind::Start,
            Asked::Signal(_) => Kind::Signal,
            Asked::Cancel(_) => Kind::Cancel,
            Asked::Terminate(_) => Kind::Terminate,
            Asked::WorkflowTask(_) => Kind::WorkflowTask,
            Asked::Activity(_) => Kind::Activity,
        }
    }
}

fn asked_in(event: &HistoryEvent) -> Option<(Kind, &str)> {
    Some(match event.attributes.as_ref()? {
        Event::WorkflowExecutionStartedEventAttributes(of)
            if of.continued_execution_run_id.is_empty() =>
        {
            (Kind::Start, &of.identity)
        }
        Event::WorkflowExecutionSignaledEventAttributes(of) => (Kind::Signal, &of.signal_name),
        Event::WorkflowExecutionCancelRequestedEventAttributes(of) => (Kind::Cancel, &of.identity),
        Event::WorkflowExecutionTerminatedEventAttributes(of) => (Kind::Terminate, &of.identity),
        Event::WorkflowTaskCompletedEventAttributes(of) => (Kind::WorkflowTask, &of.identity),
        Event::ActivityTaskCompletedEventAttributes(of) => (Kind::Activity, &of.identity),
        _ => return None,
    })
}

/// By workflow, kind and text: the runs in which it is found, once for each time.
fn found_in(histories: &Histories) -> BTreeMap<(&str, Kind, &str), Vec<&str>> {
    let mut found: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for ((workflow_id, run_id), events) in histories {
        for (kind, text) in events.iter().filter_map(asked_in) {
            found.entry((workflow_id.as_str(), kind, text)).or_default().push(run_id.as_str());
        }
    }
    found
}

pub fn check_ledger(histories: &Histories, entries: &[Entry], broken: &mut Vec<Broken>) {
    let found = found_in(histories);
    for Entry { workflow_id, asked, ending, is_retried } in entries {
        let text = asked.text();
        let runs = found.get(&(workflow_id.as_str(), Kind::of(asked), text));
        let times = runs.map_or(0, Vec::len);
        let mut find = |rule: &str| {
            let text = format!("{rule}: {text}: {ending:?}, {times} times");
            let run_id = runs.map(|runs| runs[0].to_owned());
            broken.push(Broken { run_id, ..Broken::of(workflow_id, text) });
        };
        // A termination has no request id, so a second try may meet another run; one that comes to
        // a run which is to be cancelled already leaves no second event.
        match (asked, ending) {
            (_, Ending::Refused(_)) if times > 0 => find("A8: refused, and yet in the history"),
            (Asked::Terminate(_), Ending::Done(_)) if times == 0 => find("A1: lost"),
            (Asked::Terminate(_), _) => {}
            // Signals are recognised by the run that took them: a late try may meet the next one.
            (Asked::Signal(_), _) if *is_retried && times > 1 && are_distinct(runs) => {}
            (_, _) if times > 1 => find("A1: repeated"),
            (Asked::Cancel(_), _) => {}
            (Asked::StartOrUse(_), Ending::Done(run_id)) => {
                if !histories.contains_key(&(workflow_id.clone(), run_id.clone())) {
                    find("A1: lost");
                }
            }
            (Asked::Start(_), Ending::Done(run_id)) => {
                if runs.is_none_or(|runs| runs[0] != run_id) {
                    find("A1: lost, or another run than acknowledged");
                }
            }
            (_, Ending::Done(_)) if times == 0 => find("A1: lost"),
            (_, _) => {}
        }
    }
}

fn are_distinct(runs: Option<&Vec<&str>>) -> bool {
    runs.is_none_or(|runs| runs.iter().collect::<BTreeSet<_>>().len() == runs.len())
}

/// What a query showed is how the history begins, and holds what was acknowledged before.
pub fn check_queries(histories: &Histories, seen: &[Seen], broken: &mut Vec<Broken>) {
    for Seen { workflow_id, run_id, signals, acknowledged } in seen {
        let run = (workflow_id.clone(), run_id.clone());
        let Some(events) = histories.get(&run) else {
            broken.push(Broken::at(&run, 1, "A8: a query was answered by a run that is not there"));
            continue;
        };
        let there = signals_in(events);
        if !there.starts_with(signals) {
            let text = format!("A8: a query saw {signals:?}, it has {there:?}");
            broken.push(Broken::at(&run, 1, text));
        }
        let missed = acknowledged.iter().find(|s| there.contains(s) && !signals.contains(s));
        if let Some(missed) = missed {
            broken.push(Broken::at(&run, 1, format!("A8: a query does not show {missed}")));
        }
    }
}
