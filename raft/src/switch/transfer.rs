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
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::AppendEntriesResponse;
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, mpsc, oneshot, watch};

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
use crate::types::{AppendRequest, LogId, Vote, term_of};

/// The transfers of one group.
pub(super) struct Transfers {
    /// `None` once the group stops here.
    by_sender: Mutex<Option<HashMap<NodeId, Transfer>>>,
    /// Held by each transfer's task.
    tasks: Arc<RwLock<()>>,
}

impl Transfers {
    pub(super) fn new() -> Transfers {
        Transfers { by_sender: Mutex::new(Some(HashMap::new())), tasks: Arc::default() }
    }

    /// Notes a transfer; an older one of this sender ends with its queue. False: the group stops.
    fn insert(&self, from: NodeId, transfer: Transfer) -> bool {
        let mut by_sender = self.by_sender.lock();
        by_sender.as_mut().map(|by_sender| by_sender.insert(from, transfer)).is_some()
    }

    fn with<T>(&self, from: NodeId, look: impl FnOnce(&Transfer) -> T) -> Option<T> {
        self.by_sender.lock().as_ref()?.get(&from).map(look)
    }

    fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        if let Some(by_sender) = &mut *self.by_sender.lock() {
            by_sender.retain(|sender, _| keep(*sender));
        }
    }

    /// Ends all transfers; none begins any more.
    pub(super) fn close(&self) {
        drop(self.by_sender.lock().take());
    }

    /// Waits until the tasks of all transfers have ended, once they are closed and the group has
    /// stopped.
    pub(super) async fn ended(&self) {
        drop(self.tasks.write().await);
    }
}

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
    /// Raft has taken it, or has all that is in it: its last entry.
    Taken(LogId),
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
        Phase::Installing | Phase::Taken(_) => SnapshotAnswer::Through { offset: name.bytes },
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
        let known = member.transfers.with(from, |known| {
            known.is_of(name).then(|| (known.phase.clone(), known.written.clone()))
        });
        if let Some((phase, mut written)) = known.flatten() {
            // What has arrived need not come again, but a slow disk is waited for: what waits for it
            // here is bounded by the sender's window.
            let through = match *phase.lock() {
                Phase::Receiving { through } => through,
                Phase::Installing | Phase::Taken(_) | Phase::Failed => 0,
            };
            // Its end is seen in the phase.
            let _ = written.wait_for(|written| *written >= through).await;
            let phase = *phase.lock();
            return Answer::Snapshot(answer_of(name, phase));
        }
        // From here on the group's stop waits for this.
        let Ok(task) = Arc::clone(&member.transfers.tasks).try_read_owned() else {
            return Answer::Refused;
        };
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
        // One that is not noted ends with its queue, too.
        let begun = member.transfers.insert(from, transfer);
        let receiving = Receiving { from, group, name, phase, written, _task: task };
        self.runtime.clone().spawn(receiving.run(self, member, incoming, queue, wanted));
        let begun = begun.then_some(SnapshotAnswer::Through { offset: 0 });
        begun.map_or(Answer::Refused, Answer::Snapshot)
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
                let part = Part { number, bytes };
                let taken = member.transfers.with(from, |transfer| {
                    (transfer.name.index == index).then(|| transfer.queue(offset, part))
                });
                match taken.flatten() {
                    Some(Ok(())) => return,
                    Some(Err(answer)) => Answer::Snapshot(answer),
                    None => Answer::Snapshot(SnapshotAnswer::Lost),
                }
            }
        };
        self.reply(from, Lane::Bulk, &Frame { group, number, body: Body::Answer(answer) });
    }
}

impl Transfer {
    /// Takes a part that is the next one; else says how far this is.
    fn queue(&self, offset: u64, part: Part) -> Result<(), SnapshotAnswer> {
        {
            let mut phase = self.phase.lock();
            let end = offset.saturating_add(part.bytes.len() as u64);
            if let Phase::Receiving { through } = &mut *phase
                && *through == offset
                && end <= self.name.bytes
            {
                *through = end;
                if self.parts.send(part).is_ok() {
                    return Ok(());
                }
                *phase = Phase::Failed;
            }
        }
        Err(self.answer())
    }
}

/// Has a snapshot installed that was received, or tells how far that is.
pub(super) async fn install(
    member: &Member,
    from: NodeId,
    name: SnapshotName,
    vote: Vote,
) -> SnapshotAnswer {
    let answer = member.transfers.with(from, |transfer| {
        if transfer.name != name {
            return Err(SnapshotAnswer::Lost);
        }
        let phase = *transfer.phase.lock();
        match phase {
            Phase::Receiving { through } if through < name.bytes => Err(transfer.answer()),
            // For as long as its task lives, it makes progress: a disk that fails ends it.
            Phase::Receiving { .. } | Phase::Installing => {
                transfer.vote.send_replace(Some(vote));
                Err(SnapshotAnswer::Going)
            }
            Phase::Taken(last) => Ok(last),
            Phase::Failed => Err(SnapshotAnswer::Lost),
        }
    });
    match answer {
        Some(Ok(last)) => member.confirm_taken(from, vote, last).await,
        Some(Err(answer)) => answer,
        None => SnapshotAnswer::Lost,
    }
}

