//! Starter and worker in one: loops that start a workflow and await its end, and loops that poll
//! and answer. One connection for each kind, one spawned task for each outstanding RPC.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use piton_proto::command::command::Attributes;
use piton_proto::command::{
    Command, CompleteWorkflowExecutionCommandAttributes, ScheduleActivityTaskCommandAttributes,
};
use piton_proto::common::{ActivityType, WorkflowExecution, WorkflowType};
use piton_proto::enums::{CommandType, EventType, HistoryEventFilterType};
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::workflow_service_client::WorkflowServiceClient;
use piton_proto::workflowservice::{
    GetWorkflowExecutionHistoryRequest, PollActivityTaskQueueRequest, PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse, RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest, StartWorkflowExecutionRequest,
};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::measure::percentile;

type Service = WorkflowServiceClient<Channel>;

const IDENTITY: &str = "piton-bench";
const ACTIVITY_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_TIMEOUT: Duration = Duration::from_secs(70);
/// A workflow that is not done by then is lost, and the run is worth nothing.
const WORKFLOW_LIMIT: Duration = Duration::from_secs(60);
const POLLS_MAX: usize = 64;

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) address: String,
    pub(crate) namespace: String,
    pub(crate) concurrency: usize,
    /// Await the close event as an SDK does, or take the worker's acknowledged answer for it.
    pub(crate) poll_result: bool,
}

/// What one measured stretch saw.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) took: Duration,
    /// From the start request to the known end, sorted.
    pub(crate) latencies: Vec<Duration>,
    /// RPCs answered with a code that asks for another try.
    pub(crate) refused: u64,
}

impl Sample {
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.latencies, percent)
    }
}

/// The running worker, and what its starters need.
pub(crate) struct Generator {
    shared: Rc<Shared>,
    local: LocalSet,
    polls: Vec<JoinHandle<()>>,
}

struct Shared {
    plan: Plan,
    task_queue: String,
    starter: Service,
    worker: Service,
    /// Workflows whose starter waits for the worker's answer; unused with `poll_result`.
    waiting: RefCell<HashMap<String, oneshot::Sender<()>>>,
    refused: RefCell<u64>,
    broken: RefCell<Option<Status>>,
}

impl Generator {
    pub(crate) async fn start(plan: Plan) -> Result<Generator> {
        let connect = async || -> Result<Service> {
            let endpoint = Endpoint::from_shared(format!("http://{}", plan.address))?;
            let channel = endpoint.tcp_nodelay(true).connect().await;
            Ok(WorkflowServiceClient::new(
                channel.with_context(|| format!("connect to {}", plan.address))?,
            ))
        };
        let (starter, worker) = (connect().await?, connect().await?);
        let shared = Rc::new(Shared {
            task_queue: format!("bench-{}", Uuid::new_v4()),
            starter,
            worker,
            waiting: RefCell::default(),
            refused: RefCell::default(),
            broken: RefCell::default(),
            plan,
        });
        let local = LocalSet::new();
        let mut polls = Vec::new();
        for _ in 0..shared.plan.concurrency.clamp(2, POLLS_MAX) {
            polls.push(local.spawn_local(Rc::clone(&shared).work_on_workflows()));
            polls.push(local.spawn_local(Rc::clone(&shared).work_on_activities()));
        }
        Ok(Generator { shared, local, polls })
    }

    /// Keeps `concurrency` workflows in progress for `span`; those that ended within it count.
    pub(crate) async fn run(&mut self, span: Duration) -> Result<Sample> {
        let started = Instant::now();
        let deadline = started + span;
        *self.shared.refused.borrow_mut() = 0;
        let starters: Vec<_> = (0..self.shared.plan.concurrency)
            .map(|_| self.local.spawn_local(Rc::clone(&self.shared).start_until(deadline)))
            .collect();
        let latencies = self
            .local
            .run_until(async {
                let mut all = Vec::new();
                for starter in starters {
                    all.extend(starter.await.context("a starter ended")??);
                }
                anyhow::Ok(all)
            })
            .await?;
        if let Some(status) = self.shared.broken.borrow_mut().take() {
            bail!("a worker's RPC was refused: {status}");
        }
        let mut sample = Sample { took: span, latencies, refused: *self.shared.refused.borrow() };
        sample.latencies.sort_unstable();
        Ok(sample)
    }

    /// Drops all polls; the server sees its clients go away.
    pub(crate) fn stop(self) {
        for poll in &self.polls {
            poll.abort();
        }
    }
}

