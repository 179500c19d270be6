//! One of each kind of what nodes say to each other. A test checks that none is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use piton_core::effect::{ChildOutcome, ChildResult, ErrandKey, ParentLink, QueueName, TaskKey};
use piton_core::error::Rejection;
use piton_core::id::{EventId, NamespaceId, RunId, ShardId, WorkflowKey};
use piton_core::list_filter::ListFilter;
use piton_core::matching::Class;
use piton_core::message::Proto;
use piton_core::placement::SLOTS;
use piton_core::proto::common::link::{BatchJob, Variant};
use piton_core::proto::common::{
    Header, Link, Payload, Payloads, WorkerVersionStamp, WorkflowExecution,
};
use piton_core::proto::enums::QueryRejectCondition;
use piton_core::proto::failure::Failure;
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::query::WorkflowQuery;
use piton_core::proto::workflow::WorkflowExecutionInfo;
use piton_core::proto::workflowservice::{
    DescribeWorkflowExecutionResponse, PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse, QueryWorkflowResponse, RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest, StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
};
use piton_core::request::{
    ActivityRef, CancelRequest, ChildRefusal, ExternalRefusal, Parent, RunRequest, Signal,
    StartRequest, Taker, TerminateRequest, WorkflowTaskRef,
};
use piton_core::run::{ActivityTask, Reply, StartedTask, Status};
use piton_core::time::{Span, Timestamp};
use piton_raft::NodeId;

use crate::error::{MetaError, ShardError};
use crate::message::{
    Answer, Call, ClusterSettings, CountReply, Delivery, Forwarded, HeldEvents, HistoryPage,
    HistoryPageReply, MetaCall, MetaRequest, NamespaceUpdate, NewNamespace, NodeAnswer, NodeCall,
    NodeRecord, NodeState, NodeStatus, Offer, OfferedTask, PeerAnswer, PeerRequest, PollId,
    PollRequest, Poller, QueryToken, QueueCall, QueueKey, QueueType, ReadCall, Receipt,
    ReplicaStatus, TaskQueueView, Ticket, WantedTasks, WorkflowCall, WorkflowTaskToken,
};

mod answers;
pub(crate) use answers::*;

const TIME: Timestamp = Timestamp::from_nanos(1_700_000_000_123_456_789);

pub(crate) fn key() -> WorkflowKey {
    WorkflowKey { namespace: "namespace".into(), workflow_id: "order-7".into() }
}

fn run() -> RunId {
    "run".into()
}

fn payloads() -> Payloads {
    let metadata = [("encoding".to_owned(), "json/plain".into())];
    let payload = Payload { metadata: metadata.into(), data: "7".into(), ..Payload::default() };
    Payloads { payloads: vec![payload] }
}

fn header() -> Header {
    let trace = Payload { data: "trace".into(), ..Payload::default() };
    Header { fields: [("trace".to_owned(), trace)].into() }
}

fn links() -> Vec<Link> {
    let job = |id: &str| Some(Variant::BatchJob(BatchJob { job_id: id.into() }));
    vec![Link { variant: job("a") }, Link::default(), Link { variant: job("b") }]
}

fn failure() -> Failure {
    Failure { message: "no".into(), ..Failure::default() }
}

fn execution() -> WorkflowExecution {
    WorkflowExecution { workflow_id: "other".into(), run_id: "other-run".into() }
}

fn version() -> WorkerVersionStamp {
    WorkerVersionStamp { build_id: "b1".into(), ..WorkerVersionStamp::default() }
}

fn event() -> HistoryEvent {
    HistoryEvent { event_id: 4, event_time: Some(TIME.to_proto()), ..HistoryEvent::default() }
}

fn signal() -> Signal {
    Signal {
        name: "paid".into(),
        input: Some(payloads()),
        identity: "client".into(),
        header: Some(header()),
        request_id: "request".into(),
        sender: Some(execution()),
        child_only: true,
        links: links(),
    }
}

