//! What an operator asks of any node, over the peer port, and what then comes about.

use std::sync::Arc;

use piton_core::id::ShardId;
use piton_node::config::PeerConfig;
use piton_node::operator::{
    ClusterReport, NodeReport, OperatorAnswer, OperatorCall, OperatorClient, OperatorError,
    OperatorRefusal,
};
use piton_raft::NodeId;
use piton_shard::NodeState;

use crate::client::Api;
use crate::nodes::{Running, config};
use crate::worker::{Ledger, Worker, await_orders, await_until, place_orders};

const QUEUE: &str = "orders";
/// A replica with so much on its way has all that matters here.
const BEHIND_MAX: u64 = 1_000;

/// Nodes of one cluster, over real sockets.
struct Whole {
    nodes: Vec<Running>,
    _directories: Vec<tempfile::TempDir>,
}

impl Whole {
    async fn start(count: usize) -> Self {
        let directories: Vec<_> = (0..count).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut nodes: Vec<Running> = Vec::new();
        for directory in &directories {
            let mut config = config(Some(directory.path()));
            if let Some(first) = nodes.first() {
                (config.cluster.bootstrap, config.shards.count) = (false, None);
                config.cluster.join = vec![first.node.peer_address().to_string()];
            }
            nodes.push(Running::start(config).await);
        }
        let whole = Self { nodes, _directories: directories };
        whole
            .await_report("every shard has its replicas", |report| {
                let voters = if count < 3 { 1 } else { 3 };
                let mut groups = report.shards.iter().chain([&report.meta]);
                groups.all(|group| group.is_whole(BEHIND_MAX) && group.placed.len() == voters)
            })
            .await;
        whole
    }

    /// A way to ask the node of that number.
    fn operator(&self, at: usize) -> OperatorClient {
        let address = self.nodes[at].node.peer_address().into();
        OperatorClient::new(&PeerConfig::default(), vec![address]).unwrap()
    }

    async fn await_report(
        &self,
        what: &str,
        is_so: impl Fn(&ClusterReport) -> bool,
    ) -> ClusterReport {
        let operator = self.operator(self.nodes.len() - 1);
        await_until(what, || async { operator.report().await.ok().filter(|report| is_so(report)) })
            .await
    }

    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }
}

fn id(node: &NodeReport) -> NodeId {
    NodeId(u64::from_str_radix(&node.id, 16).unwrap())
}

