//! The way of calls and deliveries between the shards of different nodes: over a network that loses,
//! delays and repeats them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use piton_raft::NodeId;
use piton_shard::{Carrier, Cluster, PeerAnswer, Unanswered};
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
impl Carrier for LifePeer {
    async fn ask(&self, node: NodeId, request: Bytes, _: Duration) -> Result<Bytes, Unanswered> {
        let lost = |why: &str| Err(Unanswered::Lost { node, why: why.to_owned() });
        let network = self.world.network();
        let way = network.way(self.life.node, node);
        sleep_until(way.at).await;
        if !way.arrives {
            return lost("the request was lost");
        }
        let Some((there, cluster)) = self.reach(node) else {
            return Err(Unanswered::NotSent { node, why: "it does not run".to_owned() });
        };
        let answer = tokio::select! {
            biased;
            // A connection that breaks tells nothing about what became of the request.
            () = there.over() => return lost("it has ended"),
            () = self.life.over() => return lost("this node has ended"),
            answer = cluster.answer_bytes(self.life.node, &request) => answer,
        };
        // A call that was carried out may come again. What was refused may not: done later, it would do
        // what its sender knows not to have been done, which nothing in the API guards against.
        let is_done = matches!(PeerAnswer::decode(&answer), Ok(PeerAnswer::Call(Ok(_))));
        if let Some(again_at) = way.again_at.filter(|_| is_done) {
            let (there, from) = (Arc::clone(&there), self.life.node);
            tokio::spawn(async move {
                sleep_until(again_at).await;
                if there.is_alive() {
                    // Nobody waits for the second answer.
                    let _ = cluster.answer_bytes(from, &request).await;
                }
            });
        }
        let back = network.way(node, self.life.node);
        sleep_until(back.at).await;
        if !back.arrives || !self.life.is_alive() || !there.is_alive() {
            return lost("the answer was lost");
        }
        Ok(answer)
    }
}
