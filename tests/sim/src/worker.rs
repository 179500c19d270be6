//! Workers: what workflow and activity code would do, and the workflows' plans. A worker answers each
//! task once or not at all, as one that may be killed at any time.

use std::time::Duration;

use piton_core::request::RunRequest;
use piton_proto::command::command::Attributes;
use piton_proto::command::{
    CancelWorkflowExecutionCommandAttributes, Command, CompleteWorkflowExecutionCommandAttributes,
    ContinueAsNewWorkflowExecutionCommandAttributes, ScheduleActivityTaskCommandAttributes,
    StartChildWorkflowExecutionCommandAttributes, StartTimerCommandAttributes,
};
use piton_proto::common::{ActivityType, Payload, Payloads, RetryPolicy, WorkflowType};
use piton_proto::enums::{CommandType, EventType, QueryResultType};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::query::WorkflowQueryResult;
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::{
    PollWorkflowTaskQueueResponse, RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
};
use piton_shard::TaskToken;
use tokio::time::sleep_until;

use crate::client::{Client, Failure};
use crate::ledger::{Asked, Ending, Ledger};
use crate::world::in_ms;

pub(crate) const QUEUE: &str = "orders";
const POLL_MS: u64 = 5_000;
const ATTEMPT: Duration = Duration::from_millis(800);
pub(crate) const WORKFLOW_TASK: Duration = Duration::from_secs(1);

/// What a workflow does: some activities, a timer and a child at once; then it waits for them and for
/// signals, and ends or goes on as a new run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) activities: u64,
    pub(crate) timer_ms: u64,
    pub(crate) children: u64,
    pub(crate) signals: u64,
    pub(crate) continues: u64,
}

impl Plan {
    pub(crate) fn workflow_type(&self) -> WorkflowType {
        let Plan { activities, timer_ms, children, signals, continues } = self;
        let name = format!("order/{activities}/{timer_ms}/{children}/{signals}/{continues}");
        WorkflowType { name }
    }

    fn of(workflow_type: &str) -> Self {
        let mut numbers = workflow_type.split('/').skip(1).map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Plan {
            activities: next(),
            timer_ms: next(),
            children: next(),
            signals: next(),
            continues: next(),
        }
    }
}

pub(crate) fn duration(span: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}

pub(crate) fn task_queue() -> Option<TaskQueue> {
    Some(TaskQueue { name: QUEUE.to_owned(), ..TaskQueue::default() })
}

fn payloads(text: &str) -> Payloads {
    let data = text.as_bytes().to_vec().into();
    Payloads { payloads: vec![Payload { data, ..Payload::default() }] }
}

fn command(kind: CommandType, attributes: Attributes) -> Command {
    Command { command_type: kind.into(), attributes: Some(attributes), ..Command::default() }
}

fn schedule(number: u64) -> Command {
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: format!("activity-{number}"),
        activity_type: Some(ActivityType { name: "step".to_owned() }),
        task_queue: task_queue(),
        start_to_close_timeout: duration(ATTEMPT),
        schedule_to_close_timeout: duration(Duration::from_secs(600)),
        retry_policy: Some(RetryPolicy {
            initial_interval: duration(Duration::from_millis(100)),
            backoff_coefficient: 2.0,
            maximum_interval: duration(Duration::from_secs(1)),
            maximum_attempts: 5,
            ..RetryPolicy::default()
        }),
        ..ScheduleActivityTaskCommandAttributes::default()
    };
    let attributes = Attributes::ScheduleActivityTaskCommandAttributes(attributes);
    command(CommandType::ScheduleActivityTask, attributes)
}

fn start_timer(millis: u64) -> Command {
    let attributes = StartTimerCommandAttributes {
        timer_id: "timer".to_owned(),
        start_to_fire_timeout: duration(Duration::from_millis(millis)),
    };
    command(CommandType::StartTimer, Attributes::StartTimerCommandAttributes(attributes))
}

fn start_child(of: &str, run_id: &str) -> Command {
    let plan = Plan { activities: 1, timer_ms: 50, children: 0, signals: 0, continues: 0 };
    let attributes = StartChildWorkflowExecutionCommandAttributes {
        workflow_id: format!("{of}/{run_id}"),
        workflow_type: Some(plan.workflow_type()),
        task_queue: task_queue(),
        workflow_task_timeout: duration(WORKFLOW_TASK),
        ..StartChildWorkflowExecutionCommandAttributes::default()
    };
    let attributes = Attributes::StartChildWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::StartChildWorkflowExecution, attributes)
}