/// A start of a workflow with an input.
pub(crate) fn start(input: Option<Payloads>) -> StartRequest {
    let start = StartWorkflowExecutionRequest {
        workflow_id: "order-7".into(),
        request_id: "request".into(),
        input,
        ..StartWorkflowExecutionRequest::default()
    };
    StartRequest { start: Box::new(start), signal: None, parent: None }
}

fn child_start() -> StartRequest {
    let link = ParentLink {
        namespace_id: "namespace".into(),
        workflow_id: "parent".into(),
        run_id: "parent-run".into(),
        initiated: EventId(5),
    };
    let parent = Parent { link, namespace_name: "default".into(), root: execution() };
    StartRequest { signal: Some(signal()), parent: Some(parent), ..start(None) }
}

fn taker() -> Taker {
    let worker_version = Some(version());
    Taker { identity: "worker".into(), request_id: "1-2".into(), sticky: true, worker_version }
}

fn activity() -> ActivityRef {
    ActivityRef::Attempt { scheduled: EventId(5), attempt: 2, stamp: 3 }
}

pub(crate) fn child_results() -> Vec<ChildResult> {
    vec![
        ChildResult::Completed(Some(payloads())),
        ChildResult::Failed(Some(failure()), 5),
        ChildResult::Canceled(None),
        ChildResult::TimedOut(3),
        ChildResult::Terminated,
    ]
}

fn closed_child(result: ChildResult) -> RunRequest {
    let outcome = ChildOutcome {
        workflow_id: "child".into(),
        run_id: "last".into(),
        first_run: "first".into(),
        workflow_type: "Child".into(),
        result,
    };
    RunRequest::ChildClosed { initiated: EventId(5), outcome: Box::new(outcome) }
}

/// The requests that clients and workers make.
fn requests_of_clients() -> Vec<RunRequest> {
    let cancel = CancelRequest {
        reason: "late".into(),
        identity: "client".into(),
        request_id: "request".into(),
        first_run_id: "first".into(),
        sender: Some((Proto(execution()), EventId(6))),
        child_only: false,
        links: links(),
    };
    let terminate = TerminateRequest {
        reason: "late".into(),
        details: Some(payloads()),
        identity: "client".into(),
        first_run_id: "first".into(),
        links: links(),
    };
    let token = WorkflowTaskRef { term: 7, number: 300 };
    let answer = RespondWorkflowTaskCompletedRequest { identity: "worker".into(), ..d() };
    let failed = RespondWorkflowTaskFailedRequest { identity: "worker".into(), ..d() };
    let identity = || "worker".to_owned();
    vec![
        RunRequest::Signal(signal()),
        RunRequest::RequestCancel(cancel),
        RunRequest::Terminate(terminate),
        RunRequest::ResetSticky,
        RunRequest::TakeWorkflowTask { scheduled: EventId(2), stamp: 1, taker: taker() },
        RunRequest::CompleteWorkflowTask { token, answer: Box::new(answer) },
        RunRequest::FailWorkflowTask { token, answer: Box::new(failed) },
        RunRequest::StartActivity {
            scheduled: EventId(5),
            stamp: 3,
            created: TIME,
            taker: taker(),
        },
        RunRequest::CompleteActivity {
            activity: activity(),
            result: Some(payloads()),
            identity: identity(),
        },
        RunRequest::FailActivity {
            activity: ActivityRef::Id("a".into()),
            failure: Some(failure()),
            last_heartbeat_details: None,
            identity: identity(),
        },
        RunRequest::CancelActivity { activity: activity(), details: None, identity: identity() },
        RunRequest::HeartbeatActivity {
            activity: activity(),
            details: Some(payloads()),
            identity: identity(),
        },
    ]
}

