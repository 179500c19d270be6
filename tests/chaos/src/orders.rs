//! Clients: they start orders under ids of their own and ids that they share, with all policies, and
//! signal, query, read, cancel and terminate them, each request until it is answered for good.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use piton_proto::common::{WorkflowExecution, WorkflowType};
use piton_proto::enums::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::query::WorkflowQuery;
use piton_proto::workflowservice::{
    QueryWorkflowRequest, RequestCancelWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionRequest, SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest, TerminateWorkflowExecutionRequest,
};
use piton_tests::audit::{Asked, Broken, Ending, Seen};
use piton_tests::orders::{Code, Plan, duration, task_queue};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, Failure, Insisted, NAMESPACE, What};

/// Shared by all clients, so that they meet.
const SHARED_IDS: u64 = 8;
const TIMER_MS_MAX: u64 = 3_000;
/// What the SDK's workers take, and what they call their workflow.
pub(crate) const SDK_QUEUE: &str = "sdk";
const SDK_TYPE: &str = "sdk-order";
const SDK_SIGNALS: usize = 2;
const CALL_MAX: Duration = Duration::from_secs(5);
/// Longer than any fault: what takes longer is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Spaces what all clients begin, so that they send no more than asked for.
pub(crate) struct Pace {
    every: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(per_second: u32) -> Arc<Self> {
        let every = Duration::from_secs(1) / per_second.max(1);
        Arc::new(Self { every, next: Mutex::new(Instant::now()) })
    }

    async fn turn(&self) {
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + self.every;
            at
        };
        sleep_until(at).await;
    }
}

/// One client.
pub(crate) struct Driver {
    pub(crate) client: Client,
    pub(crate) code: Code,
    pub(crate) pace: Arc<Pace>,
    pub(crate) random: SmallRng,
    /// Whether there are workers of an official SDK, on a queue of their own.
    pub(crate) has_sdk: bool,
}

impl Driver {
    pub(crate) fn new(client: Client, code: Code, pace: Arc<Pace>, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self { client, code, pace, random, has_sdk: false }
    }

