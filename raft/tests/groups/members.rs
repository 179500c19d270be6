//! Groups that grow, shrink and move: founding apart from joining, learners, voters, refusals.

use std::collections::BTreeSet;
use std::time::Duration;

use piton_raft::{ChangeError, Group, GroupId, NodeId, RaftError, Removed};

use crate::support::{Cluster, GROUP, Ledger, await_until, bytes, members, open, tuning};

/// The node that leads, and its group.
async fn leader(cluster: &Cluster) -> (usize, &Group) {
    let leader = cluster.await_leader(&cluster.running()).await;
    (leader, cluster.nodes[leader].group())
}

async fn await_applied(cluster: &Cluster, nodes: &[usize], index: u64) {
    await_until("they have applied the entry", || {
        nodes.iter().all(|node| cluster.nodes[*node].ledger.applied() >= index)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_grows_to_three_and_moves_to_other_nodes() {
    let cluster = Cluster::start_founded_by(1, 5, tuning()).await;
    let (first, group) = leader(&cluster).await;
    assert_eq!(first, 0);
    assert_eq!(group.members().voters, [members(&[1])]);
    for number in 0..50 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    for node in [2, 3] {
        group.add_learner(NodeId(node)).await.expect("add a learner");
        group.add_learner(NodeId(node)).await.expect("it is one already");
    }
    assert_eq!(group.members().learners, members(&[2, 3]));
    cluster.set_voters(&[1, 2, 3], Removed::Leaves).await;
    let committed = group.propose(bytes("three")).await.expect("propose");
    await_applied(&cluster, &[0, 1, 2], committed.index).await;
    assert_eq!(group.members().voters, [members(&[1, 2, 3])]);
    assert_eq!(group.members().learners, BTreeSet::new());

    // And away from where it began: the leader hands over before it leaves.
    for node in [4, 5] {
        let (_, group) = leader(&cluster).await;
        group.add_learner(NodeId(node)).await.expect("add a learner");
    }
    cluster.set_voters(&[3, 4, 5], Removed::Leaves).await;
    let (led_by, group) = leader(&cluster).await;
    assert!(led_by >= 2, "node {} is no voter any more", led_by + 1);
    let committed = group.propose(bytes("moved")).await.expect("propose");
    await_applied(&cluster, &[2, 3, 4], committed.index).await;
    assert_eq!(group.members().voters, [members(&[3, 4, 5])]);
    assert_eq!(group.members().learners, BTreeSet::new());
    let lines = cluster.nodes[2].ledger.book().lines;
    assert_eq!(cluster.nodes[4].ledger.book().lines, lines);
    assert_eq!(lines.len(), 52);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_hands_over_first() {
    let cluster = Cluster::start(3, tuning()).await;
    let (old, group) = leader(&cluster).await;
    let rest: BTreeSet<NodeId> =
        (1..=3).map(NodeId).filter(|node| *node != cluster.nodes[old].id).collect();
    let told = group.set_voters(rest.clone(), Removed::Learns).await;
    let Err(ChangeError::NotLeader { leader: Some(next) }) = told else { panic!("{told:?}") };
    assert!(rest.contains(&next));
    assert_eq!(group.members().voters, [members(&[1, 2, 3])], "nothing was changed");
    let voters: Vec<u64> = rest.iter().map(|node| node.0).collect();
    cluster.set_voters(&voters, Removed::Learns).await;
    let (_, group) = leader(&cluster).await;
    assert_eq!(group.members().voters, [rest]);
    assert_eq!(group.members().learners, BTreeSet::from([cluster.nodes[old].id]));
    group.remove_learner(cluster.nodes[old].id).await.expect("remove it");
    assert_eq!(group.members().learners, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_change_tell_what_is_missing() {
    let mut tuning = tuning();
    tuning.voter_lag_entries_max = 10;
    let cluster = Cluster::start_founded_by(3, 4, tuning).await;
    let (led_by, group) = leader(&cluster).await;
    let id = cluster.nodes[led_by].id;
    let follower = cluster.nodes[(led_by + 1) % 3].group();
    let mut leadership = follower.leadership();
    leadership.wait_for(|now| now.leader == Some(id)).await.expect("the group runs");
    let not_leader = ChangeError::NotLeader { leader: Some(id) };
    assert_eq!(follower.add_learner(NodeId(4)).await, Err(not_leader.clone()));
    assert_eq!(follower.remove_learner(NodeId(4)).await, Err(not_leader.clone()));
    let refused = follower.set_voters(members(&[1]), Removed::Leaves).await;
    assert_eq!(refused, Err(not_leader));
    assert_eq!(follower.lag(id), None, "only a leader knows");

    let refused = group.set_voters(members(&[1, 2, 3, 4]), Removed::Leaves).await;
    assert_eq!(refused, Err(ChangeError::NotMember { node: NodeId(4) }));
    let refused = group.set_voters(BTreeSet::new(), Removed::Leaves).await;
    assert_eq!(refused, Err(ChangeError::NoVoters));
    let refused = group.remove_learner(NodeId(2)).await;
    assert_eq!(refused, Err(ChangeError::IsVoter { node: NodeId(2) }));
    group.remove_learner(NodeId(4)).await.expect("it is no member");

    // A learner that nobody reaches lags, and does not vote.
    cluster.network.isolate(NodeId(4));
    group.add_learner(NodeId(4)).await.expect("add a learner");
    for number in 0..20 {
        group.propose(bytes(format!("{number}"))).await.expect("propose");
    }
    let lag = group.lag(NodeId(4)).expect("it leads");
    assert!(lag.entries > 20 && lag.bytes > 20, "{lag:?}");
    assert_eq!(group.last_heard(NodeId(4)), None);
    let refused = group.set_voters(members(&[1, 2, 3, 4]), Removed::Leaves).await;
    let Err(ChangeError::Lags { node: NodeId(4), entries: 21.. }) = refused else {
        panic!("{refused:?}")
    };
    cluster.network.heal_all();
    await_until("it has caught up", || group.lag(NodeId(4)).is_some_and(|lag| lag.entries == 0))
        .await;
    await_until("it was heard of", || group.last_heard(NodeId(4)).is_some()).await;
    group.set_voters(members(&[1, 2, 3, 4]), Removed::Leaves).await.expect("it has caught up");
    // The change itself is an entry, which it has to get as well.
    await_until("it has all", || group.lag(NodeId(4)).is_some_and(|lag| lag.bytes == 0)).await;
}

/// Goal: while a change waits for a quorum, another one is refused as such.
#[tokio::test(flavor = "multi_thread")]
async fn one_change_at_a_time() {
    let mut tuning = tuning();
    tuning.propose_timeout = Duration::from_millis(300);
    tuning.election_min = Duration::from_secs(60);
    tuning.election_max = Duration::from_secs(90);
    let cluster = Cluster::start_founded_by(1, 3, tuning).await;
    let (_, group) = leader(&cluster).await;
    group.add_learner(NodeId(2)).await.expect("add a learner");
    cluster.set_voters(&[1, 2], Removed::Leaves).await;
    cluster.network.isolate(NodeId(2));
    let waits = group.add_learner(NodeId(3)).await;
    assert!(matches!(waits, Err(ChangeError::Unknown(_))), "{waits:?}");
    assert_eq!(group.members().learners, BTreeSet::new(), "it may still be undone");
    assert_eq!(group.add_learner(NodeId(3)).await, Err(ChangeError::InProgress));
    let refused = group.set_voters(members(&[1]), Removed::Leaves).await;
    assert_eq!(refused, Err(ChangeError::InProgress));
    cluster.network.heal_all();
    cluster.set_voters(&[1], Removed::Leaves).await;
    assert_eq!(group.members().learners, members(&[3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_founded_once_and_never_by_who_only_joins() {
    let network = piton_raft::MemoryNetwork::new();
    let dir = tempfile::tempdir().expect("make a directory");
    let node = NodeId(1);
    let groups = open(node, dir.path(), network.transport(node), tuning());
    let joins = groups.start(GroupId(8), Ledger::default().replica()).await.expect("start");
    let ledger = Ledger::default();
    let group = groups.bootstrap(GROUP, ledger.replica()).await.expect("found it");
    await_until("it serves", || group.leadership().borrow().serving).await;
    group.propose(bytes("one")).await.expect("propose");
    // By now who could have elected itself would have.
    assert_eq!(joins.leadership().borrow().leader, None);
    assert_eq!((joins.metrics().term, joins.members()), (0, Default::default()));
    assert!(!groups.has_past(GroupId(8)));
    drop((group, joins));
    groups.shutdown().await;
    drop(groups);

    let groups = open(node, dir.path(), network.transport(node), tuning());
    let again = groups.bootstrap(GROUP, ledger.replica()).await;
    assert!(matches!(again, Err(RaftError::HasPast { group: GROUP })), "{:?}", again.err());
    let group = groups.start(GROUP, ledger.replica()).await.expect("it goes on");
    await_until("it serves", || group.leadership().borrow().serving).await;
    assert_eq!(ledger.payloads(), [bytes("one")]);
}
