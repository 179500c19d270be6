//! Many workflows that sleep, and wake in the same second: what one costs in memory while it
//! sleeps, and how late its timer fires when all do at once.
//!
//! ```text
//! cargo run --release -p piton-tests --bin piton-sleepers -- \
//!     --address 127.0.0.1:7233 --pid PID --count 200000 --wake-after 3600
//! cargo run --release -p piton-tests --bin piton-sleepers -- \
//!     --address 127.0.0.1:7233 --pid PID --count 20000 --wake-after 60 --await-wake
//! ```
#![expect(clippy::print_stdout, reason = "a command line tool")]

#[expect(dead_code, reason = "the other binary uses the rest of it")]
mod measure;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use piton_proto::command::command::Attributes;
use piton_proto::command::{
    Command, CompleteWorkflowExecutionCommandAttributes, StartTimerCommandAttributes,
};
use piton_proto::common::WorkflowType;
use piton_proto::enums::{CommandType, EventType};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::workflow_service_client::WorkflowServiceClient;
use piton_proto::workflowservice::{
    PollWorkflowTaskQueueRequest, RespondWorkflowTaskCompletedRequest,
    StartWorkflowExecutionRequest,
};
use tokio::task::LocalSet;
use tonic::transport::{Channel, Endpoint};

const POLL_TIMEOUT: Duration = Duration::from_secs(70);
/// How long the server is given to put idle workflows out of memory before its memory is read.
const PASSIVATION: Duration = Duration::from_secs(25);
/// A timer that has not fired this long after its time is lost.
const LOST_AFTER: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

#[derive(Parser)]
#[command(about = "Memory of sleeping workflows, and lateness of timers that come due at once")]
struct Arguments {
    /// The server's gRPC address.
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    /// The server's process, for its memory.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// How many workflows.
    #[arg(long, default_value_t = 20_000)]
    count: usize,
    /// Starts, and answers, under way at the same time.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// All wake in the same second, this many seconds after the first start.
    #[arg(long, default_value_t = 3_600)]
    wake_after: u64,
    /// Stay until they wake, and say how late.
    #[arg(long)]
    await_wake: bool,
}

struct Shared {
    arguments: Arguments,
    service: WorkflowServiceClient<Channel>,
    queue: String,
    wakes_at: SystemTime,
    next: Cell<usize>,
    asleep: Cell<usize>,
    /// By the event's own time, and by the time its task came here.
    late: RefCell<Vec<(Duration, Duration)>>,
    early: Cell<usize>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let endpoint = Endpoint::from_shared(format!("http://{}", arguments.address))?;
    let channel = endpoint.tcp_nodelay(true).connect().await.context("connect")?;
    let shared = Rc::new(Shared {
        service: WorkflowServiceClient::new(channel),
        queue: format!("sleepers-{}", uuid::Uuid::new_v4()),
        wakes_at: SystemTime::now() + Duration::from_secs(arguments.wake_after),
        next: Cell::new(0),
        asleep: Cell::new(0),
        late: RefCell::default(),
        early: Cell::new(0),
        arguments,
    });
    LocalSet::new().run_until(run(shared)).await
}

async fn run(shared: Rc<Shared>) -> Result<()> {
    let (count, workers) = (shared.arguments.count, shared.arguments.concurrency.max(1));
    let before = shared.rss()?;
    let began = Instant::now();
    for _ in 0..workers {
        tokio::task::spawn_local(Rc::clone(&shared).answer_tasks());
    }
    let starters: Vec<_> =
        (0..workers).map(|_| tokio::task::spawn_local(Rc::clone(&shared).start_all())).collect();
    for starter in starters {
        starter.await??;
    }
    shared.wait_for("asleep", || shared.asleep.get() >= count).await;
    let took = began.elapsed().as_secs_f64();
    println!("{count} asleep after {took:.1} s, {:.0}/s", count as f64 / took);
    ensure!(SystemTime::now() < shared.wakes_at, "they woke before all slept: --wake-after");
    if let (Some(before), true) = (before, shared.arguments.pid.is_some()) {
        tokio::time::sleep_until((Instant::now() + PASSIVATION).into()).await;
        let after = shared.rss()?.unwrap_or_default();
        let each = after.saturating_sub(before) / count as u64;
        println!("server RSS {} -> {} MiB, {each} bytes each", before >> 20, after >> 20);
    }
    if shared.arguments.await_wake {
        let end = shared.wakes_at + LOST_AFTER;
        let is_over = || shared.late.borrow().len() >= count || SystemTime::now() > end;
        shared.wait_for("awake", is_over).await;
        shared.report();
    }
    Ok(())
}

