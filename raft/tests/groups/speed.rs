//! How fast groups commit on this machine. Not a test: run it by name, alone, and read the lines.

use std::io::Write;
use std::time::{Duration, Instant};

use piton_raft::{Group, GroupId, MemoryNetwork, NodeId};

use crate::support::{Ledger, await_until, bytes, members, open};

const PAYLOAD_BYTES: usize = 256;
const MEASURED: Duration = Duration::from_secs(3);

/// Writes zeros to a file of fixed size and syncs it, as the log does.
fn sync_time(dir: &std::path::Path) -> Duration {
    let mut file = std::fs::File::create(dir.join("probe")).expect("create");
    file.write_all(&vec![0; 1 << 20]).expect("fill");
    file.sync_all().expect("sync");
    let mut times: Vec<Duration> = (0..200)
        .map(|round| {
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 512], round * 512).expect("write");
            let begun = Instant::now();
            file.sync_data().expect("sync");
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Proposes in a closed loop from `callers` tasks spread over the groups.
async fn measure(groups: &[Group], callers: usize) -> (f64, Duration, Duration) {
    let end = Instant::now() + MEASURED;
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let group = groups[caller % groups.len()].clone();
            tokio::spawn(async move {
                let payload = bytes("x".repeat(PAYLOAD_BYTES));
                let mut times = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    group.propose(payload.clone()).await.expect("propose");
                    times.push(begun.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("no panic"));
    }
    times.sort();
    let rate = times.len() as f64 / MEASURED.as_secs_f64();
    (rate, times[times.len() / 2], times[times.len() * 99 / 100])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run alone: --ignored --nocapture speed"]
#[expect(clippy::print_stderr, reason = "its output is the point")]
async fn proposals_per_second() {
    for nodes in [1, 3] {
        let network = MemoryNetwork::new();
        let dirs: Vec<_> = (0..nodes).map(|_| tempfile::tempdir().expect("make one")).collect();
        eprintln!("{nodes} node(s), fdatasync p50 {:?}", sync_time(dirs[0].path()));
        let ids: Vec<u64> = (1..=nodes).collect();
        let mut leading: Vec<Vec<Group>> = Vec::new();
        let mut opened = Vec::new();
        for id in &ids {
            let node = NodeId(*id);
            let dir = dirs[*id as usize - 1].path();
            let groups = open(node, dir, network.transport(node), Default::default());
            let mut started = Vec::new();
            for group in 0..16 {
                let replica = Ledger::default().replica();
                let group = groups.bootstrap_with(GroupId(group), &members(&ids), replica).await;
                started.push(group.expect("start"));
            }
            leading.push(started);
            opened.push(groups);
        }
        let leaders: Vec<Group> = {
            let serves = |group: &Group| group.leadership().borrow().serving;
            let leader = |at: usize| leading.iter().map(move |node| &node[at]).find(|g| serves(g));
            await_until("all groups are led", || (0..16).all(|at| leader(at).is_some())).await;
            (0..16).filter_map(|at| leader(at).cloned()).collect()
        };
        for groups in [1, 16] {
            for callers in [1, 16, 64, 256] {
                let (rate, p50, p99) = measure(&leaders[..groups], callers).await;
                eprintln!(
                    "{groups} group(s), {callers} callers: {rate:.0}/s p50 {p50:?} p99 {p99:?}"
                );
            }
        }
        for groups in opened {
            groups.shutdown().await;
        }
    }
}
