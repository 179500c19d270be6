//! One group on this node: propose, read index, leadership watch, snapshots.
//!
//! Owns the way from a proposal to its verdict. It never looks into a payload and never tries a
//! proposal twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, LinearizableReadError, RaftError as OpenraftError,
};
use openraft::{LinearizerOption, ReadPolicy, ServerState};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::config::{NodeId, Tuning};
use crate::error::{ProposeError, RaftError, ReadError};
use crate::execution::blocking;
use crate::halt::{Halt, Halts};
use crate::log::{GroupId, Log};
use crate::network::Sendings;
use crate::purge::{HeldLogs, KeptFrom};
use crate::replica_thread::ReplicaThread;
use crate::rounds::Rounds;
use crate::snapshot::Snapshots;
use crate::state_machine::AppliedMembership;
use crate::switch::Switch;
use crate::types::{DataMetrics, LogId, Metrics, Proposal, Raft, ServerMetrics, term_of};

/// Proposals are admitted by this many bytes.
const ADMITTED_BYTES: usize = 1024;

/// A handle to one group on this node.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Running>,
}

/// A group that runs.
pub(crate) struct Running {
    pub(crate) id: GroupId,
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) replica: Arc<ReplicaThread>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) switch: Arc<Switch>,
    pub(crate) log: Log,
    pub(crate) tuning: Tuning,
    pub(crate) runtime: Handle,
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// Callers that wait for a read-index round.
    pub(crate) rounds: Rounds<Result<(), ReadError>>,
    /// Bytes of proposals under way, in units of [`ADMITTED_BYTES`].
    pub(crate) admission: Semaphore,
    /// One snapshot is taken on this node at a time: each holds its group's checkpoints back.
    pub(crate) snapshot_turn: Arc<tokio::sync::Mutex<()>>,
    /// Held while a snapshot is taken or the log purged: the group's end waits for that.
    pub(crate) at_work: tokio::sync::Mutex<()>,
    /// Which followers are being sent a snapshot.
    pub(crate) sendings: Arc<Sendings>,
    /// What all groups of this node keep of their logs for followers.
    pub(crate) held: Arc<HeldLogs>,
    pub(crate) kept_from: Arc<KeptFrom>,
    pub(crate) membership: AppliedMembership,
    /// Told why this group can no longer go on, where a start anew may help.
    pub(crate) failed: watch::Sender<Option<String>>,
    /// What its replica met, and who is told of it.
    pub(crate) halt: Halt,
    pub(crate) halts: Halts,
    /// Set by an orderly stop, so that the end of the group is not reported as a failure.
    pub(crate) stopping: AtomicBool,
}

pub(crate) fn admission(tuning: &Tuning) -> Semaphore {
    Semaphore::new((tuning.proposed_bytes_max / ADMITTED_BYTES).max(1))
}

/// An entry that is committed and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The term of the leader that appended it: of this node's leadership.
    pub term: u64,
    /// Its place in the group's log.
    pub index: u64,
    /// What the replica answered.
    pub verdict: Bytes,
}

/// Who leads a group, as this node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The highest term seen.
    pub term: u64,
    /// Who leads in that term, if known.
    pub leader: Option<NodeId>,
    /// This node leads in `term` and the first entry of its own term is applied here: the shard may
    /// decide.
    pub serving: bool,
}

/// How far a group is on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupMetrics {
    /// The current term.
    pub term: u64,
    /// The last entry in the log.
    pub last_index: u64,
    /// The last entry that is known to be committed.
    pub committed_index: u64,
    /// The last entry applied here.
    pub applied_index: u64,
    /// The last entry in the newest snapshot.
    pub snapshot_index: u64,
    /// The last entry purged from the log.
    pub purged_index: u64,
    /// Whether this node leads.
    pub is_leader: bool,
}

impl Group {
    pub(crate) fn new(inner: Arc<Running>) -> Group {
        Group { inner }
    }

    pub(crate) fn running(&self) -> &Arc<Running> {
        &self.inner
    }

    /// Which group this is.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Replicates one entry and applies it here. Waits while too many bytes are under way.
    ///
    /// # Errors
    /// See [`ProposeError`]: only `NotLeader` says that the entry was not appended.
    ///
    /// # Cancel safety
    /// A dropped future leaves the outcome unknown; the entry may still be committed.
    pub async fn propose(&self, payload: Bytes) -> Result<Committed, ProposeError> {
        let inner = Arc::clone(&self.inner);
        let (limit, runtime) = (inner.tuning.propose_timeout, inner.runtime.clone());
        let mut proposed = Box::pin(async move { inner.propose(payload).await });
        match timeout(limit, &mut proposed).await {
            Ok(result) => result,
            Err(_) => {
                // Its bytes still wait for the disk or a quorum, so they stay admitted.
                runtime.spawn(proposed);
                Err(ProposeError::Unknown(format!("not committed within {limit:?}")))
            }
        }
    }

