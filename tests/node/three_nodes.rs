//! Three nodes in memory: what clients were acknowledged survives the loss of leaders, and the
//! replicas hold the same rows (P1, P2, D3, D4, D8).

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use piton_core::effect::QueueName;
use piton_core::list_filter::ListFilter;
use piton_core::time::Timestamp;
use piton_proto::enums::{EventType, PendingWorkflowTaskState};
use piton_proto::history::HistoryEvent;
use piton_proto::workflowservice::StartWorkflowExecutionRequest;
use piton_raft::NodeId;
use piton_shard::{HeldEvents, HistoryPage, QueueType, ReadCall, ShardConfig};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Api, execution, signal_of, start_of};
use crate::members::{Members, forwarded, shard_config};
use crate::members_client::{key, poll};
use crate::worker::{
    Ledger, ORDER, Worker, await_completed, await_orders, await_until, check_against, complete,
    history_of, insist, place_order, place_orders, schedule,
};

const QUEUE: &str = "orders";
/// A leader that hears nothing proposes within its lease, or not at all.
const PROPOSED_IN: Duration = Duration::from_secs(2);
/// Before a ticket that failed is presented again.
const TICKET_PAUSE: Duration = Duration::from_millis(20);
/// Shorter than a workflow task's timeout, after which a lost one comes back.
const AT_ONCE: Duration = Duration::from_secs(8);

fn orders(phase: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{phase}-{number}")).collect()
}

/// Waits until some, but not all, of what is asked has been acknowledged.
async fn await_load(ledger: &Ledger, acknowledged: usize) {
    await_until("requests are acknowledged", || async {
        (ledger.len() >= acknowledged).then_some(())
    })
    .await;
}

