//! Snapshots on their way in: takes a leader's parts into a file, and installs it when it is whole.
//! A group takes one from each node at a time.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Member;
use crate::config::NodeId;
use crate::execution;
use crate::frame::SnapshotAnswer;
use crate::log_store::durable;
use crate::snapshot::{IncomingSnapshot, SnapshotFile};
use crate::state_machine::snapshot_meta;
use crate::types::Vote;

/// The transfers of one group.
pub(super) type Transfers = Mutex<HashMap<NodeId, Transfer>>;

/// A snapshot on its way in from one node.
pub(super) struct Transfer {
    number: u64,
    state: TransferState,
}

enum TransferState {
    Receiving(IncomingSnapshot),
    Installing,
    Installed(Vote),
    Failed,
}

/// Writes a part of a snapshot to its file. The first part begins a transfer and ends an older one.
pub(super) fn take_part(
    member: &Member,
    from: NodeId,
    number: u64,
    offset: u64,
    part: &[u8],
) -> SnapshotAnswer {
    let mut transfers = member.transfers.lock();
    if offset == 0 {
        match member.snapshots.receive() {
            Ok(incoming) => {
                let state = TransferState::Receiving(incoming);
                if let Some(old) = transfers.insert(from, Transfer { number, state })
                    && let TransferState::Receiving(incoming) = old.state
                {
                    member.snapshots.discard(&incoming);
                }
            }
            Err(error) => {
                tracing::warn!(%from, error = &error as &dyn std::error::Error, "snapshot refused");
                return SnapshotAnswer::Lost;
            }
        }
    }
    let Some(transfer) = transfers.get_mut(&from) else { return SnapshotAnswer::Lost };
    let TransferState::Receiving(incoming) = &mut transfer.state else {
        return SnapshotAnswer::Lost;
    };
    if transfer.number != number || incoming.bytes() != offset {
        return SnapshotAnswer::Lost;
    }
    match incoming.write(part) {
        Ok(()) => SnapshotAnswer::Going,
        Err(error) => {
            tracing::warn!(%from, error = &error as &dyn std::error::Error, "snapshot lost");
            member.snapshots.discard(incoming);
            transfer.state = TransferState::Failed;
            SnapshotAnswer::Lost
        }
    }
}

/// Begins to install what was received, or tells how far that is.
pub(super) fn install(
    member: Arc<Member>,
    from: NodeId,
    number: u64,
    bytes: u64,
    vote: Vote,
) -> SnapshotAnswer {
    let mut transfers = member.transfers.lock();
    let Some(transfer) = transfers.get_mut(&from) else { return SnapshotAnswer::Lost };
    if transfer.number != number {
        return SnapshotAnswer::Lost;
    }
    let incoming = match std::mem::replace(&mut transfer.state, TransferState::Installing) {
        TransferState::Receiving(incoming) if incoming.bytes() == bytes => incoming,
        TransferState::Installing => return SnapshotAnswer::Going,
        TransferState::Installed(vote) => {
            transfer.state = TransferState::Installed(vote);
            return SnapshotAnswer::Installed { vote };
        }
        TransferState::Receiving(incoming) => {
            member.snapshots.discard(&incoming);
            transfer.state = TransferState::Failed;
            return SnapshotAnswer::Lost;
        }
        TransferState::Failed => {
            transfer.state = TransferState::Failed;
            return SnapshotAnswer::Lost;
        }
    };
    drop(transfers);
    let received = member.snapshots.received(incoming);
    let file = match received {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(%from, error = &error as &dyn std::error::Error, "snapshot unusable");
            set_state(&member, from, number, TransferState::Failed);
            return SnapshotAnswer::Lost;
        }
    };
    Handle::current().spawn(async move {
        let state = match install_file(&member, vote, file).await {
            Some(vote) => TransferState::Installed(vote),
            None => TransferState::Failed,
        };
        set_state(&member, from, number, state);
    });
    SnapshotAnswer::Going
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

fn set_state(member: &Member, from: NodeId, number: u64, state: TransferState) {
    if let Some(transfer) = member.transfers.lock().get_mut(&from)
        && transfer.number == number
    {
        transfer.state = state;
    }
}
