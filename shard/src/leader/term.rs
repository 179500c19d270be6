//! Takes up a shard's duties when its replica serves in a term, and lays them down, before anything
//! else, when it does not.

use std::sync::Arc;
use std::time::Duration;

use piton_core::id::ShardId;
use piton_core::placement;
use piton_raft::Leadership;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::error::ShardError;
use crate::leader::dispatch::Duty;
use crate::leader::reads::unreadable;
use crate::leader::runtime::{ShardRuntime, StartWorkflow};
use crate::leader::timers::TimerActor;
use crate::replica::entry::encode_range;
use crate::route::cluster::Cluster;
use crate::route::host::LocalReplica;
use crate::rows::range::SlotRange;

/// Wait before a shard's first entry is proposed again.
const TAKE_UP_PAUSE: Duration = Duration::from_millis(20);

/// Takes up and lays down a shard's duties as leadership comes and goes.
pub(crate) struct ShardActor;

pub(crate) enum ShardMessage {
    Leadership(Leadership),
    Sweep,
    Expire,
}

pub(crate) struct ShardState {
    pub(crate) id: ShardId,
    pub(crate) replica: Arc<LocalReplica>,
    pub(crate) cluster: Cluster,
    pub(crate) start_workflow: StartWorkflow,
    pub(crate) serving: Option<Arc<ShardRuntime>>,
}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardState;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        state: ShardState,
    ) -> Result<ShardState, ActorProcessingErr> {
        let mut leadership = state.replica.group.leadership();
        let watcher = myself.clone();
        tokio::spawn(async move {
            loop {
                let now = *leadership.borrow_and_update();
                let told = watcher.cast(ShardMessage::Leadership(now));
                if told.is_err() || leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        let idle = state.cluster.host().config().idle;
        if !idle.is_zero() {
            let interval = state.cluster.host().config().idle_closed() / 2;
            myself.send_interval(interval, || ShardMessage::Sweep);
        }
        let interval = state.cluster.host().config().retention_interval;
        myself.send_interval(interval, || ShardMessage::Expire);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<ShardMessage>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMessage::Leadership(now) => state.follow(now).await,
            ShardMessage::Sweep => {
                if let Some(runtime) = &state.serving {
                    runtime.sweep();
                }
            }
            ShardMessage::Expire => {
                if let Some(runtime) = &state.serving {
                    runtime.expire();
                    runtime.queues.sweep();
                    runtime.offer_to_other_nodes();
                }
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<ShardMessage>,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        state.follow(Leadership::default()).await;
        Ok(())
    }
}

impl ShardState {
    async fn follow(&mut self, now: Leadership) {
        let serves = now.serving.then_some(now.term);
        if self.serving.as_ref().map(|r| r.term) == serves {
            return;
        }
        let host = Arc::clone(self.cluster.host());
        // ORDER: the old term's actors are gone before the new term's can exist.
        if let Some(old) = self.serving.take() {
            host.set_serving(self.id, None);
            old.stop();
            old.metrics.leads(self.id, false);
            tracing::debug!(shard = %self.id, term = old.term, "laid down leadership");
        }
        if let Some(term) = serves {
            if self.cluster.passes_on(&self.replica.group).await {
                return;
            }
            while let Err(error) = own_slots(&self.replica, self.id, &self.cluster).await {
                tracing::warn!(shard = %self.id, %error, "cannot take up leadership");
                if *self.replica.group.leadership().borrow() != now {
                    // It has moved again, or the node is stopping; the next change is followed.
                    return;
                }
                tokio::time::sleep(TAKE_UP_PAUSE).await;
            }
            let of = (self.id, &*self.replica);
            let runtime = take_up(ShardRuntime::new(&self.cluster, of, term, self.start_workflow));
            self.serving = Some(Arc::clone(&runtime));
            host.set_serving(self.id, Some(runtime));
            tracing::debug!(shard = %self.id, term, "took up leadership");
        }
    }
}

/// A new shard's first entry gives it its slots (D1); no transition is applied before.
async fn own_slots(
    replica: &LocalReplica,
    id: ShardId,
    cluster: &Cluster,
) -> Result<(), ShardError> {
    if replica.rows.range().map_err(unreadable)?.is_some() {
        return Ok(());
    }
    let slots = placement::initial_range(id, cluster.host().config().shards);
    let entry = encode_range(cluster.level(), &SlotRange { version: 1, slots });
    let committed = replica.group.propose(entry).await;
    committed.map(|_| ()).map_err(|e| ShardError::Unavailable(e.to_string()))
}

/// Starts the duties of a term: timers, waiting tasks and errands are found in the rows.
fn take_up(runtime: ShardRuntime) -> Arc<ShardRuntime> {
    let (id, runtime) = (runtime.id, Arc::new(runtime));
    runtime.metrics.leads(id, true);
    TimerActor::start(&runtime);
    for owner in runtime.cluster.host().shard_ids().filter(|&owner| owner != id) {
        runtime.follow_owner(owner);
    }
    let resumed = Arc::clone(&runtime);
    tokio::spawn(async move { resumed.resume().await });
    runtime
}

impl ShardRuntime {
    /// Offers what waits and resumes the errands that the last leader left.
    async fn resume(self: Arc<Self>) {
        self.offer_first_tasks(|_| true);
        match self.rows.runs_with_errands() {
            Ok(runs) => {
                for (key, run_id) in runs {
                    self.remind(key, Duty::Resume { run_id });
                }
            }
            Err(error) => tracing::error!(shard = %self.id, %error, "cannot read errand rows"),
        }
    }
}