/// Replicas that have applied the same hold the same rows, byte for byte.
async fn check_replicas(members: Members) {
    members.await_same_index().await;
    let rows = members.stop().await;
    let (_, first) = rows.first_key_value().unwrap();
    assert!(first.len() > 100, "the stores are almost empty");
    for (node, rows) in &rows {
        for (one, other) in first.iter().zip(rows) {
            assert_eq!(one, other, "node {node} holds another row");
        }
        assert_eq!(first.len(), rows.len(), "node {node} holds another number of rows");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_when_leaders_are_killed_under_load() {
    let mut members = Members::start(1).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);

    place_orders(&api, &ledger, QUEUE, orders("before", 6)).join_all().await;
    let mut before = await_orders(api.as_ref(), &ledger).await;
    for (phase, noticed) in [("first", true), ("second", false)] {
        let load = place_orders(&api, &ledger, QUEUE, orders(phase, 12));
        await_load(&ledger, ledger.len() + 6).await;
        let killed = members.leader_of(&format!("{phase}-0")).await;
        members.kill(killed, noticed).await;
        load.join_all().await;
        let after = await_orders(api.as_ref(), &ledger).await;
        // What the new leader reads is what the old one had answered.
        for (workflow_id, events) in &before {
            assert_eq!(after.get(workflow_id), Some(events), "{workflow_id}, read again");
        }
        before = after;
        members.start_node(killed).await;
        members.await_ready().await;
    }
    check_replicas(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_that_is_lost() {
    let members = Members::start(2).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);

    let load = place_orders(&api, &ledger, QUEUE, orders("cut", 12));
    await_load(&ledger, 8).await;
    let leader = members.leader_of("cut-0").await;
    members.cut_off(leader);
    // Clients still reach the one that is cut off; the others elect a leader without it.
    let elected = await_until("another node leads", || async {
        let leads = members.leader_of_majority("cut-0", leader);
        leads.filter(|node| *node != leader)
    })
    .await;
    assert_ne!(elected, leader);
    members.heal(leader);
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    check_replicas(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_when_the_power_of_all_nodes_is_cut() {
    let mut members = Members::start(3).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);

    for phase in ["one", "two"] {
        let load = place_orders(&api, &ledger, QUEUE, orders(phase, 8));
        await_load(&ledger, ledger.len() + 5).await;
        for node in members.nodes() {
            members.kill(node, false).await;
        }
        let acknowledged = ledger.entries();
        for node in members.nodes() {
            members.start_node(node).await;
        }
        members.await_ready().await;
        for (workflow_id, entry) in acknowledged {
            let events = history_of(api.as_ref(), &workflow_id).await;
            check_against(&workflow_id, &entry, &events);
        }
        load.join_all().await;
        await_orders(api.as_ref(), &ledger).await;
    }
    check_replicas(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_without_its_store_rebuilds_it_from_snapshot_and_log() {
    let mut members = Members::start(4).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);

    place_orders(&api, &ledger, QUEUE, orders("in-snapshot", 6)).join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    let node = NodeId(2);
    members.snapshot(node).await;
    assert!(members.purged(node) > 0);
    place_orders(&api, &ledger, QUEUE, orders("in-log", 4)).join_all().await;
    await_orders(api.as_ref(), &ledger).await;

    members.kill(node, true).await;
    members.empty_store(node);
    members.start_node(node).await;
    members.await_ready().await;
    check_replicas(members).await;
}

/// Starts the workflow `waits`, whose activity `once` waits for a worker in the queue `later`.
async fn schedule_attempt(api: &dyn Api) {
    api.start(start_of("waits", ORDER, QUEUE)).await.unwrap();
    let task = api.poll_workflow_task(QUEUE).await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![schedule("once", "later")]).await.unwrap();
}

/// Asks the leader of a workflow's shard for something that it proposes and the others get into their
/// logs, while it hears nothing any more. Answers the leader and the request, which still waits.
async fn propose_unheard<T, F>(
    members: &Members,
    workflow_id: &str,
    ask: impl Fn(Arc<dyn Api>) -> F,
) -> (NodeId, JoinHandle<T>)
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    loop {
        let leader = members.leader_of(workflow_id).await;
        let before = members.last_indices(workflow_id);
        members.deafen(leader);
        let asked = tokio::spawn(ask(members.client_of(leader)));
        let proposed = await_until("the others have it in their logs", || async {
            let now = members.last_indices(workflow_id);
            let has_more = |(node, last): (&NodeId, &u64)| *last > before[node];
            now.iter().all(has_more).then_some(())
        });
        if tokio::time::timeout(PROPOSED_IN, proposed).await.is_ok() {
            return (leader, asked);
        }
        // On a busy machine its lease may be over before the request gets there: nothing is proposed.
        asked.abort();
        members.heal(leader);
    }
}

/// The leader proposes that an attempt is started, the others have that in their logs, and the
/// leader never hears of it. The attempt is then recorded as started, and nobody but the poll that
/// it was for may have it: it has to come there after all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_attempt_whose_commit_its_leader_never_learned_of_comes_to_its_poll() {
    let members = Members::start(6).await;
    let api = members.client();
    schedule_attempt(api.as_ref()).await;

    // A leader without a majority keeps no polls: its worker polls again, as workers do.
    let poll = |api: Arc<dyn Api>| async move {
        insist("an attempt", || api.poll_activity_task("later")).await
    };
    let (leader, polled) = propose_unheard(&members, "waits", poll).await;
    let to_leader: Arc<dyn Api> = members.client_of(leader);
    // It waits behind the attempt, and hears when that is given up.
    let refused = to_leader.signal(signal_of("waits", "behind")).await.unwrap_err();
    assert!(refused.is_retriable(), "{refused}");

    // The lease is over and the group refuses the ticket at once, as often as it comes: not all the time.
    let (began, before) = (Instant::now(), members.failed_transitions(leader));
    let failed = await_until("the ticket has come a few times", || async {
        let failed = members.failed_transitions(leader) - before;
        (failed >= 4).then_some(failed)
    })
    .await;
    let pauses = began.elapsed().as_millis() / TICKET_PAUSE.as_millis();
    assert!(u128::from(failed) <= pauses + 1, "it came {failed} times in {pauses} pauses");
    members.heal(leader);

    let patience = Duration::from_secs(20);
    let task = tokio::time::timeout(patience, polled).await.expect("no attempt came");
    let task = task.unwrap().unwrap();
    assert_eq!((task.activity_id.as_str(), task.attempt), ("once", 1));
    insist("the attempt is answered", || api.complete_activity_task(&task.task_token))
        .await
        .unwrap();
    let events = history_of(api.as_ref(), "waits").await;
    let started = events.iter().filter(|e| e.event_type() == EventType::ActivityTaskStarted);
    assert_eq!(started.count(), 1);
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_node_serves_any_client() {
    let members = Members::start(5).await;
    let ledger = Ledger::default();
    for node in members.nodes() {
        let api: Arc<dyn Api> = members.client_of(node);
        // Its own queue: polls, offers and tickets cross nodes, wherever the queue is owned.
        let queue = format!("queue-{node}");
        let _worker = Worker::start(&api, &queue, 2);
        for number in 0..4 {
            let workflow_id = format!("by-{node}-{number}");
            place_order(api.clone(), ledger.clone(), workflow_id.clone(), queue.clone()).await;
            await_completed(api.as_ref(), &workflow_id).await;
        }
    }
    let api = members.client();
    await_orders(api.as_ref(), &ledger).await;
    check_replicas(members).await;
}

/// A leader that others have replaced does not know it yet. Answers that need no commit, such as
/// pages of history, refusals and lists, would be old: it gives none.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_was_replaced_answers_nothing_of_its_own() {
    let members = Members::start(7).await;
    let api = members.client();
    api.start(start_of("read", ORDER, "elsewhere")).await.unwrap();
    let old = members.leader_of("read").await;
    let (cluster, namespace) = members.cluster_of(old);
    let shard = cluster.shard_of(&key(&namespace, "read"));
    let is_of_shard = |id: &String| cluster.shard_of(&key(&namespace, id)) == shard;
    let unheard_of = (0..).map(|number| format!("unheard-of-{number}")).find(is_of_shard).unwrap();
    members.cut_off(old);
    let new = await_until("another node leads", || async {
        members.leader_of_majority("read", old).filter(|node| *node != old)
    })
    .await;
    let to_new = members.client_of(new);
    let start = start_of(&unheard_of, ORDER, "elsewhere");
    insist("it starts", || to_new.start(start.clone())).await.unwrap();

    let to_old = members.client_of(old);
    for workflow_id in ["read", &unheard_of] {
        let page = to_old.history(&execution(workflow_id)).await.unwrap_err();
        assert!(page.is_retriable(), "{workflow_id}: {page}");
    }
    let again = to_old.start(start_of("read", ORDER, "elsewhere")).await.unwrap_err();
    assert!(again.is_retriable(), "{again}");
    let list = ReadCall::List {
        namespace: namespace.id.clone(),
        filter: ListFilter::parse("").unwrap(),
        after: None,
        limit: 100,
        timeout: None,
    };
    let listed = cluster.answer_peer(forwarded(shard, list)).await;
    assert!(listed.is_err(), "{listed:?}");
    members.heal(old);
    members.stop().await;
}

/// A queue's owner holds four tasks at once.
fn narrow() -> ShardConfig {
    ShardConfig { matching_window: 4, ..shard_config() }
}

/// Starts workflows whose tasks wait in this queue, in the shard that owns it.
async fn start_in_one_shard(members: &Members, api: &Arc<dyn Api>, queue: &str, count: usize) {
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let shard_of = |id: &str| cluster.shard_of(&key(&namespace, id));
    let ids = (0..).map(|number| format!("waits-{number}"));
    for workflow_id in ids.filter(|id| shard_of(id) == shard_of(queue)).take(count) {
        let start = start_of(&workflow_id, ORDER, queue);
        insist("it starts", || api.start(start.clone())).await.unwrap();
    }
}

/// A queue's owner holds so many tasks; a shard that has more offers them once there is room, also
/// where all that it offered last found room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_beyond_the_window_come_when_there_is_room() {
    const TASKS: usize = 24;
    let members = Members::start_with(8, narrow()).await;
    let api = members.client();
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    start_in_one_shard(&members, &api, "window", TASKS).await;
    let too_many = await_until("some tasks do not fit", || async {
        let queue = QueueName::normal("window");
        let view = cluster.describe_task_queue(&namespace, queue, QueueType::Workflow).await;
        view.is_ok_and(|view| !view.beyond_window.is_empty()).then_some(())
    });
    tokio::time::timeout(AT_ONCE, too_many).await.expect("all of them fit");
    for number in 0..TASKS {
        let polled = tokio::time::timeout(AT_ONCE, api.poll_workflow_task("window"));
        let task = polled.await.unwrap_or_else(|_| panic!("{number} tasks came")).unwrap();
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    }
    members.stop().await;
}

