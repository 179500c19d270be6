//! Clients: they start workflows under ids that they share, with all policies, and signal, query,
//! cancel and terminate them, each request until it is answered for good.

use std::time::Duration;

use piton_core::request::{CancelRequest, RunRequest, Signal, StartRequest, TerminateRequest};
use piton_proto::common::WorkflowExecution;
use piton_proto::enums::{
    QueryRejectCondition, WorkflowExecutionStatus, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
};
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::query::WorkflowQuery;
use piton_proto::workflow::WorkflowExecutionInfo;
use piton_proto::workflowservice::StartWorkflowExecutionRequest;
use piton_tests::audit::{Asked, Ending, Seen, closing};
use piton_tests::orders::{Plan, duration, task_queue};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::chance::Chance;
use crate::client::{Client, Failure, Insisted, key};
use crate::ledger::Ledger;
use crate::worker::{QUEUE, WORKFLOW_TASK};
use crate::world::in_ms;

const IDS: u64 = 5;
/// Longer than all faults of a run together: what takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(240);

fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// Works until it is told to stop.
pub(crate) async fn drive(client: Client, ledger: Ledger, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        episode(&client, &ledger).await;
        let pause = in_ms(client.chance.between(20, 400));
        tokio::select! {
            biased;
            _ = stop.changed() => {}
            () = sleep_until(pause) => {}
        }
    }
}

async fn episode(client: &Client, ledger: &Ledger) {
    let chance = &client.chance;
    let id = format!("order-{}", chance.below(IDS));
    let plan = Plan {
        activities: chance.below(3),
        timer_ms: chance.between(20, 1_500),
        children: chance.below(2),
        signals: chance.below(3),
        continues: u64::from(chance.percent(25)),
        timers: 1,
    };
    let is_there = if chance.percent(25) {
        signal_with_start(client, ledger, &id, plan).await
    } else {
        start(client, ledger, &id, plan).await
    };
    if !is_there && chance.percent(50) {
        return;
    }
    for _ in 0..plan.signals.max(1) {
        signal(client, ledger, &id).await;
        if chance.percent(30) {
            query(client, ledger, &id).await;
        }
        if chance.percent(50) {
            read(client, ledger, &id).await;
        }
    }
    match chance.below(10) {
        0 => cancel(client, ledger, &id).await,
        1 => terminate(client, ledger, &id).await,
        _ => {}
    }
}

/// True unless it was refused.
fn draw_reuse(chance: &Chance) -> WorkflowIdReusePolicy {
    *chance.pick(&[
        WorkflowIdReusePolicy::AllowDuplicate,
        WorkflowIdReusePolicy::AllowDuplicate,
        WorkflowIdReusePolicy::AllowDuplicateFailedOnly,
    ])
}

async fn start(client: &Client, ledger: &Ledger, id: &str, plan: Plan) -> bool {
    let chance = &client.chance;
    let conflict = *chance.pick(&[
        WorkflowIdConflictPolicy::Fail,
        WorkflowIdConflictPolicy::Fail,
        WorkflowIdConflictPolicy::UseExisting,
        WorkflowIdConflictPolicy::TerminateExisting,
    ]);
    let reuse = draw_reuse(chance);
    let request_id = ledger.name("start");
    let request = start_of(id, plan, &request_id, reuse, conflict);
    let request = StartRequest { start: Box::new(request), signal: None, parent: None };
    let started = client.insist(patience(), async || client.start(&request).await).await;
    // Where the answer named a run that was there, the start left nothing to be recognised by.
    let starts_its_own = conflict != WorkflowIdConflictPolicy::UseExisting;
    if started.is_ok() && starts_its_own && chance.percent(10) {
        let again = client.insist(patience(), async || client.start(&request).await).await;
        if let (Ok(first), Ok(second)) = (&started, &again)
            && first != second
        {
            ledger.broke(format!("A1: {request_id} of {id} named {first}, then {second}"));
        }
    }
    if let Ok(run_id) = &started
        && chance.percent(20)
        && let Ok((runs, _)) = client.list().await
    {
        let is_it = |run: &WorkflowExecutionInfo| {
            run.execution.as_ref().is_some_and(|execution| execution.run_id == *run_id)
        };
        if !runs.iter().any(is_it) {
            ledger.broke(format!("A7: {run_id} of {id} is acknowledged, but not in the list"));
        }
    }
    let ending = match started {
        Ok(run_id) => Ending::Done(run_id),
        // A repeated start is recognised by its id, so that a refusal says nothing was started.
        Err(Insisted { text, .. }) if text.contains("not within") => Ending::Unknown,
        Err(Insisted { text, .. }) => Ending::Refused(text),
    };
    let is_there = !matches!(ending, Ending::Refused(_));
    let asked = if conflict == WorkflowIdConflictPolicy::UseExisting {
        Asked::StartOrUse(request_id)
    } else {
        Asked::Start(request_id)
    };
    ledger.enter(id, asked, ending);
    is_there
}

