//! A small worker, and the workload that it runs: orders, each with two activities, a timer, a
//! child and signals. What clients were acknowledged is kept in a ledger, and histories are held
//! against it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use piton_proto::command::command::Attributes;
use piton_proto::command::{
    Command, CompleteWorkflowExecutionCommandAttributes, ScheduleActivityTaskCommandAttributes,
    StartChildWorkflowExecutionCommandAttributes, StartTimerCommandAttributes,
};
use piton_proto::common::{ActivityType, WorkflowType};
use piton_proto::enums::{CommandType, EventType};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::workflowservice::PollWorkflowTaskQueueResponse;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Api, Refused, execution, payloads, signal_of, start_of, task_queue};

/// Signals that an order waits for.
pub(crate) const SIGNALS: usize = 3;
pub(crate) const ORDER: &str = "order";
const CHILD: &str = "child";
const TIMER: Duration = Duration::from_millis(20);
/// An attempt whose worker or node is lost is repeated after this time.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Nothing here takes longer, however slow the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until there is an answer; fails the test when there is none in time.
pub(crate) async fn await_until<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep_until(Instant::now() + PAUSE).await;
    }
}

/// Sends a request until it is answered for good, as SDKs do.
pub(crate) async fn insist<T, F>(what: &str, mut send: impl FnMut() -> F) -> Result<T, Refused>
where
    F: Future<Output = Result<T, Refused>>,
{
    await_until(what, || {
        let answer = send();
        async {
            match answer.await {
                Err(refused) if refused.is_retriable() => None,
                answer => Some(answer),
            }
        }
    })
    .await
}

fn duration(span: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}

pub(crate) fn command(kind: CommandType, attributes: Attributes) -> Command {
    Command { command_type: kind.into(), attributes: Some(attributes), ..Command::default() }
}

pub(crate) fn complete() -> Command {
    let attributes = CompleteWorkflowExecutionCommandAttributes { result: Some(payloads("done")) };
    let attributes = Attributes::CompleteWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::CompleteWorkflowExecution, attributes)
}

/// An activity whose attempts take as long as they like.
pub(crate) fn schedule(activity_id: &str, queue: &str) -> Command {
    schedule_with(activity_id, queue, PATIENCE)
}

pub(crate) fn schedule_with(activity_id: &str, queue: &str, attempt: Duration) -> Command {
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: activity_id.to_owned(),
        activity_type: Some(ActivityType { name: "step".to_owned() }),
        task_queue: Some(task_queue(queue)),
        start_to_close_timeout: duration(attempt),
        ..ScheduleActivityTaskCommandAttributes::default()
    };
    let attributes = Attributes::ScheduleActivityTaskCommandAttributes(attributes);
    command(CommandType::ScheduleActivityTask, attributes)
}

pub(crate) fn start_timer(timer_id: &str, span: Duration) -> Command {
    let attributes = StartTimerCommandAttributes {
        timer_id: timer_id.to_owned(),
        start_to_fire_timeout: duration(span),
    };
    command(CommandType::StartTimer, Attributes::StartTimerCommandAttributes(attributes))
}

pub(crate) fn start_child(workflow_id: &str, queue: &str) -> Command {
    let attributes = StartChildWorkflowExecutionCommandAttributes {
        workflow_id: workflow_id.to_owned(),
        workflow_type: Some(WorkflowType { name: CHILD.to_owned() }),
        task_queue: Some(task_queue(queue)),
        workflow_task_timeout: duration(ATTEMPT),
        ..StartChildWorkflowExecutionCommandAttributes::default()
    };
    let attributes = Attributes::StartChildWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::StartChildWorkflowExecution, attributes)
}

pub(crate) fn child_of(workflow_id: &str) -> String {
    format!("{workflow_id}/child")
}

/// What workflow code would do after these events.
fn decide(task: &PollWorkflowTaskQueueResponse, events: &[HistoryEvent]) -> Vec<Command> {
    let workflow_type = task.workflow_type.as_ref().map_or("", |t| t.name.as_str());
    let workflow_id = task.workflow_execution.as_ref().map_or("", |e| e.workflow_id.as_str());
    let Some(Event::WorkflowExecutionStartedEventAttributes(started)) =
        events.first().and_then(|event| event.attributes.as_ref())
    else {
        panic!("the history of {workflow_id} does not begin with its start");
    };
    let queue = started.task_queue.as_ref().map_or("", |queue| queue.name.as_str());
    let count = |kind: EventType| events.iter().filter(|e| e.event_type() == kind).count();
    let scheduled = count(EventType::ActivityTaskScheduled);
    let done = count(EventType::ActivityTaskCompleted);
    if workflow_type == CHILD {
        return vec![complete()];
    }
    let is_over = count(EventType::TimerFired) == 1
        && count(EventType::ChildWorkflowExecutionCompleted) == 1
        && count(EventType::WorkflowExecutionSignaled) >= SIGNALS;
    match (scheduled, done) {
        (0, _) => vec![
            schedule_with("first", queue, ATTEMPT),
            start_timer("pause", TIMER),
            start_child(&child_of(workflow_id), queue),
        ],
        (1, 1) => vec![schedule_with("second", queue, ATTEMPT)],
        (2, 2) if is_over => vec![complete()],
        _ => Vec::new(),
    }
}

