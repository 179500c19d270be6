//! What reads cost, and what they cost others.
//!
//! `long`: a workflow with a long history: how long a page of it takes, and the first call to it once
//! it has left memory; the same once it is closed. `count`: many closed workflows, calls at a steady
//! pace, and their latency with and without counts beside them.
//!
//! ```text
//! cargo run --release -p piton-tests --bin piton-reads -- --address 127.0.0.1:7233 long
//! cargo run --release -p piton-tests --bin piton-reads -- --address 127.0.0.1:7233 count
//! ```
#![expect(clippy::print_stdout, reason = "a command line tool")]

#[expect(dead_code, reason = "the other binaries use the rest of it")]
mod measure;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use piton_proto::command::command::Attributes;
use piton_proto::command::{Command, RecordMarkerCommandAttributes};
use piton_proto::common::{WorkflowExecution, WorkflowType};
use piton_proto::enums::CommandType;
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::workflow_service_client::WorkflowServiceClient;
use piton_proto::workflowservice::{
    CountWorkflowExecutionsRequest, DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryReverseRequest,
    PollWorkflowTaskQueueRequest, RespondWorkflowTaskCompletedRequest,
    SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
};
use tokio::task::LocalSet;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::measure::percentile;

type Service = WorkflowServiceClient<Channel>;

/// Longer than an idle workflow stays in memory.
const PASSIVATION: Duration = Duration::from_secs(13);
const POLL_TIMEOUT: Duration = Duration::from_secs(70);
const MARKERS: i64 = 245;
const PAGES: usize = 50;

/// The queue of all workflows that are counted; nobody polls it.
const COUNTED_QUEUE: &str = "counted";

#[derive(Parser)]
#[command(about = "What reads cost, and what they cost others")]
struct Arguments {
    /// The server's gRPC address.
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    #[arg(long, default_value = "default")]
    namespace: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Subcommand)]
enum What {
    /// A page of a long history, and the first call after it has left memory.
    Long {
        #[arg(long, default_value_t = 50_000)]
        events: i64,
    },
    /// Calls beside counts over many closed workflows.
    Count {
        /// Closed workflows in all; what is missing is made first.
        #[arg(long, default_value_t = 200_000)]
        closed: i64,
        /// Calls in a second: starts, signals and terminations in turn.
        #[arg(long, default_value_t = 150)]
        pace: u64,
        /// Counts under way at the same time.
        #[arg(long, default_value_t = 2)]
        counts: usize,
        /// Seconds of each stretch.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Stretches without and with counts, in turns.
        #[arg(long, default_value_t = 3)]
        turns: usize,
    },
}

/// Asks one server.
#[derive(Clone)]
struct Client {
    service: Service,
    namespace: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let endpoint = Endpoint::from_shared(format!("http://{}", arguments.address))?;
    let channel = endpoint.tcp_nodelay(true).connect().await.context("connect")?;
    let service = Service::new(channel).max_decoding_message_size(64 << 20);
    let client = Client { service, namespace: arguments.namespace };
    let what = arguments.what;
    LocalSet::new()
        .run_until(async move {
            match what {
                What::Long { events } => long(&client, events).await,
                What::Count { closed, pace, counts, seconds, turns } => {
                    client.close_some(closed).await?;
                    for _ in 0..turns {
                        stretch(&client, pace, 0, seconds).await?;
                        stretch(&client, pace, counts, seconds).await?;
                    }
                    Ok(())
                }
            }
        })
        .await
}