/// The node that leads most.
fn busiest(report: &ClusterReport) -> &NodeReport {
    report.nodes.iter().max_by_key(|node| node.leads + u32::from(node.leads_meta)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drained_node_leads_nothing_until_it_may_again() {
    let whole = Whole::start(3).await;
    let api: Arc<dyn Api> = whole.nodes[1].api();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 4);
    let orders: Vec<String> = (0..16).map(|number| format!("order-{number}")).collect();
    let load = place_orders(&api, &ledger, QUEUE, orders);

    let report = whole.operator(0).report().await.unwrap();
    // The group that leads the others, too: nobody else leads it when this node goes.
    let leads_meta = report.nodes.iter().find(|node| node.leads_meta).unwrap();
    let node = id(leads_meta);
    let drain = OperatorCall::SetState { node, state: NodeState::Draining };
    let (_, answer) = whole.operator(2).ask(drain.clone()).await.unwrap();
    assert_eq!(answer, OperatorAnswer::Recorded);
    let told = leads_meta.id.clone();
    whole
        .await_report("it leads nothing", |report| {
            let node = report.node(&told).unwrap();
            node.state == "draining" && node.leads == 0 && !node.leads_meta
        })
        .await;
    // Asked twice, it is as before.
    assert_eq!(whole.operator(1).ask(drain).await.unwrap().1, OperatorAnswer::Recorded);
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;

    let undo = OperatorCall::SetState { node, state: NodeState::Up };
    whole.operator(1).ask(undo).await.unwrap();
    whole.await_report("it is up", |report| report.node(&told).unwrap().state == "up").await;
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shard_is_led_and_held_where_an_operator_wants_it() {
    let whole = Whole::start(4).await;
    let operator = whole.operator(3);
    operator.ask(OperatorCall::Rebalance { is_paused: true }).await.unwrap();
    let report = whole.await_report("it is paused", |report| report.is_rebalancing_paused).await;
    let (shard, name) = (ShardId(0), "0");
    let of = |report: &ClusterReport| {
        report.shards.iter().find(|shard| shard.name == name).unwrap().clone()
    };
    let now = of(&report);
    let free = report.nodes.iter().find(|node| !now.placed.contains(&node.id)).unwrap();
    let from = report.node(now.placed.first().unwrap()).unwrap();
    operator.ask(OperatorCall::Move { shard, from: id(from), to: id(free) }).await.unwrap();
    let report = whole
        .await_report("it is moved", |report| {
            let shard = of(report);
            shard.is_whole(BEHIND_MAX) && shard.placed.contains(&free.id)
        })
        .await;
    assert!(!of(&report).placed.contains(&from.id));

    operator.ask(OperatorCall::Transfer { shard, to: id(free) }).await.unwrap();
    whole
        .await_report("it is led there", |report| of(report).leader.as_ref() == Some(&free.id))
        .await;

    let at =
        whole.nodes.iter().position(|running| free.peer == running.node.peer_address().to_string());
    let snapshot = OperatorCall::Snapshot { shard: Some(shard) };
    let taken = whole.operator(at.unwrap()).ask(snapshot).await.unwrap();
    assert!(matches!(taken.1, OperatorAnswer::Snapshots(taken) if taken.contains_key(&shard)));
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_is_removed_holds_nothing_and_cannot_come_back() {
    let whole = Whole::start(4).await;
    let report = whole.operator(0).report().await.unwrap();
    let node = busiest(&report);
    let leave = OperatorCall::SetState { node: id(node), state: NodeState::Leaving };
    whole.operator(3).ask(leave).await.unwrap();
    let removed =
        |report: &ClusterReport| report.node(&node.id).is_some_and(|node| node.state == "removed");
    let others: Vec<OperatorClient> = (0..4)
        .filter(|&at| node.peer != whole.nodes[at].node.peer_address().to_string())
        .map(|at| whole.operator(at))
        .collect();
    let report =
        await_until("it is removed", || async { others[0].report().await.ok().filter(removed) })
            .await;
    let holds = |shard: &piton_node::operator::ShardReport| {
        shard.placed.contains(&node.id) || shard.members.iter().any(|m| m.node == node.id)
    };
    assert!(!report.shards.iter().any(holds), "{report:?}");
    let back = OperatorCall::SetState { node: id(node), state: NodeState::Up };
    let refused = others[0].ask(back).await.unwrap_err().to_string();
    assert!(refused.contains("was removed"), "{refused}");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_would_do_harm_or_means_nothing_is_refused() {
    let whole = Whole::start(1).await;
    let operator = whole.operator(0);
    let report = operator.report().await.unwrap();
    let only = id(&report.nodes[0]);
    let (stranger, shard) = (NodeId(77), ShardId(0));
    let set = |node, state| OperatorCall::SetState { node, state };
    let refused = |call: OperatorCall| {
        let operator = &operator;
        async move {
            match operator.ask(call.clone()).await {
                Err(OperatorError::Refused(refusal)) => refusal,
                answer => panic!("{call:?} is not refused: {answer:?}"),
            }
        }
    };
    for (call, text) in [
        (set(only, NodeState::Leaving), "no other node is up"),
        (set(only, NodeState::Removed), "have it leave"),
        (OperatorCall::Transfer { shard, to: stranger }, "has no vote"),
        (OperatorCall::Move { shard, from: stranger, to: only }, "holds no replica"),
    ] {
        let refusal = refused(call.clone()).await;
        let is_refused = matches!(&refusal, OperatorRefusal::Refused(why) if why.contains(text));
        assert!(is_refused, "{call:?}: {refusal:?}");
    }
    for call in [
        set(stranger, NodeState::Draining),
        OperatorCall::Transfer { shard: ShardId(9), to: only },
        OperatorCall::Move { shard: ShardId(9), from: only, to: stranger },
        OperatorCall::Move { shard, from: only, to: stranger },
        OperatorCall::Snapshot { shard: Some(ShardId(9)) },
    ] {
        let refusal = refused(call.clone()).await;
        assert!(matches!(refusal, OperatorRefusal::NotFound(_)), "{call:?}: {refusal:?}");
    }
    // Nobody is there to be asked.
    let nobody = OperatorClient::new(&PeerConfig::default(), vec!["127.0.0.1:1".parse().unwrap()]);
    let error = nobody.unwrap().report().await.unwrap_err();
    assert!(matches!(error, OperatorError::Unreachable(_)), "{error}");
    whole.stop().await;
}
