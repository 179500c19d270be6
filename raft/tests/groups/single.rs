//! A group with one member: propose, apply, restart, and what happens when something is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{
    Book, Cluster, GROUP, Ledger, Reading, await_until, bytes, members, open, tuning,
};
use piton_raft::{GroupId, NodeId, ProposeError, RaftError, ReadError};

#[tokio::test(flavor = "multi_thread")]
async fn proposal_is_applied_and_its_verdict_comes_back() {
    let cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    let group = cluster.nodes[0].group();
    let committed = group.propose(bytes("hello")).await.expect("propose");
    let expected = format!("{}:{}:5", committed.term, committed.index);
    assert_eq!(committed.verdict, bytes(expected));
    assert_eq!(cluster.nodes[0].ledger.payloads(), [bytes("hello")]);
    assert_eq!(committed.term, group.leadership().borrow().term);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_applies_what_was_acknowledged_and_begins_a_new_term() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    for number in 0..50 {
        if number == 20 {
            cluster.nodes[0].ledger.checkpoint();
        }
        cluster.nodes[0].group().propose(bytes(format!("{number}"))).await.expect("propose");
    }
    let before = cluster.nodes[0].ledger.book();
    let term = cluster.nodes[0].group().metrics().term;
    cluster.stop_node(0).await;
    cluster.start_node(0).await;
    cluster.await_leader(&[0]).await;
    assert_eq!(cluster.nodes[0].ledger.book().lines, before.lines);
    assert!(cluster.nodes[0].group().metrics().term > term, "a life of its own term");
    cluster.nodes[0].group().propose(bytes("after")).await.expect("propose");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_state_is_rebuilt_from_the_log() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    for number in 0..30 {
        cluster.nodes[0].group().propose(bytes(format!("{number}"))).await.expect("propose");
    }
    cluster.nodes[0].ledger.checkpoint();
    let before = cluster.nodes[0].ledger.book();
    cluster.stop_node(0).await;
    cluster.nodes[0].ledger.lose();
    cluster.start_node(0).await;
    cluster.await_leader(&[0]).await;
    assert_eq!(cluster.nodes[0].ledger.book().lines, before.lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_state_is_rebuilt_from_snapshot_and_log_after_a_purge() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    for number in 0..30 {
        cluster.nodes[0].group().propose(bytes(format!("{number}"))).await.expect("propose");
    }
    assert_eq!(cluster.nodes[0].group().snapshot_now().await.expect("nothing to take"), 0);
    cluster.nodes[0].ledger.checkpoint();
    let taken = cluster.nodes[0].group().snapshot_now().await.expect("take a snapshot");
    assert_eq!(taken, cluster.nodes[0].ledger.applied());
    let group = cluster.nodes[0].group().clone();
    await_until("the log is purged", || group.metrics().purged_index == taken).await;
    drop(group);
    for number in 30..40 {
        cluster.nodes[0].group().propose(bytes(format!("{number}"))).await.expect("propose");
    }
    let before = cluster.nodes[0].ledger.book();
    cluster.stop_node(0).await;
    cluster.nodes[0].ledger.lose();
    cluster.start_node(0).await;
    cluster.await_leader(&[0]).await;
    assert_eq!(cluster.nodes[0].ledger.restores(), 1);
    assert_eq!(cluster.nodes[0].ledger.book().lines, before.lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn state_beyond_the_log_is_refused_and_left_as_it_is() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    for number in 0..10 {
        cluster.nodes[0].group().propose(bytes(format!("{number}"))).await.expect("propose");
    }
    let before = cluster.nodes[0].ledger.book();
    cluster.stop_node(0).await;
    let mut mark = before.mark.clone().expect("applied");
    let last = mark.index;
    mark.index += 100;
    let mut lines = before.lines.clone();
    lines.insert(mark.index, bytes("acknowledged"));
    cluster.nodes[0].ledger.set_kept(Book { mark: Some(mark), lines: lines.clone() });
    let node = &cluster.nodes[0];
    let groups = open(node.id, node.dir(), cluster.network.transport(node.id), tuning());
    let started = groups.bootstrap_with(GROUP, &members(&[1]), node.ledger.replica()).await;
    let Err(RaftError::Misfit(misfit)) = started else { panic!("{:?}", started.err()) };
    assert_eq!((misfit.known, misfit.last), (last + 100, Some(last)));
    assert_eq!(node.ledger.clears(), 0);
    assert_eq!(node.ledger.book().lines, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_log_without_its_snapshot_is_refused() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    cluster.nodes[0].group().propose(bytes("one")).await.expect("propose");
    cluster.nodes[0].ledger.checkpoint();
    let taken = cluster.nodes[0].group().snapshot_now().await.expect("take a snapshot");
    let group = cluster.nodes[0].group().clone();
    await_until("the log is purged", || group.metrics().purged_index == taken).await;
    drop(group);
    cluster.stop_node(0).await;
    cluster.nodes[0].ledger.lose();
    let file = cluster.nodes[0].dir().join(format!("snapshot/{GROUP}-{taken}.snapshot"));
    std::fs::remove_file(file).expect("remove the snapshot");
    let node = &cluster.nodes[0];
    let groups = open(node.id, node.dir(), cluster.network.transport(node.id), tuning());
    let started = groups.bootstrap_with(GROUP, &members(&[1]), node.ledger.replica()).await;
    assert!(matches!(started, Err(RaftError::SnapshotMissing { .. })), "{:?}", started.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_snapshot_is_refused_by_name() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    for number in 0..5 {
        cluster.nodes[0].group().propose(bytes(format!("{number}"))).await.expect("propose");
    }
    cluster.nodes[0].ledger.checkpoint();
    let taken = cluster.nodes[0].group().snapshot_now().await.expect("take a snapshot");
    cluster.stop_node(0).await;
    let path = cluster.nodes[0].dir().join(format!("snapshot/{GROUP}-{taken}.snapshot"));
    let whole = std::fs::read(&path).expect("read");
    let node = &cluster.nodes[0];
    let groups = open(node.id, node.dir(), cluster.network.transport(node.id), tuning());
    for offset in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[offset] ^= 0x10;
        std::fs::write(&path, damaged).expect("write");
        node.ledger.lose();
        let started = groups.bootstrap_with(GROUP, &members(&[1]), node.ledger.replica()).await;
        let Err(RaftError::Snapshot { source, .. }) = started else {
            panic!("a flip at {offset} went unnoticed");
        };
        assert!(source.to_string().contains(&format!("{taken}.snapshot")), "{source}");
    }
    for length in [0, 3, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).expect("write");
        node.ledger.lose();
        let started = groups.bootstrap_with(GROUP, &members(&[1]), node.ledger.replica()).await;
        assert!(matches!(started, Err(RaftError::Snapshot { .. })), "cut to {length}");
    }
    std::fs::write(&path, &whole).expect("write");
    groups.bootstrap_with(GROUP, &members(&[1]), node.ledger.replica()).await.expect("start");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_outgrows_its_limit_is_purged_by_itself() {
    let mut tuning = tuning();
    tuning.snapshot_log_bytes_min = 64 << 10;
    tuning.snapshot_check = std::time::Duration::from_millis(20);
    let cluster = Cluster::start(1, tuning).await;
    cluster.await_leader(&[0]).await;
    let group = cluster.nodes[0].group();
    for _ in 0..100 {
        group.propose(bytes("x".repeat(1024))).await.expect("propose");
    }
    cluster.nodes[0].ledger.checkpoint();
    await_until("the log is purged", || group.metrics().purged_index > 0).await;
    assert!(group.metrics().purged_index <= group.metrics().snapshot_index);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_is_never_purged_beyond_the_checkpoint() {
    let cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    let group = cluster.nodes[0].group();
    for number in 0..20 {
        if number == 10 {
            cluster.nodes[0].ledger.checkpoint();
        }
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    let taken = group.snapshot_now().await.expect("take a snapshot");
    assert!(taken < cluster.nodes[0].ledger.applied());
    await_until("the log is purged", || group.metrics().purged_index > 0).await;
    assert_eq!(group.metrics().purged_index, taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn seventeen_groups_serve_within_a_second() {
    let dir = tempfile::tempdir().expect("make a directory");
    let network = piton_raft::MemoryNetwork::new();
    let groups = open(NodeId(1), dir.path(), network.transport(NodeId(1)), Default::default());
    let begun = Instant::now();
    let mut started = Vec::new();
    for id in 0..17 {
        let ledger = Ledger::default();
        let group = groups.bootstrap_with(GroupId(id), &members(&[1]), ledger.replica()).await;
        started.push(group.expect("start"));
    }
    await_until("all serve", || started.iter().all(|group| group.leadership().borrow().serving))
        .await;
    // Election timeouts are 500 to 900 ms: nobody may have waited for one.
    assert!(begun.elapsed().as_millis() < 1000, "took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn sole_voter_reads_without_a_round_and_sees_its_writes() {
    let cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    let group = cluster.nodes[0].group();
    for number in 0..20 {
        let committed = group.propose(bytes(format!("{number}"))).await.expect("propose");
        group.read_index().await.expect("read");
        assert!(cluster.nodes[0].ledger.applied() >= committed.index);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn group_is_started_once() {
    let cluster = Cluster::start(1, tuning()).await;
    let (groups, _) = cluster.nodes[0].running.as_ref().expect("runs");
    let again = groups.bootstrap_with(GROUP, &members(&[1]), Ledger::default().replica()).await;
    assert!(matches!(again, Err(RaftError::AlreadyStarted { group: GROUP })));
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_replica_stops_its_group_and_no_other() {
    for panics in [false, true] {
        let cluster = Cluster::start(1, tuning()).await;
        cluster.await_leader(&[0]).await;
        let (groups, group) = cluster.nodes[0].running.as_ref().expect("runs");
        let other =
            groups.bootstrap_with(GroupId(9), &members(&[1]), Ledger::default().replica()).await;
        let other = other.expect("start");
        await_until("it serves", || other.leadership().borrow().serving).await;
        if panics {
            cluster.nodes[0].ledger.panic_on("bad");
        } else {
            cluster.nodes[0].ledger.fail_on("bad");
        }
        let mut leadership = group.leadership();
        let failed = group.propose(bytes("bad")).await;
        assert!(
            matches!(failed, Err(ProposeError::Stopped | ProposeError::Unknown(_))),
            "{failed:?}"
        );
        while leadership.changed().await.is_ok() {}
        assert!(!leadership.borrow().serving);
        assert_eq!(group.propose(bytes("more")).await, Err(ProposeError::Stopped));
        assert_eq!(group.read_index().await, Err(ReadError::Stopped));
        other.propose(bytes("fine")).await.expect("propose");
        assert!(groups.failed().borrow().is_none());
        let mut halted = groups.halted();
        let halted = halted.wait_for(|halted| !halted.is_empty()).await.expect("they are there");
        let met = if panics { "take an order: it panicked" } else { "apply entries: told to fail" };
        assert!(halted[&GROUP].contains(met), "{halted:?}");
        // A start anew would meet it again.
        assert_eq!(*groups.group_failed().borrow(), None);
    }
}

/// Goal: an entry that this release cannot read is met again at each start, where the node must not end
/// for it either.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_cannot_go_past_stops_its_group_at_a_start_too() {
    let mut cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    cluster.nodes[0].group().propose(bytes("bad")).await.expect("propose");
    cluster.stop_node(0).await;
    cluster.nodes[0].ledger.fail_on("bad");
    let transport = cluster.network.transport(NodeId(1));
    let groups = open(NodeId(1), cluster.nodes[0].dir(), transport, tuning());
    let started = groups.start(GROUP, cluster.nodes[0].ledger.replica()).await;
    let mut halted = groups.halted();
    let halted =
        halted.wait_for(|halted| !halted.is_empty()).await.expect("they are there").clone();
    assert!(halted[&GROUP].contains("apply entries: told to fail"), "{halted:?}");
    assert_eq!(*groups.group_failed().borrow(), None);
    // Whether it was applied while the group started, or right after.
    if let Err(error) = started {
        assert!(matches!(error, RaftError::Halted { group: GROUP, .. }), "{error}");
    }
    let replica = Ledger::default().replica();
    let other = groups.bootstrap_with(GroupId(9), &members(&[1]), replica).await;
    let other = other.expect("start");
    await_until("it serves", || other.leadership().borrow().serving).await;
    groups.shutdown().await;
}

/// Goal: a proposal whose caller has given up still waits for the disk, and its bytes still count;
/// otherwise callers that try again would fill the memory of a node whose disk is slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_timed_out_keeps_its_room() {
    let mut tuning = tuning();
    tuning.proposed_bytes_max = 2 << 10;
    tuning.propose_timeout = Duration::from_millis(200);
    tuning.stall_limit = Duration::from_secs(60);
    let cluster = Cluster::start(1, tuning).await;
    cluster.await_leader(&[0]).await;
    let (group, disk) = (cluster.nodes[0].group(), &cluster.nodes[0].disk);
    disk.hang();
    let waits = group.propose(bytes("x".repeat(2 << 10))).await;
    assert!(matches!(waits, Err(ProposeError::Unknown(_))), "{waits:?}");
    let last_index = group.metrics().last_index;
    let more = group.propose(bytes("more")).await;
    assert!(matches!(more, Err(ProposeError::Unknown(_))), "{more:?}");
    assert_eq!(group.metrics().last_index, last_index, "it was let in");
    disk.go_on();
    await_until("both are committed", || cluster.nodes[0].ledger.payloads().len() == 2).await;
    group.propose(bytes("at last")).await.expect("there is room again");
}

/// Goal: each snapshot holds its group's checkpoints back, so a node takes one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn one_snapshot_is_taken_at_a_time() {
    let cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    let (groups, group) = cluster.nodes[0].running.as_ref().expect("runs");
    let (ledger, other_ledger) = (&cluster.nodes[0].ledger, Ledger::default());
    let other = groups.bootstrap_with(GroupId(9), &members(&[1]), other_ledger.replica()).await;
    let other = other.expect("start");
    await_until("it serves", || other.leadership().borrow().serving).await;
    let reading = Arc::new(Reading::default());
    for (group, ledger) in [(group, ledger), (&other, &other_ledger)] {
        group.propose(bytes("line")).await.expect("propose");
        ledger.checkpoint();
        ledger.count_reading(&reading);
    }
    let (one, two) = tokio::join!(group.snapshot_now(), other.snapshot_now());
    assert!(one.expect("take a snapshot") > 0 && two.expect("take a snapshot") > 0);
    assert_eq!(reading.most(), 1);
}