/// Workers hold more workflow tasks of one shard than the queue's owner has room for, and their rows
/// stand before those that wait: the latter come all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_behind_a_window_of_held_ones_come() {
    const TASKS: usize = 12;
    let members = Members::start_with(11, narrow()).await;
    let api = members.client();
    start_in_one_shard(&members, &api, "held", TASKS).await;
    let all = async {
        for number in 0..TASKS {
            let task = api.poll_workflow_task("held").await.unwrap();
            assert_eq!(task.attempt, 1, "one of {number} was taken from its worker");
        }
    };
    tokio::time::timeout(AT_ONCE, all).await.expect("some of them are never offered");
    members.stop().await;
}

/// A queue begins empty at its next owner, and what waits is offered there at once: not when every shard
/// offers its first tasks again anyway.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_waits_is_offered_to_the_next_owner_of_its_queue() {
    let rarely = Duration::from_secs(3_600);
    let config = ShardConfig { retention_interval: rarely, ..shard_config() };
    let members = Members::start_with(16, config).await;
    let api = members.client();
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let shard_of = |id: &str| cluster.shard_of(&key(&namespace, id));
    // A queue lies where the workflow of its name does.
    let mut queues = (0..).map(|number| format!("queue-{number}"));
    let queue = &*queues.find(|queue| shard_of(queue) != shard_of("waits")).unwrap();
    members.lead("waits", NodeId(1)).await;
    members.lead(queue, NodeId(2)).await;
    let start = start_of("waits", ORDER, queue);
    insist("it starts", || api.start(start.clone())).await.unwrap();
    await_until("its task waits at the queue's owner", || async {
        let kind = QueueType::Workflow;
        let view = cluster.describe_task_queue(&namespace, QueueName::normal(queue), kind).await;
        view.is_ok_and(|view| view.backlog_count == 1).then_some(())
    })
    .await;
    members.lead(queue, NodeId(3)).await;
    let polled = tokio::time::timeout(AT_ONCE, api.poll_workflow_task(queue)).await;
    let task = polled.expect("it was not offered there").unwrap();
    assert_eq!(task.workflow_execution.unwrap().workflow_id, "waits");
    members.stop().await;
}

