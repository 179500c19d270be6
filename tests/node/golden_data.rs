//! A data directory that any release wrote opens with this one, and its workflows go on to their
//! ends. `golden/VERSION` holds what each version wrote; `cargo xtask golden-data` adds that of the
//! present one. What was released stays as it is: only a change that is meant to break with it may
//! write it anew.

mod files;

use std::path::{Path, PathBuf};
use std::time::Duration;

use piton_node::config::Config;
use piton_proto::command::ContinueAsNewWorkflowExecutionCommandAttributes;
use piton_proto::command::command::Attributes;
use piton_proto::common::{Memo, Payload, SearchAttributes, WorkflowType};
use piton_proto::enums::{CommandType, EventType, IndexedValueType};
use piton_proto::history::{History, HistoryEvent};
use piton_proto::namespace::NamespaceConfig;
use piton_proto::operatorservice::AddSearchAttributesRequest;
use piton_proto::operatorservice::operator_service_client::OperatorServiceClient;
use piton_proto::workflow::WorkflowExecutionInfo;
use piton_proto::workflowservice::{
    DescribeNamespaceRequest, ListWorkflowExecutionsRequest, RegisterNamespaceRequest,
    StartWorkflowExecutionRequest, TerminateWorkflowExecutionRequest, UpdateNamespaceRequest,
};
use prost::Message;

use self::files::{entries, name_of, pack, unpack};
use crate::client::{Api, NAMESPACE, execution, payloads, signal_of, soon, start_of, task_queue};
use crate::nodes::{Running, config};
use crate::worker::{
    await_completed, await_until, check_gapless, command, complete, history_of, schedule,
    schedule_with, start_child, start_timer,
};

/// Until something that must not happen while such a directory is in use: some 98 years.
const NEVER: Duration = Duration::from_secs(36_000 * 24 * 3_600);
/// What fires in any node that opens the directory, and not in the one that writes it.
const SOON: Duration = Duration::from_secs(20);
/// A namespace beside the one that is always there, and the workflow in it.
const OTHER: &str = "payments";
/// Log that a shard writes before it takes a snapshot.
const SNAPSHOT_LOG_BYTES: u64 = 128 << 10;
/// Workflows that are closed before, and the bytes that each is started with. Enough for two shards.
const FILLERS: usize = 16;
const FILLER_BYTES: usize = 64 << 10;
/// Workflows whose histories stay as they are while no node runs.
const STANDING: [&str; 6] = ["timer", "activity", "started", "parent", "closed", "continued"];

const DATA: &str = "data";
const HISTORIES: &str = "histories";
/// The token of an activity's attempt that a worker of the old node's holds.
const TOKEN: &str = "token";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node/golden")
}

fn config_in(directory: &Path) -> Config {
    let mut config = config(Some(&directory.join(DATA)));
    config.data.snapshot_log_bytes = SNAPSHOT_LOG_BYTES;
    config
}

fn payload(json: &str) -> Payload {
    let metadata = [("encoding".to_owned(), "json/plain".into())];
    Payload { metadata: metadata.into(), data: json.to_owned().into(), ..Payload::default() }
}

fn memo() -> Memo {
    Memo { fields: [("note".to_owned(), payload("\"kept\""))].into() }
}

async fn start(api: &dyn Api, workflow_id: &str) {
    api.start(start_of(workflow_id, "golden", workflow_id)).await.unwrap();
}

/// Answers the next task of a workflow, whose queue has its name.
async fn answer(api: &dyn Api, queue: &str, commands: Vec<piton_proto::command::Command>) {
    let task = api.poll_workflow_task(queue).await.unwrap();
    assert!(!task.task_token.is_empty(), "no task at {queue}");
    api.complete_workflow_task(&task.task_token, commands).await.unwrap();
}

/// Waits for an event in a workflow's history.
async fn await_event(api: &dyn Api, workflow_id: &str, kind: EventType) {
    await_until(&format!("{workflow_id}: {kind:?}"), || async {
        let events = history_of(api, workflow_id).await;
        events.iter().any(|event| event.event_type() == kind).then_some(())
    })
    .await;
}

/// Namespaces that keep closed runs, one of them with an attribute of its own.
async fn write_namespaces(running: &Running) {
    let retention = prost_types::Duration::try_from(NEVER).ok();
    let update = UpdateNamespaceRequest {
        namespace: NAMESPACE.to_owned(),
        config: Some(NamespaceConfig {
            workflow_execution_retention_ttl: retention,
            ..NamespaceConfig::default()
        }),
        ..UpdateNamespaceRequest::default()
    };
    running.client.service().update_namespace(soon(update)).await.unwrap();
    let register = RegisterNamespaceRequest {
        namespace: OTHER.to_owned(),
        description: "beside the default".to_owned(),
        workflow_execution_retention_period: retention,
        ..RegisterNamespaceRequest::default()
    };
    running.client.service().register_namespace(soon(register)).await.unwrap();
    let address = format!("http://{}", running.node.grpc_address());
    let mut operator = OperatorServiceClient::connect(address).await.unwrap();
    let types = [("Customer".to_owned(), i32::from(IndexedValueType::Keyword))];
    let namespace = NAMESPACE.to_owned();
    let add = AddSearchAttributesRequest { namespace, search_attributes: types.into() };
    operator.add_search_attributes(soon(add)).await.unwrap();
}

