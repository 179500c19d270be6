//! Who is no member knows an address, and neither the cluster nor whom it calls there. It may ask
//! one thing, once, such as to be let in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use piton_raft::NodeId;
use tokio::io::AsyncRead;
use tokio::sync::OwnedSemaphorePermit;

use super::accept::welcome;
use super::address::PeerAddress;
use super::calls::{self, AskError, NotSent, Unknown};
use super::dial::greet;
use super::frame::{Frame, FrameReader, Kind};
use super::hello::{self, Hello, Refusal};
use super::lane::PeerLane;
use super::net::{Shared, system_clock};
use super::tls::{self, Security, Stream, TlsError};
use crate::config::PeerConfig;

/// How many may ask at once.
pub(super) const STRANGERS_MAX: usize = 16;
/// How long one may take to ask and to be answered.
const STRANGER_MAX: Duration = Duration::from_secs(30);
/// A node's address, certificate and the like.
const JOIN_BYTES_MAX: usize = 64 << 10;

/// A node that belongs to no cluster yet, or whoever else is no member.
pub struct Stranger {
    node: NodeId,
    feature_level: u32,
    security: Security,
}

impl Stranger {
    /// `node` is the id that it has drawn for itself.
    ///
    /// # Errors
    /// When the files of `[peer]` cannot be used.
    pub fn new(config: &PeerConfig, node: NodeId, feature_level: u32) -> Result<Self, TlsError> {
        Ok(Self { node, feature_level, security: Security::load(config)? })
    }

    /// Asks whoever is at an address.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(
        &self,
        address: &PeerAddress,
        request: Bytes,
        limit: Duration,
    ) -> Result<Bytes, AskError> {
        if request.len() > JOIN_BYTES_MAX {
            return Err(AskError::NotSent(NotSent::TooLong));
        }
        let mut is_asked = false;
        let answered =
            tokio::time::timeout(limit, self.ask_once(address, request, &mut is_asked)).await;
        answered.unwrap_or_else(|_| {
            Err(if is_asked {
                AskError::Unknown(Unknown::Timeout)
            } else {
                AskError::NotSent(NotSent::NoConnection)
            })
        })
    }

    async fn ask_once(
        &self,
        address: &PeerAddress,
        request: Bytes,
        is_asked: &mut bool,
    ) -> Result<Bytes, AskError> {
        let hello = Hello {
            lowest_version: *hello::VERSIONS.start(),
            highest_version: *hello::VERSIONS.end(),
            node: self.node.0,
            lane: PeerLane::Calls.number() as u32,
            feature_level: self.feature_level,
            unix_nanos: system_clock()(),
            stranger: true,
            ..Hello::default()
        };
        let greeted = greet(&self.security, address, &hello).await;
        let (stream, _) =
            greeted.map_err(|error| AskError::NotSent(NotSent::Refused(error.to_string())))?;
        let (reader, mut writer) = tokio::io::split(stream);
        *is_asked = true;
        let asked = write_one(&mut writer, Frame::numbered(Kind::Request, 1, request)).await;
        asked.map_err(|_| AskError::Unknown(Unknown::Broke))?;
        let lane = PeerLane::Calls;
        let mut reader = FrameReader::new(reader, lane.read_bytes(), lane.frame_bytes_max());
        let frame = reader.next().await.map_err(|_| AskError::Unknown(Unknown::Broke))?;
        let outcome = calls::outcome(frame.kind, frame.payload);
        outcome.unwrap_or(Err(AskError::Unknown(Unknown::Failed)))
    }
}

/// Welcomes a node that wants to join, if there is room for it.
///
/// # Errors
/// When there is none, or it is gone.
pub(super) async fn let_in<E: From<Refusal> + From<std::io::Error>>(
    net: &Shared,
    version: u32,
    stream: &mut Stream,
) -> Result<OwnedSemaphorePermit, E> {
    let permit = Arc::clone(&net.strangers).try_acquire_owned();
    let permit = permit.map_err(|_| Refusal::TooManyStrangers)?;
    hello::write(stream, &welcome(net, version)).await?;
    Ok(permit)
}

/// Takes its one request and answers it.
pub(super) fn serve(
    net: &Arc<Shared>,
    hello: &Hello,
    mut stream: Stream,
    permit: OwnedSemaphorePermit,
) {
    let (net, from) = (Arc::clone(net), hello.node());
    let main = net.main.clone();
    main.spawn(async move {
        let _permit = permit;
        if tls::rehome(&mut stream).is_ok() {
            // It tries again if it is not answered.
            let _ = tokio::time::timeout(STRANGER_MAX, answer(&net, from, stream)).await;
        }
    });
}

async fn answer(net: &Shared, from: NodeId, stream: Stream) {
    let (reader, mut writer) = tokio::io::split(stream);
    let Some((number, request)) = request(reader).await else { return };
    let answerer = net.answerer.read().clone();
    let frame = match answerer {
        Some(answerer) => {
            match calls::caught(async move { answerer.answer_stranger(from, request).await }).await
            {
                Some(answer) => Frame::numbered(Kind::Answer, number, answer),
                None => Frame::numbered(Kind::Failed, number, Bytes::new()),
            }
        }
        None => Frame::numbered(Kind::NotTaken, number, Bytes::new()),
    };
    // It tries again if it is not answered.
    let _ = write_one(&mut writer, frame).await;
}

async fn request(reader: impl AsyncRead + Unpin) -> Option<(u64, Bytes)> {
    let length_max = JOIN_BYTES_MAX + size_of::<u64>();
    let mut reader = FrameReader::new(reader, 4 << 10, length_max);
    let Frame { kind, number, payload } = reader.next().await.ok()?;
    (kind == Kind::Request).then_some((number, payload))
}

async fn write_one(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    frame: Frame,
) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut batch = super::frame::Batch::default();
    batch.add(frame);
    batch.close_piece();
    to.write_all_buf(&mut batch).await?;
    to.shutdown().await
}
