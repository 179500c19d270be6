//! Takes up the shards of a node: the one place that knows both what a shard's leader does and what
//! the actors of its workflows are, which lie in wings of which the lower never sees the upper.

use crate::error::ShardError;
use crate::leader::term::{ShardActor, ShardMessage, ShardState};
use crate::route::cluster::Cluster;
use crate::workflow::actor;

/// The shards' actors of a node that serves.
pub struct Serving {
    actors: Vec<(ractor::ActorRef<ShardMessage>, tokio::task::JoinHandle<()>)>,
}

impl Cluster {
    /// Takes up the duties of the shards that this node leads, now and from now on.
    ///
    /// # Errors
    /// When an actor cannot be started.
    pub async fn serve(&self) -> Result<Serving, ShardError> {
        let mut actors = Vec::new();
        for id in self.host().shard_ids() {
            let cluster = self.clone();
            let state = ShardState { id, cluster, start_workflow: actor::start, serving: None };
            let started = ractor::Actor::spawn(None, ShardActor, state).await;
            let (actor, stopped) =
                started.map_err(|e| ShardError::Internal(format!("start shard {id}: {e}")))?;
            actors.push((actor, stopped));
        }
        Ok(Serving { actors })
    }
}

impl Serving {
    /// Lays down all duties: actors stop, polls are answered, nothing is decided any more.
    pub async fn stop(self) {
        for (actor, _) in &self.actors {
            actor.stop(None);
        }
        for (_, stopped) in self.actors {
            // An actor that panicked has stopped too.
            let _ = stopped.await;
        }
    }
}