impl Member {
    /// Tells a leader that its snapshot is installed, if Raft says so under the leader's own vote: it
    /// takes the answer for a promise, and what was so when the snapshot came need not be so now.
    async fn confirm_taken(&self, from: NodeId, vote: Vote, last: LogId) -> SnapshotAnswer {
        let (prev_log_id, entries, leader_commit) = (Some(last), Vec::new(), None);
        let request = AppendRequest { vote, prev_log_id, entries, leader_commit };
        match self.raft.append_entries(request).await {
            Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)) => {
                SnapshotAnswer::Installed { vote }
            }
            Ok(AppendEntriesResponse::HigherVote(vote)) => SnapshotAnswer::Installed { vote },
            Ok(AppendEntriesResponse::Conflict) | Err(_) => {
                self.transfers.retain(|sender| sender != from);
                SnapshotAnswer::Lost
            }
        }
    }
}

/// The task of a transfer.
struct Receiving {
    from: NodeId,
    group: GroupId,
    name: SnapshotName,
    phase: Arc<Mutex<Phase>>,
    written: watch::Sender<u64>,
    _task: OwnedRwLockReadGuard<()>,
}

/// However the task ends, its transfer has an end: another one may begin.
struct Ends<'a>(&'a Mutex<Phase>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut phase = self.0.lock();
        if !matches!(*phase, Phase::Taken(_)) {
            *phase = Phase::Failed;
        }
    }
}

impl Receiving {
    async fn run(
        self,
        switch: Arc<Switch>,
        member: Arc<Member>,
        incoming: IncomingSnapshot,
        queue: mpsc::UnboundedReceiver<Part>,
        mut wanted: watch::Receiver<Option<Vote>>,
    ) {
        let ends = Ends(&self.phase);
        let from = self.from;
        let lost = |error: &SnapshotError| {
            tracing::warn!(%from, error = error as &dyn std::error::Error, "snapshot lost");
        };
        let incoming = match self.receive(&switch, &member, incoming, queue).await {
            Some(Ok(incoming)) => incoming,
            Some(Err(error)) => return lost(&error),
            None => return,
        };
        *self.phase.lock() = Phase::Installing;
        let snapshots = member.snapshots.clone();
        let file = match execution::blocking(move || snapshots.received(incoming)).await {
            Ok(Ok(file)) => file,
            Ok(Err(error)) => return lost(&error),
            Err(_) => return,
        };
        let vote = wanted.wait_for(Option::is_some).await.ok().and_then(|vote| *vote);
        let Some(vote) = vote else {
            // Another transfer of this sender has begun, or the group stops.
            let snapshots = member.snapshots.clone();
            let removed = execution::blocking(move || snapshots.remove_unless_adopted(&file));
            return drop(removed.await);
        };
        if let Some(last) = install_file(&member, vote, file).await {
            *self.phase.lock() = Phase::Taken(last);
            // What others had begun to send is of no use any more.
            member.transfers.retain(|sender| sender == from);
        }
        drop(ends);
    }

    /// Writes the parts until all have come. `None`: nobody sends any more.
    async fn receive(
        &self,
        switch: &Switch,
        member: &Member,
        mut incoming: IncomingSnapshot,
        mut queue: mpsc::UnboundedReceiver<Part>,
    ) -> Option<Result<IncomingSnapshot, SnapshotError>> {
        let Receiving { from, group, name, .. } = *self;
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
            self.written.send_replace(incoming.bytes());
            let answer = SnapshotAnswer::Through { offset: incoming.bytes() };
            let body = Body::Answer(Answer::Snapshot(answer));
            switch.reply(from, Lane::Bulk, &Frame { group, number, body });
        }
        Some(Ok(incoming))
    }
}

/// Answers the snapshot's last entry. `None`: Raft refused it, or something failed.
async fn install_file(member: &Member, vote: Vote, file: SnapshotFile) -> Option<LogId> {
    let meta = snapshot_meta(&file).ok()?;
    let last = meta.last_log_id?;
    // Openraft takes it for granted that a snapshot contradicts neither its leader's vote nor what is
    // committed here.
    let committed = member.raft.metrics().borrow_watched().local_committed;
    let contradicts = committed.is_some_and(|here| last > here && last.index <= here.index)
        || term_of(&last) > vote.leader_id.term
        || meta.last_membership.log_id() > &meta.last_log_id;
    if contradicts {
        let group = member.store.group();
        tracing::warn!(%group, ?file, "snapshot lost: nobody may say that");
        let snapshots = member.snapshots.clone();
        drop(execution::blocking(move || snapshots.remove_unless_adopted(&file)).await);
        return None;
    }
    let snapshot = openraft::Snapshot { meta, snapshot: file.clone() };
    let response = member.raft.install_full_snapshot(vote, snapshot).await.ok();
    // Raft may know better than to install an old snapshot.
    let snapshots = member.snapshots.clone();
    let removed = execution::blocking(move || snapshots.remove_unless_adopted(&file));
    removed.await.ok()?;
    // ORDER: then it answers at once, for entries that may still wait for the disk here, and the leader
    // takes the answer for a promise.
    let (tx, rx) = oneshot::channel();
    member.log.sync(move |result| {
        // The receiver is gone only if the group was dropped meanwhile.
        let _ = tx.send(result);
    });
    durable(rx).await.ok()?;
    response.filter(|response| response.vote == vote).map(|_| last)
}