/// Has every shard take a snapshot, so that what follows stands in the log alone.
async fn write_snapshots(running: &Running, snapshots: &Path, shards: usize) {
    let service = running.client.service();
    let input = Some(payloads(&"x".repeat(FILLER_BYTES)));
    for number in 0..FILLERS {
        let workflow_id = format!("filler-{number}");
        let filler = StartWorkflowExecutionRequest {
            namespace: OTHER.to_owned(),
            input: input.clone(),
            ..start_of(&workflow_id, "filler", "nobody")
        };
        service.clone().start_workflow_execution(soon(filler)).await.unwrap();
        let terminate = TerminateWorkflowExecutionRequest {
            namespace: OTHER.to_owned(),
            workflow_execution: Some(execution(&workflow_id)),
            ..TerminateWorkflowExecutionRequest::default()
        };
        service.clone().terminate_workflow_execution(soon(terminate)).await.unwrap();
    }
    await_until("a snapshot of each shard", || async {
        let names = entries(snapshots);
        let written = names.iter().filter(|path| name_of(path).ends_with(".snapshot")).count();
        (written >= shards).then_some(())
    })
    .await;
}

/// One workflow for each state that it may be in. Answers the token of the started activity.
async fn write_workflows(running: &Running) -> Vec<u8> {
    let api = running.api();
    let api = api.as_ref();

    start(api, "timer").await;
    answer(api, "timer", vec![start_timer("far", NEVER)]).await;

    start(api, "activity").await;
    answer(api, "activity", vec![schedule("pending", "activities")]).await;

    start(api, "started").await;
    answer(api, "started", vec![schedule_with("taken", "taken", NEVER)]).await;
    let token = api.poll_activity_task("taken").await.unwrap().task_token;
    assert!(!token.is_empty());

    start(api, "parent").await;
    answer(api, "parent", vec![start_child("child", "child")]).await;
    await_event(api, "parent", EventType::ChildWorkflowExecutionStarted).await;

    let mut closed = start_of("closed", "golden", "closed");
    closed.memo = Some(memo());
    let attributes = [("Customer".to_owned(), payload("\"Mori\""))];
    closed.search_attributes = Some(SearchAttributes { indexed_fields: attributes.into() });
    closed.input = Some(payloads("input"));
    api.start(closed).await.unwrap();
    answer(api, "closed", vec![complete()]).await;

    start(api, "continued").await;
    let next = ContinueAsNewWorkflowExecutionCommandAttributes {
        workflow_type: Some(WorkflowType { name: "golden".to_owned() }),
        task_queue: Some(task_queue("continued")),
        ..ContinueAsNewWorkflowExecutionCommandAttributes::default()
    };
    let next = Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(next);
    let next = command(CommandType::ContinueAsNewWorkflowExecution, next);
    answer(api, "continued", vec![next]).await;
    // The next run's first task comes after a second.
    await_event(api, "continued", EventType::WorkflowTaskScheduled).await;

    // A worker holds its task while the signal comes.
    start(api, "buffered").await;
    assert!(!api.poll_workflow_task("buffered").await.unwrap().task_token.is_empty());
    api.signal(signal_of("buffered", "while-held")).await.unwrap();

    start(api, "due").await;
    answer(api, "due", vec![start_timer("near", SOON)]).await;
    token.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the present version's golden data directory: cargo xtask golden-data"]
async fn write() {
    let directory = tempfile::tempdir().unwrap();
    let config = config_in(directory.path());
    let shards = config.shards.count.unwrap() as usize;
    let running = Running::start(config).await;
    write_namespaces(&running).await;
    write_snapshots(&running, &directory.path().join(DATA).join("snapshot"), shards).await;
    let token = write_workflows(&running).await;
    std::fs::write(directory.path().join(TOKEN), token).unwrap();
    let histories = directory.path().join(HISTORIES);
    std::fs::create_dir(&histories).unwrap();
    for workflow_id in STANDING {
        let events = history_of(running.api().as_ref(), workflow_id).await;
        let history = History { events }.encode_to_vec();
        std::fs::write(histories.join(workflow_id), history).unwrap();
    }
    let due = history_of(running.api().as_ref(), "due").await;
    assert!(due.iter().all(|event| event.event_type() != EventType::TimerFired), "too slow");
    running.stop().await;
    let golden = golden().join(env!("CARGO_PKG_VERSION"));
    if golden.exists() {
        std::fs::remove_dir_all(&golden).unwrap();
    }
    pack(directory.path(), &golden);
}

async fn listed(
    running: &Running,
    namespace: &str,
    query: &str,
) -> Vec<(String, WorkflowExecutionInfo)> {
    let request = ListWorkflowExecutionsRequest {
        namespace: namespace.to_owned(),
        query: query.to_owned(),
        ..ListWorkflowExecutionsRequest::default()
    };
    let answer = running.client.service().list_workflow_executions(soon(request)).await;
    let runs = answer.unwrap().into_inner().executions.into_iter();
    let id = |run: &WorkflowExecutionInfo| run.execution.clone().unwrap().workflow_id;
    let mut runs: Vec<_> = runs.map(|run| (id(&run), run)).collect();
    runs.sort_by(|(a, _), (b, _)| a.cmp(b));
    runs
}

/// Lets every open workflow go on to its end.
async fn carry_on(api: &dyn Api, token: &[u8]) {
    api.signal(signal_of("timer", "enough")).await.unwrap();
    answer(api, "timer", vec![complete()]).await;

    await_event(api, "due", EventType::TimerFired).await;
    answer(api, "due", vec![complete()]).await;

    let task = api.poll_activity_task("activities").await.unwrap();
    assert_eq!(task.activity_id, "pending");
    api.complete_activity_task(&task.task_token).await.unwrap();
    answer(api, "activity", vec![complete()]).await;

    api.complete_activity_task(token).await.unwrap();
    answer(api, "started", vec![complete()]).await;

    answer(api, "child", vec![complete()]).await;
    await_event(api, "parent", EventType::ChildWorkflowExecutionCompleted).await;
    answer(api, "parent", vec![complete()]).await;
    answer(api, "continued", vec![complete()]).await;

    let task = api.poll_workflow_task("buffered").await.unwrap();
    let events = task.history.unwrap_or_default().events;
    let is_signal = |e: &HistoryEvent| e.event_type() == EventType::WorkflowExecutionSignaled;
    assert!(events.iter().any(is_signal), "the buffered signal is lost: {events:#?}");
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
}

async fn check(directory: &Path) {
    let running = Running::start(config_in(directory)).await;
    let other = DescribeNamespaceRequest {
        namespace: OTHER.to_owned(),
        ..DescribeNamespaceRequest::default()
    };
    let other = running.client.service().describe_namespace(soon(other)).await.unwrap();
    let other = other.into_inner().namespace_info.unwrap_or_default();
    assert_eq!(other.description, "beside the default");
    assert_eq!(listed(&running, OTHER, "ExecutionStatus = 'Terminated'").await.len(), FILLERS);

    let api = running.api();
    let all = ["activity", "buffered", "child", "closed", "continued", "continued"];
    let all = [&all[..], &["due", "parent", "started", "timer"]].concat();
    let runs = listed(&running, NAMESPACE, "").await;
    assert_eq!(runs.iter().map(|(id, _)| id).collect::<Vec<_>>(), all.iter().collect::<Vec<_>>());
    let (_, closed) = runs.into_iter().find(|(id, _)| id == "closed").unwrap();
    assert_eq!(closed.memo, Some(memo()));
    let mut attributes = closed.search_attributes.unwrap().indexed_fields;
    let data = attributes.remove("Customer").map(|value| value.data);
    assert_eq!(data.as_deref(), Some(&b"\"Mori\""[..]));
    for workflow_id in STANDING {
        let written = std::fs::read(directory.join(HISTORIES).join(workflow_id)).unwrap();
        let written = History::decode(&written[..]).unwrap().events;
        let read = api.history(&execution(workflow_id)).await.unwrap();
        assert_eq!(read, written, "{workflow_id}");
    }
    carry_on(api.as_ref(), &std::fs::read(directory.join(TOKEN)).unwrap()).await;
    for workflow_id in all {
        check_gapless(workflow_id, &await_completed(api.as_ref(), workflow_id).await);
    }
    let open = listed(&running, NAMESPACE, "ExecutionStatus = 'Running'").await;
    assert_eq!(open, []);
    running.stop().await;
}

/// Unpacks what each version wrote, and checks it after a change to it.
async fn check_all(change: fn(&Path)) {
    let versions = entries(&golden());
    assert!(!versions.is_empty(), "there is nothing in {}", golden().display());
    for version in versions {
        println!("written by {}", name_of(&version));
        let directory = tempfile::tempdir().unwrap();
        unpack(&version, directory.path());
        change(&directory.path().join(DATA));
        check(directory.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_every_version_opens_and_its_workflows_go_on() {
    check_all(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshots_and_the_log_of_every_version_are_enough() {
    check_all(|data| std::fs::remove_dir_all(data.join("store")).unwrap()).await;
}
