//! The log that a leader keeps for followers that lack it, and when it goes all the same.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use piton_raft::{Lane, Tuning};

use crate::support::{Cluster, await_until, bytes, tuning};

const LINE_BYTES: usize = 4 << 10;
const LINES: usize = 100;

/// Takes a snapshot for each 64 KiB of log, at once.
fn eager(log_held_bytes_max: u64) -> Tuning {
    let mut tuning = tuning();
    tuning.snapshot_log_bytes_min = 64 << 10;
    tuning.snapshot_check = Duration::from_millis(10);
    tuning.read_bytes_max = 64 << 10;
    tuning.log_held_bytes_max = log_held_bytes_max;
    tuning
}

/// Three nodes, of which the leader and a follower that is cut off are told.
async fn with_one_cut_off(tuning: Tuning) -> (Cluster, usize, usize) {
    let cluster = Cluster::start(3, tuning).await;
    let leader = cluster.await_leader(&[0, 1, 2]).await;
    let lagging = (leader + 1) % 3;
    let group = cluster.nodes[leader].group();
    let committed = group.propose(bytes("first")).await.expect("propose");
    let ledger = &cluster.nodes[lagging].ledger;
    await_until("it has the first", || ledger.applied() >= committed.index).await;
    cluster.network.isolate(cluster.nodes[lagging].id);
    (cluster, leader, lagging)
}

async fn propose_lines(cluster: &Cluster, leader: usize) {
    let node = &cluster.nodes[leader];
    for _ in 0..LINES {
        node.group().propose(bytes("x".repeat(LINE_BYTES))).await.expect("propose");
        node.ledger.checkpoint();
    }
}

async fn await_caught_up(cluster: &Cluster, leader: usize, lagging: usize) {
    let committed = cluster.nodes[leader].group().propose(bytes("after")).await.expect("propose");
    let ledger = &cluster.nodes[lagging].ledger;
    await_until("it has caught up", || ledger.applied() >= committed.index).await;
    assert_eq!(ledger.book().lines, cluster.nodes[leader].ledger.book().lines);
}

/// Goal: a follower that was away is refilled from the log, and meanwhile no snapshot is written that
/// says no more than the last one.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_held_for_a_follower_that_lacks_it() {
    let (cluster, leader, lagging) = with_one_cut_off(eager(u64::MAX)).await;
    propose_lines(&cluster, leader).await;
    let node = &cluster.nodes[leader];
    await_until("a snapshot is taken", || node.group().metrics().snapshot_index > 50).await;
    let taken = || node.groups().snapshot_stats().taken.load(Ordering::Relaxed);
    let mut looks = tokio::time::interval(eager(0).snapshot_check);
    let before = taken();
    for _ in 0..50 {
        looks.tick().await;
    }
    assert!(taken() <= before + 1, "{before}, then {}", taken());
    // Each is as large as the state, and so a next one is due when the log has doubled.
    assert!(taken() <= 6, "{} snapshots", taken());
    assert!(node.group().metrics().purged_index < 10, "{:?}", node.group().metrics());
    cluster.network.heal_all();
    await_caught_up(&cluster, leader, lagging).await;
    assert_eq!(cluster.nodes[lagging].ledger.restores(), 0);
    let purged = || node.group().metrics().purged_index >= node.group().metrics().snapshot_index;
    await_until("the log is purged", purged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_held_up_to_a_limit_and_then_a_snapshot_is_sent() {
    let (cluster, leader, lagging) = with_one_cut_off(eager(32 << 10)).await;
    propose_lines(&cluster, leader).await;
    let group = cluster.nodes[leader].group();
    await_until("the log is purged", || group.metrics().purged_index > 50).await;
    cluster.network.heal_all();
    await_caught_up(&cluster, leader, lagging).await;
    // A snapshot taken meanwhile may take the log away that the first one would need.
    assert!(cluster.nodes[lagging].ledger.restores() >= 1);
}

/// Goal: a follower that is being refilled, slowly, does not hold the log beyond the limit: openraft
/// would wait for the end of its session.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_too_slow_ends_so_that_the_log_can_go() {
    let mut tuning = eager(32 << 10);
    tuning.election_min = Duration::from_secs(2);
    tuning.election_max = Duration::from_secs(4);
    tuning.heartbeat = Duration::from_millis(200);
    // So slow a link takes ten seconds for what is proposed below, and 1.6 for each request.
    tuning.read_bytes_max = 32 << 10;
    // Until the refill is under way, nothing is due.
    tuning.snapshot_log_bytes_min = 300 << 10;
    // What the cut takes of a snapshot on its way is missed soon.
    tuning.snapshot_patience = Duration::from_secs(1);
    let (cluster, leader, lagging) = with_one_cut_off(tuning).await;
    let (from, to) = (cluster.nodes[leader].id, cluster.nodes[lagging].id);
    let node = &cluster.nodes[leader];
    for _ in 0..40 {
        node.group().propose(bytes("x".repeat(LINE_BYTES))).await.expect("propose");
    }
    cluster.network.limit(from, to, 20 << 10);
    let before = cluster.network.bytes_sent(from, to, Lane::Entries);
    cluster.network.heal_all();
    let sent = || cluster.network.bytes_sent(from, to, Lane::Entries) - before;
    await_until("the refill has begun", || sent() > 32 << 10).await;
    // By more than the link carries before it is cut.
    let purged_beyond = || {
        let has = cluster.nodes[lagging].group().metrics().last_index;
        node.group().metrics().purged_index > has + 20
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !purged_beyond() {
        assert!(Instant::now() < deadline, "the session holds the log");
        propose_lines(&cluster, leader).await;
    }
    cluster.network.cut(from, to);
    cluster.network.limit(from, to, u64::MAX);
    cluster.network.heal(from, to);
    await_caught_up(&cluster, leader, lagging).await;
    // A snapshot taken meanwhile may take the log away that the first one would need.
    assert!(cluster.nodes[lagging].ledger.restores() >= 1);
}
