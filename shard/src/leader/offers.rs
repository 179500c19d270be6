//! What waits in the shard's rows, offered to the queues' owners: when a term begins, when a queue has
//! room again or another owner, and now and then to other nodes, since an offer may be lost on its way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use piton_core::effect::TaskKey;
use piton_core::id::ShardId;
use piton_core::matching::{self, Bounds};

use crate::leader::runtime::ShardRuntime;
use crate::message::{Offer, OfferedTask, QueueKey, WantedTasks};
use crate::rows::tasks::FirstTasks;
use crate::rows::{LoadError, TaskRow};

impl ShardRuntime {
    /// Offers the first tasks that a queue has room for.
    pub(crate) fn offer_again(&self, wanted: &WantedTasks) {
        self.begin_offer_round();
        let WantedTasks { queue, class, limit } = wanted;
        let offered = match class {
            Some(class) => {
                let is_meant = |row: &TaskRow| !self.is_held(row);
                let first = self.rows.first_of_class(queue, class, *limit, is_meant);
                first.map(|first| self.offer_in_order(first))
            }
            None => self.offer_each_class(queue, *limit),
        };
        if let Err(error) = offered {
            tracing::error!(shard = %self.id, %error, "cannot read task rows");
        }
    }

    /// Offers what waits here in the queues of these owners. What they hold already, or have given
    /// to a worker, they or the task's workflow drop.
    pub(crate) fn offer_first_tasks(&self, is_meant: impl Fn(ShardId) -> bool) {
        self.begin_offer_round();
        // All shards together fill a window; its owner asks for the rest.
        let shards = self.cluster.host().shard_ids().count().max(1);
        let limit = (self.config.matching_window / shards).max(Bounds::LANE_MIN);
        let offered = self.rows.queues_with_tasks().and_then(|queues| {
            let mut meant = queues.iter().filter(|q| is_meant(self.cluster.shard_of_queue(q)));
            meant.try_for_each(|queue| self.offer_each_class(queue, limit))
        });
        if let Err(error) = offered {
            tracing::error!(shard = %self.id, %error, "cannot read task rows");
        }
    }

    /// ORDER: before the rows are read. Whoever sees the same count before its task was offered and after
    /// its row was there knows that no round has missed it meanwhile.
    fn begin_offer_round(&self) {
        self.offer_rounds.fetch_add(1, Ordering::SeqCst);
    }

    fn offer_each_class(&self, queue: &QueueKey, limit: usize) -> Result<(), LoadError> {
        let is_meant = |row: &TaskRow| !self.is_held(row);
        for first in self.rows.first_of_each_class(queue, limit, is_meant)? {
            self.offer_in_order(first);
        }
        Ok(())
    }

    /// Whether a worker has this task. Such rows must not stand among the first ones: behind a
    /// window full of them nothing would be offered, and polls would get them in a circle.
    fn is_held(&self, row: &TaskRow) -> bool {
        matches!(row.task, TaskKey::Workflow { .. }) && self.workflows.is_held(&row.key)
    }

    /// Offers to other nodes may be lost on the way, so they are made again.
    pub(crate) fn offer_to_other_nodes(&self) {
        let host = self.cluster.host();
        let is_elsewhere = |owner: ShardId| host.serving(owner).is_none();
        if host.shard_ids().any(is_elsewhere) {
            self.offer_first_tasks(is_elsewhere);
        }
    }

    /// Offers again whenever a shard gets another leader: the queues that it owns begin empty there
    /// (D8).
    pub(crate) fn follow_owner(self: &Arc<Self>, owner: ShardId) {
        let shard = Arc::downgrade(self);
        let mut leadership = self.cluster.host().leaders().watch(owner);
        let mut term = leadership.borrow_and_update().term;
        tokio::spawn(async move {
            while leadership.changed().await.is_ok() {
                let now = *leadership.borrow_and_update();
                let Some(shard) = shard.upgrade().filter(|shard| !shard.is_stopped()) else {
                    return;
                };
                if now.leader.is_some() && now.term != term {
                    term = now.term;
                    shard.offer_first_tasks(|of| of == owner);
                }
            }
        });
    }

    /// Offers the first tasks of one class; with the last one goes whether there are more.
    fn offer_in_order(&self, first: FirstTasks) {
        let last = first.rows.len();
        for (row, place) in first.rows.into_iter().zip(1..) {
            let more_behind = first.has_more && place == last;
            self.cluster.offer(Offer { more_behind, ..self.offer_of(row) });
        }
    }

    fn offer_of(&self, row: TaskRow) -> Offer {
        Offer {
            class: row.class(),
            stride: matching::stride(row.fairness_weight),
            queue: row.queue,
            origin: self.id,
            key: row.key,
            run_id: row.run_id,
            task: OfferedTask::Task(row.task),
            created: row.created,
            more_behind: false,
        }
    }
}
