//! Holds what clients and workers were answered against the histories, the index and the replicas
//! after a run. Each finding begins with the rule that is broken:
//!
//! - A1 what was acknowledged is in the history exactly once;
//! - A2 event ids are one chain without a gap, times do not go back;
//! - A3 at most one open run of a workflow; a workflow task is completed once;
//! - A4 an activity ends once, by the attempt that was under way; an attempt is given to one worker;
//! - A5 a timer fires once, never early, and not late while there are no faults;
//! - A6 everything ends once the faults are over, and nothing waits;
//! - A7 the index shows what the histories say, and at once what was acknowledged;
//! - A8 what was refused for good did not happen; a query shows what was acknowledged before it
//!   was asked, a read what was read before;
//! - A9 replicas that have applied the same hold the same rows, and no store is ahead of its log;
//! - A11 a term has one leader.
//!
//! A10, that each fault hit while requests were under way, is seen by who inflicts them.

use std::collections::{BTreeMap, BTreeSet};

use piton_proto::common::WorkflowExecution;
use piton_proto::enums::{EventType, WorkflowExecutionStatus};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_shard::QueueType;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::ledger::{Asked, Ending, Entry, Ledger, Seen};
use crate::timers;
use crate::worker::{QUEUE, signals_in};
use crate::workload::CLOSING;
use crate::world::{World, in_ms};

/// Workflow id and run id.
pub(crate) type Run = (String, String);
type Histories = BTreeMap<Run, Vec<HistoryEvent>>;

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

/// Everything that is broken.
pub(crate) async fn audit(world: &World, client: &Client, ledger: &Ledger) -> Vec<String> {
    let mut broken = ledger.broken();
    let end = in_ms(60_000);
    let (histories, listed, counted) = loop {
        match read_all(client, ledger).await {
            Ok(read) => break read,
            Err(text) if Instant::now() >= end => {
                broken.push(text);
                return broken;
            }
            Err(_) => sleep_until(in_ms(200)).await,
        }
    };
    for (run, events) in &histories {
        check_chain(run, events, &mut broken);
        check_once(run, events, &mut broken);
        timers::check(run, events, world, &mut broken);
    }
    timers::check_seen(ledger, world, &mut broken);
    check_runs(&histories, &mut broken);
    if world.points().count_all("state is ahead") > 0 {
        broken.push("A9: a node started with a store that was ahead of its log".to_owned());
    }
    check_index(&histories, &listed, counted, &mut broken);
    check_ledger(&histories, &ledger.entries(), &mut broken);
    check_queries(&histories, &ledger.seen(), &mut broken);
    check_backlog(client, &mut broken).await;
    for (run, events) in &histories {
        world.trace().note(format_args!("{run:?} {events:?}"));
    }
    let asked = ledger.entries();
    let done = asked.iter().filter(|entry| matches!(entry.ending, Ending::Done(_))).count();
    let unknown = asked.iter().filter(|entry| entry.ending == Ending::Unknown).count();
    println!(
        "   {} runs, {} requests ({done} acknowledged, {unknown} of unknown outcome), {} queries",
        histories.len(),
        asked.len(),
        ledger.seen().len(),
    );
    let (points, witness) = (world.points(), world.witness());
    println!(
        "   {} snapshots taken, {} installed, {} stores rebuilt, {} terms",
        points.count_all("snapshot taken"),
        points.count_all("snapshot installed"),
        witness.stores_discarded(),
        witness.terms(),
    );
    check_replicas(world, &mut broken).await;
    broken
}

type Listed = BTreeMap<Run, WorkflowExecutionStatus>;

/// All histories that can be found from the index, the acknowledgements and each other.
async fn read_all(client: &Client, ledger: &Ledger) -> Result<(Histories, Listed, u64), String> {
    let (rows, counted) = client.list().await.map_err(|e| format!("A6: the list: {e:?}"))?;
    let mut listed = Listed::new();
    let mut to_read: BTreeSet<Run> = BTreeSet::new();
    for row in rows {
        let status = row.status();
        let execution = row.execution.clone().unwrap_or_default();
        let run = (execution.workflow_id, execution.run_id);
        if listed.contains_key(&run) {
            let times = format!("{:?} to {:?}", row.start_time, row.close_time);
            return Err(format!("A7: the list shows {run:?} twice, once as {status:?}, {times}"));
        }
        listed.insert(run.clone(), status);
        to_read.insert(run);
    }
    for entry in ledger.entries() {
        if let (Asked::Start(_) | Asked::StartOrUse(_), Ending::Done(run_id)) =
            (&entry.asked, &entry.ending)
        {
            to_read.insert((entry.workflow_id.clone(), run_id.clone()));
        }
    }
    let mut histories = Histories::new();
    while let Some(run) = to_read.pop_first() {
        if histories.contains_key(&run) {
            continue;
        }
        let (workflow_id, run_id) = run.clone();
        let execution = WorkflowExecution { workflow_id: workflow_id.clone(), run_id };
        let events = client.history(&execution).await;
        let events = events.map_err(|e| format!("A6: the history of {run:?}: {e:?}"))?;
        for event in &events {
            match event.attributes.as_ref() {
                Some(Event::WorkflowExecutionContinuedAsNewEventAttributes(next)) => {
                    to_read.insert((workflow_id.clone(), next.new_execution_run_id.clone()));
                }
                Some(Event::ChildWorkflowExecutionStartedEventAttributes(child)) => {
                    let child = child.workflow_execution.clone().unwrap_or_default();
                    to_read.insert((child.workflow_id, child.run_id));
                }
                _ => {}
            }
        }
        histories.insert(run, events);
    }
    Ok((histories, listed, counted))
}

