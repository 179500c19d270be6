//! Workers: they answer each task once or not at all, as those that may be killed at any time.

use std::time::Duration;

use piton_core::request::RunRequest;
use piton_proto::command::Command;
use piton_proto::command::command::Attributes;
use piton_proto::enums::{EventType, QueryResultType};
use piton_proto::history::HistoryEvent;
use piton_proto::query::WorkflowQueryResult;
use piton_proto::workflowservice::{
    PollWorkflowTaskQueueResponse, RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
};
use piton_shard::TaskToken;
use piton_tests::audit::{Asked, Ending};
use piton_tests::orders::{Code, answer_to_query, payloads};
use tokio::time::sleep_until;

use crate::client::{Client, Failure};
use crate::ledger::Ledger;
use crate::world::in_ms;

pub(crate) const QUEUE: &str = "orders";
const POLL_MS: u64 = 5_000;
const ATTEMPT: Duration = Duration::from_millis(800);
pub(crate) const WORKFLOW_TASK: Duration = Duration::from_secs(1);

/// What workflow code does here.
pub(crate) fn code() -> Code {
    Code { queue: QUEUE.to_owned(), attempt: ATTEMPT, workflow_task: WORKFLOW_TASK }
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
    let workflow_type = task.workflow_type.as_ref().map_or("", |of| of.name.as_str());
    let commands = code().decide(workflow_type, &execution, &events);
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
