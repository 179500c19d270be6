//! What lies on the disk is damaged: of a group that others hold it is filled anew, and what is damaged
//! while the state is whole is replaced (A.5, T8).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use piton_raft::{GroupId, Groups, LOG_DIRECTORY, Removed, SNAPSHOT_DIRECTORY, Tuning};

use crate::support::{Cluster, GROUP, Ledger, await_until, bytes, open_on};

const ALL: [usize; 3] = [0, 1, 2];

fn tuning() -> Tuning {
    let mut tuning = Tuning::quick();
    // Several segments, none of which is in memory.
    (tuning.log.segment_bytes, tuning.log.preallocate_bytes) = (8 << 10, 0);
    tuning.log.cache_bytes_max = 0;
    tuning.log_held_bytes_max = 0;
    tuning
}

async fn propose(cluster: &Cluster, among: &[usize], payload: &str) -> u64 {
    loop {
        let leader = cluster.await_leader(among).await;
        let payload = bytes(format!("{payload:-<200}"));
        if let Ok(committed) = cluster.nodes[leader].group().propose(payload).await {
            return committed.index;
        }
    }
}

async fn await_holds(cluster: &Cluster, index: usize, last: u64) {
    await_until("it holds what was proposed", || cluster.nodes[index].ledger.applied() >= last)
        .await;
}

async fn await_equal(cluster: &Cluster, one: usize, other: usize) {
    let payloads = |index: usize| cluster.nodes[index].ledger.payloads();
    await_until("both hold the same", || payloads(one) == payloads(other)).await;
}

/// Found, and filled anew.
fn counted(groups: &Groups) -> (u64, u64) {
    let stats = groups.damage_stats();
    (stats.found.load(Ordering::Relaxed), stats.refilled.load(Ordering::Relaxed))
}

fn snapshot_in(dir: &Path) -> PathBuf {
    let mut files = files_in(&dir.join(SNAPSHOT_DIRECTORY)).into_iter();
    files.find(|path| path.extension().is_some_and(|it| it == "snapshot")).expect("a snapshot")
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).expect("list the directory");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("read the file");
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).expect("write the file");
}

/// Flips a bit of what was proposed, in an earlier segment of the log.
fn flip_entry(dir: &Path, payload: &str) {
    for path in files_in(&dir.join(LOG_DIRECTORY)) {
        let bytes = std::fs::read(&path).expect("read the segment");
        if let Some(at) = bytes.windows(payload.len()).position(|it| it == payload.as_bytes()) {
            return flip(&path, at);
        }
    }
    panic!("{payload} is in no segment");
}

/// Three nodes, of which one has a snapshot, and behind it a log. Answers which.
async fn with_a_snapshot(cluster: &Cluster) -> usize {
    let leader = cluster.await_leader(&ALL).await;
    let index = (leader + 1) % 3;
    let mut last = 0;
    for number in 0..60 {
        last = propose(cluster, &ALL, &format!("early-{number}-")).await;
    }
    await_holds(cluster, index, last).await;
    let node = &cluster.nodes[index];
    node.ledger.checkpoint();
    let taken = node.group().snapshot_now().await.expect("take a snapshot");
    await_until("the log is purged", || node.group().metrics().purged_index == taken).await;
    for number in 0..60 {
        last = propose(cluster, &ALL, &format!("late-{number}-")).await;
    }
    await_holds(cluster, index, last).await;
    index
}

/// Goal: neither a snapshot nor an entry that is still to be applied keeps a node from coming back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_and_needed_is_filled_anew_by_the_others() {
    for damaged in ["a snapshot", "a snapshot's head", "an entry"] {
        let mut cluster = Cluster::start(3, tuning()).await;
        let index = with_a_snapshot(&cluster).await;
        cluster.stop_node(index).await;
        let node = &cluster.nodes[index];
        if damaged == "an entry" {
            flip_entry(node.dir(), "late-7-");
        } else {
            // Nothing says any more who belongs to the group, if it was in the head.
            flip(&snapshot_in(node.dir()), if damaged == "a snapshot" { 300 } else { 32 });
            node.ledger.lose();
        }
        cluster.start_node(index).await;
        assert_eq!(counted(cluster.nodes[index].groups()), (1, 1), "{damaged}");
        let last = propose(&cluster, &ALL, "after").await;
        await_holds(&cluster, index, last).await;
        await_equal(&cluster, index, (index + 1) % 3).await;

        // Nor does it have to be filled again.
        cluster.stop_node(index).await;
        cluster.start_node(index).await;
        let last = propose(&cluster, &ALL, "at last").await;
        await_holds(&cluster, index, last).await;
        assert_eq!(counted(cluster.nodes[index].groups()), (0, 0), "{damaged}");
        await_equal(&cluster, index, (index + 1) % 3).await;
    }
}

