//! A snapshot on its way to one follower: parts flow in a window of bytes, and a transfer that is
//! interrupted goes on where the follower is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use openraft::RPCTypes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::{Link, RpcError, does_not_fit, network, unreachable};
use crate::config::NodeId;
use crate::error::TransportError;
use crate::execution::blocking;
use crate::frame::{Answer, Request, SnapshotAnswer, SnapshotName, is_of_another};
use crate::snapshot::SnapshotFile;
use crate::switch::Question;
use crate::transport::Lane;
use crate::types::Vote;

/// Parts that may be under way without an answer.
const WINDOW_PARTS: usize = 8;
/// How often to ask whether a snapshot is installed.
const INSTALL_ASKED_EVERY: Duration = Duration::from_millis(50);
/// How long to wait before a transfer goes on that was interrupted, or a frame that found no room.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Which followers are being sent a snapshot, and its index: the log behind it is needed next.
#[derive(Default)]
pub(crate) struct Sendings(Mutex<BTreeMap<NodeId, u64>>);

impl Sendings {
    pub(crate) fn index(&self, to: NodeId) -> Option<u64> {
        self.0.lock().get(&to).copied()
    }
}

/// Names a follower in [`Sendings`] until it is dropped.
pub(super) struct Sending {
    all: Arc<Sendings>,
    to: NodeId,
}

impl Sending {
    pub(super) fn begin(all: &Arc<Sendings>, to: NodeId, index: u64) -> Sending {
        all.0.lock().insert(to, index);
        Sending { all: all.clone(), to }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.to);
    }
}

/// Why a transfer does not go on.
enum Interrupted {
    /// Nothing came back: try again, from where the follower is.
    Silence(RpcError),
    /// The follower has given up.
    Over(RpcError),
}

/// One part that waits for its answer.
struct UnderWay {
    end: u64,
    question: Question,
}

impl Link {
    /// Sends a snapshot and has it installed. Waits for as long as the follower answers; where it has
    /// been silent for the limit, openraft may choose a newer snapshot.
    pub(super) async fn send_snapshot(
        &self,
        vote: Vote,
        file: &SnapshotFile,
    ) -> Result<Vote, RpcError> {
        let name = SnapshotName { index: file.mark.index, bytes: file.bytes };
        let mut heard = Instant::now();
        loop {
            let sent = async {
                self.send_parts(name, file, &mut heard).await?;
                self.await_installed(name, vote, &mut heard).await
            };
            match sent.await {
                Ok(vote) => return Ok(vote),
                Err(Interrupted::Over(error)) => {
                    // It may be this side's file: then it would fail there for ever.
                    let (snapshots, file) = (self.snapshots.clone(), file.clone());
                    let examined = blocking(move || snapshots.examine(&file));
                    examined.await.map_err(|error| network(&error.to_string()))?;
                    return Err(error);
                }
                Err(Interrupted::Silence(error)) if heard.elapsed() > self.patience => {
                    return Err(error);
                }
                Err(Interrupted::Silence(_)) => sleep(RETRY_AFTER).await,
            }
        }
    }

    async fn send_parts(
        &self,
        name: SnapshotName,
        file: &SnapshotFile,
        heard: &mut Instant,
    ) -> Result<(), Interrupted> {
        let begin = Request::SnapshotBegin { name };
        let mut sent = match self.ask_snapshot(begin, heard).await? {
            SnapshotAnswer::Through { offset } => offset,
            // It is there already.
            SnapshotAnswer::Going | SnapshotAnswer::Installed { .. } => return Ok(()),
            SnapshotAnswer::Lost => return Err(lost()),
        };
        let mut answered = sent;
        let mut under_way: VecDeque<UnderWay> = VecDeque::new();
        while answered < name.bytes {
            if sent < name.bytes && under_way.len() < WINDOW_PARTS {
                let end = self.send_part(name, file, sent, &mut under_way).await?;
                if end > sent {
                    sent = end;
                    continue;
                }
            }
            let Some(UnderWay { end, question }) = under_way.pop_front() else {
                sleep(RETRY_AFTER).await;
                continue;
            };
            // Then it is asked how far it is. What is still on its way arrives before that question.
            let answer = timeout(self.session_limit, question.answer()).await;
            let answer = answer.map_err(|_| Interrupted::Silence(self.snapshot_timeout()))?;
            *heard = Instant::now();
            match answer {
                Some(Answer::Snapshot(SnapshotAnswer::Through { offset })) if offset == end => {
                    answered = end;
                }
                Some(Answer::Snapshot(SnapshotAnswer::Lost)) | None => return Err(lost()),
                // A part was lost: go on from where it is.
                Some(_) => {
                    return Err(Interrupted::Silence(network("a part of the snapshot was lost")));
                }
            }
        }
        Ok(())
    }

    /// Sends the part at an offset; answers where it ends, or the offset if there is no room for it
    /// on the way.
    async fn send_part(
        &self,
        name: SnapshotName,
        file: &SnapshotFile,
        offset: u64,
        under_way: &mut VecDeque<UnderWay>,
    ) -> Result<u64, Interrupted> {
        let (source, part_bytes) = (file.clone(), self.part_bytes);
        let part = blocking(move || source.part(offset, part_bytes)).await;
        let over = |error: &dyn std::error::Error| Interrupted::Over(network(&error.to_string()));
        let part = part.map_err(|error| over(&error))?.map_err(|error| over(&error))?;
        let end = offset + part.len() as u64;
        let request = Request::SnapshotPart { index: name.index, offset, part };
        match self.switch.question(self.to, Lane::Bulk, self.group, request) {
            Ok(question) => {
                under_way.push_back(UnderWay { end, question });
                Ok(end)
            }
            Err(TransportError::Busy) => Ok(offset),
            Err(TransportError::Unreachable) => {
                Err(Interrupted::Silence(unreachable("the frame could not be sent")))
            }
        }
    }

    async fn await_installed(
        &self,
        name: SnapshotName,
        vote: Vote,
        heard: &mut Instant,
    ) -> Result<Vote, Interrupted> {
        loop {
            let request = Request::SnapshotInstall { name, vote };
            match self.ask_snapshot(request, heard).await? {
                SnapshotAnswer::Installed { vote: now }
                    if now == vote || is_of_another(&now, self.switch.node()) =>
                {
                    return Ok(now);
                }
                SnapshotAnswer::Installed { .. } => {
                    return Err(Interrupted::Over(does_not_fit()));
                }
                SnapshotAnswer::Going => sleep(INSTALL_ASKED_EVERY).await,
                SnapshotAnswer::Through { .. } => {
                    return Err(Interrupted::Silence(network("a part of the snapshot was lost")));
                }
                SnapshotAnswer::Lost => return Err(lost()),
            }
        }
    }

    async fn ask_snapshot(
        &self,
        request: Request,
        heard: &mut Instant,
    ) -> Result<SnapshotAnswer, Interrupted> {
        // A question that was lost is asked again soon, for as long as the follower is not silent for too long.
        let limit = self.session_limit.min(self.patience);
        match self.ask(RPCTypes::InstallSnapshot, request, limit).await {
            Ok(Answer::Snapshot(answer)) => {
                *heard = Instant::now();
                Ok(answer)
            }
            Ok(_) => Err(Interrupted::Over(does_not_fit())),
            Err(error) => Err(Interrupted::Silence(error)),
        }
    }

    fn snapshot_timeout(&self) -> RpcError {
        self.timeout(RPCTypes::InstallSnapshot, self.session_limit)
    }
}

fn lost() -> Interrupted {
    Interrupted::Over(network("the snapshot was lost on the other side"))
}
