//! Snapshots on their way in: takes a leader's parts into a file, and installs it when it is whole.
//!
//! A transfer is named by who sends it and by the snapshot's index and length, and lives as long as
//! the group does here: who asks to begin one that is there already is told how far it is, and goes on
//! from that. A group takes one from each node at a time. What a process that ended has received is
//! removed at the next start.
//!
//! ORDER: parts are queued as they arrive, in `SwitchInbox::receive`, and one task writes them; were
//! each written by a task of its own, they would overtake each other.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Member, Switch};
use crate::config::NodeId;
use crate::error::SnapshotError;
use crate::execution;
use crate::frame::{Answer, Body, Frame, SnapshotAnswer, SnapshotName};
use crate::log::GroupId;
use crate::log_store::durable;
use crate::snapshot::{IncomingSnapshot, SnapshotFile};
use crate::state_machine::snapshot_meta;
use crate::transport::Lane;
use crate::types::Vote;

/// The transfers of one group.
pub(super) type Transfers = Mutex<HashMap<NodeId, Transfer>>;

/// A snapshot on its way in from one node. Ends when dropped.
pub(super) struct Transfer {
    name: SnapshotName,
    phase: Arc<Mutex<Phase>>,
    parts: mpsc::UnboundedSender<Part>,
    written: watch::Receiver<u64>,
    /// Under which vote it is to be installed, once that was asked for.
    vote: watch::Sender<Option<Vote>>,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Parts up to here are written or queued.
    Receiving {
        through: u64,
    },
    /// It is whole, and is being synced, verified or installed.
    Installing,
    Installed(Vote),
    Failed,
}

struct Part {
    number: u64,
    bytes: Bytes,
}

impl Transfer {
    fn is_of(&self, name: SnapshotName) -> bool {
        self.name == name && !matches!(*self.phase.lock(), Phase::Failed)
    }

    fn answer(&self) -> SnapshotAnswer {
        answer_of(self.name, *self.phase.lock())
    }
}

fn answer_of(name: SnapshotName, phase: Phase) -> SnapshotAnswer {
    match phase {
        Phase::Receiving { through } => SnapshotAnswer::Through { offset: through },
        Phase::Installing => SnapshotAnswer::Through { offset: name.bytes },
        Phase::Installed(vote) => SnapshotAnswer::Installed { vote },
        Phase::Failed => SnapshotAnswer::Lost,
    }
}

impl Switch {
    /// Begins a transfer, or tells how far one is that has begun.
    pub(super) async fn begin_transfer(
        self: Arc<Self>,
        from: NodeId,
        group: GroupId,
        member: Arc<Member>,
        name: SnapshotName,
    ) -> Answer {
        let known = {
            let transfers = member.transfers.lock();
            let known = transfers.get(&from).filter(|known| known.is_of(name));
            known.map(|known| (known.phase.clone(), known.written.clone()))
        };
        if let Some((phase, mut written)) = known {
            // What has arrived need not come again, but a slow disk is waited for: what waits for it
            // here is bounded by the sender's window.
            let through = match *phase.lock() {
                Phase::Receiving { through } => through,
                Phase::Installing | Phase::Installed(_) | Phase::Failed => 0,
            };
            // Its end is seen in the phase.
            let _ = written.wait_for(|written| *written >= through).await;
            let phase = *phase.lock();
            return Answer::Snapshot(answer_of(name, phase));
        }
        let snapshots = member.snapshots.clone();
        let incoming = match execution::blocking(move || snapshots.receive()).await {
            Ok(Ok(incoming)) => incoming,
            Ok(Err(error)) => {
                tracing::warn!(%from, error = &error as &dyn std::error::Error, "snapshot refused");
                return Answer::Snapshot(SnapshotAnswer::Lost);
            }
            Err(_) => return Answer::Refused,
        };
        let (parts, queue) = mpsc::unbounded_channel();
        let (vote, wanted) = watch::channel(None);
        let (written, seen) = watch::channel(0);
        let phase = Arc::new(Mutex::new(Phase::Receiving { through: 0 }));
        let transfer = Transfer { name, phase: phase.clone(), parts, written: seen, vote };
        // An older one of this sender ends with its queue.
        member.transfers.lock().insert(from, transfer);
        let receiving = Receiving { from, group, name, phase, incoming, written };
        self.runtime.clone().spawn(receiving.run(self, member, queue, wanted));
        Answer::Snapshot(SnapshotAnswer::Through { offset: 0 })
    }

    /// Queues a part, if it is the next one; its answer follows when it is written.
    pub(super) fn take_part(
        &self,
        from: NodeId,
        group: GroupId,
        number: u64,
        index: u64,
        offset: u64,
        bytes: Bytes,
    ) {
        let answer = match self.member(group) {
            None => Answer::Refused,
            Some(member) => {
                let transfers = member.transfers.lock();
                match transfers.get(&from).filter(|transfer| transfer.name.index == index) {
                    None => Answer::Snapshot(SnapshotAnswer::Lost),
                    Some(transfer) => {
                        if transfer.queue(offset, Part { number, bytes }) {
                            return;
                        }
                        Answer::Snapshot(transfer.answer())
                    }
                }
            }
        };
        self.reply(from, Lane::Bulk, &Frame { group, number, body: Body::Answer(answer) });
    }
}