    /// Works until it is told to stop; a request that is under way is seen to its end.
    pub(crate) async fn drive(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.episode().await;
        }
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.random.random_range(0..100) < chance
    }

    async fn episode(&mut self) {
        if self.has_sdk && self.percent(15) {
            return self.sdk_episode().await;
        }
        let id = if self.percent(50) {
            self.client.journal.name("order")
        } else {
            format!("shared-{}", self.random.random_range(0..SHARED_IDS))
        };
        let plan = Plan {
            activities: self.random.random_range(0..3),
            timer_ms: self.random.random_range(20..TIMER_MS_MAX),
            children: self.random.random_range(0..2),
            signals: self.random.random_range(0..3),
            continues: u64::from(self.percent(25)),
            timers: 1,
        };
        let is_there = if self.percent(25) {
            self.signal_with_start(&id, plan).await
        } else {
            let queue = self.code.queue.clone();
            self.start(&id, plan.workflow_type(), &queue).await
        };
        if !is_there && self.percent(50) {
            return;
        }
        for _ in 0..plan.signals.max(1) {
            self.pace.turn().await;
            signal(&self.client, &id).await;
            if self.percent(30) {
                self.query(&id).await;
            }
            if self.percent(50) {
                self.read(&id).await;
            }
        }
        match self.random.random_range(0..10) {
            0 => self.cancel(&id).await,
            1 => self.terminate(&id).await,
            _ => {}
        }
    }

    async fn sdk_episode(&mut self) {
        let id = self.client.journal.name("sdk");
        let workflow_type = WorkflowType { name: SDK_TYPE.to_owned() };
        self.start(&id, workflow_type, SDK_QUEUE).await;
        for _ in 0..SDK_SIGNALS {
            self.pace.turn().await;
            signal(&self.client, &id).await;
        }
    }

    fn draw_reuse(&mut self) -> WorkflowIdReusePolicy {
        if self.percent(66) {
            WorkflowIdReusePolicy::AllowDuplicate
        } else {
            WorkflowIdReusePolicy::AllowDuplicateFailedOnly
        }
    }

    fn draw_conflict(&mut self, from: &[WorkflowIdConflictPolicy]) -> WorkflowIdConflictPolicy {
        from.choose(&mut self.random).copied().unwrap_or_default()
    }

    /// True unless it was refused.
    async fn start(&mut self, id: &str, workflow_type: WorkflowType, queue: &str) -> bool {
        self.pace.turn().await;
        let conflict = self.draw_conflict(&[
            WorkflowIdConflictPolicy::Fail,
            WorkflowIdConflictPolicy::Fail,
            WorkflowIdConflictPolicy::UseExisting,
            WorkflowIdConflictPolicy::TerminateExisting,
        ]);
        let reuse = self.draw_reuse();
        let name = self.client.journal.name("start");
        let request = StartWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_id: id.to_owned(),
            workflow_type: Some(workflow_type),
            task_queue: task_queue(queue),
            identity: name.clone(),
            request_id: name.clone(),
            workflow_id_reuse_policy: reuse.into(),
            workflow_id_conflict_policy: conflict.into(),
            workflow_task_timeout: duration(self.code.workflow_task),
            ..StartWorkflowExecutionRequest::default()
        };
        let what = What { call: "start", workflow: id, text: &name };
        let send = async |client: &Client| {
            let sent =
                client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
                    service.start_workflow_execution(request).await
                });
            Ok(sent.await?.run_id)
        };
        let started = self.client.insist(PATIENCE, send).await;
        // Where the answer named a run that was there, the start left nothing to be recognised by.
        let starts_its_own = conflict != WorkflowIdConflictPolicy::UseExisting;
        if started.is_ok() && starts_its_own && self.percent(10) {
            let again = self.client.insist(PATIENCE, send).await;
            self.check_same(id, &name, &started, &again);
        }
        if let Ok((run_id, _)) = &started
            && self.percent(20)
        {
            self.look_in_list(id, run_id).await;
        }
        let (ending, is_retried) = ending_of(started);
        let is_there = !matches!(ending, Ending::Refused(_));
        let asked = if starts_its_own { Asked::Start(name) } else { Asked::StartOrUse(name) };
        self.client.journal.enter(id, asked, ending, is_retried);
        is_there
    }

    fn check_same(
        &self,
        id: &str,
        name: &str,
        first: &Result<(String, bool), Insisted>,
        second: &Result<(String, bool), Insisted>,
    ) {
        if let (Ok((first, _)), Ok((second, _))) = (first, second)
            && first != second
        {
            let text = format!("A1: {name} named {first}, then {second}");
            self.client.journal.broke(Broken::of(id, text));
        }
    }

    /// What was acknowledged is in the list at once.
    async fn look_in_list(&self, id: &str, run_id: &str) {
        let query = format!("WorkflowId = '{id}'");
        let Ok(rows) = self.client.list(&query, CALL_MAX).await else { return };
        let is_it = |row: &piton_proto::workflow::WorkflowExecutionInfo| {
            row.execution.as_ref().is_some_and(|execution| execution.run_id == run_id)
        };
        if !rows.iter().any(is_it) {
            let text = format!("A7: {run_id} is acknowledged, but not in the list");
            self.client.journal.broke(Broken::of(id, text));
        }
    }

    /// Signals the run that is there, or starts one with the signal; both bear the request's id, and
    /// the same request may come twice. True unless it was refused.
    async fn signal_with_start(&mut self, id: &str, plan: Plan) -> bool {
        self.pace.turn().await;
        let conflict = self.draw_conflict(&[
            WorkflowIdConflictPolicy::UseExisting,
            WorkflowIdConflictPolicy::UseExisting,
            WorkflowIdConflictPolicy::TerminateExisting,
        ]);
        let reuse = self.draw_reuse();
        let name = self.client.journal.name("both");
        let request = SignalWithStartWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_id: id.to_owned(),
            workflow_type: Some(plan.workflow_type()),
            task_queue: task_queue(&self.code.queue),
            identity: name.clone(),
            request_id: name.clone(),
            signal_name: name.clone(),
            workflow_id_reuse_policy: reuse.into(),
            workflow_id_conflict_policy: conflict.into(),
            workflow_task_timeout: duration(self.code.workflow_task),
            ..SignalWithStartWorkflowExecutionRequest::default()
        };
        let what = What { call: "signal-with-start", workflow: id, text: &name };
        let send = async |client: &Client| {
            let sent =
                client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
                    service.signal_with_start_workflow_execution(request).await
                });
            Ok(sent.await?.run_id)
        };
        let sent = self.client.insist(PATIENCE, send).await;
        let (ending, is_retried) = ending_of(sent);
        let is_there = !matches!(ending, Ending::Refused(_));
        let journal = &self.client.journal;
        journal.enter(id, Asked::StartOrUse(name.clone()), ending.clone(), is_retried);
        journal.enter(id, Asked::Signal(name), ending, is_retried);
        is_there
    }

    /// Asks once; what the answer shows is held against what was acknowledged before.
    async fn query(&self, id: &str) {
        let acknowledged = self.client.journal.signals_to(id);
        let query = WorkflowQuery { query_type: "signals".to_owned(), ..WorkflowQuery::default() };
        let request = QueryWorkflowRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(current(id)),
            query: Some(query),
            ..QueryWorkflowRequest::default()
        };
        let what = What { call: "query", workflow: id, text: "" };
        let answered = self.client.call(what, CALL_MAX, request, async |mut service, request| {
            service.query_workflow(request).await
        });
        let Ok(response) = answered.await else { return };
        let payloads = response.query_result.unwrap_or_default();
        let Some(payload) = payloads.payloads.first() else { return };
        let text = String::from_utf8_lossy(&payload.data).into_owned();
        let mut words = text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned);
        let Some(run_id) = words.next() else { return };
        let workflow_id = id.to_owned();
        let signals = words.collect();
        self.client.journal.saw(Seen { workflow_id, run_id, signals, acknowledged });
    }

    /// Reads the current run's history. It shows no less than any read that was over before.
    async fn read(&self, id: &str) {
        let journal = &self.client.journal;
        let before = journal.all_shown();
        let Ok(events) = self.client.history(&current(id), CALL_MAX).await else { return };
        let Some(Event::WorkflowExecutionStartedEventAttributes(started)) =
            events.first().and_then(|event| event.attributes.as_ref())
        else {
            return journal.broke(Broken::of(id, "A2: does not begin with its start"));
        };
        let run_id = &started.original_execution_run_id;
        let before = before.get(run_id).copied().unwrap_or_default();
        if events.len() < before {
            let text = format!("A8: {run_id}: {} events, {before} before", events.len());
            journal.broke(Broken::of(id, text));
        }
        journal.show(run_id, events.len());
    }

    async fn cancel(&self, id: &str) {
        self.pace.turn().await;
        let name = self.client.journal.name("cancel");
        let request = RequestCancelWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_execution: Some(current(id)),
            identity: name.clone(),
            request_id: name.clone(),
            ..RequestCancelWorkflowExecutionRequest::default()
        };
        let what = What { call: "cancel", workflow: id, text: &name };
        let send = async |client: &Client| {
            let sent =
                client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
                    service.request_cancel_workflow_execution(request).await
                });
            sent.await.map(|_| String::new())
        };
        let (ending, is_retried) = ending_of(self.client.insist(PATIENCE, send).await);
        self.client.journal.enter(id, Asked::Cancel(name), ending, is_retried);
    }

    async fn terminate(&self, id: &str) {
        self.pace.turn().await;
        terminate(&self.client, id).await;
    }
}