/// Goal: a replica that gave up what it acknowledged elects nobody who lacks that.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_filled_anew_elects_nobody_who_lacks_what_it_had() {
    let mut cluster = Cluster::start(3, tuning()).await;
    let damaged = with_a_snapshot(&cluster).await;
    let leader = cluster.await_leader(&ALL).await;
    let behind = ALL.into_iter().find(|index| ![damaged, leader].contains(index)).unwrap();
    cluster.stop_node(behind).await;
    let last = propose(&cluster, &[damaged, leader], "acknowledged by two").await;
    await_holds(&cluster, damaged, last).await;
    cluster.stop_node(damaged).await;
    cluster.stop_node(leader).await;
    flip(&snapshot_in(cluster.nodes[damaged].dir()), 300);
    cluster.nodes[damaged].ledger.lose();

    cluster.start_node(damaged).await;
    cluster.start_node(behind).await;
    assert_eq!(counted(cluster.nodes[damaged].groups()), (1, 1));
    // It stands for election again and again, and would have won at the first.
    let stood = |cluster: &Cluster| cluster.network.frames_sent();
    let before = stood(&cluster);
    await_until("there were elections", || stood(&cluster) > before + 20).await;
    for index in [damaged, behind] {
        assert!(!cluster.nodes[index].group().leadership().borrow().serving);
        assert!(cluster.nodes[index].ledger.applied() < last);
    }
    cluster.start_node(leader).await;
    for index in ALL {
        await_holds(&cluster, index, last).await;
    }
    await_equal(&cluster, damaged, leader).await;
    await_equal(&cluster, behind, leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_replaced_where_the_state_is_whole() {
    let mut cluster = Cluster::start(3, tuning()).await;
    let index = with_a_snapshot(&cluster).await;
    cluster.nodes[index].ledger.checkpoint();
    cluster.stop_node(index).await;
    let damaged = snapshot_in(cluster.nodes[index].dir());
    flip(&damaged, 12);
    cluster.start_node(index).await;
    assert_eq!(counted(cluster.nodes[index].groups()), (0, 0));
    assert_ne!(snapshot_in(cluster.nodes[index].dir()), damaged);
    // And it is one to start from.
    cluster.stop_node(index).await;
    cluster.nodes[index].ledger.lose();
    cluster.start_node(index).await;
    assert_eq!(counted(cluster.nodes[index].groups()), (0, 0));
    let last = propose(&cluster, &ALL, "after").await;
    await_holds(&cluster, index, last).await;
    await_equal(&cluster, index, (index + 1) % 3).await;
}

/// Goal: what nobody else has is not given up, nor what an operator wants to see first.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_this_node_holds_is_refused_and_stays() {
    for nodes in [1, 3] {
        let mut cluster = Cluster::start(nodes, Tuning { refill: nodes == 1, ..tuning() }).await;
        let leader = cluster.await_leader(&(0..nodes as usize).collect::<Vec<_>>()).await;
        let group = cluster.nodes[leader].group();
        for number in 0..60 {
            group.propose(bytes(format!("{number:-<200}"))).await.unwrap();
        }
        cluster.nodes[leader].ledger.checkpoint();
        group.snapshot_now().await.unwrap();
        for index in 0..nodes as usize {
            cluster.stop_node(index).await;
        }
        let node = &cluster.nodes[leader];
        let snapshot = snapshot_in(node.dir());
        flip(&snapshot, 300);
        node.ledger.lose();
        let transport = cluster.network.transport(node.id);
        let groups = open_on(
            Arc::new(node.disk.clone()),
            node.id,
            node.dir(),
            transport,
            cluster.tuning.clone(),
        );
        let started = groups.start(GROUP, node.ledger.replica()).await;
        let error = started.err().expect("it is damaged");
        assert_eq!(error.to_string(), format!("use the snapshot of group {}", GROUP.0));
        assert!(snapshot.exists());
        groups.shutdown().await;
    }
}

/// Goal: damage is found and mended before anybody needs what is damaged.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_while_the_state_is_whole() {
    let mut tuning = tuning();
    tuning.scrub_every = Duration::from_millis(100);
    tuning.snapshot_check = Duration::from_millis(50);
    for damaged in ["a snapshot", "an entry"] {
        let mut cluster = Cluster::start(3, tuning.clone()).await;
        let index = with_a_snapshot(&cluster).await;
        let node = &cluster.nodes[index];
        node.ledger.checkpoint();
        if damaged == "an entry" {
            flip_entry(node.dir(), "late-7-");
        } else {
            flip(&snapshot_in(node.dir()), 300);
        }
        await_until("it is found", || counted(node.groups()).0 >= 1).await;
        await_until("it is mended", || node.group().metrics().purged_index > 100).await;
        cluster.stop_node(index).await;
        cluster.nodes[index].ledger.lose();
        cluster.start_node(index).await;
        assert_eq!(counted(cluster.nodes[index].groups()).1, 0, "{damaged}");
        let last = propose(&cluster, &ALL, "after").await;
        await_holds(&cluster, index, last).await;
        await_equal(&cluster, index, (index + 1) % 3).await;
    }
}

