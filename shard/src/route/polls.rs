//! The polls that workers hold open on this node. A task is delivered to a poll at most once; the
//! deliverer hears whether it was, or whether nobody can have it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::ids::Ids;
use crate::message::{Delivery, PollId, Receipt};

/// Polls that ended without a task and are remembered, the latest ones. A task comes for one within
/// seconds or not at all; who comes later is told that nobody knows.
const EMPTY_MAX: usize = 1 << 16;

/// Open polls of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct Polls {
    known: Arc<Mutex<Known>>,
    next: Arc<AtomicU64>,
    /// Polls that have ended without a task, and whose queues do not know it yet.
    withdrawing: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Known {
    open: HashMap<PollId, oneshot::Sender<Delivery>>,
    /// Ended without a task.
    empty: BTreeSet<PollId>,
}

/// An open poll; dropping it withdraws it.
pub(crate) struct OpenPoll {
    pub(crate) id: PollId,
    pub(crate) delivery: oneshot::Receiver<Delivery>,
    polls: Polls,
}

impl Polls {
    pub(crate) fn new(ids: &Ids) -> Self {
        // Other nodes may still hold polls of this node's last life; a task for one of those must
        // not reach another that has the same number by chance.
        let first = ids.draw().as_u64_pair().0 >> 1;
        let withdrawing = Arc::new(watch::Sender::new(0));
        Self { known: Arc::default(), next: Arc::new(AtomicU64::new(first)), withdrawing }
    }

    /// Held while a queue is told that a poll has ended.
    pub(crate) fn withdraw(&self) -> Withdrawing {
        self.withdrawing.send_modify(|count| *count += 1);
        Withdrawing(Arc::clone(&self.withdrawing))
    }

    /// Returns once the queues know of all that have ended. False: there was none.
    pub(crate) async fn all_withdrawn(&self) -> bool {
        // The sender is held here.
        let _ = self.withdrawing.subscribe().wait_for(|count| *count == 0).await;
        !self.known.lock().empty.is_empty()
    }

    pub(crate) fn open(&self) -> OpenPoll {
        let id = PollId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, delivery) = oneshot::channel();
        self.known.lock().open.insert(id, sender);
        OpenPoll { id, delivery, polls: self.clone() }
    }

    /// Hands something to a poll.
    // INVARIANT: `Gone` is said of a poll only that is known to have ended without a task. One that
    // is not known may have had this very task, given to it before or in an earlier life.
    pub(crate) fn deliver(&self, id: PollId, delivery: Delivery) -> Receipt {
        let mut known = self.known.lock();
        let Some(sender) = known.open.remove(&id) else {
            return if known.empty.contains(&id) { Receipt::Gone } else { Receipt::Unknown };
        };
        let is_task = matches!(delivery, Delivery::WorkflowTask(_) | Delivery::ActivityTask(_));
        let is_taken = sender.send(delivery).is_ok();
        if !(is_task && is_taken) {
            known.end_empty(id);
        }
        if is_taken { Receipt::Taken } else { Receipt::Gone }
    }
}

/// A queue is being told that a poll has ended.
pub(crate) struct Withdrawing(Arc<watch::Sender<usize>>);

impl Drop for Withdrawing {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Known {
    fn end_empty(&mut self, id: PollId) {
        self.empty.insert(id);
        if self.empty.len() > EMPTY_MAX {
            self.empty.pop_first();
        }
    }
}

impl Drop for OpenPoll {
    fn drop(&mut self) {
        let mut known = self.polls.known.lock();
        if known.open.remove(&self.id).is_some() {
            known.end_empty(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_to_a_poll_of_an_earlier_life_reaches_nobody() {
        let before = Polls::new(&Ids::random()).open().id;
        let now = Polls::new(&Ids::random());
        let mut open: Vec<_> = (0..100).map(|_| now.open()).collect();
        assert_eq!(now.deliver(before, Delivery::Shutdown), Receipt::Unknown);
        assert!(open.iter_mut().all(|poll| poll.delivery.try_recv().is_err()));
    }
    fn activity() -> Delivery {
        Delivery::ActivityTask(Box::default())
    }

    #[test]
    fn a_task_that_comes_again_after_it_was_taken_is_not_said_to_be_nobodys() {
        let polls = Polls::new(&Ids::random());
        let mut open = polls.open();
        assert_eq!(polls.deliver(open.id, activity()), Receipt::Taken);
        assert_eq!(polls.deliver(open.id, activity()), Receipt::Unknown);
        let id = open.id;
        assert!(open.delivery.try_recv().is_ok());
        drop(open);
        assert_eq!(polls.deliver(id, activity()), Receipt::Unknown);
    }

    #[test]
    fn a_task_for_a_poll_that_ended_without_one_is_nobodys() {
        let polls = Polls::new(&Ids::random());
        let withdrawn = polls.open().id;
        assert_eq!(polls.deliver(withdrawn, activity()), Receipt::Gone);
        let again = polls.open();
        assert_eq!(polls.deliver(again.id, Delivery::Again), Receipt::Taken);
        assert_eq!(polls.deliver(again.id, activity()), Receipt::Gone);
        let mut closed = polls.open();
        closed.delivery.close();
        assert_eq!(polls.deliver(closed.id, activity()), Receipt::Gone);
        assert_eq!(polls.deliver(closed.id, activity()), Receipt::Gone);
    }
}
