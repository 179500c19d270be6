//! The way of calls and deliveries between the shards of different nodes: over a network that loses,
//! delays and repeats them.

use std::sync::Arc;

use async_trait::async_trait;
use piton_core::id::ShardId;
use piton_raft::NodeId;
use piton_shard::{
    Answer, Call, Cluster, Delivery, MetaError, NodeAnswer, NodeCall, Peer, PollId, Receipt,
    ShardError,
};
use tokio::time::sleep_until;

use crate::life::Life;
use crate::world::World;

/// A node's way to the shards of others.
pub(crate) struct LifePeer {
    pub(crate) life: Arc<Life>,
    pub(crate) world: World,
}

impl LifePeer {
    fn reach(&self, node: NodeId) -> Option<(Arc<Life>, Cluster)> {
        let running = self.world.running();
        let found = running.into_iter().find(|(life, ..)| life.node == node);
        found.filter(|_| self.life.is_alive()).map(|(life, cluster, _)| (life, cluster))
    }
}

#[async_trait]
impl Peer for LifePeer {
    async fn call(&self, node: NodeId, shard: ShardId, call: Call) -> Result<Answer, ShardError> {
        let unreachable = || ShardError::Unavailable(format!("node {node} cannot be reached"));
        let network = self.world.network();
        let way = network.way(self.life.node, node);
        sleep_until(way.at).await;
        let (there, cluster) = self.reach(node).filter(|_| way.arrives).ok_or_else(unreachable)?;
        let again = call.clone();
        let answer = tokio::select! {
            biased;
            // A connection that breaks tells nothing about what became of the call.
            () = there.over() => return Err(unreachable()),
            () = self.life.over() => return Err(unreachable()),
            answer = cluster.answer_peer(shard, call) => answer,
        };
        // What was carried out may come again. What was refused may not: done later, it would do what
        // its sender knows not to have been done, which nothing in the API guards against.
        if let Some(again_at) = way.again_at.filter(|_| answer.is_ok()) {
            let there = Arc::clone(&there);
            tokio::spawn(async move {
                sleep_until(again_at).await;
                if there.is_alive() {
                    // Nobody waits for the second answer.
                    let _ = cluster.answer_peer(shard, again).await;
                }
            });
        }
        let back = network.way(node, self.life.node);
        sleep_until(back.at).await;
        if !back.arrives || !self.life.is_alive() || !there.is_alive() {
            return Err(unreachable());
        }
        answer
    }

    async fn deliver(&self, node: NodeId, poll: PollId, delivery: Delivery) -> Receipt {
        let network = self.world.network();
        let way = network.way(self.life.node, node);
        sleep_until(way.at).await;
        let Some((there, cluster)) = self.reach(node).filter(|_| way.arrives) else {
            return Receipt::Unreachable;
        };
        let receipt = cluster.accept_delivery(poll, delivery);
        let back = network.way(node, self.life.node);
        sleep_until(back.at).await;
        if back.arrives && there.is_alive() && self.life.is_alive() {
            receipt
        } else {
            Receipt::Unreachable
        }
    }

    async fn node(&self, node: NodeId, call: NodeCall) -> Result<NodeAnswer, MetaError> {
        let unheard = || MetaError::Unavailable(format!("node {node} does not answer"));
        let network = self.world.network();
        let way = network.way(self.life.node, node);
        sleep_until(way.at).await;
        let reached = self.reach(node).filter(|_| way.arrives);
        let (there, cluster) = reached.ok_or(MetaError::NotLed { leader: None })?;
        let answer = tokio::select! {
            biased;
            () = there.over() => return Err(unheard()),
            () = self.life.over() => return Err(unheard()),
            answer = cluster.answer_node(call) => answer,
        };
        let back = network.way(node, self.life.node);
        sleep_until(back.at).await;
        if back.arrives && self.life.is_alive() && there.is_alive() {
            answer
        } else {
            Err(unheard())
        }
    }
}