    /// Returns once everything committed before the call is applied here, confirmed by a quorum.
    /// Free on a sole voter; concurrent callers share a round.
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read_index(&self) -> Result<(), ReadError> {
        if self.inner.serves_alone() {
            return Ok(());
        }
        let joined = self.inner.rounds.join();
        if joined.is_first {
            let group = Arc::clone(&self.inner);
            self.inner.runtime.spawn(async move {
                let round = || {
                    let group = Arc::clone(&group);
                    async move { group.read_round().await }
                };
                group.rounds.run(round).await;
            });
        }
        joined.answer.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Who leads, and whether this node may serve. The watch closes when the group stops.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Stands for election now, even if there is a leader. Does nothing on a replica that was forgotten
    /// here and has not come as far again.
    pub fn elect(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !self.inner.may_stand() {
                return;
            }
            // A group that has stopped elects nobody.
            let _ = self.inner.raft.trigger().elect(false).await;
        })
    }

    /// How far the group is.
    pub fn metrics(&self) -> GroupMetrics {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<crate::types::LogId>| id.map_or(0, |id| id.index);
        GroupMetrics {
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            snapshot_index: index(&metrics.snapshot),
            purged_index: index(&metrics.purged),
            is_leader: metrics.state == ServerState::Leader,
        }
    }

    /// Writes a snapshot of the state at the replica's last checkpoint and purges the log as far
    /// as the snapshot and the checkpoint allow. Answers the index of the newest snapshot; 0 if
    /// nothing has been checkpointed yet.
    ///
    /// # Errors
    /// When the group has stopped, or the snapshot could not be written.
    pub fn snapshot_now(&self) -> BoxFuture<'_, Result<u64, RaftError>> {
        Box::pin(async move {
            let inner = self.inner.clone();
            let (group, runtime) = (inner.id, inner.runtime.clone());
            // On Raft's runtime, so that a caller who goes away leaves no snapshot half taken.
            let taken = runtime.spawn(async move { inner.take_snapshot().await }).await;
            taken.unwrap_or_else(|error| {
                Err(RaftError::Stopped { group, reason: error.to_string() })
            })
        })
    }
}

impl Running {
    async fn propose(&self, payload: Bytes) -> Result<Committed, ProposeError> {
        let units = payload.len().div_ceil(ADMITTED_BYTES).max(1);
        // One entry larger than the whole limit travels alone.
        let all = (self.tuning.proposed_bytes_max / ADMITTED_BYTES).max(1);
        let units = u32::try_from(units.min(all)).unwrap_or(u32::MAX);
        let admitted = self.admission.acquire_many(units).await;
        let _admitted = admitted.map_err(|_| ProposeError::Stopped)?;
        match self.raft.client_write(Proposal::new(&payload)).await {
            Ok(written) => Ok(Committed {
                term: term_of(&written.log_id),
                index: written.log_id.index,
                verdict: written.data,
            }),
            Err(OpenraftError::APIError(error)) => Err(propose_error(error)),
            Err(OpenraftError::Fatal(_)) => Err(ProposeError::Stopped),
        }
    }

    /// This node is the only voter, leads, and has applied the first entry of its term.
    ///
    /// Then everything acknowledged is applied here: a proposal is acknowledged by its verdict,
    /// which the replica gives. Nobody can have taken over: another voter needs a membership change
    /// that this node appends, and openraft publishes it here before it appends the next.
    fn serves_alone(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        is_serving(&metrics, self.node)
            && metrics.membership_config.voter_ids().all(|voter| voter == self.node)
    }

    async fn read_round(&self) -> Result<(), ReadError> {
        let limit = self.tuning.read_timeout;
        let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(limit);
        let round = async {
            let linearizer = self.raft.get_read_linearizer(option).await.map_err(read_error)?;
            let ready = linearizer.await_ready(&self.raft).await;
            ready.map(drop).map_err(|_: Fatal<_>| ReadError::Stopped)
        };
        timeout(limit, round).await.unwrap_or(Err(ReadError::NoQuorum))
    }

    /// Stops or resumes heartbeats; one that stops hands its leadership to the follower that has
    /// most of the log.
    pub(crate) async fn set_stalled(&self, stalled: bool) {
        self.raft.runtime_config().heartbeat(!stalled);
        if stalled && let Some(to) = self.successors(None).first() {
            // Not waited for: the disk on which this node would note it hangs. A group that has stopped
            // leads nothing.
            let _ = self.raft.trigger().transfer_leader(*to).await;
        }
    }

    pub(crate) fn stopped(&self, reason: String) -> RaftError {
        RaftError::Stopped { group: self.id, reason }
    }

    /// Stops the group and then its replica. What was acknowledged is applied or in the log.
    pub(crate) async fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.admission.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.id, %error, "group did not stop in order");
        }
        let replica = self.replica.clone();
        if let Err(error) = blocking(move || replica.stop()).await {
            tracing::warn!(group = %self.id, %error, "replica did not stop in order");
        }
        // ORDER: what is under way ends first, and with it the last that it writes or notes.
        drop(self.at_work.lock().await);
        self.snapshots.close();
        self.held.release(self.id);
    }
}