/// Goal: who else has the group is said by the newest that can be read, not by what was so once.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_held_once_is_not_given_up() {
    let mut cluster = Cluster::start(3, Tuning { read_bytes_max: 16 << 10, ..tuning() }).await;
    // More than is read at once, so that who leaves is read with the damaged entry.
    for number in 0..80 {
        propose(&cluster, &ALL, &format!("early-{number}-")).await;
    }
    cluster.nodes[0].ledger.checkpoint();
    cluster.set_voters(&[1], Removed::Leaves).await;
    for number in 0..60 {
        propose(&cluster, &[0], &format!("late-{number}-")).await;
    }
    cluster.stop_node(0).await;
    let node = &cluster.nodes[0];
    flip_entry(node.dir(), "late-7-");
    let (disk, transport) = (Arc::new(node.disk.clone()), cluster.network.transport(node.id));
    let groups = open_on(disk, node.id, node.dir(), transport, cluster.tuning.clone());
    let started = groups.start(GROUP, node.ledger.replica()).await;
    assert!(started.is_err(), "nobody else has it");
    assert!(groups.holds(GROUP));
    groups.shutdown().await;
}

/// Goal: a crash after the log has forgotten leaves nothing of a restoration that damage had ended.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restoration_left_is_cleared_after_a_crash_too() {
    let mut cluster = Cluster::start(3, tuning()).await;
    let index = with_a_snapshot(&cluster).await;
    cluster.stop_node(index).await;
    let node = &cluster.nodes[index];
    flip(&snapshot_in(node.dir()), 300);
    node.ledger.lose();
    node.ledger.fail_to_clear(true);
    let (disk, transport) = (Arc::new(node.disk.clone()), cluster.network.transport(node.id));
    let groups = open_on(disk, node.id, node.dir(), transport, cluster.tuning.clone());
    let started = groups.start(GROUP, node.ledger.replica()).await;
    assert!(started.is_err(), "its rows cannot be cleared");
    groups.shutdown().await;
    cluster.network.remove(node.id);
    node.ledger.fail_to_clear(false);
    cluster.start_node(index).await;
    assert!(cluster.nodes[index].ledger.clears() > 0);
    let last = propose(&cluster, &ALL, "after").await;
    await_holds(&cluster, index, last).await;
    await_equal(&cluster, index, (index + 1) % 3).await;
}

/// Goal: openraft looks at the first entry when it starts, whether that is applied or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_first_entry_that_is_applied_does_not_keep_a_node_from_coming_back() {
    let mut cluster = Cluster::start(3, tuning()).await;
    let index = with_a_snapshot(&cluster).await;
    cluster.nodes[index].ledger.checkpoint();
    cluster.stop_node(index).await;
    flip_entry(cluster.nodes[index].dir(), "late-0-");
    cluster.start_node(index).await;
    assert_eq!(counted(cluster.nodes[index].groups()), (1, 0));
    let last = propose(&cluster, &ALL, "after").await;
    await_holds(&cluster, index, last).await;
    // What took its place is one to start from.
    cluster.stop_node(index).await;
    cluster.nodes[index].ledger.lose();
    cluster.start_node(index).await;
    assert_eq!(counted(cluster.nodes[index].groups()), (0, 0));
    let last = propose(&cluster, &ALL, "at last").await;
    await_holds(&cluster, index, last).await;
    await_equal(&cluster, index, (index + 1) % 3).await;
}

/// Goal: the log goes on where it cannot move an entry forward, which is damaged, and that is mended at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_that_is_to_be_moved_does_not_end_the_log() {
    let cluster = Cluster::start(1, tuning()).await;
    let mut last = 0;
    for number in 0..20 {
        last = propose(&cluster, &[0], &format!("idle-{number}-")).await;
    }
    let node = &cluster.nodes[0];
    node.ledger.checkpoint();
    let busy = Ledger::default();
    let other = node.groups().bootstrap(GroupId(9), busy.replica()).await.expect("found it");
    await_until("it serves", || other.leadership().borrow().serving).await;
    let fill = async || {
        for number in 0..60 {
            other.propose(bytes(format!("busy-{number:-<200}"))).await.expect("the log goes on");
        }
    };
    fill().await;
    flip_entry(node.dir(), "idle-3-");
    let freed = || node.groups().log().stats().segments_freed.load(Ordering::Relaxed);
    let before = freed();
    for _ in 0..10 {
        busy.checkpoint();
        other.snapshot_now().await.expect("take a snapshot");
        fill().await;
    }
    await_until("it is mended", || node.group().metrics().purged_index >= last).await;
    busy.checkpoint();
    other.snapshot_now().await.expect("take a snapshot");
    fill().await;
    await_until("its segment is freed", || freed() > before).await;
    assert!(node.groups().failed().borrow().is_none());
    assert_eq!(counted(node.groups()).1, 0);
}