impl Transfer {
    fn queue(&self, offset: u64, part: Part) -> bool {
        let mut phase = self.phase.lock();
        let Phase::Receiving { through } = &mut *phase else { return false };
        let end = offset.saturating_add(part.bytes.len() as u64);
        if *through != offset || end > self.name.bytes {
            return false;
        }
        *through = end;
        self.parts.send(part).is_ok()
    }
}

/// Has a snapshot installed that was received, or tells how far that is.
pub(super) fn install(
    member: &Member,
    from: NodeId,
    name: SnapshotName,
    vote: Vote,
) -> SnapshotAnswer {
    let transfers = member.transfers.lock();
    let Some(transfer) = transfers.get(&from).filter(|transfer| transfer.name == name) else {
        return SnapshotAnswer::Lost;
    };
    let phase = *transfer.phase.lock();
    match phase {
        Phase::Receiving { through } if through < name.bytes => {
            SnapshotAnswer::Through { offset: through }
        }
        // For as long as its task lives, it makes progress: a disk that fails ends it.
        Phase::Receiving { .. } | Phase::Installing => {
            transfer.vote.send_replace(Some(vote));
            SnapshotAnswer::Going
        }
        Phase::Installed(vote) => SnapshotAnswer::Installed { vote },
        Phase::Failed => SnapshotAnswer::Lost,
    }
}

/// The task of a transfer.
struct Receiving {
    from: NodeId,
    group: GroupId,
    name: SnapshotName,
    phase: Arc<Mutex<Phase>>,
    incoming: IncomingSnapshot,
    written: watch::Sender<u64>,
}

impl Receiving {
    async fn run(
        self,
        switch: Arc<Switch>,
        member: Arc<Member>,
        queue: mpsc::UnboundedReceiver<Part>,
        mut wanted: watch::Receiver<Option<Vote>>,
    ) {
        let (from, phase) = (self.from, self.phase.clone());
        let failed = |error: &SnapshotError| {
            tracing::warn!(%from, error = error as &dyn std::error::Error, "snapshot lost");
            *phase.lock() = Phase::Failed;
        };
        let incoming = match self.receive(&switch, &member, queue).await {
            Some(Ok(incoming)) => incoming,
            Some(Err(error)) => return failed(&error),
            None => return,
        };
        *phase.lock() = Phase::Installing;
        let snapshots = member.snapshots.clone();
        let file = match execution::blocking(move || snapshots.received(incoming)).await {
            Ok(Ok(file)) => file,
            Ok(Err(error)) => return failed(&error),
            Err(_) => return *phase.lock() = Phase::Failed,
        };
        let vote = wanted.wait_for(Option::is_some).await.ok().and_then(|vote| *vote);
        let Some(vote) = vote else {
            // Another transfer of this sender has begun.
            let snapshots = member.snapshots.clone();
            let removed = execution::blocking(move || snapshots.remove_unless_adopted(&file));
            return drop(removed.await);
        };
        let installed = install_file(&member, vote, file).await;
        if installed.is_some() {
            // What others had begun to send is of no use any more.
            member.transfers.lock().retain(|sender, _| *sender == from);
        }
        *phase.lock() = installed.map_or(Phase::Failed, Phase::Installed);
    }

    /// Writes the parts until all have come. `None`: nobody sends any more.
    async fn receive(
        self,
        switch: &Switch,
        member: &Member,
        mut queue: mpsc::UnboundedReceiver<Part>,
    ) -> Option<Result<IncomingSnapshot, SnapshotError>> {
        let Receiving { from, group, name, mut incoming, written: told, .. } = self;
        while incoming.bytes() < name.bytes {
            let Some(Part { number, bytes }) = queue.recv().await else {
                let snapshots = member.snapshots.clone();
                let discarded = execution::blocking(move || snapshots.discard(&incoming));
                drop(discarded.await);
                return None;
            };
            let snapshots = member.snapshots.clone();
            let written = execution::blocking(move || {
                let written = incoming.write(&bytes);
                if written.is_err() {
                    snapshots.discard(&incoming);
                }
                written.map(|()| incoming)
            });
            incoming = match written.await.ok()? {
                Ok(incoming) => incoming,
                Err(error) => return Some(Err(error)),
            };
            told.send_replace(incoming.bytes());
            let answer = SnapshotAnswer::Through { offset: incoming.bytes() };
            let body = Body::Answer(Answer::Snapshot(answer));
            switch.reply(from, Lane::Bulk, &Frame { group, number, body });
        }
        Some(Ok(incoming))
    }
}

async fn install_file(member: &Member, vote: Vote, file: SnapshotFile) -> Option<Vote> {
    let meta = snapshot_meta(&file).ok()?;
    let snapshot = openraft::Snapshot { meta, snapshot: file.clone() };
    let response = member.raft.install_full_snapshot(vote, snapshot).await.ok();
    // Raft may know better than to install an old snapshot.
    let snapshots = member.snapshots.clone();
    let removed = execution::blocking(move || snapshots.remove_unless_adopted(&file));
    removed.await.ok()?;
    // ORDER: then it answers at once, for entries that may still wait for the disk here. The leader
    // takes the answer for a promise, and stops if they are gone after a power cut.
    let (tx, rx) = oneshot::channel();
    member.log.sync(move |result| {
        // The receiver is gone only if the group was dropped meanwhile.
        let _ = tx.send(result);
    });
    durable(rx).await.ok()?;
    response.map(|response| response.vote)
}
