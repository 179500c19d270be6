//! A data directory that an earlier release wrote opens, and its workflows go on to their ends.
//! `cargo xtask golden-data` writes it anew, which only a change that is meant to break with all
//! earlier ones may do.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use piton_proto::command::ContinueAsNewWorkflowExecutionCommandAttributes;
use piton_proto::command::command::Attributes;
use piton_proto::common::{Memo, Payload, SearchAttributes, WorkflowType};
use piton_proto::enums::{CommandType, EventType, IndexedValueType};
use piton_proto::history::{History, HistoryEvent};
use piton_proto::namespace::NamespaceConfig;
use piton_proto::operatorservice::AddSearchAttributesRequest;
use piton_proto::operatorservice::operator_service_client::OperatorServiceClient;
use piton_proto::workflowservice::{ListWorkflowExecutionsRequest, UpdateNamespaceRequest};
use prost::Message;

use crate::client::{Api, NAMESPACE, execution, payloads, signal_of, soon, start_of, task_queue};
use crate::nodes::{Running, config};
use crate::worker::{
    await_completed, await_until, check_gapless, command, complete, history_of, schedule,
    start_child, start_timer,
};

/// Until something that must not happen while the directory is in use: some 98 years.
const NEVER: Duration = Duration::from_secs(36_000 * 24 * 3_600);
const ARCHIVE: &str = "tests/node/golden/data.tar.gz";
const DATA: &str = "data";
const HISTORIES: &str = "histories";
/// Workflows whose histories stay as they are while the node is down.
const STANDING: [&str; 5] = ["timer", "activity", "parent", "closed", "continued"];

/// Files are named from the repository's root, where tests do not run.
fn archive() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("it lies in the workspace").join(ARCHIVE)
}

fn tar(arguments: &[&str], directory: &Path) {
    let mut tar = Command::new("tar");
    let ended = tar.args(arguments).arg("-f").arg(archive()).arg("-C").arg(directory);
    let ended = if arguments[0] == "-cz" { ended.args([DATA, HISTORIES]) } else { ended };
    assert!(ended.status().expect("tar is installed").success(), "{arguments:?}");
}

