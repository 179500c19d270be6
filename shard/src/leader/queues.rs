//! The queues that a shard owns: of each its mailbox, its tasks and polls, and what it shows to metrics. What
//! the actor behind it does with them is in `matching`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use piton_core::id::{RunId, WorkflowKey};
use piton_core::matching::{Bounds, Matching, Poll};
use piton_core::time::{Span, Timestamp};
use ractor::{ActorRef, SpawnErr};

use crate::config::ShardConfig;
use crate::leader::mailbox::{Mailbox, Notice, Refused};
use crate::message::{OfferedTask, PollName, QueueCall, QueueKey};
use crate::route::shard_leader::{QueueDepth, ReplyTo};

/// Lanes of one queue in memory: as many fairness keys, times the shards that have tasks of them.
const LANES_MAX: usize = 8_192;
/// Queries and the like that wait in one queue.
const VOLATILE_MAX: usize = 10_000;
/// Polls that are remembered after they were matched or withdrawn. A call is repeated within seconds.
const SPENT_MAX: usize = 1_024;

/// Names a task in its queue.
pub(crate) type TaskId = (WorkflowKey, RunId, OfferedTask);

/// The queues whose owner is this shard.
pub(crate) struct Queues {
    config: Arc<ShardConfig>,
    /// Workers may have polled an earlier owner until then; they get the time to come here.
    since: Timestamp,
    handles: Mutex<BTreeMap<QueueKey, Arc<QueueHandle>>>,
}

/// A queue as others see it.
pub(crate) struct QueueHandle {
    pub(crate) mailbox: Mailbox<(QueueCall, ReplyTo)>,
    /// Its actor's, but for a new task that meets a poll at once.
    pub(crate) matching: Mutex<Matching<TaskId, PollName>>,
    depth: AtomicU64,
    /// When the oldest waiting task was created; 0: none waits.
    oldest_nanos: AtomicI64,
    /// Shards hold more tasks than the window does.
    is_beyond_window: AtomicBool,
    polls: AtomicU64,
}

impl Queues {
    pub(crate) fn new(config: Arc<ShardConfig>, since: Timestamp) -> Self {
        Self { config, since, handles: Mutex::default() }
    }

    /// Hands a call to the queue's actor; `start` starts it if there is none.
    pub(crate) fn tell(
        &self,
        call: QueueCall,
        reply: ReplyTo,
        start: impl Fn(QueueKey, Arc<QueueHandle>) -> Result<ActorRef<Notice>, SpawnErr>,
    ) {
        let mut asked = (call, reply);
        loop {
            let handle = self.get_or_start(asked.0.queue(), &start);
            match handle.mailbox.push(asked, true) {
                Ok(()) => return,
                Err(Refused::Closed(back)) => asked = back,
                // Polls are bounded by admission, offers by what the shards' actors decide.
                Err(Refused::Full(_)) => unreachable!("a push that must not be refused is not"),
            }
        }
    }

    fn get_or_start(
        &self,
        queue: &QueueKey,
        start: impl Fn(QueueKey, Arc<QueueHandle>) -> Result<ActorRef<Notice>, SpawnErr>,
    ) -> Arc<QueueHandle> {
        let mut handles = self.handles.lock();
        if let Some(handle) = handles.get(queue) {
            return Arc::clone(handle);
        }
        let handle = Arc::new(QueueHandle {
            mailbox: Mailbox::new(usize::MAX),
            matching: Mutex::new(Matching::new(bounds(&self.config, queue), self.since)),
            depth: AtomicU64::new(0),
            oldest_nanos: AtomicI64::new(0),
            is_beyond_window: AtomicBool::new(false),
            polls: AtomicU64::new(0),
        });
        match start(queue.clone(), Arc::clone(&handle)) {
            Ok(actor) => handle.mailbox.attach(actor),
            Err(error) => tracing::error!(%error, "cannot start a matching actor"),
        }
        handles.insert(queue.clone(), Arc::clone(&handle));
        handle
    }

    /// The poll that has waited longest for a task of this version, if one waits now.
    pub(crate) fn take_poll(&self, queue: &QueueKey, version: &str) -> Option<Poll<PollName>> {
        let handle = self.handles.lock().get(queue).cloned()?;
        if handle.polls.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut matching = handle.matching.lock();
        let poll = matching.take_poll(version);
        handle.show(&matching);
        poll
    }

    pub(crate) fn depths(&self) -> Vec<QueueDepth> {
        let handles = self.handles.lock();
        let depth = |(queue, handle): (&QueueKey, &Arc<QueueHandle>)| QueueDepth {
            queue: queue.clone(),
            depth: handle.depth.load(Ordering::Relaxed),
            oldest: Some(handle.oldest_nanos.load(Ordering::Relaxed))
                .filter(|&t| t > 0)
                .map(Timestamp::from_nanos),
            is_beyond_window: handle.is_beyond_window.load(Ordering::Relaxed),
            polls: handle.polls.load(Ordering::Relaxed),
        };
        handles.iter().map(depth).collect()
    }

    /// Ends all actors. Polls that wait are told to try again, at the next owner.
    pub(crate) fn stop(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        for handle in handles.into_values() {
            handle.mailbox.stop_actor();
        }
    }

    /// Has each actor look whether its queue is still used.
    pub(crate) fn sweep(&self) {
        let handles: Vec<_> = self.handles.lock().values().cloned().collect();
        for handle in handles {
            handle.mailbox.notify(Notice::Leave);
        }
    }

    pub(crate) fn remove(&self, queue: &QueueKey) {
        self.handles.lock().remove(queue);
    }
}

impl QueueHandle {
    /// Shows to metrics what waits.
    pub(crate) fn show(&self, matching: &Matching<TaskId, PollName>) {
        let oldest = matching.oldest().map_or(0, Timestamp::as_nanos);
        self.depth.store(matching.len() as u64, Ordering::Relaxed);
        self.oldest_nanos.store(oldest, Ordering::Relaxed);
        self.is_beyond_window.store(matching.is_beyond(), Ordering::Relaxed);
        self.polls.store(matching.waiting_polls() as u64, Ordering::Relaxed);
    }
}

/// What a queue is bounded by.
pub(crate) fn bounds(config: &ShardConfig, queue: &QueueKey) -> Bounds {
    let (of_rows, of_volatile) = match queue.queue.is_sticky() {
        true => (Some(config.sticky_poller_max_age), config.sticky_poller_max_age),
        false => (None, config.poller_max_age),
    };
    Bounds {
        window: config.matching_window,
        lanes: LANES_MAX,
        volatile: VOLATILE_MAX,
        spent: SPENT_MAX,
        patience_of_rows: of_rows.map(Span::from),
        patience_of_volatile: Some(Span::from(of_volatile)),
        memory: Span::from(config.poller_memory),
    }
}
