//! What waits in the shard's rows, offered to the queues' owners: when a term begins, when a queue has
//! room again or another owner, and now and then to other nodes, since an offer may be lost on its way.

use std::sync::Arc;

use piton_core::effect::TaskKey;
use piton_core::id::ShardId;

use crate::leader::runtime::ShardRuntime;
use crate::message::{Offer, OfferedTask, QueueKey};
use crate::rows::TaskRow;

impl ShardRuntime {
    /// Offers a queue's first tasks of this shard, as the queue has room.
    pub(crate) fn offer_again(&self, queue: &QueueKey) {
        match self.rows.tasks(queue, self.config.matching_window, |row| !self.is_held(row)) {
            Ok(rows) => self.offer_in_order(&rows),
            Err(error) => tracing::error!(shard = %self.id, %error, "cannot read task rows"),
        }
    }

    /// Offers what waits here in the queues of these owners. What they hold already, or have given
    /// to a worker, they or the task's workflow drop.
    pub(crate) fn offer_first_tasks(&self, is_meant: impl Fn(ShardId) -> bool) {
        match self.rows.first_tasks(self.config.matching_window, |row| !self.is_held(row)) {
            Ok(rows) => {
                for rows in rows.chunk_by(|one, next| one.queue == next.queue) {
                    if is_meant(self.cluster.shard_of_queue(&rows[0].queue)) {
                        self.offer_in_order(rows);
                    }
                }
            }
            Err(error) => tracing::error!(shard = %self.id, %error, "cannot read task rows"),
        }
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
    /// (architecture D8).
    pub(crate) fn follow_owner(self: &Arc<Self>, owner: ShardId) {
        let shard = Arc::downgrade(self);
        let mut leadership = self.cluster.host().group(owner).leadership();
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

    /// Offers the first tasks of one queue. Where they are as many as its owner holds, others may
    /// wait behind them: if all of these found room there, nobody would ask for the others.
    fn offer_in_order(&self, rows: &[TaskRow]) {
        let has_more = rows.len() >= self.config.matching_window;
        for (left, row) in (0..rows.len()).rev().zip(rows) {
            let more_behind = has_more && left == 0;
            self.cluster.offer(Offer { more_behind, ..self.offer_of(row.clone()) });
        }
    }

    fn offer_of(&self, row: TaskRow) -> Offer {
        Offer {
            queue: row.queue,
            origin: self.id,
            key: row.key,
            run_id: row.run_id,
            task: OfferedTask::Task(row.task),
            priority: row.priority,
            created: row.created,
            more_behind: false,
        }
    }
}
