//! Snapshots on their way to a follower that lags: over links that are slow, far, and cut.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use piton_raft::{Lane, NodeId, SNAPSHOT_DIRECTORY, Tuning};

use crate::support::{Cluster, await_until, bytes, tuning};

/// What the state holds, in lines of this length.
const STATE_BYTES: u64 = 8 << 20;
const LINE_BYTES: usize = 64 << 10;

/// A cluster of three whose follower lags behind a purge.
struct Lagging {
    cluster: Cluster,
    leader: usize,
    lagging: usize,
    from: NodeId,
    to: NodeId,
}

impl Lagging {
    async fn start(tuning: Tuning, state_bytes: u64) -> Lagging {
        let cluster = Cluster::start(3, tuning).await;
        let leader = cluster.await_leader(&[0, 1, 2]).await;
        let lagging = (leader + 1) % 3;
        let (from, to) = (cluster.nodes[leader].id, cluster.nodes[lagging].id);
        cluster.network.isolate(to);
        let group = cluster.nodes[leader].group();
        for number in 0..state_bytes / LINE_BYTES as u64 {
            let line = format!("{number} ").repeat(LINE_BYTES / 2);
            group.propose(bytes(&line[..LINE_BYTES])).await.expect("propose");
        }
        cluster.nodes[leader].ledger.checkpoint();
        let taken = group.snapshot_now().await.expect("take a snapshot");
        await_until("the log is purged", || group.metrics().purged_index == taken).await;
        Lagging { cluster, leader, lagging, from, to }
    }

    fn bulk_bytes(&self) -> u64 {
        self.cluster.network.bytes_sent(self.from, self.to, Lane::Bulk)
    }

    async fn await_installed(&self) {
        let leader = &self.cluster.nodes[self.leader];
        let committed = leader.group().propose(bytes("after")).await.expect("propose");
        let lagging = &self.cluster.nodes[self.lagging].ledger;
        await_until("it has caught up", || lagging.applied() >= committed.index).await;
        assert_eq!(lagging.restores(), 1);
        assert_eq!(lagging.book().lines, leader.ledger.book().lines);
    }
}

/// Times that do not end an election on a crowded machine, and small parts.
fn small_parts() -> Tuning {
    let mut tuning = tuning();
    tuning.snapshot_frame_bytes = 32 << 10;
    tuning.log_held_bytes_max = 0;
    tuning
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_goes_on_where_it_was() {
    let lagging = Lagging::start(small_parts(), STATE_BYTES).await;
    let network = &lagging.cluster.network;
    network.limit(lagging.from, lagging.to, 8 << 20);
    network.heal_all();
    for part in 1..4 {
        let bytes = part * STATE_BYTES / 4;
        await_until("some of it was sent", || lagging.bulk_bytes() > bytes).await;
        network.cut(lagging.from, lagging.to);
        network.heal(lagging.from, lagging.to);
    }
    lagging.await_installed().await;
    let carried = lagging.bulk_bytes();
    assert!(carried < STATE_BYTES + STATE_BYTES / 5, "{carried} bytes for {STATE_BYTES}");
}

/// Goal: a follower whose answer was lost is asked again soon, and not when it has been silent for too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_whose_answer_was_lost_is_asked_again() {
    let mut tuning = small_parts();
    tuning.snapshot_patience = Duration::from_secs(3_600);
    let lagging = Lagging::start(tuning, STATE_BYTES / 8).await;
    let network = &lagging.cluster.network;
    let before = lagging.bulk_bytes();
    network.heal_all();
    network.cut_one_way(lagging.to, lagging.from);
    await_until("it was asked", || lagging.bulk_bytes() > before).await;
    network.heal_all();
    lagging.await_installed().await;
}

/// Goal: whoever syncs, verifies or installs for longer than a leader would wait for a part says so,
/// and is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_takes_long_to_sync_is_sent_once() {
    let mut tuning = small_parts();
    tuning.snapshot_patience = Duration::from_millis(300);
    let lagging = Lagging::start(tuning, STATE_BYTES).await;
    let disk = &lagging.cluster.nodes[lagging.lagging].disk;
    disk.hang_snapshots();
    lagging.cluster.network.heal_all();
    await_until("all of it was sent", || lagging.bulk_bytes() > STATE_BYTES).await;
    let patience_is_over = Instant::now() + Duration::from_secs(2);
    await_until("it was asked for long", || Instant::now() > patience_is_over).await;
    disk.go_on();
    lagging.await_installed().await;
    let carried = lagging.bulk_bytes();
    assert!(carried < STATE_BYTES + STATE_BYTES / 5, "{carried} bytes for {STATE_BYTES}");
}