/// Publishes who leads, until the group stops.
pub(crate) async fn watch_leadership(
    group: std::sync::Weak<Running>,
    leadership: watch::Sender<Leadership>,
) {
    let Some((id, node, raft)) =
        group.upgrade().map(|group| (group.id, group.node, group.raft.clone()))
    else {
        return;
    };
    // Data changes with each entry, and is watched only while it matters.
    let (mut server, mut data) = (raft.server_metrics(), raft.data_metrics());
    drop(raft);
    loop {
        let now = leadership_of(&server.borrow_watched(), &data.borrow_watched(), node);
        let changed = leadership.send_if_modified(|last| {
            let changed = *last != now;
            *last = now;
            changed
        });
        if changed {
            tracing::debug!(group = %id, term = now.term, leader = ?now.leader,
                serving = now.serving, "leadership");
        }
        let begins_to_lead = now.leader == Some(node) && !now.serving;
        let changed = tokio::select! {
            biased;
            changed = server.changed() => changed,
            changed = data.changed(), if begins_to_lead => changed,
        };
        if changed.is_err() {
            let term = now.term;
            leadership.send_replace(Leadership { term, leader: None, serving: false });
            break;
        }
    }
    if let Some(group) = group.upgrade().filter(|g| !g.stopping.load(Ordering::Relaxed)) {
        if group.halt.tell(id, &group.halts) {
            return;
        }
        tracing::error!(group = %id, "group has stopped on this node");
        group.failed.send_if_modified(|first| {
            first.is_none().then(|| *first = Some(format!("group {id} has stopped"))).is_some()
        });
    }
}

// INVARIANT: a term is told with its own leader. The vote is the last one that is durable here, and the
// leader that of the newest: while that is being written, it leads a term that is not told yet.
fn leadership_of(server: &ServerMetrics, data: &DataMetrics, node: NodeId) -> Leadership {
    let of = server.vote.leader_id;
    let (term, leader) = (of.term, server.current_leader.filter(|leader| *leader == of.voted_for));
    let leads = server.state == ServerState::Leader && leader == Some(node);
    Leadership { term, leader, serving: leads && has_applied_in(term, data.last_applied) }
}

// INVARIANT: terms have one leader each, so an applied entry of the current term is this leader's.
fn is_serving(metrics: &Metrics, node: NodeId) -> bool {
    metrics.running_state.is_ok()
        && metrics.state == ServerState::Leader
        && metrics.current_leader == Some(node)
        && has_applied_in(metrics.current_term, metrics.last_applied)
}

fn has_applied_in(term: u64, applied: Option<LogId>) -> bool {
    applied.is_some_and(|applied| term_of(&applied) == term)
}

fn propose_error(error: ClientWriteError<crate::types::TypeConfig>) -> ProposeError {
    match error {
        // Also while leadership is handed over, or no quorum was heard of for a lease.
        ClientWriteError::ForwardToLeader(to) => ProposeError::NotLeader { leader: to.leader_id },
        ClientWriteError::LogEntryDiscarded(_) => {
            ProposeError::Unknown("another leader took over".to_string())
        }
        // We neither change the membership by a proposal nor attach conditions.
        ClientWriteError::ChangeMembershipError(error) => ProposeError::Unknown(error.to_string()),
        ClientWriteError::PreconditionFailed(error) => ProposeError::Unknown(error.to_string()),
    }
}

fn read_error(
    error: OpenraftError<crate::types::TypeConfig, LinearizableReadError<crate::types::TypeConfig>>,
) -> ReadError {
    match error {
        OpenraftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
            ReadError::NotLeader { leader: to.leader_id }
        }
        OpenraftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NoQuorum,
        OpenraftError::Fatal(_) => ReadError::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Vote;

    fn leadership(vote: Vote, leader: u64) -> (u64, Option<NodeId>) {
        let server = ServerMetrics {
            id: NodeId(9),
            vote,
            state: ServerState::Follower,
            current_leader: Some(NodeId(leader)),
            membership_config: Arc::default(),
            committed_membership_config: Arc::default(),
        };
        let Leadership { term, leader, .. } =
            leadership_of(&server, &DataMetrics::default(), NodeId(9));
        (term, leader)
    }

    /// Goal: a follower whose disk is slow tells nobody that an older term has the newer one's leader.
    #[test]
    fn a_leader_is_not_told_with_the_term_of_another_one() {
        assert_eq!(leadership(Vote::new_committed(3, NodeId(3)), 3), (3, Some(NodeId(3))));
        assert_eq!(leadership(Vote::new_committed(3, NodeId(3)), 1), (3, None));
        assert_eq!(leadership(Vote::new(4, NodeId(1)), 1), (4, Some(NodeId(1))));
    }
}
