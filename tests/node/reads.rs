//! Reads of rows: they hold up nobody else, and a closed run is read without being hosted (D6, D11).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use piton_core::list_filter::ListFilter;
use piton_node::Devices;
use piton_proto::enums::WorkflowIdReusePolicy;
use piton_proto::history::HistoryEvent;
use piton_proto::workflowservice::{
    CountWorkflowExecutionsRequest, GetWorkflowExecutionHistoryRequest,
};
use piton_shard::{Answer, ReadCall, ShardError};
use tonic::Code;

use crate::checked_store::CheckedStore;
use crate::client::{NAMESPACE, Service, execution, soon, start_of, within};
use crate::members::{Members, forwarded};
use crate::members_client::key;
use crate::metrics::{metrics, sum};
use crate::nodes::{Running, config};
use crate::worker::{await_until, complete};

/// The first byte of a visibility row's key, behind its group's number.
const VISIBILITY: (usize, u8) = (4, b'V');
/// After so long a gate opens by itself, and the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a thread waits that would read from a slow disk.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    lost_patience: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let is_open = self.is_open.lock().unwrap();
        let waited = self.opened.wait_timeout_while(is_open, PATIENCE, |is_open| !*is_open);
        self.lost_patience.fetch_add(usize::from(waited.unwrap().1.timed_out()), Ordering::SeqCst);
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// A node whose store is told of each key that it is asked for.
async fn start_with(check: impl Fn(&[u8]) + Send + Sync + 'static) -> Running {
    let check = Arc::new(check);
    let devices = Devices {
        wrap_store: Arc::new(move |store| {
            let check = Arc::clone(&check);
            let check = move |key: &[u8]| {
                check(key);
                Ok(())
            };
            Arc::new(CheckedStore { store, check: Box::new(check) })
        }),
        ..Devices::default()
    };
    Running::start_with(config(None), devices).await.unwrap()
}

fn count_all() -> CountWorkflowExecutionsRequest {
    CountWorkflowExecutionsRequest {
        namespace: NAMESPACE.to_owned(),
        ..CountWorkflowExecutionsRequest::default()
    }
}

/// One thread serves the API and runs the actors, and counts wait for the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn workflows_go_on_while_counts_wait_for_the_disk() {
    let gate = Arc::new(Gate::default());
    let running = start_with({
        let gate = Arc::clone(&gate);
        move |key| {
            if key.get(VISIBILITY.0) == Some(&VISIBILITY.1) {
                gate.pass();
            }
        }
    })
    .await;
    let (api, service) = (running.api(), running.client.service());
    let counts = [soon(count_all()), soon(count_all()), within(PATIENCE / 20, count_all())];
    let counts = counts.map(|count| {
        let mut service = service.clone();
        tokio::spawn(async move { service.count_workflow_executions(count).await })
    });
    await_until("a count waits for the disk", || async {
        (gate.waiting.load(Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    for number in 0..4 {
        let id = format!("goes-on-{number}");
        api.start(start_of(&id, "simple", "q")).await.unwrap();
        let task = api.poll_workflow_task("q").await.unwrap();
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
        assert!(!api.history(&execution(&id)).await.unwrap().is_empty());
    }
    let [first, second, short] = counts;
    // Its client says so itself where it is faster than the server.
    let refused = short.await.unwrap().unwrap_err();
    assert!(matches!(refused.code(), Code::Cancelled | Code::DeadlineExceeded), "{refused}");
    assert_eq!(gate.lost_patience.load(Ordering::SeqCst), 0, "the disk was waited for");
    gate.open();
    for count in [first, second] {
        count.await.unwrap().unwrap();
    }
    let counted = service.clone().count_workflow_executions(soon(count_all())).await.unwrap();
    assert_eq!(counted.into_inner().count, 4);
    running.stop().await;
}

/// What another node is told: there is nobody here who could go away.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scan_ends_when_the_time_that_came_with_it_is_over() {
    let members = Members::start(41).await;
    let (cluster, namespace) = members.cluster_of(members.leader_of("any").await);
    let shard = cluster.shard_of(&key(&namespace, "any"));
    let count = async |timeout| {
        let filter = ListFilter::parse("").unwrap();
        let namespace = namespace.id.clone();
        let count = ReadCall::Count { namespace, filter, timeout };
        cluster.answer_peer(forwarded(shard, count)).await
    };
    let late = count(Some(Duration::ZERO)).await;
    assert!(matches!(late, Err(ShardError::DeadlineExceeded(_))), "{late:?}");
    let counted = count(Some(PATIENCE)).await;
    assert!(matches!(counted, Ok(Answer::Count { .. })), "{counted:?}");
    members.stop().await;
}

/// All pages, of two events or more.
async fn pages(service: &Service, workflow_id: &str) -> Vec<HistoryEvent> {
    let (mut events, mut token) = (Vec::new(), Vec::new());
    loop {
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution(workflow_id)),
            maximum_page_size: 2,
            next_page_token: token.into(),
            wait_new_event: true,
            ..GetWorkflowExecutionHistoryRequest::default()
        };
        let page = service.clone().get_workflow_execution_history(soon(request)).await.unwrap();
        let page = page.into_inner();
        events.extend(page.history.unwrap_or_default().events);
        token = page.next_page_token.into();
        if token.is_empty() {
            return events;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_run_is_read_without_being_hosted_and_a_start_does_not_load_it() {
    const ID: &str = "closed-and-read";
    let reads = Arc::new(AtomicUsize::new(0));
    let running = start_with({
        let reads = Arc::clone(&reads);
        // A row of one of its runs.
        let rows: Vec<u8> = [ID.as_bytes(), b"\0r"].concat();
        move |key| {
            let is_one = key.windows(rows.len()).any(|part| part == rows);
            reads.fetch_add(usize::from(is_one), Ordering::SeqCst);
        }
    })
    .await;
    let (api, address) = (running.api(), running.node.http_address());
    let first = api.start(start_of(ID, "simple", "q")).await.unwrap();
    let task = api.poll_workflow_task("q").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    let actors = async || sum(&metrics(address).await, "piton_actors", &[]);
    await_until("its actor has left memory", async || (actors().await == 0.0).then_some(())).await;

    let service = running.client.service();
    let events = pages(&service, ID).await;
    assert_eq!(events.iter().map(|event| event.event_id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(actors().await, 0.0, "a page was read by an actor");

    let before = reads.load(Ordering::SeqCst);
    let mut again = start_of(ID, "simple", "q");
    // The repetition of the first start, then another one.
    assert_eq!(api.start(again.clone()).await.unwrap(), first);
    again.request_id = "another".to_owned();
    again.workflow_id_reuse_policy = WorkflowIdReusePolicy::RejectDuplicate.into();
    let refused = api.start(again).await.unwrap_err();
    assert_eq!(refused.code, Code::AlreadyExists, "{refused}");
    assert!(refused.text.contains(&first), "{refused}");
    assert_eq!(reads.load(Ordering::SeqCst), before, "the closed run was loaded");
    running.stop().await;
}