/// A task reaches a poll whose client goes away before it looks: it is offered again at once, and
/// not when the task times out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_poll_that_goes_away_gives_its_task_back() {
    let members = Members::start(9).await;
    let leader = members.leader_of("gone").await;
    let (cluster, namespace) = members.cluster_of(leader);
    let api: Arc<dyn Api> = members.client_of(leader);
    // A queue lies where the workflow of its name does, so this poll waits without another look.
    let mut polled = Box::pin(cluster.poll_workflow_task(&namespace, poll("gone")));
    let mut look = Context::from_waker(Waker::noop());
    assert!(polled.as_mut().poll(&mut look).is_pending());
    api.start(start_of("gone", ORDER, "gone")).await.unwrap();
    await_until("the poll has got the task", || async {
        let described = cluster.describe_workflow(key(&namespace, "gone"), None).await.ok()?;
        let state = described.pending_workflow_task?.state();
        (state == PendingWorkflowTaskState::Started).then_some(())
    })
    .await;
    drop(polled);
    let again = tokio::time::timeout(AT_ONCE, api.poll_workflow_task("gone")).await;
    let task = again.expect("it was not offered again").unwrap();
    assert_eq!(task.workflow_execution.unwrap().workflow_id, "gone");
    members.stop().await;
}

/// A poll goes away while the attempt that it is to get is being committed: the attempt reaches nobody,
/// and is offered again at once, not when it has timed out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_attempt_whose_poll_has_gone_by_its_commit_is_offered_again() {
    let members = Members::start(17).await;
    let api = members.client();
    schedule_attempt(api.as_ref()).await;

    let leader = members.leader_of("waits").await;
    let before = members.last_indices("waits");
    members.hold_syncs(true);
    let to_leader: Arc<dyn Api> = members.client_of(leader);
    let polled = tokio::spawn(async move { to_leader.poll_activity_task("later").await });
    await_until("the attempt is proposed", || async {
        (members.last_indices("waits")[&leader] > before[&leader]).then_some(())
    })
    .await;
    polled.abort();
    assert!(polled.await.unwrap_err().is_cancelled());
    members.hold_syncs(false);

    let again = tokio::time::timeout(AT_ONCE, api.poll_activity_task("later")).await;
    let task = again.expect("it was not offered again").unwrap();
    assert_eq!((task.activity_id.as_str(), task.attempt), ("once", 1));
    members.stop().await;
}

