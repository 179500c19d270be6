//! Few clients on one workflow id after the other, through different nodes: short histories of
//! starts, signals, terminations, reads and lists, which must be linearizable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_proto::enums::{
    WorkflowExecutionStatus, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::workflowservice::{
    SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
};
use piton_tests::audit::{Broken, closing};
use piton_tests::orders::{Plan, signals_in, task_queue};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::Code;

use crate::client::{Client, Failure, NAMESPACE, What};
use crate::linear::{self, Conflict, Op, Ret, RunState, Step, Verdict};
use crate::orders::{PATIENCE, current, terminate};
use crate::probes::QUEUE;

const CLIENTS: u32 = 3;
const OPERATIONS: u32 = 8;
const CALL_MAX: Duration = Duration::from_secs(3);

/// What was checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    pub(crate) linearizable: usize,
    pub(crate) undecided: usize,
    pub(crate) operations: usize,
}

/// As it was answered: runs by their ids.
#[derive(Clone, Debug)]
enum Answer {
    Started(String),
    AlreadyStarted,
    Done,
    NotFound,
    Shown(RunState),
    Listed(Vec<(String, bool)>),
}

#[derive(Clone, Debug)]
enum Raw {
    Invoked(u32, Op),
    Returned(u32, Answer),
}

/// One workflow id, and what its clients did.
#[derive(Clone)]
struct Register {
    id: String,
    steps: Arc<Mutex<Vec<Raw>>>,
}

/// Works on one register after the other until it is told to stop.
pub(crate) async fn drive(client: Client, seed: u64, stop: watch::Receiver<bool>) -> Checked {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut checked = Checked::default();
    while !*stop.borrow() {
        let register = Register { id: client.journal.name("register"), steps: Arc::default() };
        let mut working = JoinSet::new();
        for number in 0..CLIENTS {
            let client = client.at(number as usize);
            working.spawn_local(register.clone().work(client, number, random.random()));
        }
        working.join_all().await;
        register.check(&client, &mut checked).await;
        terminate(&client, &register.id).await;
    }
    checked
}

impl Register {
    async fn work(self, client: Client, number: u32, seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        // Who has no answer goes on as another.
        let mut thread = number;
        for count in 0..OPERATIONS {
            let op = draw(&mut random, number * OPERATIONS + count);
            self.steps.lock().push(Raw::Invoked(thread, op.clone()));
            match self.call(&client, &op).await {
                Ok(answer) => self.steps.lock().push(Raw::Returned(thread, answer)),
                Err(Failure::Unknown(..)) => {
                    thread += CLIENTS;
                    client.go_on();
                }
                Err(Failure::Refused(code, text)) => {
                    let text = format!("A8: {op:?} is refused with {code:?}: {text}");
                    client.journal.broke(Broken::of(&self.id, text));
                    return;
                }
            }
            let pause = Duration::from_millis(random.random_range(0..600));
            sleep(pause).await;
        }
    }

    async fn call(&self, client: &Client, op: &Op) -> Result<Answer, Failure> {
        let answered = match op {
            Op::Start { number, only_first, conflict } => {
                self.start(client, *number, *only_first, *conflict).await
            }
            Op::Signal(number) => self.signal(client, *number).await,
            Op::Terminate => self.terminate(client).await,
            // Clients do not draw its parts.
            Op::Read | Op::Current | Op::ReadRun(_) => {
                client.history(&current(&self.id), CALL_MAX).await.map(|e| shown(&e))
            }
            Op::List => self.list(client).await,
        };
        match answered {
            Err(Failure::Refused(Code::NotFound, _)) => Ok(Answer::NotFound),
            Err(Failure::Refused(Code::AlreadyExists, _)) => Ok(Answer::AlreadyStarted),
            answered => answered,
        }
    }

