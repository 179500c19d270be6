//! A cluster of one grows, under load: nodes join, shards get replicas on them, nodes leave, and nothing
//! is migrated or lost (D1, D2).

use piton_raft::NodeId;
use piton_shard::NodeState;

use crate::members::Members;
use crate::worker::{
    Ledger, Worker, await_orders, await_until, check_against, history_of, place_orders,
};

const QUEUE: &str = "orders";

fn orders(phase: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{phase}-{number}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_node_grows_to_three_under_load_and_outlives_its_first() {
    let mut members = Members::start_alone(2_201).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);

    place_orders(&api, &ledger, QUEUE, orders("alone", 6)).join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    let load = place_orders(&api, &ledger, QUEUE, orders("growing", 24));
    members.join(NodeId(2), "").await;
    members.join(NodeId(3), "").await;
    members.await_voters(&[1, 2, 3]).await;
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;

    // What only the first node had, the others have now.
    let load = place_orders(&api, &ledger, QUEUE, orders("without-the-first", 12));
    members.kill(NodeId(1), true).await;
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    for (workflow_id, entry) in ledger.entries() {
        check_against(&workflow_id, &entry, &history_of(api.as_ref(), &workflow_id).await);
    }
    members.start_node(NodeId(1)).await;
    members.await_ready().await;
    members.await_same_index().await;
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_leaves_hands_over_what_it_holds() {
    let mut members = Members::start_alone(2_202).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);
    for node in 2..=4 {
        members.join(NodeId(node), "").await;
    }
    let load = place_orders(&api, &ledger, QUEUE, orders("leaving", 24));
    let meta = members.cluster_of(NodeId(1)).0.meta().clone();
    meta.set_node_state(NodeId(1), NodeState::Leaving).await.unwrap();
    members.await_voters(&[2, 3, 4]).await;
    await_until("it is removed", || async {
        let state = meta.state().node(NodeId(1)).map(|node| node.state);
        (state == Some(NodeState::Removed)).then_some(())
    })
    .await;
    await_until("it holds nothing", || async { (members.held_by(NodeId(1)) == 0).then_some(()) })
        .await;
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    members.stop().await;
}