/// A poll goes on waiting, and says so to its queue, while the attempt that it met is being committed.
/// It must not stand there twice: whatever met it the second time would be given to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_poll_that_is_renewed_while_its_task_is_on_the_way_does_not_lose_the_next_task() {
    let config = ShardConfig { poll_renewal: Duration::from_millis(50), ..shard_config() };
    let members = Members::start_with(21, config).await;
    let api = members.client();
    schedule_attempt(api.as_ref()).await;
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let seen = async || {
        let queue = QueueName::normal("later");
        let view = cluster.describe_task_queue(&namespace, queue, QueueType::Activity).await;
        view.ok().and_then(|view| view.pollers.iter().map(|poller| poller.last_access).max())
    };

    let before = members.last_indices("waits");
    members.hold_syncs(true);
    let polled = tokio::spawn({
        let api = Arc::clone(&api);
        async move { api.poll_activity_task("later").await }
    });
    let leader = members.leader_of("waits").await;
    await_until("the attempt is proposed", async || {
        (members.last_indices("waits")[&leader] > before[&leader]).then_some(())
    })
    .await;
    let first_seen = seen().await;
    await_until("the poll is renewed", async || (seen().await > first_seen).then_some(())).await;
    members.hold_syncs(false);
    let task = tokio::time::timeout(AT_ONCE, polled).await.expect("it got nothing");
    let task = task.unwrap().unwrap();
    assert_eq!((task.activity_id.as_str(), task.attempt), ("once", 1));
    api.complete_activity_task(&task.task_token).await.unwrap();

    let task = api.poll_workflow_task(QUEUE).await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![schedule("next", "later")]).await.unwrap();
    let next = tokio::time::timeout(AT_ONCE, api.poll_activity_task("later")).await;
    let next = next.expect("it was given to nobody").unwrap();
    assert_eq!((next.activity_id.as_str(), next.attempt), ("next", 1));
    members.stop().await;
}

