//! The shards' actors of a node that serves: one for each replica here.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex as SyncMutex;
use piton_core::id::ShardId;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::error::ShardError;
use crate::leader::panics::text_of;
use crate::leader::term::{ShardActor, ShardMessage, ShardState};
use crate::placement::steward::Steward;
use crate::placement::{announce, keeper, majority};
use crate::route::cluster::Cluster;
use crate::workflow::actor;

/// What has panicked may well do so again at once.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// What serves on a node. Cheap to clone.
#[derive(Clone)]
pub struct Serving {
    cluster: Cluster,
    /// `None` when it has been stopped.
    actors: Arc<Mutex<Option<BTreeMap<ShardId, RunningShard>>>>,
    /// What keeps the cluster in order from this node.
    tasks: Arc<SyncMutex<JoinSet<()>>>,
}

type RunningShard = (ractor::ActorRef<ShardMessage>, JoinHandle<()>);

impl Cluster {
    /// Takes up the duties of the shards that this node leads, now and from now on.
    ///
    /// # Errors
    /// When an actor cannot be started.
    pub fn serve(&self) -> BoxFuture<'_, Result<Serving, ShardError>> {
        Box::pin(async move {
            let actors = Arc::new(Mutex::new(Some(BTreeMap::new())));
            let serving = Serving { cluster: self.clone(), actors, tasks: Arc::default() };
            for shard in self.host().shard_ids() {
                serving.take_up(shard).await?;
            }
            let mut tasks = JoinSet::new();
            let cluster = self.clone();
            tasks.spawn(again("announce", move || announce::run(cluster.clone())));
            let cluster = self.clone();
            tasks.spawn(again("keeper", move || keeper::run(cluster.clone())));
            let cluster = self.clone();
            tasks.spawn(again("majority", move || majority::run(cluster.clone())));
            let (cluster, here) = (self.clone(), serving.clone());
            tasks
                .spawn(again("steward", move || Steward::new(cluster.clone(), here.clone()).run()));
            *serving.tasks.lock() = tasks;
            Ok(serving)
        })
    }
}

/// Begins anew after a panic, which is a bug of ours: without these the cluster is in nobody's care.
async fn again<F: Future<Output = ()>>(what: &'static str, run: impl Fn() -> F) {
    while let Err(panic) = AssertUnwindSafe(run()).catch_unwind().await {
        let panic = text_of(panic.as_ref());
        tracing::error!(what, panic, "what keeps the cluster in order panicked and begins anew");
        sleep(PANIC_PAUSE).await;
    }
}

impl Serving {
    /// Takes up the duties of a shard whenever this node leads it. Does nothing where it has no
    /// replica of it, or has taken them up.
    ///
    /// # Errors
    /// When the actor cannot be started.
    pub(crate) async fn take_up(&self, shard: ShardId) -> Result<(), ShardError> {
        let mut actors = self.actors.lock().await;
        let Some(actors) = actors.as_mut().filter(|actors| !actors.contains_key(&shard)) else {
            return Ok(());
        };
        let Some(replica) = self.cluster.host().replica(shard) else { return Ok(()) };
        let cluster = self.cluster.clone();
        let start_workflow = actor::start;
        let state = ShardState { id: shard, replica, cluster, start_workflow, serving: None };
        let started = ractor::Actor::spawn(None, ShardActor, state).await;
        let started = started
            .map_err(|error| ShardError::Internal(format!("start shard {shard}: {error}")))?;
        actors.insert(shard, started);
        Ok(())
    }

    /// Lays down the duties of one shard.
    pub(crate) async fn lay_down(&self, shard: ShardId) {
        let stopped = self.actors.lock().await.as_mut().and_then(|actors| actors.remove(&shard));
        if let Some((actor, stopped)) = stopped {
            actor.stop(None);
            // An actor that panicked has stopped too.
            let _ = stopped.await;
        }
    }

    /// Lays down all duties: actors stop, polls are answered, nothing is decided any more.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut tasks = std::mem::take(&mut *self.tasks.lock());
            tasks.shutdown().await;
            let actors = self.actors.lock().await.take().unwrap_or_default();
            for (actor, _) in actors.values() {
                actor.stop(None);
            }
            for (_, stopped) in actors.into_values() {
                // An actor that panicked has stopped too.
                let _ = stopped.await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    /// Goal: a bug in what keeps the cluster in order leaves it in nobody's care for a moment only.
    #[tokio::test(start_paused = true)]
    async fn what_keeps_the_cluster_in_order_begins_anew_after_a_panic() {
        let (begun, runs) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&runs);
        again("a test", move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(run == 2, "told to panic") }
        })
        .await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert_eq!(begun.elapsed(), 2 * PANIC_PAUSE);
    }
}