pub(crate) fn time_ms(event: &HistoryEvent) -> i64 {
    event.event_time.map_or(0, |time| time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000)
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

fn check_chain(run: &Run, events: &[HistoryEvent], broken: &mut Vec<String>) {
    for (event, id) in events.iter().zip(1..) {
        if event.event_id != id {
            broken.push(format!("A2: {run:?}: event {} stands at {id}", event.event_id));
        }
    }
    let mut latest = 0;
    for event in events {
        if time_ms(event) < latest && !keeps_its_time(event.event_type()) {
            broken.push(format!("A2: {run:?}: time goes back at event {}", event.event_id));
        }
        latest = latest.max(time_ms(event));
    }
    for pair in events.windows(2) {
        if CLOSING.contains(&pair[0].event_type()) {
            broken.push(format!("A2: {run:?}: goes on after its end"));
        }
    }
    let starts = events.iter().filter(|e| e.event_type() == EventType::WorkflowExecutionStarted);
    if starts.count() != 1
        || events.first().map(HistoryEvent::event_type) != Some(EventType::WorkflowExecutionStarted)
    {
        broken.push(format!("A2: {run:?}: does not begin with its one start"));
    }
}

/// Workflow tasks complete once, activities end once and by their last attempt.
fn check_once(run: &Run, events: &[HistoryEvent], broken: &mut Vec<String>) {
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
                let attempt = of.identity.split('/').nth(1).and_then(|n| n.parse().ok());
                if attempts.get(&of.scheduled_event_id) != attempt.as_ref() {
                    let found = attempts.get(&of.scheduled_event_id);
                    broken.push(format!("A4: {run:?}: {} ended attempt {found:?}", of.identity));
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
            broken.push(format!("{rule}: {run:?}, scheduled by event {scheduled}"));
        }
    }
}

pub(crate) fn closing(events: &[HistoryEvent]) -> Option<EventType> {
    events.last().map(HistoryEvent::event_type).filter(|kind| CLOSING.contains(kind))
}

/// All runs are closed; those of one workflow do not overlap, as its times never go back.
fn check_runs(histories: &Histories, broken: &mut Vec<String>) {
    let mut of_workflow: BTreeMap<&str, Vec<(i64, i64, &str)>> = BTreeMap::new();
    for ((workflow_id, run_id), events) in histories {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { continue };
        if closing(events).is_none() {
            broken.push(format!("A6: {workflow_id} {run_id} is still open: {:?}", kinds(events)));
            continue;
        }
        let runs = of_workflow.entry(workflow_id).or_default();
        runs.push((time_ms(first), time_ms(last), run_id));
    }
    for (workflow_id, mut runs) in of_workflow {
        runs.sort_unstable();
        for pair in runs.windows(2) {
            if pair[0].1 > pair[1].0 {
                broken.push(format!("A3: {workflow_id}: runs overlap: {pair:?}"));
            }
        }
    }
}

fn kinds(events: &[HistoryEvent]) -> Vec<EventType> {
    events.iter().map(HistoryEvent::event_type).collect()
}

fn check_index(histories: &Histories, listed: &Listed, counted: u64, broken: &mut Vec<String>) {
    use WorkflowExecutionStatus as Status;
    if counted != listed.len() as u64 {
        broken.push(format!("A7: {counted} are counted, {} are listed", listed.len()));
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
        match listed.get(run) {
            None => broken.push(format!("A7: {run:?} is not in the list")),
            Some(status) if *status != expected => {
                broken.push(format!("A7: {run:?} is listed as {status:?}, but is {expected:?}"));
            }
            Some(_) => {}
        }
    }
}

