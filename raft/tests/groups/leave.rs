//! Groups that stop on one node and are forgotten there, with the power cut in between.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use piton_raft::log::{EntryRecord, Faults, FaultyDisk};
use piton_raft::{
    Disk, Group, GroupId, Groups, MemoryNetwork, NodeConfig, NodeId, RaftError, Removed,
    SNAPSHOT_DIRECTORY,
};

use crate::support::{Cluster, GROUP, Ledger, await_until, bytes, members, tuning};

const NODE: NodeId = NodeId(1);
const DIR: &str = "/node";

/// The node's groups as they open over what the disk and the ledger hold.
fn open(disk: &FaultyDisk, ledger: &Ledger) -> Groups {
    // What survived of the ledger.
    drop(ledger.replica());
    let states = ledger.book().mark.map(|mark| (GROUP, mark)).into_iter().collect();
    let opened = Groups::open(NodeConfig {
        node: NODE,
        dir: DIR.into(),
        disk: Arc::new(disk.clone()),
        transport: MemoryNetwork::new().transport(NODE),
        states,
        tuning: tuning(),
    });
    opened.expect("open the groups")
}

/// A group with a snapshot, and entries after it.
async fn group_with_a_past(disk: &FaultyDisk, ledger: &Ledger) -> (Groups, Vec<Bytes>) {
    let groups = open(disk, ledger);
    let group = groups.bootstrap(GROUP, ledger.replica()).await.expect("found it");
    await_until("it serves", || group.leadership().borrow().serving).await;
    for number in 0..10 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    ledger.checkpoint();
    let taken = group.snapshot_now().await.expect("take a snapshot");
    await_until("the log is purged", || group.metrics().purged_index == taken).await;
    for number in 10..13 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    ledger.checkpoint();
    groups.stop(GROUP).await;
    (groups, ledger.payloads())
}

fn snapshots(disk: &FaultyDisk) -> Vec<String> {
    let names = disk.list(&Path::new(DIR).join(SNAPSHOT_DIRECTORY)).expect("it was made");
    names.into_iter().filter(|name| name.starts_with(&format!("{GROUP}-"))).collect()
}