/// Those that shards make of each other.
fn requests_of_shards() -> Vec<RunRequest> {
    let initiated = EventId(5);
    let refusal = |refusal| RunRequest::ExternalSignalDone { initiated, refusal };
    let mut requests = vec![
        RunRequest::WorkflowTaskTimedOut { number: 300 },
        RunRequest::WorkflowTaskUndelivered { number: 300 },
        RunRequest::StickyUnavailable { stamp: 2 },
        RunRequest::StickyLost,
        RunRequest::ActivityUndelivered {
            scheduled: EventId(5),
            stamp: 3,
            request_id: "1-2".into(),
        },
        RunRequest::Due,
        RunRequest::Rehosted,
        RunRequest::ChildStarted { initiated, run_id: run(), header: Some(header()) },
        RunRequest::ChildRefused { initiated, cause: ChildRefusal::AlreadyExists },
        RunRequest::ChildRefused { initiated, cause: ChildRefusal::NamespaceNotFound },
        RunRequest::ParentRecorded,
        refusal(None),
        refusal(Some(ExternalRefusal::NotFound)),
        refusal(Some(ExternalRefusal::NamespaceNotFound)),
        refusal(Some(ExternalRefusal::SignalCountLimit)),
        RunRequest::ExternalCancelDone { initiated, refusal: None },
        RunRequest::ErrandDone(ErrandKey::ReportClose),
    ];
    requests.extend(child_results().into_iter().map(closed_child));
    requests
}

pub(crate) fn run_requests() -> Vec<RunRequest> {
    [requests_of_clients(), requests_of_shards()].concat()
}

fn queue() -> QueueKey {
    let (namespace, queue) = ("namespace".into(), QueueName::sticky("sticky", "normal"));
    QueueKey { namespace, queue, kind: QueueType::Workflow }
}

fn offer() -> Offer {
    Offer {
        queue: queue(),
        origin: ShardId(3),
        key: key(),
        run_id: run(),
        task: OfferedTask::Task(TaskKey::Workflow { scheduled: EventId(2), stamp: 1 }),
        class: Class { priority: 3, version: "v".into(), fairness_key: "tenant".into() },
        stride: 1_000,
        created: TIME,
        more_behind: true,
    }
}

pub(crate) fn workflow_calls() -> Vec<WorkflowCall> {
    let (namespace, workflow_id): (NamespaceId, _) = ("namespace".into(), "order-7".into());
    let token = WorkflowTaskToken {
        namespace: namespace.clone(),
        workflow_id,
        run_id: run(),
        scheduled: EventId(2),
        started: EventId(3),
        attempt: 1,
        term: 7,
        number: 300,
    };
    let of_query =
        QueryToken { namespace, workflow_id: "order-7".into(), run_id: run(), term: 7, query: 9 };
    let query = WorkflowQuery { query_type: "state".into(), query_args: Some(payloads()), ..d() };
    let ticket = Ticket {
        offer: offer(),
        node: NodeId(2),
        poll: PollId(1 << 40),
        identity: "worker".into(),
        worker_version: Some(version()),
    };
    let mut calls = vec![
        WorkflowCall::Start { key: key(), request: start(Some(payloads())) },
        WorkflowCall::Start { key: key(), request: child_start() },
        WorkflowCall::CompleteWorkflowTask { token, answer: Box::default() },
        WorkflowCall::Query {
            key: key(),
            run_id: None,
            query,
            reject: QueryRejectCondition::NotOpen,
            timeout: Duration::from_millis(1_500),
        },
        WorkflowCall::AnswerQuery {
            token: of_query,
            answer: Box::new(RespondQueryTaskCompletedRequest {
                namespace: "default".into(),
                ..d()
            }),
        },
        WorkflowCall::Describe { key: key(), run_id: Some(run()) },
        WorkflowCall::Ticket(ticket),
        WorkflowCall::NoPoller { key: key(), run_id: run(), task: OfferedTask::Query(9) },
    ];
    let to_run = |request| WorkflowCall::Run { key: key(), run_id: Some(run()), request };
    calls.extend(run_requests().into_iter().map(to_run));
    calls
}