/// By workflow, kind and text: the runs in which it is found, once for each time.
fn found_in(histories: &Histories) -> BTreeMap<(&str, Kind, &str), Vec<&str>> {
    let mut found: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for ((workflow_id, run_id), events) in histories {
        for event in events {
            let (kind, text) = match event.attributes.as_ref() {
                Some(Event::WorkflowExecutionStartedEventAttributes(of))
                    if of.continued_execution_run_id.is_empty() =>
                {
                    (Kind::Start, &of.identity)
                }
                Some(Event::WorkflowExecutionSignaledEventAttributes(of)) => {
                    (Kind::Signal, &of.signal_name)
                }
                Some(Event::WorkflowExecutionCancelRequestedEventAttributes(of)) => {
                    (Kind::Cancel, &of.identity)
                }
                Some(Event::WorkflowExecutionTerminatedEventAttributes(of)) => {
                    (Kind::Terminate, &of.identity)
                }
                Some(Event::WorkflowTaskCompletedEventAttributes(of)) => {
                    (Kind::WorkflowTask, &of.identity)
                }
                Some(Event::ActivityTaskCompletedEventAttributes(of)) => {
                    (Kind::Activity, &of.identity)
                }
                _ => continue,
            };
            let key = (workflow_id.as_str(), kind, text.as_str());
            found.entry(key).or_default().push(run_id.as_str());
        }
    }
    found
}

fn check_ledger(histories: &Histories, entries: &[Entry], broken: &mut Vec<String>) {
    let found = found_in(histories);
    for Entry { workflow_id, asked, ending } in entries {
        let kind = match asked {
            Asked::Start(_) | Asked::StartOrUse(_) => Kind::Start,
            Asked::Signal(_) => Kind::Signal,
            Asked::Cancel(_) => Kind::Cancel,
            Asked::Terminate(_) => Kind::Terminate,
            Asked::WorkflowTask(_) => Kind::WorkflowTask,
            Asked::Activity(_) => Kind::Activity,
        };
        let text = asked.text();
        let runs = found.get(&(workflow_id.as_str(), kind, text));
        let times = runs.map_or(0, Vec::len);
        let mut find = |rule: &str| {
            broken.push(format!("{rule}: {text} of {workflow_id}: {ending:?}, {times} times"));
        };
        // A termination has no request id, so a second try may meet another run; one that comes to
        // a run which is to be cancelled already leaves no second event.
        match (asked, ending) {
            (_, Ending::Refused(_)) if times > 0 => find("A8: refused, and yet in the history"),
            (Asked::Terminate(_), Ending::Done(_)) if times == 0 => find("A1: lost"),
            (Asked::Terminate(_), _) => {}
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

/// What a query showed is how the history begins, and holds what was acknowledged before.
fn check_queries(histories: &Histories, seen: &[Seen], broken: &mut Vec<String>) {
    for Seen { workflow_id, run_id, signals, acknowledged } in seen {
        let run = (workflow_id.clone(), run_id.clone());
        let Some(events) = histories.get(&run) else {
            broken.push(format!("A8: a query was answered by {run:?}, which is not there"));
            continue;
        };
        let there = signals_in(events);
        if !there.starts_with(signals) {
            broken.push(format!("A8: a query of {run:?} saw {signals:?}, it has {there:?}"));
        }
        let missed = acknowledged.iter().find(|s| there.contains(s) && !signals.contains(s));
        if let Some(missed) = missed {
            broken.push(format!("A8: a query of {run:?} does not show {missed}"));
        }
    }
}

async fn check_backlog(client: &Client, broken: &mut Vec<String>) {
    for kind in [QueueType::Workflow, QueueType::Activity] {
        let mut left = u64::MAX;
        for _ in 0..60 {
            let view = client.on_cluster(async |cluster, namespace| {
                let queue = piton_core::effect::QueueName::normal(QUEUE);
                cluster.describe_task_queue(&namespace, queue, kind).await
            });
            if let Ok(view) = view.await {
                left = view.backlog_count;
            }
            if left == 0 {
                break;
            }
            sleep_until(in_ms(1_000)).await;
        }
        if left > 0 {
            broken.push(format!("A6: {left} tasks of {kind:?} still wait"));
        }
    }
}

async fn check_replicas(world: &World, broken: &mut Vec<String>) {
    let end = in_ms(60_000);
    loop {
        let places = world.places();
        let is_settled = places.iter().flatten().all(|(applied, last)| applied == last);
        if is_settled && places.windows(2).all(|pair| pair[0] == pair[1]) {
            break;
        }
        if Instant::now() >= end {
            broken.push(format!("A9: replicas do not come to the same index: {places:?}"));
            return;
        }
        sleep_until(in_ms(50)).await;
    }
    let rows = world.rows_at_the_end().await;
    let Some((first, expected)) = rows.first() else { return };
    if expected.len() < 50 {
        broken.push(format!("A9: node {first} has only {} rows", expected.len()));
    }
    for (node, rows) in &rows[1..] {
        if let Some((one, other)) = expected.iter().zip(rows).find(|(one, other)| one != other) {
            broken.push(format!("A9: nodes {first} and {node} differ: {one:?} {other:?}"));
        } else if expected.len() != rows.len() {
            let (one, other) = (expected.len(), rows.len());
            broken.push(format!("A9: node {first} has {one} rows, node {node} has {other}"));
        }
    }
}
