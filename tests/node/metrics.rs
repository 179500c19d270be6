//! Every metric that an operator is promised is seen to move.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use piton_proto::common::RetryPolicy;
use piton_proto::enums::WorkflowTaskFailedCause;
use piton_proto::failure::Failure;
use piton_proto::workflowservice::{
    RespondActivityTaskFailedRequest, RespondWorkflowTaskFailedRequest,
};

use crate::client::{NAMESPACE, soon, start_of};
use crate::nodes::{Running, config};
use crate::worker::{
    Ledger, ORDER, Worker, await_orders, await_until, complete, place_orders, schedule,
};

/// What an operator reads.
const METRICS: &str = include_str!("../../docs/metrics.md");

/// `/metrics`, as name with labels -> value.
pub(crate) async fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
    let read = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let text = tokio::task::spawn_blocking(read).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    let lines = text.lines().filter(|line| line.starts_with("piton_"));
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    lines.filter_map(value).collect()
}

/// The sum of all values whose name begins so and whose labels contain these.
pub(crate) fn sum(metrics: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> f64 {
    let is_it = |key: &str| {
        let rest = key.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
            && labels.iter().all(|label| key.contains(label))
    };
    metrics.iter().filter(|(key, _)| is_it(key)).map(|(_, value)| value).sum()
}

/// An activity that fails once and is repeated, and then fails for good.
async fn fail_an_activity(running: &Running) {
    let api = running.api();
    api.start(start_of("fails", "failing", "failing")).await.unwrap();
    let task = api.poll_workflow_task("failing").await.unwrap();
    let mut activity = schedule("a", "failing");
    let Some(piton_proto::command::command::Attributes::ScheduleActivityTaskCommandAttributes(of)) =
        &mut activity.attributes
    else {
        panic!("an activity is scheduled by another command");
    };
    of.retry_policy = Some(RetryPolicy {
        initial_interval: Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 }),
        backoff_coefficient: 1.0,
        maximum_attempts: 2,
        ..RetryPolicy::default()
    });
    api.complete_workflow_task(&task.task_token, vec![activity]).await.unwrap();
    for attempt in 1..=2 {
        let task = api.poll_activity_task("failing").await.unwrap();
        assert_eq!(task.attempt, attempt);
        let failed = RespondActivityTaskFailedRequest {
            namespace: NAMESPACE.to_owned(),
            task_token: task.task_token,
            failure: Some(Failure { message: "no".to_owned(), ..Failure::default() }),
            ..RespondActivityTaskFailedRequest::default()
        };
        running.client.service().respond_activity_task_failed(soon(failed)).await.unwrap();
    }
    let task = api.poll_workflow_task("failing").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
}

/// A workflow whose worker cannot go on.
async fn fail_a_workflow_task(running: &Running) {
    let api = running.api();
    api.start(start_of("stuck", "failing", "stuck")).await.unwrap();
    let task = api.poll_workflow_task("stuck").await.unwrap();
    let failed = RespondWorkflowTaskFailedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        cause: WorkflowTaskFailedCause::WorkflowWorkerUnhandledFailure.into(),
        ..RespondWorkflowTaskFailedRequest::default()
    };
    running.client.service().respond_workflow_task_failed(soon(failed)).await.unwrap();
}

/// Whether the documentation has each of them.
fn assert_listed(metrics: &BTreeMap<String, f64>) {
    for name in metrics.keys().filter_map(|key| key.split('{').next()) {
        let parts = ["_bucket", "_sum", "_count"];
        let name = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        let is_listed = ["`", "{"].iter().any(|end| METRICS.contains(&format!("`{name}{end}")));
        assert!(is_listed, "docs/metrics.md does not list {name}");
    }
}