fn payload(json: &str) -> Payload {
    let metadata = [("encoding".to_owned(), "json/plain".into())];
    Payload { metadata: metadata.into(), data: json.to_owned().into(), ..Payload::default() }
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

async fn keep_closed_runs_and_know_an_attribute(running: &Running) {
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
    let address = format!("http://{}", running.node.grpc_address());
    let mut operator = OperatorServiceClient::connect(address).await.unwrap();
    let types = [("Customer".to_owned(), i32::from(IndexedValueType::Keyword))];
    let namespace = NAMESPACE.to_owned();
    let add = AddSearchAttributesRequest { namespace, search_attributes: types.into() };
    operator.add_search_attributes(soon(add)).await.unwrap();
}

/// One workflow for each state that a row may be in.
async fn write_workflows(running: &Running) {
    let api = running.api();
    let api = api.as_ref();
    keep_closed_runs_and_know_an_attribute(running).await;

    start(api, "timer").await;
    answer(api, "timer", vec![start_timer("far", NEVER)]).await;

    start(api, "activity").await;
    answer(api, "activity", vec![schedule("pending", "activities")]).await;

    start(api, "parent").await;
    answer(api, "parent", vec![start_child("child", "child")]).await;
    await_until("the child is started", || async {
        let events = history_of(api, "parent").await;
        let is_started =
            |e: &HistoryEvent| e.event_type() == EventType::ChildWorkflowExecutionStarted;
        events.iter().any(is_started).then_some(())
    })
    .await;

    let mut closed = start_of("closed", "golden", "closed");
    closed.memo = Some(Memo { fields: [("note".to_owned(), payload("\"kept\""))].into() });
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
    answer(api, "continued", vec![command(CommandType::ContinueAsNewWorkflowExecution, next)])
        .await;

    // A worker has its task while the signal comes.
    start(api, "buffered").await;
    assert!(!api.poll_workflow_task("buffered").await.unwrap().task_token.is_empty());
    api.signal(signal_of("buffered", "while-held")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the golden data directory anew: cargo xtask golden-data"]
async fn write() {
    let directory = tempfile::tempdir().unwrap();
    let histories = directory.path().join(HISTORIES);
    std::fs::create_dir(&histories).unwrap();
    let running = Running::start(config(Some(&directory.path().join(DATA)))).await;
    write_workflows(&running).await;
    for workflow_id in STANDING {
        let events = history_of(running.api().as_ref(), workflow_id).await;
        let history = History { events }.encode_to_vec();
        std::fs::write(histories.join(workflow_id), history).unwrap();
    }
    running.stop().await;
    std::fs::create_dir_all(archive().parent().unwrap()).unwrap();
    let owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@0"];
    tar(&[&["-cz", "--sparse"], &owner[..]].concat(), directory.path());
}

async fn listed(running: &Running, query: &str) -> Vec<String> {
    let request = ListWorkflowExecutionsRequest {
        namespace: NAMESPACE.to_owned(),
        query: query.to_owned(),
        ..ListWorkflowExecutionsRequest::default()
    };
    let answer = running.client.service().list_workflow_executions(soon(request)).await;
    let runs = answer.unwrap().into_inner().executions.into_iter();
    let mut ids: Vec<String> = runs.map(|run| run.execution.unwrap().workflow_id).collect();
    ids.sort();
    ids
}

/// Lets every open workflow go on to its end.
async fn carry_on(api: &dyn Api) {
    api.signal(signal_of("timer", "enough")).await.unwrap();
    answer(api, "timer", vec![complete()]).await;

    let task = api.poll_activity_task("activities").await.unwrap();
    assert_eq!(task.activity_id, "pending");
    api.complete_activity_task(&task.task_token).await.unwrap();
    answer(api, "activity", vec![complete()]).await;

    answer(api, "child", vec![complete()]).await;
    await_until("the parent hears of its child", || async {
        let events = history_of(api, "parent").await;
        let is_heard =
            |e: &HistoryEvent| e.event_type() == EventType::ChildWorkflowExecutionCompleted;
        events.iter().any(is_heard).then_some(())
    })
    .await;
    answer(api, "parent", vec![complete()]).await;
    answer(api, "continued", vec![complete()]).await;

    let task = api.poll_workflow_task("buffered").await.unwrap();
    let events = task.history.unwrap_or_default().events;
    let is_signal = |e: &HistoryEvent| e.event_type() == EventType::WorkflowExecutionSignaled;
    assert!(events.iter().any(is_signal), "the buffered signal is lost: {events:#?}");
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_an_earlier_release_opens_and_its_workflows_go_on() {
    let directory = tempfile::tempdir().unwrap();
    tar(&["-xz"], directory.path());
    let running = Running::start(config(Some(&directory.path().join(DATA)))).await;
    let api = running.api();
    let all =
        ["activity", "buffered", "child", "closed", "continued", "continued", "parent", "timer"];
    assert_eq!(listed(&running, "").await, all);
    assert_eq!(listed(&running, "Customer = 'Mori'").await, ["closed"]);
    for workflow_id in STANDING {
        let written = std::fs::read(directory.path().join(HISTORIES).join(workflow_id)).unwrap();
        let written = History::decode(&written[..]).unwrap().events;
        let read = api.history(&execution(workflow_id)).await.unwrap();
        assert_eq!(read, written, "{workflow_id}");
    }
    carry_on(api.as_ref()).await;
    for workflow_id in all {
        check_gapless(workflow_id, &await_completed(api.as_ref(), workflow_id).await);
    }
    assert_eq!(listed(&running, "ExecutionStatus = 'Running'").await, Vec::<String>::new());
    running.stop().await;
}
