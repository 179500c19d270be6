//! A cluster of one grows, under load: nodes join, shards get replicas on them, nodes leave, and nothing
//! is migrated or lost (D1, D2).

use std::collections::BTreeSet;
use std::time::Duration;

use piton_core::effect::QueueName;
use piton_core::id::ShardId;
use piton_raft::NodeId;
use piton_shard::{
    ClusterSettings, MetaError, NodeAnswer, NodeCall, NodeHealth, NodeState, NodeStatus, QueueType,
};
use tokio::time::timeout;

use crate::client::start_of;
use crate::members::Members;
use crate::members_client::key;
use crate::worker::{
    Ledger, Worker, await_orders, await_until, check_against, history_of, insist, place_orders,
    schedule,
};

const QUEUE: &str = "orders";
/// The shortest time that may be set.
const DOWN_AFTER: Duration = Duration::from_secs(10);

/// Shorter than an attempt's timeout, after which a lost one comes back.
const AT_ONCE: Duration = Duration::from_secs(8);

/// A cluster of one that has grown to three: the first has led everything, and settings are recorded.
pub(crate) async fn three_that_were_one(number: u64) -> Members {
    let mut members = Members::start_alone(number).await;
    for node in [2, 3] {
        members.join(NodeId(node), "").await;
    }
    members.await_voters(&[1, 2, 3]).await;
    members
}

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

/// A leader hands over only to who can take it up at once, whatever others have seen of that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leadership_goes_to_nobody_who_is_silent() {
    let members = Members::start(2_203).await;
    let [leader, silent, other] = [1, 2, 3].map(NodeId);
    members.lead("moved", leader).await;
    let (cluster, namespace) = members.cluster_of(leader);
    let shard = cluster.shard_of(&key(&namespace, "moved"));
    members.cut_off(silent);
    let refused = cluster.hand_over_to(shard, silent).await;
    assert!(
        matches!(&refused, Err(MetaError::Invalid(why)) if why.contains("no connection")),
        "{refused:?}"
    );
    await_until("it is silent", || async {
        let heard = members.last_heard("moved", silent)?;
        (heard >= Duration::from_secs(1)).then_some(())
    })
    .await;
    let refused = cluster.hand_over_to(shard, silent).await;
    assert!(matches!(refused, Err(MetaError::Invalid(_))), "{refused:?}");
    let unknown = cluster.hand_over_to(shard, NodeId(9)).await;
    assert!(matches!(unknown, Err(MetaError::Invalid(_))), "{unknown:?}");
    assert_eq!(members.leader_of("moved").await, leader);
    cluster.hand_over_to(shard, other).await.unwrap();
    await_until("it is handed over", || async {
        (members.leader_of_majority("moved", silent) == Some(other)).then_some(())
    })
    .await;
    let late = cluster.hand_over_to(shard, silent).await;
    assert!(matches!(late, Err(MetaError::NotLed { .. })), "{late:?}");
    members.heal(silent);
    members.stop().await;
}

/// Who is counted is asked of a shard's leader, which says what is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shards_leader_says_who_belongs_to_it() {
    let members = Members::start(2_204).await;
    let [leader, follower] = [1, 2].map(NodeId);
    members.lead("asked", leader).await;
    let (cluster, namespace) = members.cluster_of(leader);
    let shard = cluster.shard_of(&key(&namespace, "asked"));
    let ask = || cluster.answer_node(follower, NodeCall::Replica { shard });
    let Ok(NodeAnswer::Replica(said)) = ask().await else { panic!("it leads") };
    assert!(said.serves && said.voters == BTreeSet::from([1, 2, 3].map(NodeId)), "{said:?}");

    let (asked, _) = members.cluster_of(follower);
    let refused = asked.answer_node(leader, NodeCall::Replica { shard }).await;
    assert_eq!(refused, Err(MetaError::NotLed { leader: Some(leader) }));
    let none = asked.answer_node(leader, NodeCall::Replica { shard: ShardId(u32::MAX) }).await;
    assert_eq!(none, Err(MetaError::NotLed { leader: None }));
    members.cut_off(leader);
    assert!(ask().await.is_err(), "it may lead no longer");
    members.heal(leader);
    members.stop().await;
}