pub(crate) fn queue_calls() -> Vec<QueueCall> {
    let (node, poll) = (NodeId(2), PollId(9));
    let task = OfferedTask::Task(TaskKey::Activity { scheduled: EventId(5), stamp: 3 });
    let request = PollRequest {
        queue: QueueKey { kind: QueueType::Activity, ..queue() },
        node,
        poll,
        identity: "worker".into(),
        worker_instance_key: "process".into(),
        worker_version: None,
    };
    vec![
        QueueCall::Offer(offer()),
        QueueCall::Withdraw { queue: queue(), origin: ShardId(3), key: key(), run_id: run(), task },
        QueueCall::Poll(request),
        QueueCall::WithdrawPoll { queue: queue(), node, poll },
        QueueCall::ShutdownWorker { queue: queue(), worker_instance_key: "process".into() },
        QueueCall::Describe { queue: QueueKey { kind: QueueType::Nexus, ..queue() } },
    ]
}

/// Filters that have all that a filter may have between them.
pub(crate) fn filters() -> Vec<ListFilter> {
    let texts = [
        "",
        "WorkflowId = 'a' AND (RunId != 'b' OR StartTime > '2024-05-01T10:20:30Z')",
        "CloseTime < 5 OR CloseTime <= 6 OR ExecutionTime >= 7 AND HistoryLength IN (1, 2)",
        "StartTime BETWEEN 1 AND 2 AND WorkflowType STARTS_WITH 'O' AND TaskQueue NOT STARTS_WITH 'x'",
        "ExecutionStatus = 'Running' GROUP BY ExecutionStatus",
    ];
    texts.map(|text| ListFilter::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))).to_vec()
}

pub(crate) fn read_calls() -> Vec<ReadCall> {
    let page = |held| HistoryPage {
        token: b"page".to_vec(),
        max_events: 256,
        wait: Some(Duration::from_secs(20)),
        close_only: false,
        reverse: true,
        held,
    };
    let held = [HeldEvents::Hidden, HeldEvents::FirstAttempt, HeldEvents::EveryAttempt];
    let history = |held| ReadCall::History { key: key(), run_id: Some(run()), page: page(held) };
    let mut calls = held.map(history).to_vec();
    calls.extend(filters().into_iter().map(|filter| ReadCall::List {
        namespace: "namespace".into(),
        filter,
        after: Some(b"sort key".to_vec()),
        limit: 1_000,
        timeout: Some(Duration::from_secs(3)),
    }));
    calls.extend(filters().into_iter().map(|filter| ReadCall::Count {
        namespace: "namespace".into(),
        filter,
        timeout: None,
    }));
    calls.push(ReadCall::Backlog { queue: queue(), timeout: None });
    calls
}

pub(crate) fn calls() -> Vec<Call> {
    let wanted = WantedTasks { queue: queue(), class: Some(Class::default()), limit: 100 };
    let mut calls: Vec<Call> = workflow_calls().into_iter().map(Call::from).collect();
    calls.extend(queue_calls().into_iter().map(Call::from));
    calls.extend(read_calls().into_iter().map(Call::from));
    calls.push(Call::Wanted(wanted));
    calls
}

pub(crate) fn deliveries() -> Vec<Delivery> {
    let workflow = PollWorkflowTaskQueueResponse { task_token: "token".into(), ..d() };
    let activity = PollActivityTaskQueueResponse { task_token: "token".into(), ..d() };
    vec![
        Delivery::WorkflowTask(Box::new(workflow)),
        Delivery::ActivityTask(Box::new(activity)),
        Delivery::Again,
        Delivery::Shutdown,
    ]
}