/// Polls and answers until it is dropped.
pub(crate) struct Worker {
    polls: Vec<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let ended = self.polls.iter().filter(|poll| poll.is_finished()).count();
        for poll in &self.polls {
            poll.abort();
        }
        // A poller that ended found something wrong and said it: what it looked at is not shown by the test itself.
        assert!(ended == 0 || std::thread::panicking(), "{ended} pollers of a worker panicked");
    }
}

impl Worker {
    pub(crate) fn start(api: &Arc<dyn Api>, queue: &str, polls_of_each: usize) -> Self {
        let mut polls = Vec::new();
        for _ in 0..polls_of_each {
            polls.push(tokio::spawn(work_on_workflows(Arc::clone(api), queue.to_owned())));
            polls.push(tokio::spawn(work_on_activities(Arc::clone(api), queue.to_owned())));
        }
        Self { polls }
    }
}

async fn work_on_workflows(api: Arc<dyn Api>, queue: String) {
    loop {
        match answer_workflow_task(api.as_ref(), &queue).await {
            Ok(_) => {}
            // A task that is gone or was overtaken by an event comes again.
            Err(refused) if !refused.is_retriable() => check_refusal(&refused),
            Err(_) => tokio::time::sleep_until(Instant::now() + PAUSE).await,
        }
    }
}

/// The answers that a worker may get which did nothing wrong.
fn check_refusal(refused: &Refused) {
    let is_known = refused.code == tonic::Code::NotFound
        || refused.text.contains("UnhandledCommand")
        || refused.text.contains("unhandled command");
    assert!(is_known, "a worker was refused: {refused}");
}

/// Takes one task and answers it. False: none came.
pub(crate) async fn answer_workflow_task(api: &dyn Api, queue: &str) -> Result<bool, Refused> {
    let task = api.poll_workflow_task(queue).await?;
    if task.task_token.is_empty() {
        return Ok(false);
    }
    let mut events = task.history.clone().map(|history| history.events).unwrap_or_default();
    let mut token = task.next_page_token.to_vec();
    let execution = task.workflow_execution.clone().unwrap_or_default();
    while !token.is_empty() {
        let (page, next) = api.history_page(&execution, token).await?;
        events.extend(page);
        token = next;
    }
    check_gapless(&execution.workflow_id, &events);
    api.complete_workflow_task(&task.task_token, decide(&task, &events)).await?;
    Ok(true)
}

async fn work_on_activities(api: Arc<dyn Api>, queue: String) {
    loop {
        let answered = async {
            let task = api.poll_activity_task(&queue).await?;
            if !task.task_token.is_empty() {
                api.complete_activity_task(&task.task_token).await?;
            }
            Ok::<_, Refused>(())
        };
        match answered.await {
            Ok(()) => {}
            Err(refused) if !refused.is_retriable() => check_refusal(&refused),
            Err(_) => tokio::time::sleep_until(Instant::now() + PAUSE).await,
        }
    }
}

/// What clients were acknowledged.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) run_id: String,
    pub(crate) signals: BTreeSet<String>,
}

impl Ledger {
    pub(crate) fn started(&self, workflow_id: &str, run_id: String) {
        let mut entries = self.entries.lock().unwrap();
        entries.entry(workflow_id.to_owned()).or_default().run_id = run_id;
    }

    pub(crate) fn signalled(&self, workflow_id: &str, name: &str) {
        let mut entries = self.entries.lock().unwrap();
        entries.entry(workflow_id.to_owned()).or_default().signals.insert(name.to_owned());
    }

    pub(crate) fn entries(&self) -> BTreeMap<String, Entry> {
        self.entries.lock().unwrap().clone()
    }

    /// Requests acknowledged so far.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().unwrap().values().map(|entry| 1 + entry.signals.len()).sum()
    }
}

/// Starts an order and sends it its signals, each until it is acknowledged.
pub(crate) async fn place_order(
    api: Arc<dyn Api>,
    ledger: Ledger,
    workflow_id: String,
    queue: String,
) {
    let mut start = start_of(&workflow_id, ORDER, &queue);
    start.workflow_task_timeout = duration(ATTEMPT);
    let run_id = insist("start", || api.start(start.clone())).await.unwrap();
    ledger.started(&workflow_id, run_id);
    for number in 0..SIGNALS {
        let name = format!("signal-{number}");
        let signal = signal_of(&workflow_id, &name);
        let sent = insist("signal", || api.signal(signal.clone())).await;
        // A repeated signal is recognised even when its first try let the order end.
        sent.unwrap_or_else(|refused| panic!("{name} to {workflow_id}: {refused}"));
        ledger.signalled(&workflow_id, &name);
    }
}

/// Places orders at the same time; each future ends when all of its requests are acknowledged.
pub(crate) fn place_orders(
    api: &Arc<dyn Api>,
    ledger: &Ledger,
    queue: &str,
    workflow_ids: impl IntoIterator<Item = String>,
) -> tokio::task::JoinSet<()> {
    let mut orders = tokio::task::JoinSet::new();
    for id in workflow_ids {
        orders.spawn(place_order(Arc::clone(api), ledger.clone(), id, queue.to_owned()));
    }
    orders
}

