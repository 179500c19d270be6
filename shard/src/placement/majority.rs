//! Whether the leaders on this node are followed by a majority. One that is not is still the leader as far
//! as it knows, but can neither commit nor confirm anything: its callers, and the polls that wait at it, are
//! better off elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use piton_core::id::ShardId;
use piton_raft::{Group, Members, NodeId};
use tokio::time::{Instant, sleep};

use crate::route::cluster::Cluster;

/// Looks, until it is dropped.
pub(super) async fn run(cluster: Cluster) {
    let host = cluster.host();
    let wait = host.config().majority_wait;
    // Since when each of them leads, or when it was last followed.
    let mut followed: BTreeMap<ShardId, Instant> = BTreeMap::new();
    loop {
        for shard in host.shard_ids() {
            let replica = host.replica(shard).filter(|_| host.serving(shard).is_some());
            let Some(replica) = replica else {
                followed.remove(&shard);
                host.set_alone(shard, false);
                host.set_sole_voter(shard, false);
                continue;
            };
            let Members { voters, .. } = replica.group.members();
            host.set_sole_voter(shard, voters == [BTreeSet::from([host.node()])]);
            let last = followed.entry(shard).or_insert_with(Instant::now);
            if is_followed(&replica.group, &voters, host.node(), wait / 2) {
                *last = Instant::now();
            }
            host.set_alone(shard, last.elapsed() >= wait / 2);
        }
        sleep(wait / 8).await;
    }
}

/// Whether a majority, of each set of voters, was heard of within this time.
fn is_followed(group: &Group, voters: &[BTreeSet<NodeId>], this: NodeId, within: Duration) -> bool {
    let is_heard =
        |node: &&NodeId| **node == this || group.last_heard(**node).is_some_and(|ago| ago < within);
    voters.iter().all(|set| set.iter().filter(is_heard).count() > set.len() / 2)
}