/// Goal: parts do not wait for each other's answers. One by one, 256 of them would take a round trip
/// each, which is over ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_snapshot_flow() {
    let lagging = Lagging::start(small_parts(), STATE_BYTES).await;
    let network = &lagging.cluster.network;
    network.delay(lagging.from, lagging.to, Duration::from_millis(20));
    network.delay(lagging.to, lagging.from, Duration::from_millis(20));
    network.heal_all();
    let begun = Instant::now();
    lagging.await_installed().await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

/// Goal: what is under way is bounded, and the limit runs from the last answer, so that a slow link is
/// used for what it carries and nothing is sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_refilled_over_a_slow_link_without_a_request_sent_twice() {
    const LOG_BYTES: u64 = 24 << 20;
    let tuning = Tuning { read_bytes_max: 512 << 10, ..Tuning::default() };
    let cluster = Cluster::start(3, tuning).await;
    let leader = cluster.await_leader(&[0, 1, 2]).await;
    let lagging = &cluster.nodes[(leader + 1) % 3];
    let (from, to) = (cluster.nodes[leader].id, lagging.id);
    cluster.network.isolate(to);
    let group = cluster.nodes[leader].group();
    let line = bytes("x".repeat(LINE_BYTES));
    for _ in 0..LOG_BYTES / LINE_BYTES as u64 {
        group.propose(line.clone()).await.expect("propose");
    }
    let sent_before = cluster.network.bytes_sent(from, to, Lane::Entries);
    cluster.network.limit(from, to, 12 << 20);
    cluster.network.heal_all();
    let committed = group.propose(bytes("after")).await.expect("propose");
    await_until("it has caught up", || lagging.ledger.applied() >= committed.index).await;
    assert_eq!(lagging.ledger.restores(), 0);
    let carried = cluster.network.bytes_sent(from, to, Lane::Entries) - sent_before;
    assert!(carried < LOG_BYTES + LOG_BYTES / 5, "{carried} bytes for {LOG_BYTES}");
}

/// Goal: a snapshot that has rotten on the leader's disk is replaced, since no follower can take it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_replaces_its_snapshot_that_is_damaged() {
    let mut tuning = small_parts();
    tuning.snapshot_check = Duration::from_millis(20);
    let lagging = Lagging::start(tuning, STATE_BYTES / 8).await;
    let dir = lagging.cluster.nodes[lagging.leader].dir().join(SNAPSHOT_DIRECTORY);
    let files: Vec<_> = std::fs::read_dir(&dir).expect("read the directory").collect();
    assert_eq!(files.len(), 1);
    for file in files {
        let file = std::fs::File::options().write(true).open(file.expect("read").path());
        let file = file.expect("open the snapshot");
        file.write_all_at(b"rotten", STATE_BYTES / 16).expect("write");
    }
    lagging.cluster.network.heal_all();
    lagging.await_installed().await;
}

/// Goal: nothing is encoded for a node that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_follower_costs_nothing() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&[0, 1, 2]).await;
    let group = cluster.nodes[leader].group();
    cluster.network.isolate(cluster.nodes[(leader + 1) % 3].id);
    for number in 0..200 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    assert_eq!(cluster.network.frames_refused(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run alone: --ignored --nocapture transfer"]
#[expect(clippy::print_stderr, reason = "its output is the point")]
async fn share_of_a_link_that_a_transfer_uses() {
    const RATE: u64 = 60_000_000;
    const STATE_BYTES: u64 = 256 << 20;
    let tuning = Tuning { log_held_bytes_max: 0, ..Tuning::default() };
    let lagging = Lagging::start(tuning, STATE_BYTES).await;
    let network = &lagging.cluster.network;
    network.limit(lagging.from, lagging.to, RATE);
    network.delay(lagging.from, lagging.to, Duration::from_micros(500));
    network.delay(lagging.to, lagging.from, Duration::from_micros(500));
    network.heal_all();
    await_until("it begins", || lagging.bulk_bytes() > 0).await;
    let begun = Instant::now();
    await_until("all is sent", || lagging.bulk_bytes() >= STATE_BYTES).await;
    let sent = begun.elapsed();
    lagging.await_installed().await;
    let ideal = STATE_BYTES as f64 / RATE as f64;
    eprintln!("sent in {sent:?}, ideal {ideal:.3} s; installed after {:?}", begun.elapsed());
}