pub(crate) async fn history_of(api: &dyn Api, workflow_id: &str) -> Vec<HistoryEvent> {
    let execution = execution(workflow_id);
    insist("history", || api.history(&execution)).await.unwrap()
}

/// Waits until a workflow has completed, and answers its history.
pub(crate) async fn await_completed(api: &dyn Api, workflow_id: &str) -> Vec<HistoryEvent> {
    let end = Instant::now() + PATIENCE;
    loop {
        let events = history_of(api, workflow_id).await;
        if events.last().map(HistoryEvent::event_type)
            == Some(EventType::WorkflowExecutionCompleted)
        {
            return events;
        }
        let kinds: Vec<_> = events.iter().map(HistoryEvent::event_type).collect();
        assert!(Instant::now() < end, "{workflow_id} does not complete: {kinds:?}");
        tokio::time::sleep_until(Instant::now() + PAUSE).await;
    }
}

/// Waits for all orders of the ledger, and holds their histories and their children's against it.
pub(crate) async fn await_orders(
    api: &dyn Api,
    ledger: &Ledger,
) -> BTreeMap<String, Vec<HistoryEvent>> {
    let mut histories = BTreeMap::new();
    for (workflow_id, entry) in ledger.entries() {
        let events = await_completed(api, &workflow_id).await;
        check_against(&workflow_id, &entry, &events);
        check_order(&workflow_id, &events);
        let child = child_of(&workflow_id);
        let events_of_child = await_completed(api, &child).await;
        check_gapless(&child, &events_of_child);
        histories.insert(child, events_of_child);
        histories.insert(workflow_id, events);
    }
    histories
}

/// What may be written later than it happened: while a worker holds the workflow task these events wait, and the
/// start of an activity's attempt is written once the attempt has ended. They keep the time at which they happened.
fn may_wait(kind: EventType) -> bool {
    matches!(
        kind,
        EventType::ActivityTaskStarted
            | EventType::ActivityTaskCompleted
            | EventType::ActivityTaskFailed
            | EventType::ActivityTaskTimedOut
            | EventType::TimerFired
            | EventType::WorkflowExecutionSignaled
            | EventType::ChildWorkflowExecutionStarted
            | EventType::ChildWorkflowExecutionCompleted
    )
}

/// Event ids are 1, 2, 3 ... and times never go back, but those of events that waited.
pub(crate) fn check_gapless(workflow_id: &str, events: &[HistoryEvent]) {
    for (event, id) in events.iter().zip(1..) {
        assert_eq!(event.event_id, id, "{workflow_id}: the history has a gap or a repetition");
    }
    let time = |event: &HistoryEvent| event.event_time.map_or((0, 0), |t| (t.seconds, t.nanos));
    let mut latest = (0, 0);
    for event in events {
        let in_order = latest <= time(event) || may_wait(event.event_type());
        assert!(in_order, "{workflow_id}: time went back at {event:?}");
        latest = latest.max(time(event));
    }
}

/// What was acknowledged is in the history exactly once.
pub(crate) fn check_against(workflow_id: &str, entry: &Entry, events: &[HistoryEvent]) {
    check_gapless(workflow_id, events);
    let mut signals: BTreeMap<&str, usize> = BTreeMap::new();
    for event in events {
        match event.attributes.as_ref() {
            Some(Event::WorkflowExecutionStartedEventAttributes(started)) => {
                assert_eq!(event.event_id, 1, "{workflow_id}: a second start");
                let run_id = &started.original_execution_run_id;
                assert_eq!(*run_id, entry.run_id, "{workflow_id}: another run than acknowledged");
            }
            Some(Event::WorkflowExecutionSignaledEventAttributes(signalled)) => {
                *signals.entry(&signalled.signal_name).or_default() += 1;
            }
            _ => {}
        }
    }
    for name in &entry.signals {
        assert!(signals.contains_key(name.as_str()), "{workflow_id}: {name} is lost: {events:#?}");
    }
    for (name, count) in signals {
        assert_eq!(count, 1, "{workflow_id}: {name} is there {count} times");
    }
}

/// Each step of an order happened exactly once.
fn check_order(workflow_id: &str, events: &[HistoryEvent]) {
    for (kind, expected) in [
        (EventType::ActivityTaskScheduled, 2),
        (EventType::ActivityTaskStarted, 2),
        (EventType::ActivityTaskCompleted, 2),
        (EventType::TimerStarted, 1),
        (EventType::TimerFired, 1),
        (EventType::StartChildWorkflowExecutionInitiated, 1),
        (EventType::ChildWorkflowExecutionStarted, 1),
        (EventType::ChildWorkflowExecutionCompleted, 1),
        (EventType::WorkflowExecutionCompleted, 1),
    ] {
        let count = events.iter().filter(|event| event.event_type() == kind).count();
        assert_eq!(count, expected, "{workflow_id}: {kind:?} in {events:#?}");
    }
}
