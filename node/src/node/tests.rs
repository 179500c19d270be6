use bytes::Bytes;
use futures::FutureExt;
use piton_core::id::ShardId;
use piton_raft::GroupId;
use piton_shard::NodeState;
use tokio::time::Instant;

use super::*;
use crate::operator::ClusterReport;

fn config(directory: &Path) -> Config {
    let mut config = Config::default();
    (config.listen.port, config.listen.http_port, config.peer.port) = (0, 0, 0);
    config.data.directory = directory.to_owned();
    config.admission.stop_ms_max = 500;
    config
}

/// Goal: where any port will do, others find the node where it was at its last start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_was_drawn_is_asked_for_again_unless_it_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    let drawn = listen_for_peers(&config, None).unwrap();
    let kept = port(&drawn);
    let another = listen_for_peers(&config, Some(kept)).unwrap();
    assert_ne!(port(&another), kept);
    drop(drawn);
    assert_eq!(port(&listen_for_peers(&config, Some(kept)).unwrap()), kept);
    let mut told = config;
    told.peer.port = port(&another);
    let error = listen_for_peers(&told, Some(kept)).unwrap_err().to_string();
    assert!(error.contains("is taken") && error.contains("--peer-port"), "{error}");

    let mut founder = self::config(directory.path());
    founder.cluster.bootstrap = true;
    let node = Node::start(founder).await.unwrap();
    let kept = Identity::kept(directory.path()).unwrap().unwrap();
    assert_eq!(kept.peer_port, Some(node.peer_address().port()));
    node.stop().await;
}

/// Goal: a node that was removed says so and what to do, whether it runs then or is started later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_ends_and_says_what_to_do() {
    const PATIENCE: Duration = Duration::from_secs(60);
    const WORDS: &str = "with --join and an empty data directory";
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut founder = config(directories[0].path());
    (founder.cluster.bootstrap, founder.shards.count) = (true, Some(1));
    let first = Node::start(founder).await.unwrap();
    let mut joiner = config(directories[1].path());
    joiner.cluster.join = vec![first.peer_address().to_string()];
    let second = Node::start(joiner.clone()).await.unwrap();

    let node = second.storage.cluster.host().node();
    let meta = first.storage.cluster.meta();
    meta.set_node_state(node, NodeState::Leaving).await.unwrap();
    let failure = tokio::time::timeout(PATIENCE, second.failed()).await.unwrap();
    let Failure::Unwanted(why) = failure else { panic!("{failure:?}") };
    assert!(why.contains(WORDS), "{why}");
    second.stop().await;
    for config in [config(directories[1].path()), joiner] {
        let started = tokio::time::timeout(PATIENCE, Node::start(config)).await.unwrap();
        let error = started.err().expect("it was removed").to_string();
        assert!(error.contains("empty data directory"), "{error}");
    }
    first.stop().await;
}

/// Goal: an entry that this release cannot read stops its shard here, and never the node, which goes on with the
/// rest and says so; at a start, which meets it again, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_newer_release_stops_its_shard_and_not_the_node() {
    const UNREAD: &str = "decode an entry of format 200: this release knows formats up to 1";
    let directory = tempfile::tempdir().unwrap();
    let mut founder = config(directory.path());
    (founder.cluster.bootstrap, founder.shards.count) = (true, Some(2));
    let mut node = Node::start(founder.clone()).await.unwrap();
    let group = node.storage.cluster.host().groups().group(GroupId(1)).unwrap();
    group.propose(Bytes::from_static(&[200, 1])).await.unwrap_err();
    drop(group);
    for is_last in [false, true] {
        let until = Instant::now() + Duration::from_secs(60);
        let cluster = node.storage.cluster.clone();
        loop {
            let report = ClusterReport::of(&cluster, "");
            let why = report.nodes.first().and_then(|node| node.stopped.get("0").cloned());
            if let Some(why) = why {
                assert!(why.contains(UNREAD), "{why}");
                break;
            }
            assert!(Instant::now() < until, "{report:?}");
            tokio::task::yield_now().await;
        }
        let not_ready = node.ready.get().unwrap_err();
        assert!(not_ready.contains("shard 0") && not_ready.contains(UNREAD), "{not_ready}");
        assert_eq!(node.failed().now_or_never(), None);
        assert!(cluster.status().shards[&ShardId(1)].serves, "it goes on with the other one");
        drop(cluster);
        if !is_last {
            node.stop().await;
            node = Node::start(founder.clone()).await.unwrap();
        }
    }
    node.stop().await;
}
