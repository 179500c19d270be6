//! Requests between nodes, and their answers. What they say is opaque here.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use piton_raft::NodeId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::frame::{Frame, Kind};
use super::link::Link;
use super::metrics::Counted;
use super::queue::{NotQueued, Queue};
use crate::config::PeerConfig;

/// Bytes under way are counted in pieces of this: a semaphore's permits are few.
const PIECE_BYTES: usize = 1 << 10;

/// Answers what other nodes ask.
pub trait Answerer: Send + Sync + 'static {
    /// Answers a member of the cluster. Called in the order in which its requests arrived, and what
    /// is done before the future first waits is done in that order too; the rest goes on beside
    /// other requests. The caller may be gone by then, in which case the answer is dropped.
    fn answer(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// Answers who is no member: a node that wants to join, say. It is who it says only as far as a
    /// certificate of the cluster's CA vouches for it.
    fn answer_stranger(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes>;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The other side has not seen the request: it may be sent again, there or elsewhere.
    #[error("the request was not sent: {0}")]
    NotSent(NotSent),
    /// It may have been carried out, and may still be.
    #[error("what came of the request is not known: {0}")]
    Unknown(Unknown),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    #[error("there is no connection to the node")]
    NoConnection,
    #[error("the queue to the node is full")]
    QueueFull,
    #[error("it is larger than a request between nodes may be")]
    TooLong,
    #[error("the node answers as many requests as it may, or is starting")]
    NotTaken,
    #[error("{0}")]
    Refused(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("the connection broke")]
    Broke,
    #[error("no answer came in time")]
    Timeout,
    #[error("the node failed while it answered, or the answer was too large")]
    Failed,
}

/// Sends a request through a link and waits for the answer. Dropping this forgets the request, which
/// the other side answers all the same.
pub(super) async fn ask(
    link: &Arc<Link>,
    number: u64,
    request: Bytes,
    limit: Duration,
) -> Result<Bytes, AskError> {
    let answer = link.ask(number, request).map_err(AskError::NotSent)?;
    let _waiting = Waiting { link, number };
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(AskError::Unknown(Unknown::Broke)),
        Err(_) => Err(AskError::Unknown(Unknown::Timeout)),
    }
}

struct Waiting<'l> {
    link: &'l Link,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.link.forget(self.number);
    }
}

/// What a frame says that came back for a request.
pub(super) fn outcome(kind: Kind, payload: Bytes) -> Option<Result<Bytes, AskError>> {
    match kind {
        Kind::Answer => Some(Ok(payload)),
        Kind::NotTaken => Some(Err(AskError::NotSent(NotSent::NotTaken))),
        Kind::Failed => Some(Err(AskError::Unknown(Unknown::Failed))),
        Kind::Data | Kind::Ping | Kind::Pong | Kind::Request => None,
    }
}

/// How many requests of one peer may be under way. Belongs to the peer, not to a connection: one
/// that connects again and again has no more of them.
pub(super) struct Admission {
    count: Arc<Semaphore>,
    pieces: Arc<Semaphore>,
    gauge: Gauge,
}

/// A request that was let in.
struct Admitted {
    _count: OwnedSemaphorePermit,
    _pieces: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Admission {
    pub(super) fn new(config: &PeerConfig, gauge: Gauge) -> Self {
        let pieces = config.calls_under_way_bytes_max.div_ceil(PIECE_BYTES);
        let [count, pieces] = [config.calls_under_way_max, pieces]
            .map(|most| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))));
        Self { count, pieces, gauge }
    }

    fn admit(&self, bytes: usize) -> Option<Admitted> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE_BYTES)).ok()?;
        Some(Admitted {
            _count: self.count.clone().try_acquire_owned().ok()?,
            _pieces: self.pieces.clone().try_acquire_many_owned(pieces).ok()?,
            _counted: Counted::new(&self.gauge),
        })
    }
}

/// Takes one request, and answers it through `queue`. Returns when the request has been begun, so
/// that the next one comes after it; waits only for room to say that it is not taken.
///
/// # Errors
/// When the connection has ended.
pub(super) async fn take(
    answerer: Option<&Arc<dyn Answerer>>,
    admission: &Admission,
    main: &Handle,
    queue: &Arc<Queue>,
    from: NodeId,
    Frame { number, payload, .. }: Frame,
) -> Result<(), NotQueued> {
    let taken = answerer.and_then(|answerer| Some((answerer, admission.admit(payload.len())?)));
    let Some((answerer, admitted)) = taken else {
        return queue.push_in_time(Frame::numbered(Kind::NotTaken, number, Bytes::new())).await;
    };
    let (answerer, queue) = (Arc::clone(answerer), Arc::clone(queue));
    let answering = async move {
        let _admitted = admitted;
        let answer = caught(async move { answerer.answer(from, payload).await }).await;
        respond(&queue, number, answer).await;
    };
    // ORDER: begun here and not where it is spawned, since tasks may overtake each other.
    let mut answering: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(answering);
    if futures::poll!(answering.as_mut()).is_pending() {
        main.spawn(answering);
    }
    Ok(())
}

/// The answer; `None` if there was a panic instead.
pub(super) async fn caught(answering: impl Future<Output = Bytes>) -> Option<Bytes> {
    let caught = AssertUnwindSafe(answering).catch_unwind().await;
    if caught.is_err() {
        tracing::error!("answering another node's request panicked");
    }
    caught.ok()
}

/// Queues an answer when there is room. The request is under way until then, so that a peer which
/// asks and does not read is held up.
pub(super) async fn respond(queue: &Queue, number: u64, answer: Option<Bytes>) {
    let frame = match answer {
        Some(answer) => Frame::numbered(Kind::Answer, number, answer),
        None => Frame::numbered(Kind::Failed, number, Bytes::new()),
    };
    if queue.push_in_time(frame).await == Err(NotQueued::TooLong) {
        tracing::error!("an answer to another node is larger than a frame may be");
        // The connection may have ended, and then nobody waits.
        let _ = queue.push_in_time(Frame::numbered(Kind::Failed, number, Bytes::new())).await;
    }
}