impl Shared {
    fn rss(&self) -> Result<Option<u64>> {
        let Some(pid) = self.arguments.pid else { return Ok(None) };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(Some(kib.parse::<u64>()? << 10))
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let mut said = Instant::now();
        while !is_so() {
            tokio::time::sleep_until((Instant::now() + LOOK).into()).await;
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                let (asleep, awake) = (self.asleep.get(), self.late.borrow().len());
                println!("  until {what}: {asleep} asleep, {awake} awake");
            }
        }
    }

    async fn start_all(self: Rc<Self>) -> Result<()> {
        while self.next.get() < self.arguments.count {
            let number = self.next.replace(self.next.get() + 1);
            let request = StartWorkflowExecutionRequest {
                namespace: self.arguments.namespace.clone(),
                workflow_id: format!("{}-{number}", self.queue),
                workflow_type: Some(WorkflowType { name: "Sleeper".to_owned() }),
                task_queue: Some(self.task_queue()),
                request_id: uuid::Uuid::new_v4().to_string(),
                ..Default::default()
            };
            self.service.clone().start_workflow_execution(request).await?;
        }
        Ok(())
    }

    async fn answer_tasks(self: Rc<Self>) -> Result<()> {
        loop {
            let mut poll = tonic::Request::new(PollWorkflowTaskQueueRequest {
                namespace: self.arguments.namespace.clone(),
                task_queue: Some(self.task_queue()),
                identity: "sleepers".to_owned(),
                ..Default::default()
            });
            poll.set_timeout(POLL_TIMEOUT);
            let task = self.service.clone().poll_workflow_task_queue(poll).await?.into_inner();
            if task.task_token.is_empty() {
                continue;
            }
            let events = task.history.map(|history| history.events).unwrap_or_default();
            let is_awake = events.iter().any(|e| e.event_type() == EventType::TimerFired);
            let command = if is_awake { complete() } else { self.sleep() };
            if is_awake {
                self.note(&events);
            }
            let answer = RespondWorkflowTaskCompletedRequest {
                namespace: self.arguments.namespace.clone(),
                task_token: task.task_token,
                commands: vec![command],
                ..Default::default()
            };
            self.service.clone().respond_workflow_task_completed(answer).await?;
            if !is_awake {
                self.asleep.set(self.asleep.get() + 1);
            }
        }
    }

    fn note(&self, events: &[HistoryEvent]) {
        let at = |event: &HistoryEvent| event.event_time.and_then(|t| SystemTime::try_from(t).ok());
        let mut due = None;
        for event in events {
            match &event.attributes {
                Some(Event::TimerStartedEventAttributes(timer)) => {
                    let span = timer.start_to_fire_timeout.and_then(|d| Duration::try_from(d).ok());
                    due = at(event).zip(span).map(|(at, span)| at + span);
                }
                Some(Event::TimerFiredEventAttributes(_)) => {
                    let Some((due, fired)) = due.zip(at(event)) else { continue };
                    if fired < due {
                        self.early.set(self.early.get() + 1);
                    }
                    let late = fired.duration_since(due).unwrap_or_default();
                    let came = SystemTime::now().duration_since(due).unwrap_or_default();
                    self.late.borrow_mut().push((late, came));
                }
                _ => {}
            }
        }
    }

    fn report(&self) {
        let mut late = self.late.borrow_mut();
        let lost = self.arguments.count.saturating_sub(late.len());
        println!("{} woke, {lost} lost, {} early", late.len(), self.early.get());
        for (what, of) in [
            ("fired", (|both| both.0) as fn(&(Duration, Duration)) -> Duration),
            ("at the worker", |both| both.1),
        ] {
            let mut sorted: Vec<Duration> = late.iter().map(of).collect();
            sorted.sort_unstable();
            let millis = |percent| measure::percentile(&sorted, percent).as_millis();
            println!(
                "  {what}: p50 {} ms, p99 {} ms, last {} ms",
                millis(50),
                millis(99),
                millis(100)
            );
        }
        late.clear();
    }

    fn task_queue(&self) -> TaskQueue {
        TaskQueue { name: self.queue.clone(), ..TaskQueue::default() }
    }

    /// A timer to the second in which all wake.
    fn sleep(&self) -> Command {
        let left = self.wakes_at.duration_since(SystemTime::now()).unwrap_or_default();
        let attributes = StartTimerCommandAttributes {
            timer_id: "1".to_owned(),
            start_to_fire_timeout: prost_types::Duration::try_from(left).ok(),
        };
        Command {
            command_type: CommandType::StartTimer.into(),
            attributes: Some(Attributes::StartTimerCommandAttributes(attributes)),
            ..Command::default()
        }
    }
}

fn complete() -> Command {
    let attributes = CompleteWorkflowExecutionCommandAttributes::default();
    Command {
        command_type: CommandType::CompleteWorkflowExecution.into(),
        attributes: Some(Attributes::CompleteWorkflowExecutionCommandAttributes(attributes)),
        ..Command::default()
    }
}
