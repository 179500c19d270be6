//! Three members in one process: elections, lost leaders, partitions, snapshots to those who lag.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Cluster, await_until, bytes, tuning};
use bytes::Bytes;
use piton_raft::{Group, NodeId, ProposeError, ReadError};

const ALL: [usize; 3] = [0, 1, 2];

fn others(index: usize) -> Vec<usize> {
    ALL.into_iter().filter(|other| *other != index).collect()
}

async fn await_all_hold(cluster: &Cluster, index: u64) {
    await_until("all have applied the entry", || {
        cluster.running().iter().all(|node| cluster.nodes[*node].ledger.applied() >= index)
    })
    .await;
}

/// Proposes at whoever leads until it is committed; only after a clear refusal does it try again.
async fn propose_anywhere(cluster: &Cluster, among: &[usize], payload: &str) -> u64 {
    loop {
        let leader = cluster.await_leader(among).await;
        match cluster.nodes[leader].group().propose(bytes(payload)).await {
            Ok(committed) => return committed.index,
            Err(ProposeError::NotLeader { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn assert_equal_ledgers(cluster: &Cluster) {
    let running = cluster.running();
    let first = cluster.nodes[running[0]].ledger.book().lines;
    for node in &running[1..] {
        assert_eq!(cluster.nodes[*node].ledger.book().lines, first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_elect_one_leader_and_apply_the_same() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&ALL).await;
    let mut last = 0;
    for number in 0..100 {
        last = propose_anywhere(&cluster, &ALL, &format!("{number}")).await;
    }
    await_all_hold(&cluster, last).await;
    assert_equal_ledgers(&cluster);
    let id = cluster.nodes[leader].id;
    for node in &cluster.nodes {
        let mut leadership = node.group().leadership();
        let told = leadership.wait_for(|now| now.leader == Some(id)).await;
        assert_eq!(told.expect("the group runs").serving, node.id == id);
    }
    let follower = cluster.nodes[others(leader)[0]].group();
    let refused = follower.propose(bytes("no")).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(id) }));
    assert_eq!(follower.read_index().await, Err(ReadError::NotLeader { leader: Some(id) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_at_once_keep_one_order_everywhere() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&ALL).await;
    let group = cluster.nodes[leader].group();
    let proposals = (0..500).map(|number| group.propose(bytes(format!("{number}"))));
    let results = futures::future::join_all(proposals).await;
    let committed: Vec<_> = results.into_iter().map(|result| result.expect("propose")).collect();
    let indices: BTreeSet<u64> = committed.iter().map(|committed| committed.index).collect();
    assert_eq!(indices.len(), 500);
    await_all_hold(&cluster, *indices.last().expect("some")).await;
    assert_equal_ledgers(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3, tuning()).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let leader = cluster.await_leader(&cluster.running()).await;
        for number in 0..20 {
            let payload = format!("{round}/{number}");
            propose_anywhere(&cluster, &cluster.running(), &payload).await;
            acknowledged.push(Bytes::from(payload));
        }
        cluster.stop_node(leader).await;
        let rest = cluster.running();
        let last = propose_anywhere(&cluster, &rest, &format!("{round}/after")).await;
        acknowledged.push(bytes(format!("{round}/after")));
        cluster.start_node(leader).await;
        await_all_hold(&cluster, last).await;
    }
    assert_equal_ledgers(&cluster);
    assert_eq!(cluster.nodes[0].ledger.payloads(), acknowledged, "each once and in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_restart_and_go_on() {
    let mut cluster = Cluster::start(3, tuning()).await;
    for number in 0..20 {
        propose_anywhere(&cluster, &ALL, &format!("{number}")).await;
    }
    let leader = cluster.await_leader(&ALL).await;
    let before = cluster.nodes[leader].ledger.book().lines;
    for index in ALL {
        cluster.stop_node(index).await;
    }
    for index in ALL {
        cluster.start_node(index).await;
    }
    let last = propose_anywhere(&cluster, &ALL, "after").await;
    await_all_hold(&cluster, last).await;
    assert_equal_ledgers(&cluster);
    let mut expected: Vec<Bytes> = before.into_values().collect();
    expected.push(bytes("after"));
    assert_eq!(cluster.nodes[0].ledger.payloads(), expected);
}

/// The old leader's proposals end without an acknowledgement, and each payload is applied at most
/// once, even though the caller may never learn which.
#[tokio::test(flavor = "multi_thread")]
async fn partitioned_leader_acknowledges_nothing_and_its_entries_appear_at_most_once() {
    let cluster = Cluster::start(3, tuning()).await;
    let old = cluster.await_leader(&ALL).await;
    propose_anywhere(&cluster, &ALL, "before").await;
    cluster.network.isolate(cluster.nodes[old].id);
    let group: Group = cluster.nodes[old].group().clone();
    let doomed: Vec<_> = (0..10)
        .map(|number| {
            let group = group.clone();
            tokio::spawn(async move { group.propose(bytes(format!("doomed {number}"))).await })
        })
        .collect();
    let rest = others(old);
    for number in 0..10 {
        propose_anywhere(&cluster, &rest, &format!("new {number}")).await;
    }
    cluster.network.heal_all();
    for proposal in doomed {
        let result = proposal.await.expect("no panic");
        assert!(
            matches!(result, Err(ProposeError::Unknown(_) | ProposeError::NotLeader { .. })),
            "{result:?}"
        );
    }
    let last = propose_anywhere(&cluster, &ALL, "after").await;
    await_all_hold(&cluster, last).await;
    assert_equal_ledgers(&cluster);
    let payloads = cluster.nodes[0].ledger.payloads();
    let distinct: BTreeSet<&Bytes> = payloads.iter().collect();
    assert_eq!(distinct.len(), payloads.len(), "something was applied twice");
    for number in 0..10 {
        assert!(payloads.contains(&bytes(format!("new {number}"))));
        assert!(!payloads.contains(&bytes(format!("doomed {number}"))), "it had no quorum");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_index_fails_on_a_leader_that_was_cut_off_and_on_one_that_was_deposed() {
    let cluster = Cluster::start(3, tuning()).await;
    let old = cluster.await_leader(&ALL).await;
    let group = cluster.nodes[old].group();
    group.read_index().await.expect("a leader with a quorum reads");
    cluster.network.isolate(cluster.nodes[old].id);
    let cut_off = group.read_index().await;
    assert!(
        matches!(cut_off, Err(ReadError::NoQuorum | ReadError::NotLeader { .. })),
        "{cut_off:?}"
    );
    let rest = others(old);
    propose_anywhere(&cluster, &rest, "unseen by the old leader").await;
    assert!(group.read_index().await.is_err(), "it would miss an acknowledged entry");
    cluster.network.heal_all();
    let mut leadership = group.leadership();
    let told = leadership.wait_for(|now| now.leader.is_some_and(|id| id != cluster.nodes[old].id));
    told.await.expect("the group runs");
    assert!(matches!(group.read_index().await, Err(ReadError::NotLeader { leader: Some(_) })));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reads_share_rounds_and_see_what_was_acknowledged() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&ALL).await;
    let group = cluster.nodes[leader].group();
    let committed = group.propose(bytes("seen")).await.expect("propose");
    let before = cluster.network.frames_sent();
    let reads = futures::future::join_all((0..500).map(|_| group.read_index())).await;
    assert!(reads.iter().all(Result::is_ok));
    assert!(cluster.nodes[leader].ledger.applied() >= committed.index);
    let frames = cluster.network.frames_sent() - before;
    assert!(frames < 200, "500 reads took {frames} frames");
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_that_lags_behind_a_purge_catches_up_by_snapshot() {
    let mut tuning = tuning();
    tuning.snapshot_frame_bytes = 700;
    tuning.log_held_bytes_max = 0;
    let mut cluster = Cluster::start(3, tuning).await;
    let leader = cluster.await_leader(&ALL).await;
    let lagging = others(leader)[0];
    propose_anywhere(&cluster, &ALL, "before").await;
    cluster.network.isolate(cluster.nodes[lagging].id);
    let rest = others(lagging);
    for number in 0..200 {
        propose_anywhere(&cluster, &rest, &format!("{number}")).await;
    }
    for index in &rest {
        cluster.nodes[*index].ledger.checkpoint();
        let group = cluster.nodes[*index].group();
        let taken = group.snapshot_now().await.expect("take a snapshot");
        await_until("the log is purged", || group.metrics().purged_index == taken).await;
    }
    for number in 0..10 {
        propose_anywhere(&cluster, &rest, &format!("later {number}")).await;
    }
    cluster.network.heal_all();
    let last = propose_anywhere(&cluster, &ALL, "after").await;
    await_all_hold(&cluster, last).await;
    assert_eq!(cluster.nodes[lagging].ledger.restores(), 1);
    assert_equal_ledgers(&cluster);
    let counted = |index: usize| {
        let stats = cluster.nodes[index].groups().snapshot_stats();
        let counters = [&stats.taken, &stats.taken_bytes, &stats.installed, &stats.installed_bytes];
        counters.map(|counter| counter.load(Ordering::Relaxed))
    };
    assert!(matches!(counted(rest[0]), [1, 200..=u64::MAX, 0, 0]), "{:?}", counted(rest[0]));
    assert!(matches!(counted(lagging), [0, 0, 1, 200..=u64::MAX]), "{:?}", counted(lagging));

    // What was installed is durable: it survives the loss of everything but log and snapshot.
    let before = cluster.nodes[lagging].ledger.book().lines;
    cluster.stop_node(lagging).await;
    cluster.nodes[lagging].ledger.lose();
    cluster.start_node(lagging).await;
    let last = propose_anywhere(&cluster, &ALL, "at last").await;
    await_all_hold(&cluster, last).await;
    let mut after = cluster.nodes[lagging].ledger.book().lines;
    after.retain(|index, _| before.contains_key(index));
    assert_eq!(after, before);
    assert_equal_ledgers(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_transferred_on_request() {
    let cluster = Cluster::start(3, tuning()).await;
    let old = cluster.await_leader(&ALL).await;
    let new = others(old)[1];
    let to = cluster.nodes[new].id;
    cluster.nodes[old].group().transfer_leader(&[to]).await;
    let mut leadership = cluster.nodes[new].group().leadership();
    leadership.wait_for(|now| now.serving).await.expect("the group runs");
    let mut leadership = cluster.nodes[old].group().leadership();
    let told = leadership.wait_for(|now| now.leader == Some(to)).await;
    assert!(!told.expect("the group runs").serving);
    propose_anywhere(&cluster, &ALL, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_links_delay_but_do_not_disturb() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&ALL).await;
    for one in 1..=3 {
        for other in 1..=3 {
            if one != other {
                cluster.network.delay(NodeId(one), NodeId(other), Duration::from_millis(5));
            }
        }
    }
    let group = cluster.nodes[leader].group();
    let proposals = (0..200).map(|number| group.propose(bytes(format!("{number}"))));
    let results = futures::future::join_all(proposals).await;
    let last = results.into_iter().map(|result| result.expect("propose").index).max();
    await_all_hold(&cluster, last.expect("some")).await;
    assert_equal_ledgers(&cluster);
}

/// Pre-vote: a node that was cut off does not raise the term when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn follower_that_was_cut_off_does_not_depose_the_leader() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&ALL).await;
    let term = cluster.nodes[leader].group().metrics().term;
    let cut_off = others(leader)[0];
    cluster.network.isolate(cluster.nodes[cut_off].id);
    let rest = others(cut_off);
    let begun = std::time::Instant::now();
    let mut number = 0;
    // Long enough for several of its election timeouts.
    while begun.elapsed() < 4 * tuning().election_max {
        propose_anywhere(&cluster, &rest, &format!("{number}")).await;
        number += 1;
    }
    cluster.network.heal_all();
    let last = propose_anywhere(&cluster, &ALL, "after").await;
    await_all_hold(&cluster, last).await;
    assert_eq!(cluster.nodes[leader].group().metrics().term, term);
    assert!(cluster.nodes[leader].group().leadership().borrow().serving);
}

/// The disk of the leader hangs: it hands over, the others go on, and it comes back as a follower.
#[tokio::test(flavor = "multi_thread")]
async fn leader_whose_disk_hangs_hands_over_and_rejoins() {
    let cluster = Cluster::start(3, tuning()).await;
    let old = cluster.await_leader(&ALL).await;
    propose_anywhere(&cluster, &ALL, "before").await;
    cluster.nodes[old].disk.hang();
    let group = cluster.nodes[old].group().clone();
    let stuck = tokio::spawn(async move { group.propose(bytes("stuck")).await });
    let rest = others(old);
    let new = cluster.await_leader(&rest).await;
    propose_anywhere(&cluster, &rest, "meanwhile").await;
    assert_ne!(new, old);
    cluster.nodes[old].disk.go_on();
    let last = propose_anywhere(&cluster, &ALL, "after").await;
    await_all_hold(&cluster, last).await;
    assert_equal_ledgers(&cluster);
    // Its entry reached the others, so it may well be committed; it is there at most once.
    let told = stuck.await.expect("no panic");
    let payloads = cluster.nodes[old].ledger.payloads();
    let times = payloads.iter().filter(|payload| **payload == bytes("stuck")).count();
    assert!(times <= 1);
    assert!(told.is_err() || times == 1, "acknowledged, so it is there");
}

/// Goal: a leader that all hear and that hears nobody decides nothing, and must not keep the others from
/// electing another one; neither by its heartbeats nor by sending again what nobody acknowledges.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_heard_and_hears_nobody_is_replaced() {
    for is_busy in [false, true] {
        let cluster = Cluster::start(3, tuning()).await;
        let old = cluster.await_leader(&ALL).await;
        propose_anywhere(&cluster, &ALL, "before").await;
        for other in others(old) {
            cluster.network.cut_one_way(cluster.nodes[other].id, cluster.nodes[old].id);
        }
        let group = cluster.nodes[old].group().clone();
        let propose = async move { group.propose(bytes("unheard")).await };
        let unheard = is_busy.then(|| tokio::spawn(propose));
        propose_anywhere(&cluster, &others(old), "after").await;
        cluster.network.heal_all();
        let last = propose_anywhere(&cluster, &others(old), "healed").await;
        await_all_hold(&cluster, last).await;
        assert_equal_ledgers(&cluster);
        // It reached the others, so it may well be committed.
        let payloads = cluster.nodes[old].ledger.payloads();
        let times = payloads.iter().filter(|payload| **payload == bytes("unheard")).count();
        assert!(times <= 1);
        if let Some(unheard) = unheard {
            assert!(unheard.await.expect("no panic").is_err() || times == 1, "it was acknowledged");
        }
    }
}

/// With election timeouts longer than the test waits, only the notice of the loss can help.
#[tokio::test(flavor = "multi_thread")]
async fn leader_whose_loss_was_noticed_is_replaced_without_a_timeout() {
    let mut tuning = tuning();
    tuning.election_min = Duration::from_secs(60);
    tuning.election_max = Duration::from_secs(90);
    let mut cluster = Cluster::start(3, tuning).await;
    let first = cluster.nodes[0].group().clone();
    // The others may have come too late for the first member's vote request.
    let mut old = None;
    while old.is_none() {
        first.elect().await;
        let elected = first.leadership();
        let waited = tokio::time::timeout(Duration::from_millis(200), async {
            elected.clone().wait_for(|now| now.serving).await.map(drop)
        });
        old = waited.await.ok().map(|served| served.expect("the group runs"));
    }
    let last = propose_anywhere(&cluster, &ALL, "before").await;
    await_all_hold(&cluster, last).await;
    drop(first);
    let lost = cluster.nodes[0].id;
    cluster.stop_node(0).await;
    let begun = std::time::Instant::now();
    for index in [1, 2] {
        cluster.nodes[index].groups().peer_lost(lost);
    }
    propose_anywhere(&cluster, &[1, 2], "after").await;
    // It takes some tens of milliseconds, where the machine has time for it.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Goal: a refused connection of one follower deposes no leader that the others still hear, neither
/// then nor later, when its link has healed.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_one_follower_alone_has_lost_goes_on() {
    let cluster = Cluster::start(3, tuning()).await;
    let leader = cluster.await_leader(&ALL).await;
    let id = cluster.nodes[leader].id;
    let last = propose_anywhere(&cluster, &ALL, "before").await;
    await_all_hold(&cluster, last).await;
    let term = cluster.nodes[leader].group().metrics().term;
    let follower = &cluster.nodes[others(leader)[0]];
    for is_cut in [false, true] {
        if is_cut {
            cluster.network.cut(follower.id, id);
        }
        let begun = std::time::Instant::now();
        while begun.elapsed() < 3 * tuning().election_max {
            follower.groups().peer_lost(id);
            propose_anywhere(&cluster, &[leader], "meanwhile").await;
        }
        cluster.network.heal_all();
        let last = propose_anywhere(&cluster, &ALL, "after").await;
        await_all_hold(&cluster, last).await;
        for node in &cluster.nodes {
            assert_eq!(node.group().metrics().term, term);
        }
        assert!(cluster.nodes[leader].group().leadership().borrow().serving);
    }
}

/// Goal: a read-index round asks whether this node still leads, which no follower's disk has to say.
#[tokio::test(flavor = "multi_thread")]
async fn reads_do_not_wait_for_the_disks_of_followers() {
    let mut tuning = tuning();
    tuning.stall_limit = Duration::from_secs(60);
    tuning.propose_timeout = Duration::from_secs(30);
    let cluster = Cluster::start(3, tuning).await;
    let leader = cluster.await_leader(&ALL).await;
    let group = cluster.nodes[leader].group().clone();
    let last = propose_anywhere(&cluster, &ALL, "before").await;
    await_all_hold(&cluster, last).await;
    for follower in others(leader) {
        cluster.nodes[follower].disk.hang();
    }
    let proposing = group.clone();
    let stuck = tokio::spawn(async move { proposing.propose(bytes("stuck")).await });
    let reached = |node: &usize| cluster.nodes[*node].group().metrics().last_index > last;
    await_until("the entry has reached them", || others(leader).iter().all(reached)).await;
    for _ in 0..5 {
        group.read_index().await.expect("a quorum still follows");
    }
    for follower in others(leader) {
        cluster.nodes[follower].disk.go_on();
    }
    stuck.await.expect("no panic").expect("there was a quorum all the time");
}

/// Goal: what earlier leaders acknowledged is applied here before this one decides anything.
#[tokio::test(flavor = "multi_thread")]
async fn leader_serves_once_the_first_entry_of_its_term_is_applied() {
    let cluster = Cluster::start(3, tuning()).await;
    let old = cluster.await_leader(&ALL).await;
    let new = &cluster.nodes[others(old)[0]];
    new.ledger.hold(true);
    propose_anywhere(&cluster, &[old], "acknowledged").await;
    cluster.nodes[old].group().transfer_leader(&[new.id]).await;
    let mut leadership = new.group().leadership();
    let leads = leadership.wait_for(|now| now.leader == Some(new.id)).await;
    assert!(!leads.expect("the group runs").serving, "it has applied nothing yet");
    assert!(new.ledger.payloads().is_empty());
    new.ledger.hold(false);
    leadership.wait_for(|now| now.serving).await.expect("the group runs");
    assert_eq!(new.ledger.payloads(), [bytes("acknowledged")]);
}
