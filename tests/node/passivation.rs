//! The workload with every actor dropped at once and a table that is always full: state comes from
//! histories and from the store, over and over (issue 3, "must be shown" 4; architecture D6, D13).

use crate::client::start_of;
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
