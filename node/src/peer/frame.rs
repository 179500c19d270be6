//! Frames on a connection: how they are cut out of what is read, and put together for one write.
//!
//! ```text
//! | length: u32, little endian | kind: u8 | number: u64, but for Data | payload |
//!   bytes behind the kind
//! ```

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Length and kind.
const HEADER_BYTES: usize = 5;
const NUMBER_BYTES: usize = 8;
/// A payload up to this is copied beside its header: that is cheaper than a piece of its own.
const COPIED_BYTES_MAX: usize = 4 << 10;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One of Raft's.
    Data,
    /// Asks whether the peer is there; the number comes back.
    Ping,
    /// It is; the payload is its clock.
    Pong,
    /// A request, whose number its answer bears.
    Request,
    Answer,
    /// The request was not taken on, and has had no effect.
    NotTaken,
    /// The request was taken on, and there is no answer to send.
    Failed,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Self::Data,
        Self::Ping,
        Self::Pong,
        Self::Request,
        Self::Answer,
        Self::NotTaken,
        Self::Failed,
    ];
}

/// One frame; Raft's have no number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) payload: Bytes,
}

impl Frame {
    pub(super) fn data(payload: Bytes) -> Frame {
        Frame { kind: Kind::Data, number: 0, payload }
    }

    pub(super) fn numbered(kind: Kind, number: u64, payload: Bytes) -> Frame {
        Frame { kind, number, payload }
    }

    fn number_bytes(kind: Kind) -> usize {
        if kind == Kind::Data { 0 } else { NUMBER_BYTES }
    }

    /// What it takes up on the wire, and in a queue.
    pub(super) fn bytes(&self) -> usize {
        HEADER_BYTES + Self::number_bytes(self.kind) + self.payload.len()
    }

    /// What its header says.
    pub(super) fn length(&self) -> usize {
        Self::number_bytes(self.kind) + self.payload.len()
    }

    fn put_head(&self, out: &mut BytesMut) {
        let length =
            u32::try_from(self.length()).expect("a queue takes no frame beyond its lane's");
        out.put_u32_le(length);
        out.put_u8(self.kind as u8);
        if self.kind != Kind::Data {
            out.put_u64_le(self.number);
        }
    }
}

/// Frames that are written together, in one system call where they fit.
#[derive(Default)]
pub(super) struct Batch {
    pieces: VecDeque<Bytes>,
    /// Heads and small payloads behind the last piece.
    small: BytesMut,
    bytes: usize,
}

impl Batch {
    pub(super) fn add(&mut self, frame: Frame) {
        self.bytes += frame.bytes();
        frame.put_head(&mut self.small);
        if frame.payload.len() <= COPIED_BYTES_MAX {
            self.small.put(frame.payload);
        } else {
            self.close_piece();
            self.pieces.push_back(frame.payload);
        }
    }

    /// After the last frame, before it is written.
    pub(super) fn close_piece(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece.as_ref())
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while count > 0 {
            let piece = self.pieces.front_mut().expect("no more is written than there is");
            if count < piece.len() {
                return piece.advance(count);
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pairs = slices.iter_mut().zip(&self.pieces);
        pairs.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }
}

/// Why no more frames can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the other side closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("a frame of {length} bytes was announced, and this lane takes {max} at most")]
    TooLong { length: usize, max: usize },
    #[error("a frame is of kind {0}, which is not known here")]
    UnknownKind(u8),
    #[error("a frame is shorter than its kind must be")]
    TooShort,
    #[error("a frame of kind {0:?} does not belong there")]
    Misplaced(Kind),
}

/// Cuts frames out of large reads, without copying them.
pub(super) struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    read_bytes: usize,
    length_max: usize,
    /// Bytes read since this was last asked for.
    bytes: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(from: R, read_bytes: usize, length_max: usize) -> Self {
        Self { from, buffer: BytesMut::new(), read_bytes, length_max, bytes: 0 }
    }

    /// The next frame.
    ///
    /// # Errors
    /// When there is none, or it must not be read.
    ///
    /// # Cancel safety
    /// What was read stays for the next call.
    pub(super) async fn next(&mut self) -> Result<Frame, FrameError> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(frame);
            }
            let read = self.from.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return Err(FrameError::Closed);
            }
            self.bytes += read as u64;
        }
    }

    pub(super) fn take_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// A whole frame, if it is there; else there is room for the rest of it.
    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(mut head) = self.buffer.get(..HEADER_BYTES) else {
            self.buffer.reserve(self.read_bytes);
            return Ok(None);
        };
        let (length, kind) = (head.get_u32_le() as usize, head.get_u8());
        // ORDER: before any room is made for it.
        if length > self.length_max {
            return Err(FrameError::TooLong { length, max: self.length_max });
        }
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind);
        let kind = kind.ok_or(FrameError::UnknownKind(self.buffer[HEADER_BYTES - 1]))?;
        let number_bytes = Frame::number_bytes(kind);
        if length < number_bytes {
            return Err(FrameError::TooShort);
        }
        let missing = (HEADER_BYTES + length).saturating_sub(self.buffer.len());
        if missing > 0 {
            self.buffer.reserve(missing.max(self.read_bytes));
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let mut payload = self.buffer.split_to(length).freeze();
        let number = if number_bytes > 0 { payload.get_u64_le() } else { 0 };
        Ok(Some(Frame { kind, number, payload }))
    }
}