/// What is said of a node is believed only of itself, and only if it is one of the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_else_says_how_a_node_is() {
    let members = Members::start_alone(2_205).await;
    let [alone, other] = [1, 2].map(NodeId);
    let (cluster, namespace) = members.cluster_of(alone);
    let say = async |from, of| {
        let status = NodeStatus { node: of, ..cluster.status() };
        cluster.answer_node(from, NodeCall::Status(Box::new(status))).await
    };
    for (from, of) in [(other, other), (other, alone), (alone, other)] {
        let refused = say(from, of).await;
        assert!(matches!(refused, Err(MetaError::Invalid(_))), "{from} of {of}: {refused:?}");
        assert!(!cluster.sightings().contains_key(&other));
    }
    let Ok(NodeAnswer::Status(own)) = say(alone, alone).await else { panic!("it is believed") };
    assert_eq!(own.node, alone);
    let shard = cluster.shard_of(&key(&namespace, "w"));
    let asked = cluster.answer_node(other, NodeCall::Lead { shard, to: alone }).await;
    assert!(matches!(asked, Err(MetaError::Invalid(_))), "{asked:?}");
    members.stop().await;
}

/// A node is lost for good. What it held is held by another one once the time is over that the cluster's
/// settings give it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_is_down_is_replaced_after_the_time_that_is_set() {
    let mut members = three_that_were_one(2_206).await;
    let api = members.client();
    let ledger = Ledger::default();
    let _worker = Worker::start(&api, QUEUE, 6);
    let lost = NodeId(2);
    let (cluster, _) = members.cluster_of(NodeId(1));
    let settings = ClusterSettings { down_after: DOWN_AFTER, ..ClusterSettings::default() };
    cluster.meta().set_cluster(settings).await.unwrap();

    let load = place_orders(&api, &ledger, QUEUE, orders("down", 12));
    members.kill(lost, false).await;
    members.join(NodeId(4), "").await;
    assert_ne!(cluster.health(lost), NodeHealth::Down);
    members.await_voters(&[1, 3, 4]).await;
    assert_eq!(cluster.health(lost), NodeHealth::Down);
    assert_eq!(cluster.health(NodeId(4)), NodeHealth::Heard);
    let state = cluster.meta().state().node(lost).map(|node| node.state);
    assert_eq!(state, Some(NodeState::Up), "it may come back, and then holds what it is given");
    load.join_all().await;
    await_orders(api.as_ref(), &ledger).await;
    members.stop().await;
}

/// A node that stops gives what it leads to all the others, and not to one that would have it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_node_hands_over_is_spread_over_the_others() {
    let members = three_that_were_one(2_207).await;
    let [stops, second, third] = [1, 2, 3].map(NodeId);
    let (cluster, _) = members.cluster_of(stops);
    let settings = ClusterSettings { is_rebalancing_paused: true, ..ClusterSettings::default() };
    cluster.meta().set_cluster(settings).await.unwrap();
    let groups = members.shard_groups(stops);
    await_until("it leads everything", || async {
        for node in [second, third] {
            for group in members.shard_groups(node) {
                group.transfer_leader(&[stops]).await;
            }
        }
        groups.iter().all(|group| group.leadership().borrow().serving).then_some(())
    })
    .await;
    assert_eq!(cluster.hand_over_all(Duration::from_secs(10)).await, 0, "it leads nothing now");
    for node in [second, third] {
        await_until("it leads something", || async {
            let groups = members.shard_groups(node);
            groups.iter().any(|group| group.leadership().borrow().serving).then_some(())
        })
        .await;
    }
    members.stop().await;
}

/// A task that is sent to a poll of a process that has ended is nobody's until it times out. So a node that stops
/// waits until the queues know that its polls have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_stops_waits_until_its_polls_are_withdrawn() {
    let mut members = three_that_were_one(2_208).await;
    let [owner, stops] = [1, 2].map(NodeId);
    // A queue lies where the workflow of its name does.
    members.lead("acts", owner).await;
    let (cluster, namespace) = members.cluster_of(owner);
    let polls = members.client_of(stops);
    let polled = tokio::spawn(async move { polls.poll_activity_task("acts").await });
    await_until("the poll waits", || async {
        let queue = QueueName::normal("acts");
        let view = cluster.describe_task_queue(&namespace, queue, QueueType::Activity).await;
        (!view.ok()?.pollers.is_empty()).then_some(())
    })
    .await;

    members.cut_off(stops);
    polled.abort();
    assert!(polled.await.unwrap_err().is_cancelled());
    let (stopping, _) = members.cluster_of(stops);
    let mut withdrawn = tokio::spawn(async move { stopping.withdraw_polls().await });
    let early = timeout(Duration::from_millis(500), &mut withdrawn).await;
    assert!(early.is_err(), "the queue knows nothing yet");
    members.heal(stops);
    withdrawn.await.unwrap();
    members.kill(stops, true).await;

    let api = members.client_of(owner);
    insist("it starts", || api.start(start_of("acts", "simple", "acts"))).await.unwrap();
    let task = api.poll_workflow_task("acts").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![schedule("a", "acts")]).await.unwrap();
    let attempt = timeout(AT_ONCE, api.poll_activity_task("acts")).await;
    assert_eq!(attempt.expect("it went to nobody else").unwrap().attempt, 1);
    members.stop().await;
}