fn start_of(
    id: &str,
    plan: Plan,
    request_id: &str,
    reuse: WorkflowIdReusePolicy,
    conflict: WorkflowIdConflictPolicy,
) -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest {
        workflow_id: id.to_owned(),
        workflow_type: Some(plan.workflow_type()),
        task_queue: task_queue(QUEUE),
        identity: request_id.to_owned(),
        request_id: request_id.to_owned(),
        workflow_id_reuse_policy: reuse.into(),
        workflow_id_conflict_policy: conflict.into(),
        workflow_execution_timeout: Some(prost_types::Duration::default()),
        workflow_run_timeout: Some(prost_types::Duration::default()),
        workflow_task_timeout: duration(WORKFLOW_TASK),
        ..StartWorkflowExecutionRequest::default()
    }
}

/// Signals the run that is there, or starts one with the signal; both bear the request's id, and the
/// same request may come twice. True unless it was refused.
async fn signal_with_start(client: &Client, ledger: &Ledger, id: &str, plan: Plan) -> bool {
    let chance = &client.chance;
    let conflict = *chance.pick(&[
        WorkflowIdConflictPolicy::UseExisting,
        WorkflowIdConflictPolicy::UseExisting,
        WorkflowIdConflictPolicy::TerminateExisting,
    ]);
    let reuse = draw_reuse(chance);
    let name = ledger.name("both");
    let signal = Signal { name: name.clone(), request_id: name.clone(), ..Signal::default() };
    let request = start_of(id, plan, &name, reuse, conflict);
    let request = StartRequest { start: Box::new(request), signal: Some(signal), parent: None };
    let sent = client.insist(patience(), async || client.start(&request).await).await;
    if sent.is_ok() && chance.percent(30) {
        let again = client.insist(patience(), async || client.start(&request).await).await;
        if let (Ok(first), Ok(second)) = (&sent, &again)
            && first != second
        {
            ledger.broke(format!("A1: {name} of {id} named {first}, then {second}"));
        }
    }
    let start = match &sent {
        Ok(run_id) => Ending::Done(run_id.clone()),
        Err(Insisted { text, is_known: true }) => Ending::Refused(text.clone()),
        Err(_) => Ending::Unknown,
    };
    let is_there = !matches!(start, Ending::Refused(_));
    ledger.enter(id, Asked::StartOrUse(name.clone()), start);
    ledger.enter(id, Asked::Signal(name), ending_of(sent.map(drop)));
    is_there
}

fn ending_of(answer: Result<(), Insisted>) -> Ending {
    match answer {
        Ok(()) => Ending::Done(String::new()),
        Err(Insisted { text, is_known: true }) => Ending::Refused(text),
        Err(_) => Ending::Unknown,
    }
}

/// Signals a workflow's current run.
pub(crate) async fn signal(client: &Client, ledger: &Ledger, id: &str) {
    let name = ledger.name("signal");
    let signal = Signal { name: name.clone(), request_id: name.clone(), ..Signal::default() };
    let send = async || client.run(id, None, RunRequest::Signal(signal.clone())).await;
    let sent = client.insist(patience(), send).await;
    ledger.enter(id, Asked::Signal(name), ending_of(sent));
}

async fn cancel(client: &Client, ledger: &Ledger, id: &str) {
    let name = ledger.name("cancel");
    let request = CancelRequest {
        identity: name.clone(),
        request_id: name.clone(),
        ..CancelRequest::default()
    };
    let send = async || client.run(id, None, RunRequest::RequestCancel(request.clone())).await;
    let sent = client.insist(patience(), send).await;
    ledger.enter(id, Asked::Cancel(name), ending_of(sent));
}