pub(crate) fn current(id: &str) -> WorkflowExecution {
    WorkflowExecution { workflow_id: id.to_owned(), run_id: String::new() }
}

/// And whether it was tried more than once.
pub(crate) fn ending_of(answer: Result<(String, bool), Insisted>) -> (Ending, bool) {
    match answer {
        Ok((run_id, is_retried)) => (Ending::Done(run_id), is_retried),
        Err(Insisted { failure: Failure::Refused(_, text), is_known: true }) => {
            (Ending::Refused(text), false)
        }
        Err(_) => (Ending::Unknown, true),
    }
}

/// Signals a workflow's current run.
pub(crate) async fn signal(client: &Client, id: &str) {
    let name = client.journal.name("signal");
    let request = SignalWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(current(id)),
        signal_name: name.clone(),
        identity: name.clone(),
        request_id: name.clone(),
        ..SignalWorkflowExecutionRequest::default()
    };
    let what = What { call: "signal", workflow: id, text: &name };
    let send = async |client: &Client| {
        let sent = client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
            service.signal_workflow_execution(request).await
        });
        sent.await.map(|_| String::new())
    };
    let (ending, is_retried) = ending_of(client.insist(PATIENCE, send).await);
    client.journal.enter(id, Asked::Signal(name), ending, is_retried);
}

pub(crate) async fn terminate(client: &Client, id: &str) {
    let name = client.journal.name("terminate");
    let request = TerminateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(current(id)),
        identity: name.clone(),
        ..TerminateWorkflowExecutionRequest::default()
    };
    let what = What { call: "terminate", workflow: id, text: &name };
    let send = async |client: &Client| {
        let sent = client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
            service.terminate_workflow_execution(request).await
        });
        sent.await.map(|_| String::new())
    };
    let (ending, is_retried) = ending_of(client.insist(PATIENCE, send).await);
    client.journal.enter(id, Asked::Terminate(name), ending, is_retried);
}
