//! One connection that this node made, as those who send through it see it: a queue, and the
//! requests that wait for an answer. Both end with the connection.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::calls::{AskError, NotSent, Unknown};
use super::frame::{Frame, Kind};
use super::queue::{NotQueued, Queue};

type Asked = oneshot::Sender<Result<Bytes, AskError>>;

pub(super) struct Link {
    pub(super) queue: Queue,
    waiting: Mutex<HashMap<u64, Asked>>,
}

impl Link {
    pub(super) fn new(queue: Queue) -> Link {
        Link { queue, waiting: Mutex::default() }
    }

    /// Queues a request. What comes of it, if anything ever does, comes out of the receiver.
    ///
    /// # Errors
    /// When it was not queued.
    pub(super) fn ask(
        &self,
        number: u64,
        request: Bytes,
    ) -> Result<oneshot::Receiver<Result<Bytes, AskError>>, NotSent> {
        let (tx, rx) = oneshot::channel();
        // ORDER: before it is sent, or its answer might come first.
        self.waiting.lock().insert(number, tx);
        let queued = self.queue.push(Frame::numbered(Kind::Request, number, request));
        queued.map(|()| rx).map_err(|why| {
            self.forget(number);
            match why {
                NotQueued::Closed => NotSent::NoConnection,
                NotQueued::Full => NotSent::QueueFull,
                NotQueued::TooLong => NotSent::TooLong,
            }
        })
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&self, number: u64) {
        self.waiting.lock().remove(&number);
    }

    pub(super) fn answered(&self, number: u64, answer: Result<Bytes, AskError>) {
        if let Some(asked) = self.waiting.lock().remove(&number) {
            // Nobody waits any more.
            let _ = asked.send(answer);
        }
    }

    /// The connection has ended: what was queued is dropped, and who waits for an answer is told
    /// whether the other side can have seen the request.
    pub(super) fn close(&self) {
        for frame in self.queue.close() {
            if frame.kind == Kind::Request {
                self.answered(frame.number, Err(AskError::NotSent(NotSent::NoConnection)));
            }
        }
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (_, asked) in waiting {
            // Nobody waits any more.
            let _ = asked.send(Err(AskError::Unknown(Unknown::Broke)));
        }
    }
}
