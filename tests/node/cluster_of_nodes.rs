//! Whole nodes over real sockets: the first founds a cluster, others join it, and clients of any of them
//! see one server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use piton_node::config::{Config, ListenConfig, PeerConfig};
use piton_node::operator::OperatorClient;
use piton_node::{Devices, Node, NodeError, accept_loss};
use tokio::task::JoinHandle;

use crate::client::Api;
use crate::nodes::{Running, chain, config, free_port};
use crate::worker::{
    Ledger, Worker, await_orders, await_until, check_against, history_of, place_orders,
};

const QUEUE: &str = "orders";

fn orders(phase: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{phase}-{number}")).collect()
}

/// Starts one more node, of the cluster that `through` belongs to.
async fn join(through: &Running, directory: &Path) -> Running {
    Running::start(joiner(through.node.peer_address(), directory)).await
}

fn joiner(through: SocketAddr, directory: &Path) -> Config {
    let mut config = again(directory);
    // Nobody is told how many shards there are but the first.
    config.shards.count = None;
    config.cluster.join = vec![through.to_string()];
    config
}

/// The next start of a node, which is told nothing of the others.
fn again(directory: &Path) -> Config {
    let mut config = config(Some(directory));
    config.cluster.bootstrap = false;
    config
}

/// Starts a node that has to wait, and answers where it is.
fn start_waiting(mut config: Config) -> (ListenConfig, JoinHandle<Result<Node, NodeError>>) {
    (config.listen.port, config.listen.http_port) = (free_port(), free_port());
    (config.listen.clone(), tokio::spawn(Node::start(config)))
}

