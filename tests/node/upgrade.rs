//! A rolling upgrade: nodes of this release run beside nodes of the next one, which knows a feature level,
//! a format of entries and a version of a record more (`tests/upgrade/next.rs`).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use piton_core::id::ShardId;
use piton_node::Node;
use piton_node::config::{Config, PeerConfig};
use piton_node::operator::{
    ClusterReport, NodeReport, OperatorAnswer, OperatorCall, OperatorClient,
};
use piton_node::peer::PeerAddress;
use piton_raft::NodeId;

use crate::client::{Api, GrpcClient};
use crate::nodes::{Running, chain, config, free_port};
use crate::worker::{Ledger, Worker, await_orders, await_until, place_orders};

const QUEUE: &str = "orders";
const BEHIND_MAX: u64 = 1_000;

/// A node of the next release, as a process.
struct NextNode(Child);

impl NextNode {
    fn start(binary: &Path, config: &Config, file: &Path) -> Self {
        std::fs::write(file, toml::to_string(config).unwrap()).unwrap();
        let mut command = Command::new(binary);
        command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = Self(command.spawn().unwrap());
        let mut said = String::new();
        BufReader::new(node.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "it ended at its start");
        node
    }

    fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

/// A test that fails leaves no node behind.
impl Drop for NextNode {
    fn drop(&mut self) {
        // It may have ended, as most do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster whose nodes are upgraded one after the other.
struct Upgraded {
    old: Vec<Option<Running>>,
    new: Vec<Option<NextNode>>,
    configs: Vec<Config>,
    directories: Vec<tempfile::TempDir>,
}

impl Upgraded {
    async fn start() -> Self {
        let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let (mut old, mut configs): (Vec<_>, Vec<Config>) = (Vec::new(), Vec::new());
        for directory in &directories {
            // Where a node is reached stays the same.
            let mut config = config(Some(&directory.path().join("data")));
            (config.listen.port, config.listen.http_port) = (free_port(), free_port());
            config.peer.port = free_port();
            if let Some(first) = configs.first() {
                (config.cluster.bootstrap, config.shards.count) = (false, None);
                config.cluster.join = vec![first.peer.listen().to_string()];
            }
            old.push(Some(Running::start(config.clone()).await));
            configs.push(config);
        }
        Self { old, new: vec![None, None, None], configs, directories }
    }

    fn api_address(&self, at: usize) -> SocketAddr {
        self.configs[at].listen.grpc()
    }

    fn operator(&self) -> OperatorClient {
        let addresses = self.configs.iter().map(|config| PeerAddress::from(config.peer.listen()));
        OperatorClient::new(&PeerConfig::default(), addresses.collect()).unwrap()
    }

    async fn await_report(
        &self,
        what: &str,
        is_so: impl Fn(&ClusterReport) -> bool,
    ) -> ClusterReport {
        let operator = self.operator();
        await_until(what, || async { operator.report().await.ok().filter(|report| is_so(report)) })
            .await
    }

    /// Every shard is led, and each of the nodes has a replica that has all.
    async fn await_whole(&self) -> ClusterReport {
        self.await_report("every shard has its replicas", |report| {
            let mut groups = report.shards.iter().chain([&report.meta]);
            groups.all(|group| group.is_whole(BEHIND_MAX) && group.placed.len() == 3)
        })
        .await
    }

    /// Stops a node and starts the next release in its place.
    async fn upgrade(&mut self, at: usize, binary: &Path) {
        self.old[at].take().unwrap().stop().await;
        let config = self.configs[at].clone();
        let (binary, file) = (binary.to_owned(), self.directories[at].path().join("piton.toml"));
        let start = move || NextNode::start(&binary, &config, &file);
        self.new[at] = Some(tokio::task::spawn_blocking(start).await.unwrap());
    }

    fn report_of<'r>(&self, report: &'r ClusterReport, at: usize) -> &'r NodeReport {
        let peer = self.configs[at].peer.listen().to_string();
        report.nodes.iter().find(|node| node.peer == peer).unwrap()
    }
}

/// Goal: nodes of two releases serve side by side, whichever of them leads; what the older one could not read
/// is written once the feature level has been raised, which it cannot be before, and then keeps it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_is_upgraded_node_by_node_under_load() {
    let next = Path::new(env!("CARGO_BIN_EXE_piton-next"));
    let mut cluster = Upgraded::start().await;
    let mut apis: Vec<Arc<dyn Api>> = Vec::new();
    for at in 0..3 {
        apis.push(Arc::new(GrpcClient::connect(cluster.api_address(at)).await));
    }
    let _workers: Vec<Worker> = apis.iter().map(|api| Worker::start(api, QUEUE, 2)).collect();
    let ledger = Ledger::default();
    let place = |name: &str| {
        let orders: Vec<String> = (0..8).map(|number| format!("{name}-{number}")).collect();
        place_orders(&apis[1], &ledger, QUEUE, orders)
    };
    cluster.await_whole().await;
    place("old").join_all().await;
    let upgrade = OperatorCall::Upgrade { to: 2 };
    for at in 0..3 {
        let refused = cluster.operator().ask(upgrade.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("knows feature levels up to 1, not 2"), "{refused}");
        let load = place(&format!("while-{at}"));
        cluster.upgrade(at, next).await;
        load.join_all().await;
        let report = cluster.await_whole().await;
        assert_eq!(report.level, 1);
        // Its first shard is led by the next release, whose rows the others go on with later.
        let to = &cluster.report_of(&report, at).id;
        let leads = |report: &ClusterReport| report.shards[0].leader.as_ref() == Some(to);
        let node = NodeId(u64::from_str_radix(to, 16).unwrap());
        let transfer = OperatorCall::Transfer { shard: ShardId(0), to: node };
        await_until("it leads", || async {
            // Refused as long as it has something to catch up with.
            let _ = cluster.operator().ask(transfer.clone()).await;
            cluster.operator().report().await.ok().filter(&leads)
        })
        .await;
        place(&format!("led-by-{at}")).join_all().await;
    }
    let all_know = |report: &ClusterReport| report.nodes.iter().all(|node| node.level == 2);
    cluster.await_report("all are upgraded", all_know).await;
    let (_, raised) = cluster.operator().ask(upgrade).await.unwrap();
    assert_eq!(raised, OperatorAnswer::Recorded);
    cluster.await_report("it is raised", |report| report.level == 2).await;
    place("new").join_all().await;
    await_orders(apis[2].as_ref(), &ledger).await;
    let report = cluster.await_whole().await;
    assert!(report.nodes.iter().all(|node| node.stopped.is_empty()), "{report:?}");

    // No release that cannot read it comes back, or in.
    cluster.new[2].take().unwrap().stop();
    let mut stranger = config(Some(&cluster.directories[2].path().join("another")));
    (stranger.cluster.bootstrap, stranger.shards.count) = (false, None);
    stranger.cluster.join = vec![cluster.configs[0].peer.listen().to_string()];
    for config in [cluster.configs[2].clone(), stranger] {
        let refused = chain(&Node::start(config).await.err().unwrap());
        assert!(refused.contains("newer release"), "{refused}");
    }
    for node in cluster.new.drain(..).flatten() {
        node.stop();
    }
}