fn end(plan: Plan) -> Command {
    if plan.continues > 0 {
        let next = Plan { continues: plan.continues - 1, signals: 0, children: 0, ..plan };
        let attributes = ContinueAsNewWorkflowExecutionCommandAttributes {
            workflow_type: Some(next.workflow_type()),
            task_queue: task_queue(),
            workflow_task_timeout: duration(WORKFLOW_TASK),
            ..ContinueAsNewWorkflowExecutionCommandAttributes::default()
        };
        let attributes = Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(attributes);
        return command(CommandType::ContinueAsNewWorkflowExecution, attributes);
    }
    let attributes = CompleteWorkflowExecutionCommandAttributes { result: Some(payloads("done")) };
    let attributes = Attributes::CompleteWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::CompleteWorkflowExecution, attributes)
}

/// What workflow code would do after these events.
fn decide(task: &PollWorkflowTaskQueueResponse, events: &[HistoryEvent]) -> Vec<Command> {
    let plan = Plan::of(task.workflow_type.as_ref().map_or("", |t| t.name.as_str()));
    let execution = task.workflow_execution.clone().unwrap_or_default();
    let count = |kinds: &[EventType]| {
        events.iter().filter(|event| kinds.contains(&event.event_type())).count() as u64
    };
    if count(&[EventType::WorkflowExecutionCancelRequested]) > 0 {
        let attributes = CancelWorkflowExecutionCommandAttributes { details: None };
        let attributes = Attributes::CancelWorkflowExecutionCommandAttributes(attributes);
        return vec![command(CommandType::CancelWorkflowExecution, attributes)];
    }
    if count(&[EventType::TimerStarted]) == 0 {
        let mut commands: Vec<_> = (0..plan.activities).map(schedule).collect();
        commands.push(start_timer(plan.timer_ms));
        if plan.children > 0 {
            commands.push(start_child(&execution.workflow_id, &execution.run_id));
        }
        return commands;
    }
    let activities = count(&[
        EventType::ActivityTaskCompleted,
        EventType::ActivityTaskFailed,
        EventType::ActivityTaskTimedOut,
    ]);
    let children = count(&[
        EventType::ChildWorkflowExecutionCompleted,
        EventType::ChildWorkflowExecutionTerminated,
        EventType::ChildWorkflowExecutionCanceled,
        EventType::StartChildWorkflowExecutionFailed,
    ]);
    let is_over = activities == plan.activities
        && children == plan.children
        && count(&[EventType::TimerFired]) == 1
        && count(&[EventType::WorkflowExecutionSignaled]) >= plan.signals;
    if is_over { vec![end(plan)] } else { Vec::new() }
}

