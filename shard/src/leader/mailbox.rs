//! A bounded queue beside an actor. ractor's own mailboxes are unbounded and hand over one message
//! at a time; requests therefore lie here, and the actor's message only says that some do.

use std::collections::VecDeque;
use std::sync::OnceLock;

use parking_lot::Mutex;
use ractor::ActorRef;

/// Requests that wait for one actor.
pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
    len_max: usize,
    actor: OnceLock<ActorRef<Notice>>,
}

/// What an actor is told of its mailbox.
pub(crate) enum Notice {
    /// Something lies in it.
    Mail,
    /// Leave memory unless there is something to do.
    Leave,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// The actor has been told and has not yet found the queue empty.
    told: bool,
    closed: bool,
}

/// Why a request was not taken; it is given back.
pub(crate) enum Refused<T> {
    Full(T),
    Closed(T),
}

impl<T> Mailbox<T> {
    pub(crate) fn new(len_max: usize) -> Self {
        let state = State { waiting: VecDeque::new(), told: false, closed: false };
        Self { state: Mutex::new(state), len_max, actor: OnceLock::new() }
    }

    /// Names the actor that is told of what is added.
    pub(crate) fn attach(&self, actor: ActorRef<Notice>) {
        // A mailbox is made for one actor.
        let _ = self.actor.set(actor);
    }

    pub(crate) fn notify(&self, notice: Notice) {
        if let Some(actor) = self.actor.get() {
            // An actor that has stopped closed its mailbox first.
            let _ = actor.cast(notice);
        }
    }

    /// Adds a request; `always`: even to a full queue.
    pub(crate) fn push(&self, item: T, always: bool) -> Result<(), Refused<T>> {
        if self.add(item, always)? {
            self.notify(Notice::Mail);
        }
        Ok(())
    }

    /// True: the actor must be told.
    fn add(&self, item: T, always: bool) -> Result<bool, Refused<T>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed(item));
        }
        if state.waiting.len() >= self.len_max && !always {
            return Err(Refused::Full(item));
        }
        state.waiting.push_back(item);
        Ok(!std::mem::replace(&mut state.told, true))
    }

    /// Takes all that waits. Empty: the actor has to be told again before it looks again.
    pub(crate) fn take(&self) -> VecDeque<T> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            state.told = false;
        }
        std::mem::take(&mut state.waiting)
    }

    /// Puts back what did not fit, before anything that came since.
    pub(crate) fn put_back(&self, mut rest: VecDeque<T>) {
        let mut state = self.state.lock();
        rest.append(&mut state.waiting);
        state.waiting = rest;
    }

    /// Refuses everything from now on and gives back what waits.
    pub(crate) fn close(&self) -> VecDeque<T> {
        let mut state = self.state.lock();
        state.closed = true;
        std::mem::take(&mut state.waiting)
    }

    /// Ends the actor at once.
    pub(crate) fn stop_actor(&self) {
        if let Some(actor) = self.actor.get() {
            actor.stop(None);
        }
    }

    /// Closes the queue if nothing waits in it.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut state = self.state.lock();
        state.closed |= state.waiting.is_empty();
        state.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_takes_only_what_must_not_be_refused() {
        let mailbox = Mailbox::new(2);
        assert!(matches!(mailbox.add(1, false), Ok(true)));
        assert!(matches!(mailbox.add(2, false), Ok(false)));
        assert!(matches!(mailbox.push(3, false), Err(Refused::Full(3))));
        assert!(matches!(mailbox.add(4, true), Ok(false)));
        assert_eq!(mailbox.take(), [1, 2, 4]);
        assert!(mailbox.push(5, false).is_ok());
        assert!(!mailbox.close_if_empty());
        assert_eq!(mailbox.close(), [5]);
        assert!(matches!(mailbox.push(6, true), Err(Refused::Closed(6))));
    }
}