/// Whether each that the documentation has is there, with the labels that it says. Those between nodes have
/// a test of their own.
fn assert_promised(metrics: &BTreeMap<String, f64>) {
    let rows = METRICS.lines().filter(|line| line.starts_with("| `piton_"));
    let names = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`'));
    let names = names.filter(|name| name.starts_with("piton_") && !name.contains("_peer_"));
    for promised in names {
        let (name, labels) = promised.split_once('{').unwrap_or((promised, ""));
        let wanted = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let wanted: BTreeSet<&str> = wanted.collect();
        let mut series = metrics.keys().filter(|key| {
            let rest = key.split('{').next().and_then(|key| key.strip_prefix(name));
            rest.is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
        });
        let first = series.next().unwrap_or_else(|| panic!("{name} is documented and not there"));
        for key in series.chain([first]) {
            // Every other piece is a value.
            let labels = key.split_once('{').map_or("", |(_, labels)| labels).split('"').step_by(2);
            let labels = labels.map(|label| label.trim_matches([',', '=', '}']));
            let labels = labels.filter(|label| !["", "le"].contains(label));
            assert_eq!(labels.collect::<BTreeSet<_>>(), wanted, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_seen_to_move() {
    let mut config = config(None);
    config.shards.idle_ms = 3_000;
    config.data.snapshot_log_bytes = 4 << 10;
    let running = Running::start(config).await;
    let (api, address) = (running.api(), running.node.http_address());
    let before = metrics(address).await;
    assert_eq!(sum(&before, "piton_actors", &[]), 0.0);

    let ledger = Ledger::default();
    let worker = Worker::start(&api, "orders", 2);
    place_orders(&api, &ledger, "orders", ["one".to_owned()]).join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    drop(worker);
    fail_an_activity(&running).await;
    fail_a_workflow_task(&running).await;
    // Nobody has ever polled this queue.
    api.start(start_of("waits", ORDER, "unpolled")).await.unwrap();
    let _ = api.signal(crate::client::signal_of("nowhere", "s")).await.unwrap_err();

    await_until("the queue's age, a checkpoint and a snapshot show", || async {
        let now = metrics(address).await;
        let aged = sum(&now, "piton_task_queue_age_seconds", &[r#"task_queue="unpolled""#]) > 0.0;
        let wrote = sum(&now, "piton_checkpoint_seconds_count", &[]) > 0.0
            && sum(&now, "piton_snapshots_taken_total", &[]) > 0.0;
        (aged && wrote).then_some(())
    })
    .await;
    api.start(start_of("in-memory", "simple", "elsewhere")).await.unwrap();
    let after = metrics(address).await;
    let unpolled = [r#"task_queue="unpolled""#, r#"kind="workflow""#];
    assert_eq!(sum(&after, "piton_task_queue_depth", &unpolled), 1.0);
    assert_eq!(sum(&after, "piton_shard_leader", &[]), 2.0);
    assert_eq!(sum(&after, "piton_build_info", &[r#"version=""#]), 1.0);
    assert!(sum(&after, "piton_process_resident_memory_bytes", &[]) > 1e6);
    assert!(sum(&after, "piton_process_open_handles", &[]) > 3.0);
    let log_bytes = sum(&after, "piton_log_disk_bytes", &[]);
    assert!(log_bytes > 1e5, "the log takes room before it is written");
    assert!(sum(&after, "piton_store_disk_bytes", &[]) > 1e4);
    assert!(sum(&after, "piton_actors", &[]) >= 1.0, "an actor was here a moment ago");
    for (name, labels) in [
        ("piton_workflow_seconds_count", &[r#"workflow_type="order""#, r#"outcome="#][..]),
        ("piton_workflow_task_seconds_count", &[r#"type="order""#]),
        ("piton_workflow_starts_total", &[r#"type="order""#]),
        ("piton_workflow_task_failures_total", &[r#"type="failing""#, "WORKFLOW_WORKER_UNHANDLED"]),
        ("piton_timer_lag_seconds_count", &[]),
        ("piton_activity_seconds_count", &[r#"type="step""#]),
        ("piton_activity_retries_total", &[r#"type="step""#]),
        ("piton_activity_failures_total", &[r#"type="step""#]),
        ("piton_commit_seconds_count", &[]),
        ("piton_transitions_total", &[]),
        ("piton_task_matches_total", &[r#"waited="poll""#]),
        ("piton_snapshot_disk_bytes", &[]),
        ("piton_snapshots_taken_bytes_total", &[]),
        ("piton_entries_total", &[]),
        ("piton_log_sync_duration_seconds_count", &[]),
        ("piton_log_batches_total", &[]),
        ("piton_log_bytes_total", &[]),
        ("piton_rpcs_total", &[r#"method="StartWorkflowExecution""#, r#"code="OK""#]),
        ("piton_rpcs_total", &[r#"method="SignalWorkflowExecution""#, r#"code="NOT_FOUND""#]),
        (
            "piton_rpc_duration_seconds_count",
            &[r#"method="PollWorkflowTaskQueue""#, r#"code="OK""#],
        ),
    ] {
        let (was, is) = (sum(&before, name, labels), sum(&after, name, labels));
        assert!(is > was, "{name} {labels:?} was {was} and is {is}: {after:#?}");
    }
    assert_listed(&after);
    assert_promised(&after);
    assert_eq!(sum(&after, "piton_activity_retries_total", &[]), 1.0);
    assert_eq!(sum(&after, "piton_activity_failures_total", &[]), 1.0);

    // A task that is taken leaves the queue, and idle actors leave memory.
    let task = api.poll_workflow_task("unpolled").await.unwrap();
    let now = metrics(address).await;
    assert!(sum(&now, "piton_task_matches_total", &[r#"waited="task""#]) > 0.0, "{now:#?}");
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    await_until("the queue is empty and no actor is left", || async {
        let now = metrics(address).await;
        let is_empty = sum(&now, "piton_task_queue_depth", &unpolled) == 0.0;
        (is_empty && sum(&now, "piton_actors", &[]) == 0.0).then_some(())
    })
    .await;

    let waiting = tokio::spawn({
        let api = api.clone();
        async move { api.poll_workflow_task("orders").await }
    });
    await_until("a poll is seen to wait", || async {
        let now = metrics(address).await;
        let polls = [r#"task_queue="orders""#, r#"kind="workflow""#];
        let is_held = sum(&now, "piton_rpcs_in_flight", &[r#"kind="held""#]) == 1.0;
        (is_held && sum(&now, "piton_task_queue_polls", &polls) == 1.0).then_some(())
    })
    .await;
    waiting.abort();
    tokio::time::timeout(Duration::from_secs(10), running.stop()).await.unwrap();
}