/// What a query is answered: the run, and the signals that it has seen.
pub(crate) fn signals_in(events: &[HistoryEvent]) -> Vec<String> {
    let name = |event: &HistoryEvent| match event.attributes.as_ref() {
        Some(Event::WorkflowExecutionSignaledEventAttributes(signalled)) => {
            Some(signalled.signal_name.clone())
        }
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

fn answer_to_query(run_id: &str, events: &[HistoryEvent]) -> Payloads {
    payloads(&format!("{run_id} {}", signals_in(events).join(" ")))
}

/// Answers workflow tasks for as long as the run lasts.
pub(crate) async fn work_on_workflows(client: Client, ledger: Ledger) {
    loop {
        let polled = client.poll(QUEUE, POLL_MS, async |cluster, namespace, poll| {
            cluster.poll_workflow_task(&namespace, poll).await
        });
        match polled.await {
            Ok(task) if !task.task_token.is_empty() => answer(&client, &ledger, task).await,
            Ok(_) | Err(_) => client.pause().await,
        }
    }
}

async fn answer(client: &Client, ledger: &Ledger, task: PollWorkflowTaskQueueResponse) {
    let execution = task.workflow_execution.clone().unwrap_or_default();
    let first = task.history.clone().map(|history| history.events).unwrap_or_default();
    let rest = task.next_page_token.to_vec();
    let events = if rest.is_empty() {
        first
    } else {
        let Ok(events) = client.history_after(&execution, first, rest).await else { return };
        events
    };
    let queried = answer_to_query(&execution.run_id, &events);
    let token = match TaskToken::decode(&task.task_token) {
        Ok(TaskToken::Workflow(token)) => token,
        Ok(TaskToken::Query(token)) => {
            let answer = RespondQueryTaskCompletedRequest {
                task_token: task.task_token.clone(),
                completed_type: QueryResultType::Answered.into(),
                query_result: Some(queried),
                ..RespondQueryTaskCompletedRequest::default()
            };
            let sent =
                client.on_cluster(async |cluster, _| cluster.respond_query(token, answer).await);
            // Whoever asked asks again.
            let _ = sent.await;
            return;
        }
        other => panic!("a workflow task came with another token: {other:?}"),
    };
    if client.chance.percent(3) {
        // The worker is killed: its task times out.
        return;
    }
    let result = |_: &String| WorkflowQueryResult {
        result_type: QueryResultType::Answered.into(),
        answer: Some(queried.clone()),
        ..WorkflowQueryResult::default()
    };
    let commands = decide(&task, &events);
    note_timer(client, ledger, &execution.run_id, &commands, &events);
    let identity = ledger.name("answer");
    let answer = RespondWorkflowTaskCompletedRequest {
        task_token: task.task_token.clone(),
        commands,
        identity: identity.clone(),
        query_results: task.queries.keys().map(|id| (id.clone(), result(id))).collect(),
        ..RespondWorkflowTaskCompletedRequest::default()
    };
    let sent = client.on_cluster(async |cluster, _| {
        cluster.complete_workflow_task(token, answer).await.map(drop)
    });
    let ending = ending_of(sent.await);
    ledger.enter(&execution.workflow_id, Asked::WorkflowTask(identity), ending);
}

fn note_timer(
    client: &Client,
    ledger: &Ledger,
    run_id: &str,
    commands: &[Command],
    events: &[HistoryEvent],
) {
    let now_ms = client.world.trace().now_ms();
    for command in commands {
        if let Some(Attributes::StartTimerCommandAttributes(timer)) = &command.attributes {
            let span = timer.start_to_fire_timeout.unwrap_or_default();
            let span_ms = span.seconds * 1_000 + i64::from(span.nanos) / 1_000_000;
            ledger.timer_asked(run_id, span_ms as u64, now_ms);
        }
    }
    if events.iter().any(|event| event.event_type() == EventType::TimerFired) {
        ledger.timer_seen(run_id, now_ms);
    }
}

fn ending_of(answer: Result<(), Failure>) -> Ending {
    match answer {
        Ok(()) => Ending::Done(String::new()),
        Err(Failure::Refused(text) | Failure::Busy(text)) => Ending::Refused(text),
        Err(Failure::Unknown(_)) => Ending::Unknown,
    }
}

/// Carries activities out for as long as the run lasts: some attempts fail, some never end.
pub(crate) async fn work_on_activities(client: Client, ledger: Ledger) {
    loop {
        let polled = client.poll(QUEUE, POLL_MS, async |cluster, namespace, poll| {
            cluster.poll_activity_task(&namespace, poll).await
        });
        let Ok(task) = polled.await else {
            client.pause().await;
            continue;
        };
        let Ok(TaskToken::Activity(token)) = TaskToken::decode(&task.task_token) else { continue };
        ledger.attempt_given(&token.run_id.to_string(), token.scheduled.0, token.attempt);
        let drawn = client.chance.below(100);
        if drawn < 4 {
            continue;
        }
        if drawn < 10 {
            // By now the attempt has timed out, and another one may be under way.
            let late = client.chance.between(0, 1_500);
            sleep_until(in_ms(ATTEMPT.as_millis() as u64 + late)).await;
        }
        // The auditor reads the attempt off the name.
        let identity = format!("{}/{}", ledger.name("attempt"), token.attempt);
        let (activity, run_id) = (token.reference(), Some(token.run_id.clone()));
        let fails = (10..20).contains(&drawn);
        let request = if fails {
            RunRequest::FailActivity {
                activity,
                failure: None,
                last_heartbeat_details: None,
                identity: identity.clone(),
            }
        } else {
            let result = Some(payloads("done"));
            RunRequest::CompleteActivity { activity, result, identity: identity.clone() }
        };
        let workflow_id = token.workflow_id.to_string();
        let ending = ending_of(client.run(&workflow_id, run_id, request).await);
        // A failed attempt that is repeated leaves nothing in the history.
        if !fails {
            ledger.enter(&workflow_id, Asked::Activity(identity), ending);
        }
    }
}
