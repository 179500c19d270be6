//! A bounded queue beside an actor. ractor's own mailboxes are unbounded and hand over one message
//! at a time; requests therefore lie here, and the actor's message only says "look".

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Requests that wait for one actor.
pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
    len_max: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// The actor has been told to look and has not yet found the queue empty.
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
        Self { state: Mutex::new(state), len_max }
    }

    /// Adds a request; `always`: even to a full queue. True: the actor must be told to look.
    pub(crate) fn push(&self, item: T, always: bool) -> Result<bool, Refused<T>> {
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
        assert!(matches!(mailbox.push(1, false), Ok(true)));
        assert!(matches!(mailbox.push(2, false), Ok(false)));
        assert!(matches!(mailbox.push(3, false), Err(Refused::Full(3))));
        assert!(matches!(mailbox.push(4, true), Ok(false)));
        assert_eq!(mailbox.take(), [1, 2, 4]);
        assert!(mailbox.push(5, false).is_ok());
        assert!(!mailbox.close_if_empty());
        assert_eq!(mailbox.close(), [5]);
        assert!(matches!(mailbox.push(6, true), Err(Refused::Closed(6))));
    }
}