impl Shared {
    async fn start_until(self: Rc<Self>, deadline: Instant) -> Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        while Instant::now() < deadline {
            let started = Instant::now();
            tokio::time::timeout(WORKFLOW_LIMIT, self.one_workflow())
                .await
                .context("a workflow did not end")??;
            if Instant::now() <= deadline {
                latencies.push(started.elapsed());
            }
        }
        Ok(latencies)
    }

    async fn one_workflow(&self) -> Result<()> {
        let workflow_id = format!("bench-{}", Uuid::new_v4());
        let (tx, rx) = oneshot::channel();
        if !self.plan.poll_result {
            self.waiting.borrow_mut().insert(workflow_id.clone(), tx);
        }
        let request = StartWorkflowExecutionRequest {
            namespace: self.plan.namespace.clone(),
            workflow_id: workflow_id.clone(),
            workflow_type: Some(WorkflowType { name: "OneActivity".to_owned() }),
            task_queue: Some(self.queue()),
            identity: IDENTITY.to_owned(),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let start =
            async |mut service: Service| service.start_workflow_execution(request.clone()).await;
        let run_id = self.insist(start).await?.run_id;
        if !self.plan.poll_result {
            return rx.await.context("the worker ended");
        }
        self.await_close(WorkflowExecution { workflow_id, run_id }).await
    }

    async fn await_close(&self, execution: WorkflowExecution) -> Result<()> {
        let mut request = GetWorkflowExecutionHistoryRequest {
            namespace: self.plan.namespace.clone(),
            execution: Some(execution),
            wait_new_event: true,
            history_event_filter_type: HistoryEventFilterType::CloseEvent.into(),
            skip_archival: true,
            ..Default::default()
        };
        loop {
            let ask = async |mut service: Service| {
                let mut poll = tonic::Request::new(request.clone());
                poll.set_timeout(POLL_TIMEOUT);
                service.get_workflow_execution_history(poll).await
            };
            let answer = self.insist(ask).await?;
            let events = answer.history.map(|history| history.events).unwrap_or_default();
            if let Some(close) = events.last() {
                if close.event_type() != EventType::WorkflowExecutionCompleted {
                    bail!("a workflow ended with {:?}", close.event_type());
                }
                return Ok(());
            }
            // The long poll ended with the workflow still in progress.
            request.next_page_token = answer.next_page_token;
        }
    }

    async fn work_on_workflows(self: Rc<Self>) {
        let request = PollWorkflowTaskQueueRequest {
            namespace: self.plan.namespace.clone(),
            task_queue: Some(self.queue()),
            identity: IDENTITY.to_owned(),
            ..Default::default()
        };
        loop {
            let mut poll = tonic::Request::new(request.clone());
            poll.set_timeout(POLL_TIMEOUT);
            match self.worker.clone().poll_workflow_task_queue(poll).await {
                // An empty answer ends a long poll that found nothing.
                Ok(task) if task.get_ref().task_token.is_empty() => {}
                Ok(task) => {
                    if let Err(status) = self.answer_workflow_task(task.into_inner()).await {
                        self.note(status);
                    }
                }
                Err(status) => self.note(status),
            }
        }
    }

    async fn answer_workflow_task(
        &self,
        task: PollWorkflowTaskQueueResponse,
    ) -> Result<(), Status> {
        let events = task.history.map(|history| history.events).unwrap_or_default();
        let done =
            events.iter().any(|event| event.event_type() == EventType::ActivityTaskCompleted);
        let command = if done { complete_workflow() } else { self.schedule_activity() };
        let request = RespondWorkflowTaskCompletedRequest {
            namespace: self.plan.namespace.clone(),
            task_token: task.task_token,
            commands: vec![command],
            identity: IDENTITY.to_owned(),
            ..Default::default()
        };
        self.worker.clone().respond_workflow_task_completed(request).await?;
        let workflow_id = task.workflow_execution.unwrap_or_default().workflow_id;
        let waiting = if done { self.waiting.borrow_mut().remove(&workflow_id) } else { None };
        if let Some(tx) = waiting {
            // A starter that gave up has no more use for it.
            let _ = tx.send(());
        }
        Ok(())
    }

    async fn work_on_activities(self: Rc<Self>) {
        let request = PollActivityTaskQueueRequest {
            namespace: self.plan.namespace.clone(),
            task_queue: Some(self.queue()),
            identity: IDENTITY.to_owned(),
            ..Default::default()
        };
        loop {
            let mut poll = tonic::Request::new(request.clone());
            poll.set_timeout(POLL_TIMEOUT);
            let task_token = match self.worker.clone().poll_activity_task_queue(poll).await {
                Ok(task) => task.into_inner().task_token,
                Err(status) => {
                    self.note(status);
                    continue;
                }
            };
            if task_token.is_empty() {
                continue;
            }
            let answer = RespondActivityTaskCompletedRequest {
                namespace: self.plan.namespace.clone(),
                task_token,
                identity: IDENTITY.to_owned(),
                ..Default::default()
            };
            if let Err(status) = self.worker.clone().respond_activity_task_completed(answer).await {
                self.note(status);
            }
        }
    }

    fn schedule_activity(&self) -> Command {
        command(
            CommandType::ScheduleActivityTask,
            Attributes::ScheduleActivityTaskCommandAttributes(
                ScheduleActivityTaskCommandAttributes {
                    activity_id: "1".to_owned(),
                    activity_type: Some(ActivityType { name: "Nothing".to_owned() }),
                    task_queue: Some(self.queue()),
                    start_to_close_timeout: Some(seconds(ACTIVITY_TIMEOUT)),
                    ..Default::default()
                },
            ),
        )
    }

    fn queue(&self) -> TaskQueue {
        TaskQueue { name: self.task_queue.clone(), ..Default::default() }
    }

    /// Sends until it is taken: what overload refuses is sent again, and counted.
    async fn insist<T>(
        &self,
        send: impl AsyncFn(Service) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T> {
        loop {
            match send(self.starter.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_retriable(&status) => {
                    *self.refused.borrow_mut() += 1;
                    tokio::task::yield_now().await;
                }
                Err(status) => return Err(status).context("an RPC was refused"),
            }
        }
    }

    fn note(&self, status: Status) {
        if is_retriable(&status) {
            *self.refused.borrow_mut() += 1;
        } else {
            *self.broken.borrow_mut() = Some(status);
        }
    }
}

fn is_retriable(status: &Status) -> bool {
    // A poll whose deadline passed is asked again; so is what a busy or restarting server refused.
    matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded)
}

fn complete_workflow() -> Command {
    command(
        CommandType::CompleteWorkflowExecution,
        Attributes::CompleteWorkflowExecutionCommandAttributes(
            CompleteWorkflowExecutionCommandAttributes::default(),
        ),
    )
}

fn command(kind: CommandType, attributes: Attributes) -> Command {
    Command { command_type: kind.into(), attributes: Some(attributes), ..Default::default() }
}

fn seconds(duration: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: duration.as_secs().cast_signed(), nanos: 0 }
}
