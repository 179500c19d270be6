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
    let leads = first.group().transfer_leader(&[second.id, third.id]).await;
    assert_eq!(leads, Some(third.id));
    third.group().leadership().wait_for(|now| now.serving).await.expect("the group runs");
    third.group().propose(bytes("after")).await.expect("the third decides");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_is_asked_again() {
    let cluster = three_led_by_the_first().await;
    let [first, second, third] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    cluster.network.cut(first.id, second.id);
    cluster.network.cut(first.id, third.id);
    let all = [second.id, third.id];
    assert_eq!(first.group().transfer_leader(&all).await, None, "nobody hears of it");
    cluster.network.heal(first.id, second.id);
    assert_eq!(first.group().transfer_leader(&all).await, Some(second.id));
    second.group().leadership().wait_for(|now| now.serving).await.expect("the group runs");
    assert_eq!(second.group().transfer_leader(&[second.id]).await, None, "it leads");
    assert_eq!(first.group().transfer_leader(&all).await, None, "that one does not lead");
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
    network.reconnect(first.id, second.id);
    proposed.await.expect("no panic").expect("it is sent again and committed");
}

/// Goal: the follower has the entry, and its answer was lost with a connection of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_on_a_connection_that_broke_is_asked_again_at_once() {
    let cluster = three_led_by_the_first().await;
    let [first, second, third] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    cluster.network.cut(first.id, third.id);
    cluster.network.cut_one_way(second.id, first.id);
    let last = first.group().metrics().last_index;
    let group = first.group().clone();
    let proposed = tokio::spawn(async move { group.propose(bytes("entry")).await });
    await_until("it is there", || second.group().metrics().last_index > last).await;
    cluster.network.reconnect(second.id, first.id);
    proposed.await.expect("no panic").expect("it is asked again and committed");
}

/// Goal: an entry of megabytes does not go twice because the connection before it broke while nothing was
/// on its way.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_after_a_connection_broke_is_sent_once() {
    let cluster = three_led_by_the_first().await;
    let [first, second, third] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    cluster.network.cut(first.id, third.id);
    first.group().propose(bytes("before")).await.expect("propose");
    let before = cluster.network.bytes_sent(first.id, second.id, Lane::Entries);
    for _ in 0..3 {
        cluster.network.reconnect(first.id, second.id);
        cluster.network.reconnect(second.id, first.id);
    }
    let large = vec![0; 1 << 20];
    first.group().propose(large.into()).await.expect("propose");
    let sent = cluster.network.bytes_sent(first.id, second.id, Lane::Entries) - before;
    assert!(sent < 3 << 19, "{sent} bytes");
}