/// A page of a node; empty while it does not listen.
fn page(address: SocketAddr, path: &str) -> String {
    let mut text = String::new();
    let Ok(mut stream) = TcpStream::connect(address) else { return text };
    let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

async fn await_page(address: SocketAddr, path: &str, words: &str) {
    await_until(&format!("{path} says {words}"), || async {
        page(address, path).contains(words).then_some(())
    })
    .await;
}

fn identity(directory: &Path) -> toml::Table {
    let text = std::fs::read_to_string(directory.join("node.toml")).unwrap_or_default();
    text.parse().unwrap()
}

/// Waits until every group has so many voters, which have all but what is on its way.
async fn await_voters(through: &Running, count: usize) {
    let address = through.node.peer_address().into();
    let operator = OperatorClient::new(&PeerConfig::default(), vec![address]).unwrap();
    await_until("every shard has its voters", || async {
        let report = operator.report().await.ok()?;
        let mut groups = report.shards.iter().chain([&report.meta]);
        groups.all(|group| group.is_whole(1_000) && group.placed.len() == count).then_some(())
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
    await_voters(&first, 3).await;

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

    // The first comes back elsewhere, and is found.
    let mut elsewhere = again(directories[0].path());
    elsewhere.peer.port = free_port();
    let first = Running::start(elsewhere).await;
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

/// Goal: a node that waits for the others says so, is alive, and has noted by then that it has a log.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_waits_for_the_others_says_so() {
    let directories: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let [founder, joined] = [directories[0].path(), directories[1].path()];
    let mut founding = config(Some(founder));
    founding.peer.port = free_port();
    let first = Running::start(founding.clone()).await;
    let second = join(&first, joined).await;
    second.stop().await;
    first.stop().await;

    // As if it had ended before it noted that.
    let file = joined.join("node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("has_log = true", "has_log = false")).unwrap();
    let (listen, second) = start_waiting(again(joined));
    let pages = listen.http();
    await_page(pages, "/readyz", "503 ").await;
    await_page(pages, "/readyz", "waiting for a majority of the meta group").await;
    assert!(page(pages, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(page(pages, "/metrics").starts_with("HTTP/1.1 503"));
    assert_eq!(identity(joined)["has_log"].as_bool(), Some(true));
    assert!(TcpStream::connect(listen.grpc()).is_err(), "clients go elsewhere meanwhile");
    assert!(!second.is_finished());

    let first = Running::start(founding).await;
    let second = second.await.unwrap().unwrap();
    await_page(pages, "/readyz", "200 OK").await;
    second.stop().await;
    first.stop().await;
}

/// Goal: a node may be started before those that are to let it in, and asks as one node however often.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_joiner_waits_for_a_cluster_and_keeps_its_id_meanwhile() {
    let directories: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let port = free_port();
    let there = SocketAddr::from(([127, 0, 0, 1], port));
    let (listen, second) = start_waiting(joiner(there, directories[1].path()));
    let pages = listen.http();
    await_page(pages, "/readyz", "waiting to be let into the cluster").await;
    let drawn = identity(directories[1].path())["node_id"].clone();

    let mut founder = config(Some(directories[0].path()));
    founder.peer.port = port;
    let first = Running::start(founder).await;
    let second = second.await.unwrap().unwrap();
    let kept = identity(directories[1].path());
    assert_eq!(kept["node_id"], drawn);
    assert!(kept.get("is_joining").is_none() && kept.contains_key("peers"), "{kept}");
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_heard_whether_it_was_let_in_is_told_to_ask_again() {
    let directory = tempfile::tempdir().unwrap();
    let asked =
        "node_id = \"00000000000000aa\"\ncluster_id = \"\"\nshards = 0\nis_joining = true\n";
    std::fs::write(directory.path().join("node.toml"), asked).unwrap();
    let error = Node::start(again(directory.path())).await.err().expect("it is no member");
    assert!(chain(&error).contains("start it with --join"), "{}", chain(&error));
}

/// Goal: what a cluster is to have at first is set up by a later start where the first one ended early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founding_that_failed_goes_on_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut wrong = config(Some(directory.path()));
    wrong.namespaces.search_attributes.insert("WorkflowId".to_owned(), "Keyword".to_owned());
    let error = Node::start(wrong).await.err().expect("that name is reserved");
    assert!(chain(&error).contains("reserved"), "{}", chain(&error));
    let kept = identity(directory.path());
    assert_eq!(kept["has_log"].as_bool(), Some(true));
    assert_eq!(kept["is_founding"].as_bool(), Some(true));

    let first = Running::start(config(Some(directory.path()))).await;
    assert!(identity(directory.path()).get("is_founding").is_none());
    first.stop().await;
}

/// Goal: what a node of several lost is with the others, and is not given up for lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_loss_of_a_node_of_a_cluster_is_not_accepted() {
    let directories: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let [founder, joined] = [directories[0].path(), directories[1].path()];
    let first = Running::start(config(Some(founder))).await;
    let second = join(&first, joined).await;
    let others = [&second, &first].map(|running| running.node.peer_address().to_string());
    await_until("the founder keeps where the other is", || async {
        identity(founder).contains_key("peers").then_some(())
    })
    .await;
    second.stop().await;
    first.stop().await;
    for (directory, other) in [founder, joined].into_iter().zip(&others) {
        // The copy beside the log says the same.
        for file in [directory.join("node.toml"), directory.join("log")] {
            let error = accept_loss(directory, true).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("--join"), "{error}");
            std::fs::rename(&file, file.with_extension("aside")).unwrap();
        }
    }
}

#[tokio::test]
async fn a_node_that_is_told_to_join_itself_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = again(directory.path());
    config.peer.port = free_port();
    config.cluster.join = vec![config.peer.listen().to_string()];
    let refused = chain(&Node::start(config).await.err().unwrap());
    assert!(refused.contains("told of no node but itself"), "{refused}");
    // It is nobody yet, and may be told something else.
    assert!(!directory.path().join("node.toml").exists());
}

/// Goal: a node whose log is damaged comes back by itself as another one, with all that was acknowledged
/// (A.5, T8).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_whose_log_is_damaged_is_filled_by_the_others() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Running::start(config(Some(directories[0].path()))).await;
    let second = join(&first, directories[1].path()).await;
    let third = join(&second, directories[2].path()).await;
    await_voters(&first, 3).await;
    let ledger = Ledger::default();
    let api = second.api();
    let worker = Worker::start(&api, QUEUE, 4);
    place_orders(&api, &ledger, QUEUE, orders("before", 8)).join_all().await;
    await_orders(api.as_ref(), &ledger).await;

    // The founder, which was told nothing of the others.
    let damaged = directories[0].path();
    let before = identity(damaged)["node_id"].clone();
    first.stop().await;
    damage_log(damaged);
    let mut refused = again(damaged);
    refused.cluster.refill = false;
    let error =
        Running::start_with(refused, Devices::default()).await.err().expect("it is damaged");
    assert!(chain(&error).contains("the log is damaged"), "{}", chain(&error));
    let load = place_orders(&api, &ledger, QUEUE, orders("meanwhile", 8));
    let first = Running::start(again(damaged)).await;
    let now = identity(damaged);
    assert_ne!(now["node_id"], before);
    assert_eq!(now["cluster_id"], identity(directories[1].path())["cluster_id"]);
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    await_voters(&second, 3).await;
    await_until("the damaged node is replaced", || async {
        (!identity(damaged).contains_key("instead_of")).then_some(())
    })
    .await;
    assert!(!damaged.join("damaged").exists());

    // It can take the place of one of those that filled it.
    second.stop().await;
    let api = first.api();
    for (workflow_id, entry) in ledger.entries() {
        check_against(&workflow_id, &entry, &history_of(api.as_ref(), &workflow_id).await);
    }
    drop(worker);
    first.stop().await;
    third.stop().await;
}

/// Goal: what a damaged node holds is given up only once the others have let its successor in, which is the same
/// node however often it starts until then; and not at all if what was damaged has been put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_node_keeps_what_it_holds_until_its_successor_is_let_in() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let [damaged, second, third] = [0, 1, 2].map(|at: usize| directories[at].path());
    let first = Running::start(config(Some(damaged))).await;
    let others = [join(&first, second).await, join(&first, third).await];
    await_voters(&first, 3).await;
    first.stop().await;
    for other in others {
        other.stop().await;
    }
    let before = identity(damaged)["node_id"].clone();
    damage_log(damaged);
    start_in_vain(damaged).await;
    assert_eq!(identity(damaged)["node_id"], before);
    damage_log(damaged);
    let (_, first) = start_waiting(again(damaged));
    let (_, other) = start_waiting(again(second));
    let last = Running::start(again(third)).await;
    let [first, other] = [first.await, other.await].map(|started| started.unwrap().unwrap());
    assert_eq!(identity(damaged)["node_id"], before);
    assert!(!identity(damaged).contains_key("successor"), "its log is whole again");
    for node in [first, other] {
        node.stop().await;
    }
    last.stop().await;

    damage_log(damaged);
    let successor = start_in_vain(damaged).await;
    assert_eq!(start_in_vain(damaged).await, successor);
    let (_, other) = start_waiting(again(second));
    let last = Running::start(again(third)).await;
    // It is let in, and cannot set aside what it holds at first.
    std::fs::write(damaged.join("damaged"), "").unwrap();
    let refused = chain(&Node::start(again(damaged)).await.err().unwrap());
    assert!(refused.contains("set") && refused.contains("aside"), "{refused}");
    std::fs::remove_file(damaged.join("damaged")).unwrap();
    let first = Node::start(again(damaged)).await.unwrap();
    let other = other.await.unwrap().unwrap();
    assert_eq!(identity(damaged)["node_id"], successor);
    await_until("the damaged node is replaced", || async {
        (!identity(damaged).contains_key("instead_of")).then_some(())
    })
    .await;
    await_voters(&last, 3).await;
    for node in [first, other] {
        node.stop().await;
    }
    last.stop().await;
}

/// Starts a node whose log is damaged where nobody can let its successor in. Answers who that is.
async fn start_in_vain(damaged: &Path) -> toml::Value {
    let before = identity(damaged)["node_id"].clone();
    let (_, start) = start_waiting(again(damaged));
    let named =
        await_until("a successor", || async { identity(damaged).get("successor").cloned() }).await;
    start.abort();
    assert!(start.await.is_err(), "nobody can have let it in");
    assert_eq!(identity(damaged)["node_id"], before);
    assert!(damaged.join("log").exists() && !damaged.join("damaged").exists());
    named
}

/// Flips a bit, or flips it back, where later batches show that it had been synced.
fn damage_log(directory: &Path) {
    let files = std::fs::read_dir(directory.join("log")).unwrap();
    let segments = files.map(|file| file.unwrap().path());
    let segment = segments.filter(|path| path.extension().is_some_and(|it| it == "log")).max();
    let segment = segment.expect("there is a segment");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 0x10;
    std::fs::write(segment, bytes).unwrap();
}