async fn long(client: &Client, events: i64) -> Result<()> {
    let id = format!("long-{}", Uuid::new_v4());
    client.start(&id, &id).await?;
    let mut length = 3;
    while length < events {
        length = client.grow(&id).await?;
    }
    println!("{length} events");
    for state in ["open", "closed"] {
        tokio::time::sleep_until((Instant::now() + PASSIVATION).into()).await;
        let mut firsts = Vec::new();
        let began = Instant::now();
        client.describe(&id).await?;
        firsts.push(("describe, not in memory", began.elapsed()));
        tokio::time::sleep_until((Instant::now() + PASSIVATION).into()).await;
        let began = Instant::now();
        client.last_page(&id).await?;
        firsts.push(("last page, not in memory", began.elapsed()));
        for (what, took) in firsts {
            println!("{state}: {what}: {:.2} ms", millis(took));
        }
        let mut pages = Vec::new();
        for _ in 0..PAGES {
            let began = Instant::now();
            client.last_page(&id).await?;
            pages.push(began.elapsed());
        }
        pages.sort_unstable();
        println!("{state}: last page again: p50 {:.2} ms", millis(percentile(&pages, 50)));
        let (began, read) = (Instant::now(), client.whole(&id).await?);
        println!("{state}: all {read} events in pages: {:.0} ms", millis(began.elapsed()));
        if state == "open" {
            client.terminate(&id).await?;
        }
    }
    Ok(())
}