async fn terminate(client: &Client, ledger: &Ledger, id: &str) {
    let name = ledger.name("terminate");
    let request = TerminateRequest { identity: name.clone(), ..TerminateRequest::default() };
    let send = async || client.run(id, None, RunRequest::Terminate(request.clone())).await;
    let sent = client.insist(patience(), send).await;
    ledger.enter(id, Asked::Terminate(name), ending_of(sent));
}

/// Asks once; what the answer shows is held against what was acknowledged before.
async fn query(client: &Client, ledger: &Ledger, id: &str) {
    let acknowledged = ledger.signals_to(id);
    let query = WorkflowQuery { query_type: "signals".to_owned(), ..WorkflowQuery::default() };
    let answered = client.on_cluster(async |cluster, namespace| {
        let (key, none) = (key(&namespace, id), QueryRejectCondition::None);
        cluster.query(key, None, query, none, in_ms(3_000)).await
    });
    let Ok(response) = answered.await else { return };
    let payloads = response.query_result.unwrap_or_default();
    let Some(payload) = payloads.payloads.first() else { return };
    let text = String::from_utf8_lossy(&payload.data).into_owned();
    let mut words = text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned);
    let Some(run_id) = words.next() else { return };
    let workflow_id = id.to_owned();
    ledger.saw(Seen { workflow_id, run_id, signals: words.collect(), acknowledged });
}

/// Reads the current run's history. It shows no less than any read that was over before: a signal that
/// was acknowledged may still wait for a workflow task to end, but what was shown stays.
async fn read(client: &Client, ledger: &Ledger, id: &str) {
    let shown = ledger.shown();
    let execution = WorkflowExecution { workflow_id: id.to_owned(), run_id: String::new() };
    let Ok(events) = client.history(&execution).await else { return };
    let Some(Event::WorkflowExecutionStartedEventAttributes(started)) =
        events.first().and_then(|event| event.attributes.as_ref())
    else {
        return ledger.broke(format!("A2: a history of {id} does not begin with its start"));
    };
    let run_id = &started.original_execution_run_id;
    let before = shown.get(run_id).copied().unwrap_or(0);
    if events.len() < before {
        ledger.broke(format!("A8: {id} {run_id}: {} events, {before} before", events.len()));
    }
    ledger.show(run_id, events.len());
}

/// Signals what still runs until nothing does. Answers what does not end.
pub(crate) async fn finish(client: &Client, ledger: &Ledger) -> Vec<String> {
    let end = patience();
    let mut open = Vec::new();
    for number in 0..IDS {
        let id = format!("order-{number}");
        let execution = WorkflowExecution { workflow_id: id.clone(), run_id: String::new() };
        while let Err(still) = is_closed(client, &execution).await {
            if Instant::now() >= end {
                open.push(format!("{id}: {still}"));
                break;
            }
            signal(client, ledger, &id).await;
            sleep_until(in_ms(500)).await;
        }
    }
    // Children end by themselves, some time after what started them.
    loop {
        let still = match client.list().await {
            Ok((runs, _)) => {
                let is_open =
                    |run: &&WorkflowExecutionInfo| run.status() == WorkflowExecutionStatus::Running;
                let open = runs.iter().filter(is_open);
                open.map(|run| format!("{:?}", run.execution)).collect::<Vec<_>>()
            }
            Err(error) => vec![format!("the list: {error:?}")],
        };
        if still.is_empty() || Instant::now() >= end {
            open.extend(still);
            return open;
        }
        sleep_until(in_ms(500)).await;
    }
}

/// Whether a workflow's current run is closed, or there is none; else how far it is.
async fn is_closed(client: &Client, execution: &WorkflowExecution) -> Result<(), String> {
    match client.history(execution).await {
        Ok(events) => {
            let kinds = || events.iter().map(|event| event.event_type()).collect::<Vec<_>>();
            closing(&events).map(drop).ok_or_else(|| format!("{:?}", kinds()))
        }
        Err(Failure::Refused(_)) => Ok(()),
        Err(error) => Err(format!("{error:?}")),
    }
}
