//! A node that is about to stop hands over what it leads, so that nobody waits until it is missed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Api;
use crate::growing::three_that_were_one;
use crate::worker::{Ledger, Worker, await_orders, check_against, history_of, place_orders};

const QUEUE: &str = "orders";
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_stops_hands_over_all_that_it_leads_under_load() {
    let members = three_that_were_one(2_304).await;
    let api: Arc<dyn Api> = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 4);
    let orders: Vec<String> = (0..24).map(|number| format!("order-{number}")).collect();
    let load = place_orders(&api, &ledger, QUEUE, orders.clone());

    let node = members.meta_leader().await;
    members.lead(&orders[0], node).await;
    let (cluster, _) = members.cluster_of(node);
    assert_eq!(cluster.hand_over_all(PATIENCE).await, 0, "it leads something still");
    assert_ne!(members.meta_leader().await, node);
    for order in &orders {
        assert_ne!(members.leader_of(order).await, node);
    }
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    for (workflow_id, entry) in ledger.entries() {
        check_against(&workflow_id, &entry, &history_of(api.as_ref(), &workflow_id).await);
    }
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_nobody_can_relieve_does_not_wait_to_stop() {
    let members = three_that_were_one(2_303).await;
    let node = members.meta_leader().await;
    for other in members.nodes() {
        if other != node {
            members.silence(other);
        }
    }
    let began = Instant::now();
    let (cluster, _) = members.cluster_of(node);
    cluster.hand_over_all(PATIENCE).await;
    assert!(began.elapsed() < PATIENCE / 2, "it waited for nobody");
    members.stop().await;
}