/// Starts the group and checks that nothing of it is left but its vote.
async fn check_forgotten(groups: &Groups, disk: &FaultyDisk, ledger: &Ledger, vote: &Bytes) {
    let group: Group = groups.start(GROUP, ledger.replica()).await.expect("it begins anew");
    let metrics = group.metrics();
    assert_eq!((metrics.last_index, metrics.applied_index, metrics.snapshot_index), (0, 0, 0));
    assert_eq!(group.members(), Default::default());
    assert_eq!(ledger.payloads(), Vec::<Bytes>::new());
    assert_eq!(snapshots(disk), Vec::<String>::new());
    assert_eq!(groups.log().state(GROUP).vote.as_ref(), Some(vote));
    assert!(matches!(
        groups.bootstrap(GROUP, ledger.replica()).await,
        Err(RaftError::HasPast { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_stops_alone_and_goes_on_when_it_is_started_again() {
    let cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    let (groups, group) = cluster.nodes[0].running.as_ref().expect("runs");
    let other = groups.bootstrap(GroupId(9), Ledger::default().replica()).await.expect("start");
    await_until("it serves", || other.leadership().borrow().serving).await;
    group.propose(bytes("one")).await.expect("propose");
    let running = groups.forget(GROUP, Ledger::default().replica()).await;
    assert!(matches!(running, Err(RaftError::Running { group: GROUP })), "{running:?}");
    groups.stop(GROUP).await;
    groups.stop(GROUP).await;
    assert!(groups.group(GROUP).is_none());
    let refused = group.propose(bytes("no")).await;
    assert!(refused.is_err());
    assert!(groups.group_failed().borrow().is_none(), "it was told to");
    other.propose(bytes("fine")).await.expect("propose");
    cluster.nodes[0].ledger.checkpoint();
    let group = groups.start(GROUP, cluster.nodes[0].ledger.replica()).await.expect("start");
    await_until("it serves", || group.leadership().borrow().serving).await;
    group.propose(bytes("two")).await.expect("propose");
    assert_eq!(cluster.nodes[0].ledger.payloads(), [bytes("one"), bytes("two")]);
}

/// Goal: whoever asked for the start may go away meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_start_nobody_waited_for_can_be_stopped() {
    let (disk, ledger) = (FaultyDisk::new(1), Ledger::default());
    let groups = open(&disk, &ledger);
    let mut start = Box::pin(groups.bootstrap(GROUP, ledger.replica()));
    let begun = futures::poll!(&mut start);
    drop(start);
    assert!(begun.is_pending(), "it takes a sync");
    await_until("it runs", || groups.group(GROUP).is_some()).await;
    groups.stop(GROUP).await;
    assert!(groups.group(GROUP).is_none());
    let group = groups.start(GROUP, ledger.replica()).await.expect("it starts again");
    await_until("it serves", || group.leadership().borrow().serving).await;
    groups.shutdown().await;
}

/// Goal: once a group has stopped, nothing of it is written any more, so that it may be forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_a_snapshot_under_way() {
    let cluster = Cluster::start(1, tuning()).await;
    cluster.await_leader(&[0]).await;
    let node = &cluster.nodes[0];
    node.group().propose(bytes("one")).await.expect("propose");
    node.ledger.checkpoint();
    node.disk.hang_snapshots();
    let group = node.group().clone();
    let taking = tokio::spawn(async move { group.snapshot_now().await });
    let dir = node.dir().join(SNAPSHOT_DIRECTORY);
    let files = || std::fs::read_dir(&dir).expect("read the directory").count();
    await_until("it is being written", || files() == 1).await;
    let groups = node.groups().clone();
    let stopping = tokio::spawn(async move { groups.stop(GROUP).await });
    let looked_at = std::time::Instant::now() + std::time::Duration::from_millis(300);
    await_until("it had time to stop", || std::time::Instant::now() > looked_at).await;
    assert!(!stopping.is_finished());
    node.disk.go_on();
    stopping.await.expect("no panic");
    // Raft has stopped, so it may say so.
    drop(taking.await.expect("no panic"));
    node.groups().forget(GROUP, node.ledger.replica()).await.expect("forget");
    assert_eq!(files(), 0);
}

/// Goal: whatever a power cut leaves of a group that is being forgotten, it is either whole or can be
/// forgotten again, the node starts, and the vote is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_moment_of_forgetting_is_harmless() {
    let (mut whole, mut gone) = (0, 0);
    for cut_at_call in 1.. {
        let (disk, ledger) = (FaultyDisk::new(cut_at_call), Ledger::default());
        let (groups, payloads) = group_with_a_past(&disk, &ledger).await;
        let vote = groups.log().state(GROUP).vote.expect("it has led");
        disk.set_faults(Faults { cut_at_call: Some(cut_at_call), ..Faults::default() });
        let forgotten = groups.forget(GROUP, ledger.replica()).await;
        let is_through = disk.changes() < cut_at_call;
        groups.shutdown().await;
        assert!(forgotten.is_ok() || !is_through, "{forgotten:?}");

        let disk = disk.cut_power();
        let groups = open(&disk, &ledger);
        if groups.log().state(GROUP).is_forgotten {
            gone += 1;
            groups.forget(GROUP, ledger.replica()).await.expect("forget it again");
            check_forgotten(&groups, &disk, &ledger, &vote).await;
        } else {
            whole += 1;
            assert!(forgotten.is_err(), "cut {cut_at_call}: what was promised is not durable");
            let group = groups.start(GROUP, ledger.replica()).await.expect("it is still there");
            await_until("it serves", || group.leadership().borrow().serving).await;
            assert_eq!(ledger.payloads(), payloads);
        }
        groups.shutdown().await;
        if is_through {
            break;
        }
    }
    assert!(whole > 0 && gone > 1, "{whole} times whole, {gone} times gone");
}

/// Goal: the log has forgotten, and the process ends before state and snapshots are gone. Neither is
/// taken for something that the log lacks, and neither comes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_forgotten_group_is_cleared_when_it_begins_anew() {
    for is_forgotten_again in [true, false] {
        let (disk, ledger) = (FaultyDisk::new(1), Ledger::default());
        let (groups, _) = group_with_a_past(&disk, &ledger).await;
        let vote = groups.log().state(GROUP).vote.expect("it has led");
        ledger.fail_to_clear(true);
        let failed = groups.forget(GROUP, ledger.replica()).await;
        assert!(matches!(failed, Err(RaftError::Replica { .. })), "{failed:?}");
        groups.shutdown().await;
        ledger.fail_to_clear(false);

        let disk = disk.cut_power();
        let groups = open(&disk, &ledger);
        assert_eq!(groups.half_forgotten(), [GROUP]);
        assert_eq!(snapshots(&disk).len(), 1);
        if is_forgotten_again {
            groups.forget(GROUP, ledger.replica()).await.expect("forget it again");
        }
        check_forgotten(&groups, &disk, &ledger, &vote).await;
        assert!(ledger.clears() > 0);
        groups.shutdown().await;
    }
}

/// Goal: an entry that a replica acknowledged and then forgot is not lost by its vote, neither at once
/// nor after a restart: the majority that the entry has rests on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_forgotten_votes_for_nobody_with_less() {
    for restarts in [false, true] {
        let mut cluster = Cluster::start(3, tuning()).await;
        let leader = cluster.await_leader(&[0, 1, 2]).await;
        let (lags, forgets) = ((leader + 1) % 3, (leader + 2) % 3);
        cluster.network.isolate(cluster.nodes[lags].id);
        let group = cluster.nodes[leader].group();
        let committed = group.propose(bytes("acknowledged")).await.expect("propose");
        cluster.network.isolate(cluster.nodes[leader].id);
        let forgetful = &cluster.nodes[forgets];
        forgetful.groups().stop(GROUP).await;
        forgetful.groups().forget(GROUP, forgetful.ledger.replica()).await.expect("forget");
        if restarts {
            cluster.stop_node(forgets).await;
            cluster.start_node(forgets).await;
        } else {
            let replica = forgetful.ledger.replica();
            forgetful.groups().start(GROUP, replica).await.expect("it begins anew");
        }
        cluster.network.heal(cluster.nodes[lags].id, cluster.nodes[forgets].id);
        let candidate = cluster.nodes[lags].group();
        let begun = std::time::Instant::now();
        let mut looks = tokio::time::interval(tuning().heartbeat);
        while begun.elapsed() < 4 * tuning().election_max {
            let term = candidate.metrics().term;
            candidate.elect().await;
            await_until("it stands", || candidate.metrics().term > term).await;
            looks.tick().await;
            assert!(!candidate.metrics().is_leader, "it lacks what was acknowledged");
        }
        cluster.network.heal_all();
        await_until("all have what was acknowledged", || {
            cluster.nodes.iter().all(|node| node.ledger.applied() >= committed.index)
        })
        .await;
        for node in &cluster.nodes {
            assert!(node.ledger.payloads().contains(&bytes("acknowledged")));
        }
    }
}

