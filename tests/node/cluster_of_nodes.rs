//! Whole nodes over real sockets: the first founds a cluster, others join it, and clients of any of them
//! see one server.

use std::sync::Arc;

use crate::client::Api;
use crate::nodes::{Running, config};
use crate::worker::{
    Ledger, Worker, await_orders, await_until, check_against, history_of, place_orders,
};

const QUEUE: &str = "orders";

fn orders(phase: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{phase}-{number}")).collect()
}

/// Starts one more node, of the cluster that `through` belongs to.
async fn join(through: &Running, directory: &std::path::Path) -> Running {
    let mut config = config(Some(directory));
    config.cluster.bootstrap = false;
    // Nobody is told how many shards there are but the first.
    config.shards.count = None;
    config.cluster.join = vec![through.node.peer_address().to_string()];
    Running::start(config).await
}

/// Waits until every shard has a replica on each node.
async fn await_replicas(nodes: &[&Running], count: usize) {
    await_until("every node has a replica of every shard", || async {
        let full = nodes.iter().all(|running| running.node.replicas() == count);
        full.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_nodes_are_one_server_and_outlive_the_first() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Running::start(config(Some(directories[0].path()))).await;
    let ledger = Ledger::default();
    let api: Arc<dyn Api> = first.api();
    {
        let _worker = Worker::start(&api, QUEUE, 4);
        place_orders(&api, &ledger, QUEUE, orders("alone", 4)).join_all().await;
        await_orders(api.as_ref(), &ledger).await;
    }
    let second = join(&first, directories[1].path()).await;
    let third = join(&second, directories[2].path()).await;
    await_replicas(&[&first, &second, &third], 2).await;

    // Orders through the second, worked on through the third.
    let (api, elsewhere) = (second.api(), third.api());
    let worker = Worker::start(&elsewhere, QUEUE, 4);
    place_orders(&api, &ledger, QUEUE, orders("three", 8)).join_all().await;
    await_orders(api.as_ref(), &ledger).await;

    first.stop().await;
    place_orders(&api, &ledger, QUEUE, orders("two", 8)).join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    for (workflow_id, entry) in ledger.entries() {
        check_against(&workflow_id, &entry, &history_of(elsewhere.as_ref(), &workflow_id).await);
    }

    // The first comes back, under whatever port, and is found.
    let mut again = config(Some(directories[0].path()));
    again.cluster.bootstrap = false;
    let first = Running::start(again).await;
    let api = first.api();
    for (workflow_id, entry) in ledger.entries() {
        check_against(&workflow_id, &entry, &history_of(api.as_ref(), &workflow_id).await);
    }
    drop(worker);
    first.stop().await;
    second.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_founds_nothing_unless_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let mut alone = config(Some(directory.path()));
    alone.cluster.bootstrap = false;
    let error = piton_node::Node::start(alone).await.err().expect("it is told nothing").to_string();
    assert!(error.contains("--bootstrap") && error.contains("--join"), "{error}");
    assert!(!directory.path().join("node.toml").exists());
}
