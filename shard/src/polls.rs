//! The polls that workers hold open on this node. A task is delivered to a poll at most once; one
//! whose worker has gone away is not there any more, and the deliverer hears so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::ids::Ids;
use crate::peer::Delivery;

/// Names a poll on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollId(pub u64);

/// Open polls of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct Polls {
    open: Arc<Mutex<HashMap<PollId, oneshot::Sender<Delivery>>>>,
    next: Arc<AtomicU64>,
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
        Self { open: Arc::default(), next: Arc::new(AtomicU64::new(first)) }
    }

    pub(crate) fn open(&self) -> OpenPoll {
        let id = PollId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, delivery) = oneshot::channel();
        self.open.lock().insert(id, sender);
        OpenPoll { id, delivery, polls: self.clone() }
    }

    /// Hands something to a poll. Gives it back when the poll is not there any more.
    pub(crate) fn deliver(&self, id: PollId, delivery: Delivery) -> Result<(), Delivery> {
        let Some(sender) = self.open.lock().remove(&id) else { return Err(delivery) };
        sender.send(delivery)
    }
}

impl Drop for OpenPoll {
    fn drop(&mut self) {
        self.polls.open.lock().remove(&self.id);
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
        assert!(now.deliver(before, Delivery::Shutdown).is_err());
        assert!(open.iter_mut().all(|poll| poll.delivery.try_recv().is_err()));
    }
}
