//! Leaders that hand over to who does not take it up, and connections that break. Nobody is ever missed in
//! these tests, and no answer given up: whatever happens, somebody was asked for or told of.

use std::time::Duration;

use piton_raft::{Lane, NodeId, Removed, Tuning};

use crate::support::{Cluster, await_until, bytes, tuning};

const NEVER: Duration = Duration::from_secs(600);

/// Three voters, of which the first leads, and no election but those that somebody asks for.
async fn three_led_by_the_first() -> Cluster {
    let tuning = Tuning { election_min: NEVER, election_max: 2 * NEVER, ..tuning() };
    let cluster = Cluster::start_founded_by(1, 3, tuning).await;
    assert_eq!(cluster.await_leader(&[0]).await, 0);
    for node in [2, 3] {
        cluster.nodes[0].group().add_learner(NodeId(node)).await.expect("add a learner");
    }
    cluster.set_voters(&[1, 2, 3], Removed::Leaves).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn another_one_leads_where_the_successor_cannot_be_asked() {
    let cluster = three_led_by_the_first().await;
    let [first, second, third] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    cluster.network.cut(first.id, second.id);
    assert!(!first.group().is_connected(second.id) && first.group().is_connected(third.id));
    assert!(first.group().transfer_leader(second.id).await, "one of them takes over");
    third.group().leadership().wait_for(|now| now.serving).await.expect("the group runs");
    third.group().propose(bytes("after")).await.expect("the third decides");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_is_asked_again() {
    let cluster = three_led_by_the_first().await;
    let [first, second, third] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    cluster.network.cut(first.id, second.id);
    cluster.network.cut(first.id, third.id);
    assert!(!first.group().transfer_leader(second.id).await, "nobody hears of it");
    cluster.network.heal(first.id, second.id);
    assert!(first.group().transfer_leader(second.id).await, "it can be asked now");
    second.group().leadership().wait_for(|now| now.serving).await.expect("the group runs");
    assert!(!second.group().transfer_leader(second.id).await, "it leads");
    assert!(!first.group().transfer_leader(second.id).await, "that one does not lead");
}

/// Goal: a follower that comes back soon gets at once what was on its way to it, instead of when the leader
/// has waited for an answer for as long as an election takes.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_a_connection_that_broke_is_sent_again_at_once() {
    let cluster = three_led_by_the_first().await;
    let [first, second, third] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    let network = &cluster.network;
    network.cut(first.id, third.id);
    network.delay(first.id, second.id, NEVER);
    let carried = || network.bytes_sent(first.id, second.id, Lane::Entries);
    let before = carried();
    let group = first.group().clone();
    let proposed = tokio::spawn(async move { group.propose(bytes("entry")).await });
    await_until("it is on its way", || carried() > before).await;
    network.delay(first.id, second.id, Duration::ZERO);
    network.break_connections(first.id, second.id);
    proposed.await.expect("no panic").expect("it is sent again and committed");
}