/// Goal: while a replica is filled anew, it finds memberships of long ago in the log, and in the first
/// one it was alone. It does not take itself for the leader, and may lead again when it is filled.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_forgotten_does_not_stand_before_it_is_filled() {
    let mut tuning = tuning();
    tuning.request_entries_max = 1;
    let cluster = Cluster::start_founded_by(1, 3, tuning).await;
    cluster.await_leader(&[0]).await;
    let group = cluster.nodes[0].group();
    for node in [2, 3] {
        group.add_learner(NodeId(node)).await.expect("add a learner");
    }
    cluster.set_voters(&[1, 2, 3], Removed::Leaves).await;
    for number in 0..30 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    cluster.set_voters(&[2, 3], Removed::Leaves).await;
    let left = &cluster.nodes[0];
    left.groups().stop(GROUP).await;
    left.groups().forget(GROUP, left.ledger.replica()).await.expect("forget");
    let anew = left.groups().start(GROUP, left.ledger.replica()).await.expect("start");

    let leader = cluster.await_leader(&[1, 2]).await;
    let group = cluster.nodes[leader].group();
    let term = group.metrics().term;
    let delay = std::time::Duration::from_millis(20);
    cluster.network.delay(cluster.nodes[leader].id, left.id, delay);
    group.add_learner(left.id).await.expect("add a learner");
    let committed = group.propose(bytes("after")).await.expect("propose");
    await_until("it is filled", || {
        assert!(anew.metrics().term <= term, "it stood for election: {:?}", anew.metrics());
        left.ledger.applied() >= committed.index
    })
    .await;
    assert_eq!(left.ledger.book().lines, cluster.nodes[leader].ledger.book().lines);
    cluster.set_voters(&[1, 2, 3], Removed::Leaves).await;
    let leader = cluster.await_leader(&[1, 2]).await;
    cluster.nodes[leader].group().transfer_leader(&[left.id]).await;
    anew.leadership().wait_for(|now| now.serving).await.expect("the group runs");
}

/// Goal: once a forgotten group has entries again, no snapshot of before comes back that its log would
/// contradict, whenever the power is cut.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_a_forgotten_group_do_not_come_back() {
    for seed in 0..16 {
        let (disk, ledger) = (FaultyDisk::new(seed), Ledger::default());
        let (groups, _) = group_with_a_past(&disk, &ledger).await;
        groups.forget(GROUP, ledger.replica()).await.expect("forget");
        let entry = EntryRecord { index: 0, term: 9, bytes: Bytes::from_static(&[0]) };
        let (tx, appended) = tokio::sync::oneshot::channel();
        groups.log().append(GROUP, vec![entry], |result| tx.send(result).expect("it is awaited"));
        appended.await.expect("the log runs").expect("append");
        let disk = disk.cut_power();
        groups.shutdown().await;
        open(&disk, &ledger).shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_forgot_a_group_is_filled_anew() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&[0, 1, 2]).await;
    let group = cluster.nodes[leader].group();
    for number in 0..20 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    let left = &cluster.nodes[(leader + 1) % 3];
    let stay: Vec<u64> = (1..=3).filter(|node| *node != left.id.0).collect();
    group.set_voters(members(&stay), Removed::Leaves).await.expect("change");
    left.groups().stop(GROUP).await;
    left.groups().forget(GROUP, left.ledger.replica()).await.expect("forget");
    let vote = left.groups().log().state(GROUP).vote.expect("it has voted");
    let anew = left.groups().start(GROUP, left.ledger.replica()).await.expect("start");
    assert_eq!(left.groups().log().state(GROUP).vote, Some(vote));
    assert_eq!(anew.metrics().last_index, 0);
    group.add_learner(left.id).await.expect("add a learner");
    cluster.set_voters(&[1, 2, 3], Removed::Leaves).await;
    let committed = group.propose(bytes("after")).await.expect("propose");
    await_until("it has it", || left.ledger.applied() >= committed.index).await;
    assert_eq!(left.ledger.book().lines, cluster.nodes[leader].ledger.book().lines);
}
