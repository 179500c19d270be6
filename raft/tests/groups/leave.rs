//! Groups that stop on one node and are forgotten there, with the power cut in between.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use piton_raft::log::{Faults, FaultyDisk};
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
        assert_eq!(ledger.clears(), 1);
        groups.shutdown().await;
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