/// Calls at a steady pace beside so many counts.
async fn stretch(client: &Client, pace: u64, counts: usize, seconds: u64) -> Result<()> {
    let is_over = Rc::new(Cell::new(false));
    let counted: Rc<RefCell<Vec<Duration>>> = Rc::default();
    let counting: Vec<_> = (0..counts)
        .map(|_| {
            let (client, is_over, counted) = (client.clone(), is_over.clone(), counted.clone());
            tokio::task::spawn_local(async move {
                while !is_over.get() {
                    let began = Instant::now();
                    client.count("ExecutionStatus = 'Terminated'").await?;
                    counted.borrow_mut().push(began.elapsed());
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let mut calls = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(pace.max(1))?);
    for _ in 0..pace * seconds / 3 {
        ticks.tick().await;
        let (client, id) = (client.clone(), format!("beside-{}", Uuid::new_v4()));
        calls.push(tokio::task::spawn_local(async move { client.live(&id).await }));
        ticks.tick().await;
        ticks.tick().await;
    }
    let mut latencies = Vec::new();
    for call in calls {
        latencies.extend(call.await??);
    }
    is_over.set(true);
    for counting in counting {
        counting.await??;
    }
    latencies.sort_unstable();
    let (p50, p99) = (percentile(&latencies, 50), percentile(&latencies, 99));
    let counted = counted.borrow();
    let each = counted.iter().sum::<Duration>().checked_div(counted.len() as u32);
    println!(
        "{counts} counts beside {} calls: p50 {:.2} ms, p99 {:.2} ms; {} counted, {:.0} ms each",
        latencies.len(),
        millis(p50),
        millis(p99),
        counted.len(),
        millis(each.unwrap_or_default()),
    );
    Ok(())
}

impl Client {
    fn execution(id: &str) -> Option<WorkflowExecution> {
        Some(WorkflowExecution { workflow_id: id.to_owned(), run_id: String::new() })
    }

    async fn start(&self, id: &str, queue: &str) -> Result<()> {
        let request = StartWorkflowExecutionRequest {
            namespace: self.namespace.clone(),
            workflow_id: id.to_owned(),
            workflow_type: Some(WorkflowType { name: "reads".to_owned() }),
            task_queue: Some(TaskQueue { name: queue.to_owned(), ..TaskQueue::default() }),
            request_id: Uuid::new_v4().to_string(),
            ..StartWorkflowExecutionRequest::default()
        };
        self.service.clone().start_workflow_execution(request).await?;
        Ok(())
    }

    async fn signal(&self, id: &str) -> Result<()> {
        let request = SignalWorkflowExecutionRequest {
            namespace: self.namespace.clone(),
            workflow_execution: Self::execution(id),
            signal_name: "grow".to_owned(),
            ..SignalWorkflowExecutionRequest::default()
        };
        self.service.clone().signal_workflow_execution(request).await?;
        Ok(())
    }

    async fn terminate(&self, id: &str) -> Result<()> {
        let request = TerminateWorkflowExecutionRequest {
            namespace: self.namespace.clone(),
            workflow_execution: Self::execution(id),
            ..TerminateWorkflowExecutionRequest::default()
        };
        self.service.clone().terminate_workflow_execution(request).await?;
        Ok(())
    }

    /// One workflow, and how long each call of it took.
    async fn live(&self, id: &str) -> Result<[Duration; 3]> {
        let began = Instant::now();
        self.start(id, COUNTED_QUEUE).await?;
        let started = began.elapsed();
        self.signal(id).await?;
        let signalled = began.elapsed();
        self.terminate(id).await?;
        Ok([started, signalled - started, began.elapsed() - signalled])
    }

    /// Makes closed workflows until there are so many.
    async fn close_some(&self, closed: i64) -> Result<()> {
        let there = self.count("").await?;
        let left = Rc::new(Cell::new(closed - there));
        let makers: Vec<_> = (0..64)
            .map(|_| {
                let (client, left) = (self.clone(), Rc::clone(&left));
                tokio::task::spawn_local(async move {
                    while left.get() > 0 {
                        left.set(left.get() - 1);
                        let id = Uuid::new_v4().to_string();
                        client.start(&id, COUNTED_QUEUE).await?;
                        client.terminate(&id).await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for maker in makers {
            maker.await??;
        }
        println!("{} workflows", self.count("").await?);
        Ok(())
    }

    async fn count(&self, query: &str) -> Result<i64> {
        let (namespace, query) = (self.namespace.clone(), query.to_owned());
        let request = CountWorkflowExecutionsRequest { namespace, query };
        Ok(self.service.clone().count_workflow_executions(request).await?.into_inner().count)
    }

    /// Answers a workflow task with many markers; the history's length after it.
    async fn grow(&self, id: &str) -> Result<i64> {
        self.signal(id).await?;
        let poll = PollWorkflowTaskQueueRequest {
            namespace: self.namespace.clone(),
            task_queue: Some(TaskQueue { name: id.to_owned(), ..TaskQueue::default() }),
            ..PollWorkflowTaskQueueRequest::default()
        };
        let mut poll = tonic::Request::new(poll);
        poll.set_timeout(POLL_TIMEOUT);
        let task = self.service.clone().poll_workflow_task_queue(poll).await?.into_inner();
        ensure!(!task.task_token.is_empty(), "no workflow task came");
        let marker = RecordMarkerCommandAttributes {
            marker_name: "one of many".to_owned(),
            ..RecordMarkerCommandAttributes::default()
        };
        let command = Command {
            command_type: CommandType::RecordMarker.into(),
            attributes: Some(Attributes::RecordMarkerCommandAttributes(marker)),
            ..Command::default()
        };
        let answer = RespondWorkflowTaskCompletedRequest {
            namespace: self.namespace.clone(),
            task_token: task.task_token,
            commands: vec![command; MARKERS as usize],
            ..RespondWorkflowTaskCompletedRequest::default()
        };
        self.service.clone().respond_workflow_task_completed(answer).await?;
        Ok(task.started_event_id + 1 + MARKERS)
    }

    async fn describe(&self, id: &str) -> Result<()> {
        let (namespace, execution) = (self.namespace.clone(), Self::execution(id));
        let request = DescribeWorkflowExecutionRequest { namespace, execution };
        self.service.clone().describe_workflow_execution(request).await?;
        Ok(())
    }

    async fn last_page(&self, id: &str) -> Result<()> {
        let request = GetWorkflowExecutionHistoryReverseRequest {
            namespace: self.namespace.clone(),
            execution: Self::execution(id),
            maximum_page_size: 100,
            ..GetWorkflowExecutionHistoryReverseRequest::default()
        };
        self.service.clone().get_workflow_execution_history_reverse(request).await?;
        Ok(())
    }

    /// Reads all pages; how many events there are.
    async fn whole(&self, id: &str) -> Result<usize> {
        let (mut read, mut token) = (0, Vec::new());
        loop {
            let request = GetWorkflowExecutionHistoryRequest {
                namespace: self.namespace.clone(),
                execution: Self::execution(id),
                next_page_token: token.into(),
                ..GetWorkflowExecutionHistoryRequest::default()
            };
            let page = self.service.clone().get_workflow_execution_history(request).await?;
            let page = page.into_inner();
            read += page.history.unwrap_or_default().events.len();
            token = page.next_page_token.into();
            if token.is_empty() {
                return Ok(read);
            }
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
