//! The workload with every actor dropped at once and a table that is always full: state comes from
//! histories and from the store, over and over (D6, D13).

use std::time::Duration;

use piton_raft::NodeId;
use piton_shard::ShardConfig;

use crate::client::start_of;
use crate::members::{Members, shard_config};
use crate::members_client::poll;
use crate::metrics::metrics;
use crate::nodes::{Running, config};
use crate::worker::{Ledger, Worker, await_orders, await_until, place_orders};

const TABLE_BYTES: u64 = 64 << 10;
const ORDERS: usize = 20;

async fn run_orders(idle_ms: u64, table_bytes: u64) {
    let mut config = config(None);
    (config.shards.idle_ms, config.data.table_bytes) = (idle_ms, table_bytes);
    let running = Running::start(config).await;
    let (api, ledger) = (running.api(), Ledger::default());
    let worker = Worker::start(&api, "orders", 4);
    let orders = (0..ORDERS).map(|number| format!("order-{number}"));
    place_orders(&api, &ledger, "orders", orders).join_all().await;
    let live = await_orders(api.as_ref(), &ledger).await;
    assert_eq!(live.len(), 2 * ORDERS);
    drop(worker);
    // Read once more, from what was written to the store meanwhile.
    assert_eq!(await_orders(api.as_ref(), &ledger).await, live);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_complete_when_every_actor_leaves_memory_at_once() {
    run_orders(0, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_complete_when_the_table_is_always_full() {
    run_orders(10_000, TABLE_BYTES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_complete_with_neither_actors_nor_a_table() {
    run_orders(0, TABLE_BYTES).await;
}

/// A burst does not take memory for all of its workflows at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_unused_leave_when_too_many_are_in_memory() {
    let mut config = config(None);
    (config.shards.idle_ms, config.shards.in_memory_max) = (3_600_000, 10);
    let running = Running::start(config).await;
    let api = running.api();
    for number in 0..40 {
        api.start(start_of(&format!("waits-{number}"), "simple", "nobody")).await.unwrap();
    }
    await_until("all but ten have left memory", async || {
        let in_memory = metrics(running.node.http_address()).await["piton_actors"];
        (in_memory <= 10.0).then_some(())
    })
    .await;
    // Whoever is asked for is back.
    let task = api.poll_workflow_task("nobody").await.unwrap();
    assert!(!task.task_token.is_empty());
    running.stop().await;
}

/// Every worker process has a sticky queue of its own: queues that nobody uses leave memory, though nothing
/// comes to them any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_queue_that_nobody_uses_leaves_memory() {
    let config = ShardConfig {
        poller_memory: Duration::from_millis(500),
        retention_interval: Duration::from_millis(50),
        ..shard_config()
    };
    let members = Members::start_with(18, config).await;
    members.lead("brief", NodeId(1)).await;
    // A queue lies where the workflow of its name does.
    let is_there = || members.metrics(NodeId(1)).contains(r#"task_queue="brief""#);
    let (cluster, namespace) = members.cluster_of(NodeId(1));
    let polled = tokio::spawn(async move {
        let polled = cluster.poll_workflow_task(&namespace, poll("brief")).await;
        polled.map(|task| task.task_token)
    });
    await_until("the queue is there", || async { is_there().then_some(()) }).await;
    polled.abort();
    assert!(polled.await.unwrap_err().is_cancelled());
    await_until("the queue is gone", || async { (!is_there()).then_some(()) }).await;
    members.stop().await;
}
