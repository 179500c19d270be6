//! Who leads each shard, as far as this node knows: from its own replicas, and, of shards that it does
//! not hold, from what their leaders say.

use piton_core::id::ShardId;
use piton_raft::NodeId;
use tokio::sync::watch;

/// Who leads a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leader {
    /// The highest term that was heard of.
    pub(crate) term: u64,
    /// Who leads in it, if that is known.
    pub(crate) leader: Option<NodeId>,
}

/// The leaders of all shards.
pub(crate) struct Leaders {
    shards: Vec<watch::Sender<Leader>>,
}

impl Leaders {
    pub(crate) fn new(shards: u32) -> Self {
        Self { shards: (0..shards).map(|_| watch::channel(Leader::default()).0).collect() }
    }

    /// Sees every change from now on.
    pub(crate) fn watch(&self, shard: ShardId) -> watch::Receiver<Leader> {
        self.shards[shard.0 as usize].subscribe()
    }

    pub(crate) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.shards[shard.0 as usize].borrow().leader
    }

    /// Somebody who can know says so. What is of an older term is old.
    pub(crate) fn hear(&self, shard: ShardId, now: Leader) {
        // Another node may speak of a shard that this release, or this cluster, does not have.
        let Some(known) = self.shards.get(shard.0 as usize) else { return };
        known.send_if_modified(|known| {
            let is_news = now.term >= known.term && now != *known;
            if is_news {
                *known = now;
            }
            is_news
        });
    }

    /// This node's replica is no more. Whoever was left out may have stood for election in term after
    /// term: the leader's own is lower, and nothing else is heard of it from here on.
    pub(crate) fn forget(&self, shard: ShardId) {
        self.shards[shard.0 as usize].send_replace(Leader::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_an_older_term_is_not_believed() {
        let leaders = Leaders::new(2);
        let said = |term, leader: u64| Leader { term, leader: Some(NodeId(leader)) };
        leaders.hear(ShardId(1), said(3, 1));
        leaders.hear(ShardId(1), said(2, 2));
        assert_eq!(leaders.leader(ShardId(1)), Some(NodeId(1)));
        // Its own replica hears nothing of the leader any more.
        leaders.hear(ShardId(1), Leader { term: 3, leader: None });
        assert_eq!(leaders.leader(ShardId(1)), None);
        leaders.hear(ShardId(1), said(4, 2));
        assert_eq!(leaders.leader(ShardId(1)), Some(NodeId(2)));
        assert_eq!(leaders.leader(ShardId(0)), None);
        leaders.hear(ShardId(7), said(1, 1));
    }

    #[test]
    fn what_a_replica_that_is_gone_knew_is_held_against_nobody() {
        let leaders = Leaders::new(1);
        leaders.hear(ShardId(0), Leader { term: 9, leader: None });
        let now = Leader { term: 3, leader: Some(NodeId(2)) };
        leaders.hear(ShardId(0), now);
        assert_eq!(leaders.leader(ShardId(0)), None);
        leaders.forget(ShardId(0));
        leaders.hear(ShardId(0), now);
        assert_eq!(leaders.leader(ShardId(0)), Some(NodeId(2)));
    }
}