/// The leader proposes a start, the others have that in their logs, and the leader gives up before
/// it hears of it. Once it is committed after all, the task that it owes is offered.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_unknown_commit_owes_is_done_all_the_same() {
    let members = Members::start(10).await;
    // The queue lies where the workflow does: nobody else will ask for its tasks.
    let start =
        |api: Arc<dyn Api>| async move { api.start(start_of("unknown", ORDER, "unknown")).await };
    let (leader, started) = propose_unheard(&members, "unknown", start).await;
    let refused = started.await.unwrap().unwrap_err();
    assert!(refused.is_retriable(), "{refused}");
    members.heal(leader);
    let api = members.client_of(leader);
    let polled = tokio::time::timeout(AT_ONCE, api.poll_workflow_task("unknown")).await;
    let task = polled.expect("its task was never offered").unwrap();
    assert_eq!(task.workflow_execution.unwrap().workflow_id, "unknown");
    // Whoever hosts it now goes on from what was committed.
    let signal = signal_of("unknown", "after");
    insist("it goes on", || api.signal(signal.clone())).await.unwrap();
    members.stop().await;
}

/// Readers wait where the workflow lives in memory. Its actor is stopped when leadership goes elsewhere:
/// they hear of that, and not when their time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_that_waits_hears_that_leadership_went_elsewhere() {
    let members = Members::start(13).await;
    let api = members.client();
    members.lead("read", NodeId(1)).await;
    let start = start_of("read", ORDER, "elsewhere");
    let run_id = insist("it starts", || api.start(start.clone())).await.unwrap();
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let read = |token: Vec<u8>, close_only| {
        let (cluster, key) = (cluster.clone(), key(&namespace, "read"));
        let wait = Some(4 * AT_ONCE);
        let page = HistoryPage {
            token,
            max_events: 0,
            wait,
            close_only,
            reverse: false,
            held: HeldEvents::Hidden,
        };
        let run_id = Some(run_id.as_str().into());
        tokio::spawn(async move { cluster.history(key, run_id, page).await })
    };
    let first = read(Vec::new(), false).await.unwrap().unwrap();
    let of_the_end = read(Vec::new(), true);
    let of_more = read(first.next_page_token, false);
    // Who came later has begun to wait by the time that it hears of the signal.
    insist("it is signalled", || api.signal(signal_of("read", "more"))).await.unwrap();
    assert_eq!(of_more.await.unwrap().unwrap().events.len(), 1);

    members.lead("read", NodeId(2)).await;
    let heard = tokio::time::timeout(AT_ONCE, of_the_end).await.expect("it still waits");
    let error = heard.unwrap().unwrap_err();
    assert!(error.is_retriable(), "{error}");
    members.stop().await;
}

/// A run is closed on one node, and the next one of the same workflow starts on a node whose clock was
/// set back: it does not start before the other was closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_workflow_does_not_go_back_in_time_on_a_node_whose_clock_is_behind() {
    let mut members = Members::start(15).await;
    let behind = NodeId(2);
    members.kill(behind, true).await;
    members.set_clock(behind, &|| Timestamp::from_millis(1_000_000_000_000));
    members.start_node(behind).await;
    members.await_ready().await;
    let api = members.client();
    members.lead("again", NodeId(1)).await;
    let start = start_of("again", ORDER, "again");
    insist("it starts", || api.start(start.clone())).await.unwrap();
    let task = api.poll_workflow_task("again").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    let time_of = |event: Option<&HistoryEvent>| {
        event.and_then(|event| event.event_time).map(|time| (time.seconds, time.nanos)).unwrap()
    };
    let closed = time_of(history_of(api.as_ref(), "again").await.last());

    members.lead("again", behind).await;
    let start = StartWorkflowExecutionRequest { request_id: "second".to_owned(), ..start };
    insist("it starts again", || api.start(start.clone())).await.unwrap();
    let started = time_of(history_of(api.as_ref(), "again").await.first());
    assert!(started >= closed, "closed at {closed:?} and started again at {started:?}");
    members.stop().await;
}