pub(crate) fn meta_requests() -> Vec<MetaRequest> {
    let (namespace, name): (NamespaceId, _) = ("namespace".into(), || "orders".to_owned());
    let data = || [("key".to_owned(), "value".to_owned())].into();
    let new = NewNamespace {
        name: name(),
        description: "what for".into(),
        owner: "who".into(),
        data: data(),
        retention: Span::from_secs(60),
        created: TIME,
    };
    let update = NamespaceUpdate {
        description: None,
        owner: Some("who".into()),
        retention: Some(Span::from_secs(60)),
        data: data(),
    };
    let types = [("Customer".to_owned(), 2)].into();
    vec![
        MetaRequest::RegisterNamespace { id: namespace.clone(), new },
        MetaRequest::UpdateNamespace { name: name(), update },
        MetaRequest::DeprecateNamespace { name: name() },
        MetaRequest::AddSearchAttributes { namespace: namespace.clone(), types },
        MetaRequest::RemoveSearchAttributes { namespace, names: vec!["Customer".into()] },
        MetaRequest::SetLimits([("signals_max".to_owned(), 5)].into()),
        MetaRequest::BootstrapRoutes { shards: 16 },
        MetaRequest::PutNode(node_record()),
        MetaRequest::SetNodeState { node: NodeId(2), state: NodeState::Draining },
        MetaRequest::Place { shard: ShardId(3), expected: 4, voters: nodes() },
        MetaRequest::SetCluster(ClusterSettings { level: 2, ..ClusterSettings::default() }),
    ]
}

pub(crate) fn nodes() -> BTreeSet<NodeId> {
    [1, 300].map(NodeId).into()
}

pub(crate) fn node_record() -> NodeRecord {
    NodeRecord {
        id: NodeId(300),
        peer_address: "node2:7234".into(),
        api_address: "node2:7233".into(),
        http_address: "node2:8233".into(),
        zone: "b".into(),
        state: NodeState::Leaving,
        level: 1,
        joined: TIME,
    }
}

fn replica_status() -> ReplicaStatus {
    ReplicaStatus {
        term: 7,
        leader: Some(NodeId(300)),
        serves: true,
        voters: nodes(),
        learners: [NodeId(5)].into(),
        is_changing: true,
        placed: 5,
        last_index: 400,
        committed_index: 399,
        applied_index: 398,
        snapshot_index: 100,
        behind: [(NodeId(1), 3)].into(),
    }
}

fn node_status() -> NodeStatus {
    NodeStatus {
        node: NodeId(300),
        release: "0.1.0".into(),
        level: 1,
        meta_version: 12,
        clock: TIME,
        meta: ReplicaStatus::default(),
        shards: [(ShardId(3), replica_status())].into(),
        leads_nothing: true,
        clock_ahead: Some(Span::from_millis(-3)),
        stopped: [(None, "a".into()), (Some(ShardId(3)), "b".into())].into(),
    }
}

fn node_calls() -> Vec<NodeCall> {
    let mut calls: Vec<NodeCall> = meta_calls().into_iter().map(NodeCall::Meta).collect();
    calls.push(NodeCall::Status(Box::new(node_status())));
    calls.push(NodeCall::Lead { shard: ShardId(3), to: NodeId(300) });
    calls.push(NodeCall::Replica { shard: ShardId(3) });
    calls
}

pub(crate) fn meta_calls() -> Vec<MetaCall> {
    let mut calls = vec![MetaCall::Version];
    calls.extend(meta_requests().into_iter().map(MetaCall::Change));
    calls
}

pub(crate) fn peer_requests() -> Vec<PeerRequest> {
    let forwarded = |call| {
        let timeout = Duration::from_millis(9_500);
        PeerRequest::Call(Forwarded { shard: ShardId(3), timeout, meta_version: 12, call })
    };
    let deliver = |delivery| PeerRequest::Deliver { poll: PollId(9), delivery };
    let mut requests: Vec<PeerRequest> = calls().into_iter().map(forwarded).collect();
    requests.extend(deliveries().into_iter().map(deliver));
    requests.extend(node_calls().into_iter().map(PeerRequest::Node));
    requests
}

/// What a message has where a sample says nothing.
fn d<T: Default>() -> T {
    T::default()
}
