//! The rows of tasks that wait for a worker, as they are offered to their queues.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use piton_core::matching::Class;
use piton_core::time::Timestamp;
use piton_store::{KeyRange, Order, Row};

use crate::message::QueueKey;
use crate::rows::codes::queue_code;
use crate::rows::scan::{self, Scan, Scanning};
use crate::rows::values::{TaskRow, end_of, task_row};
use crate::rows::{LoadError, WorkflowRows, keys, records};

/// The first tasks of one class in one queue, the oldest first.
pub(crate) struct FirstTasks {
    pub(crate) rows: Vec<TaskRow>,
    pub(crate) has_more: bool,
}

impl TaskRow {
    pub(crate) fn class(&self) -> Class {
        Class {
            priority: self.priority,
            version: Arc::clone(&self.version),
            fairness_key: Arc::clone(&self.fairness_key),
        }
    }
}

impl WorkflowRows {
    /// Every queue in which tasks wait.
    pub(crate) fn queues_with_tasks(&self) -> Result<Vec<QueueKey>, LoadError> {
        let mut queues = Vec::new();
        let mut start = keys::tasks();
        let end = end_of(&keys::tasks());
        // From one queue's first task straight to the next queue's.
        while let Some(row) = self.scan(KeyRange::new(&start, &end), Order::Ascending, 1)?.pop() {
            let queue = self.task_row(&row)?.queue;
            start = end_of(&queue_prefix(&queue));
            queues.push(queue);
        }
        Ok(queues)
    }

    /// The first tasks of a class that are meant, at most `limit`.
    pub(crate) fn first_of_class(
        &self,
        queue: &QueueKey,
        class: &Class,
        limit: usize,
        is_meant: impl Fn(&TaskRow) -> bool,
    ) -> Result<FirstTasks, LoadError> {
        let mut first = FirstTasks { rows: Vec::new(), has_more: false };
        self.each_below(&class_prefix(queue, class), |row| {
            let task = self.task_row(&row)?;
            if task.queue == *queue && is_meant(&task) {
                first.has_more = first.rows.len() == limit;
                if !first.has_more {
                    first.rows.push(task);
                }
            }
            Ok(!first.has_more)
        })?;
        Ok(first)
    }

    /// The same of each class of the queue.
    pub(crate) fn first_of_each_class(
        &self,
        queue: &QueueKey,
        limit: usize,
        is_meant: impl Fn(&TaskRow) -> bool,
    ) -> Result<Vec<FirstTasks>, LoadError> {
        let mut classes = Vec::new();
        let mut start = queue_prefix(queue);
        let end = end_of(&queue_prefix(queue));
        while let Some(row) = self.scan(KeyRange::new(&start, &end), Order::Ascending, 1)?.pop() {
            let class = self.task_row(&row)?.class();
            classes.push(self.first_of_class(queue, &class, limit, &is_meant)?);
            start = end_of(&class_prefix(queue, &class));
        }
        Ok(classes)
    }

    /// How many tasks of a queue wait here, and since when the oldest.
    pub(crate) fn backlog(&self, queue: &QueueKey) -> Result<(u64, Option<Timestamp>), LoadError> {
        scan::to_end(self, Scanning::new(Backlog::of(queue)))
    }

    fn task_row(&self, row: &Row) -> Result<TaskRow, LoadError> {
        let value = self.decode(&records::TASK, &row.value)?;
        task_row(&row.key, value).ok_or_else(|| self.bad_key("tasks"))
    }
}

/// How many tasks of a queue wait in a shard, and since when the oldest.
pub(crate) struct Backlog {
    prefix: Bytes,
    count: u64,
    oldest: Option<Timestamp>,
}

impl Backlog {
    pub(crate) fn of(queue: &QueueKey) -> Self {
        Self { prefix: queue_prefix(queue), count: 0, oldest: None }
    }
}

impl Scan for Backlog {
    type Answer = (u64, Option<Timestamp>);

    fn range(&self) -> Range<Bytes> {
        self.prefix.clone()..end_of(&self.prefix)
    }

    fn take(&mut self, rows: &WorkflowRows, row: Row) -> Result<bool, LoadError> {
        let task = keys::parse_task(&row.key).ok_or_else(|| rows.bad_key("tasks"))?;
        let created = Timestamp::from_nanos(task.created);
        self.count += 1;
        self.oldest = Some(self.oldest.map_or(created, |time| time.min(created)));
        Ok(true)
    }

    fn answer(self) -> Self::Answer {
        (self.count, self.oldest)
    }
}

fn queue_prefix(queue: &QueueKey) -> Bytes {
    let name = &queue.queue.name;
    let (kind, is_sticky) = (queue_code(queue.kind), queue.queue.is_sticky());
    keys::tasks_of(queue.namespace.as_str(), name, kind, is_sticky)
}

/// What the keys of a class begin with.
fn class_prefix(queue: &QueueKey, class: &Class) -> Bytes {
    let Class { priority, version, fairness_key } = class;
    keys::tasks_of_class(&queue_prefix(queue), version, *priority, fairness_key)
}