    async fn start(
        &self,
        client: &Client,
        number: u32,
        only_first: bool,
        conflict: Conflict,
    ) -> Result<Answer, Failure> {
        let conflict = match conflict {
            Conflict::Fail => WorkflowIdConflictPolicy::Fail,
            Conflict::UseExisting => WorkflowIdConflictPolicy::UseExisting,
            Conflict::TerminateExisting => WorkflowIdConflictPolicy::TerminateExisting,
        };
        let reuse = if only_first {
            WorkflowIdReusePolicy::RejectDuplicate
        } else {
            WorkflowIdReusePolicy::AllowDuplicate
        };
        let plan = Plan { signals: 1, ..Plan::default() };
        let text = number.to_string();
        let request = StartWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_id: self.id.clone(),
            workflow_type: Some(plan.workflow_type()),
            task_queue: task_queue(QUEUE),
            identity: text.clone(),
            request_id: format!("{}-{number}", self.id),
            workflow_id_reuse_policy: reuse.into(),
            workflow_id_conflict_policy: conflict.into(),
            ..StartWorkflowExecutionRequest::default()
        };
        let what = What { call: "start", workflow: &self.id, text: &text };
        let sent = client.call(what, CALL_MAX, request, async |mut service, request| {
            service.start_workflow_execution(request).await
        });
        Ok(Answer::Started(sent.await?.run_id))
    }

    async fn signal(&self, client: &Client, number: u32) -> Result<Answer, Failure> {
        let text = number.to_string();
        let request = SignalWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_execution: Some(current(&self.id)),
            signal_name: text.clone(),
            request_id: format!("{}-{number}", self.id),
            ..SignalWorkflowExecutionRequest::default()
        };
        let what = What { call: "signal", workflow: &self.id, text: &text };
        let sent = client.call(what, CALL_MAX, request, async |mut service, request| {
            service.signal_workflow_execution(request).await
        });
        sent.await.map(|_| Answer::Done)
    }

    async fn terminate(&self, client: &Client) -> Result<Answer, Failure> {
        let request = TerminateWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_execution: Some(current(&self.id)),
            ..TerminateWorkflowExecutionRequest::default()
        };
        let what = What { call: "terminate", workflow: &self.id, text: "" };
        let sent = client.call(what, CALL_MAX, request, async |mut service, request| {
            service.terminate_workflow_execution(request).await
        });
        sent.await.map(|_| Answer::Done)
    }

    async fn list(&self, client: &Client) -> Result<Answer, Failure> {
        let query = format!("WorkflowId = '{}'", self.id);
        let rows = client.list(&query, CALL_MAX).await?;
        let runs = rows.iter().filter_map(|row| {
            let is_open = row.status() == WorkflowExecutionStatus::Running;
            Some((row.execution.as_ref()?.run_id.clone(), is_open))
        });
        Ok(Answer::Listed(runs.collect()))
    }

    /// Looks which start began which run, and for an order that explains all answers.
    async fn check(&self, client: &Client, checked: &mut Checked) {
        let raw = self.steps.lock().clone();
        checked.operations += raw.iter().filter(|step| matches!(step, Raw::Invoked(..))).count();
        let starts = match self.starts(client).await {
            Ok(starts) => starts,
            Err(failure) => {
                let text = format!("A6: its runs cannot be read: {failure}");
                return client.journal.broke(Broken::of(&self.id, text));
            }
        };
        let translated: Result<Vec<Step>, String> =
            raw.iter().cloned().map(|step| translate(step, &starts)).collect();
        let steps = match translated {
            Ok(steps) => steps,
            Err(run_id) => {
                let text = format!("A8: run {run_id} was named, and is not there");
                return client.journal.broke(Broken::of(&self.id, text));
            }
        };
        let searched = tokio::task::spawn_blocking(move || (linear::check(&steps), steps)).await;
        match searched {
            Ok((Verdict::Linearizable, _)) => checked.linearizable += 1,
            Ok((Verdict::NotLinearizable, steps)) => {
                let text = format!("A8: not linearizable: {steps:?}");
                client.journal.broke(Broken::of(&self.id, text));
            }
            Ok((Verdict::Undecided, _)) | Err(_) => checked.undecided += 1,
        }
    }

    /// By run id: the number of the start that began it.
    async fn starts(&self, client: &Client) -> Result<BTreeMap<String, u32>, Failure> {
        let read = async |client: &Client| {
            let mut starts = BTreeMap::new();
            let query = format!("WorkflowId = '{}'", self.id);
            for row in client.list(&query, CALL_MAX).await? {
                let execution = row.execution.unwrap_or_default();
                let events = client.history(&execution, CALL_MAX).await?;
                starts.insert(execution.run_id, started_by(&events));
            }
            Ok(starts)
        };
        let starts = client.insist(PATIENCE, read).await;
        starts.map(|(starts, _)| starts).map_err(|refused| refused.failure)
    }
}

fn draw(random: &mut SmallRng, number: u32) -> Op {
    let conflict = match random.random_range(0..4) {
        0 => Conflict::UseExisting,
        1 => Conflict::TerminateExisting,
        _ => Conflict::Fail,
    };
    match random.random_range(0..10) {
        // The two contradict each other, which is refused.
        0 | 1 => Op::Start {
            number,
            only_first: random.random_bool(0.2) && conflict != Conflict::TerminateExisting,
            conflict,
        },
        2..=4 => Op::Signal(number),
        5 => Op::Terminate,
        6..=8 => Op::Read,
        _ => Op::List,
    }
}

fn started_by(events: &[HistoryEvent]) -> u32 {
    match events.first().and_then(|event| event.attributes.as_ref()) {
        Some(Event::WorkflowExecutionStartedEventAttributes(started)) => {
            started.identity.parse().unwrap_or(u32::MAX)
        }
        _ => u32::MAX,
    }
}

fn shown(events: &[HistoryEvent]) -> Answer {
    let signals = signals_in(events).iter().filter_map(|name| name.parse().ok()).collect();
    let is_open = closing(events).is_none();
    Answer::Shown(RunState { start: started_by(events), is_open, signals })
}

/// # Errors
/// The id of a run that is not among them.
fn translate(step: Raw, starts: &BTreeMap<String, u32>) -> Result<Step, String> {
    let number = |run_id: String| starts.get(&run_id).copied().ok_or(run_id);
    let (thread, answer) = match step {
        Raw::Invoked(thread, op) => return Ok(Step::Invoked(thread, op)),
        Raw::Returned(thread, answer) => (thread, answer),
    };
    let ret = match answer {
        Answer::Started(run_id) => Ret::Started(number(run_id)?),
        Answer::AlreadyStarted => Ret::AlreadyStarted,
        Answer::Done => Ret::Done,
        Answer::NotFound => Ret::NotFound,
        Answer::Shown(run) => Ret::Shown(run),
        Answer::Listed(runs) => {
            let numbered = runs.into_iter().map(|(run_id, is_open)| Ok((number(run_id)?, is_open)));
            let mut runs = numbered.collect::<Result<Vec<_>, String>>()?;
            runs.sort_unstable();
            Ret::Listed(runs)
        }
    };
    Ok(Step::Returned(thread, ret))
}
