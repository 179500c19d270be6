//! What waits to be written to one connection: bounded in bytes, and gone with the connection.

use std::collections::VecDeque;
use std::io;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::frame::{Batch, Frame};
use super::metrics::LaneMetrics;

/// Frames are taken for one write until there is so much.
const BATCH_BYTES: usize = 1 << 20;

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotQueued {
    /// The connection has ended.
    Closed,
    /// So many bytes are queued that it does not fit.
    Full,
    /// It is larger than its lane takes.
    TooLong,
}

/// The queue of one connection.
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to write, or never will be.
    filled: Notify,
    /// There is room again, or never will be.
    emptied: Notify,
    bytes_max: usize,
    length_max: usize,
    gauge: Gauge,
}

#[derive(Default)]
struct State {
    closed: bool,
    frames: VecDeque<Frame>,
    /// Of frames that are queued or being written.
    bytes: usize,
}

impl Queue {
    /// `gauge` counts the bytes of all queues of a lane.
    pub(super) fn new(bytes_max: usize, length_max: usize, gauge: Gauge) -> Queue {
        let (filled, emptied) = (Notify::new(), Notify::new());
        Queue { state: Mutex::default(), filled, emptied, bytes_max, length_max, gauge }
    }

    /// Queues a frame, never waiting.
    ///
    /// # Errors
    /// See [`NotQueued`].
    pub(super) fn push(&self, frame: Frame) -> Result<(), NotQueued> {
        self.try_push(frame).map_err(|(why, _)| why)
    }

    /// Queues a frame when there is room for it.
    ///
    /// # Errors
    /// When there never will be.
    pub(super) async fn push_in_time(&self, mut frame: Frame) -> Result<(), NotQueued> {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // ORDER: listens before it looks, or room that is made in between would go unnoticed.
            emptied.as_mut().enable();
            match self.try_push(frame) {
                Ok(()) => return Ok(()),
                Err((NotQueued::Full, again)) => frame = again,
                Err((why, _)) => return Err(why),
            }
            emptied.await;
        }
    }

    fn try_push(&self, frame: Frame) -> Result<(), (NotQueued, Frame)> {
        if frame.length() > self.length_max {
            return Err((NotQueued::TooLong, frame));
        }
        let bytes = frame.bytes();
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err((NotQueued::Closed, frame));
            }
            if state.bytes > 0 && state.bytes + bytes > self.bytes_max {
                return Err((NotQueued::Full, frame));
            }
            state.bytes += bytes;
            state.frames.push_back(frame);
        }
        self.gauge.inc_by(bytes as i64);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes what is queued. `false` when the queue is closed.
    async fn take(&self, batch: &mut Batch, frames: &mut u64) -> bool {
        loop {
            {
                let mut state = self.state.lock();
                if state.closed {
                    return false;
                }
                let mut bytes = 0;
                while bytes < BATCH_BYTES
                    && let Some(frame) = state.frames.pop_front()
                {
                    bytes += frame.bytes();
                    *frames += 1;
                    batch.add(frame);
                }
                if bytes > 0 {
                    batch.close_piece();
                    return true;
                }
            }
            self.filled.notified().await;
            // Whoever else is ready to run may have frames for the same write: the heartbeats of
            // all groups are sent within one turn.
            tokio::task::yield_now().await;
        }
    }

    fn written(&self, bytes: usize) {
        let mut state = self.state.lock();
        // A queue that is closed owes nothing any more.
        if !state.closed {
            state.bytes -= bytes;
            self.gauge.dec_by(bytes as i64);
        }
        drop(state);
        self.emptied.notify_waiters();
    }

    /// Writes what is queued until the queue is closed or the connection breaks.
    ///
    /// # Errors
    /// When the connection broke.
    pub(super) async fn write_to(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        metrics: &LaneMetrics,
    ) -> io::Result<()> {
        use bytes::Buf;
        let (mut batch, mut frames) = (Batch::default(), 0);
        while self.take(&mut batch, &mut frames).await {
            let bytes = batch.remaining();
            to.write_all_buf(&mut batch).await?;
            to.flush().await?;
            self.written(bytes);
            metrics.writes.inc();
            metrics.sent_bytes.inc_by(bytes as u64);
            metrics.sent_frames.inc_by(std::mem::take(&mut frames));
        }
        Ok(())
    }

    /// Takes no more frames, and gives back those that nothing was written of.
    pub(super) fn close(&self) -> VecDeque<Frame> {
        let frames = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.closed, true) {
                return VecDeque::new();
            }
            self.gauge.dec_by(state.bytes as i64);
            state.bytes = 0;
            std::mem::take(&mut state.frames)
        };
        self.filled.notify_one();
        self.emptied.notify_waiters();
        frames
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}
