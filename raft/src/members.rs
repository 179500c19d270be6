//! Who belongs to a group, and how that changes: one change at a time, decided by the leader.
//!
//! Owns the refusals. It never judges whether the nodes of a new set can be reached: whoever asks
//! for it knows more.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::Instant;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError as OpenraftError};
use openraft::{ChangeMembers, EmptyNode, ServerState};
use tokio::time::timeout;

use crate::config::NodeId;
use crate::error::ChangeError;
use crate::group::{Group, Running};
use crate::types::TypeConfig;

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The sets of voters: one, or two while the voters change. A majority of each set decides.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Those who are filled and do not vote.
    pub learners: BTreeSet<NodeId>,
}

impl Members {
    /// Whether a node votes, in any of the sets.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|voters| voters.contains(&node))
    }
}

/// What becomes of a voter that the new set does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It leaves the group.
    Leaves,
    /// It stays as a learner.
    Learns,
}

/// How far a member is behind its leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries that it has not acknowledged.
    pub entries: u64,
    /// Their bytes, as far as this node's log still holds them.
    pub bytes: u64,
}

impl Group {
    /// Who belongs to the group, as far as this node knows: what is committed and applied here, never
    /// a change that may still be undone. Empty on a node that no leader has reached yet.
    pub fn members(&self) -> Members {
        self.running().members()
    }

    /// Takes a node in as a learner: from now on it is filled. Does nothing if it is a member already.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn add_learner(&self, node: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let members = self.running().members_here()?;
            if members.is_voter(node) || members.learners.contains(&node) {
                return Ok(());
            }
            let added = ChangeMembers::AddNodes([(node, EmptyNode {})].into());
            self.running().change(added, Removed::Learns).await
        })
    }

    /// Has a learner leave the group. Does nothing if it is no member.
    ///
    /// # Errors
    /// [`ChangeError::IsVoter`] for a voter; else see [`ChangeError`].
    pub fn remove_learner(&self, node: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let members = self.running().members_here()?;
            if members.is_voter(node) {
                return Err(ChangeError::IsVoter { node });
            }
            if !members.learners.contains(&node) {
                return Ok(());
            }
            let removed = ChangeMembers::RemoveNodes([node].into());
            self.running().change(removed, Removed::Learns).await
        })
    }

    /// Makes these nodes the voters: with the majorities of both sets, then of the new one alone.
    /// Whoever is new must have been a learner that has caught up. A change that a former leader left
    /// half done is completed so.
    ///
    /// A leader that is not among the new voters hands its leadership to one that is, and answers
    /// [`ChangeError::NotLeader`]: ask that one, if it is known by then.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn set_voters(
        &self,
        voters: BTreeSet<NodeId>,
        removed: Removed,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let group = self.running();
            let members = group.members_here()?;
            if voters.is_empty() {
                return Err(ChangeError::NoVoters);
            }
            if members.voters == [voters.clone()] {
                return Ok(());
            }
            for node in voters.iter().copied().filter(|node| !members.is_voter(*node)) {
                if !members.learners.contains(&node) {
                    return Err(ChangeError::NotMember { node });
                }
                let lag = self.lag(node).ok_or(ChangeError::NotMember { node })?;
                if lag.entries > group.tuning.voter_lag_entries_max {
                    return Err(ChangeError::Lags { node, entries: lag.entries });
                }
            }
            let leaves = !voters.contains(&group.node);
            if leaves {
                let successors = group.successors(Some(&voters));
                if !successors.is_empty() {
                    let leader = group.ask_to_lead(&successors).await;
                    return Err(ChangeError::NotLeader { leader });
                }
            }
            group.change(ChangeMembers::ReplaceAllVoters(voters.clone()), removed).await?;
            if leaves {
                // All voters are new: they could not lead before.
                group.ask_to_lead(&group.successors(Some(&voters))).await;
            }
            Ok(())
        })
    }

    /// How far a member is behind. `None` unless this node leads and knows the member.
    pub fn lag(&self, node: NodeId) -> Option<Lag> {
        let (last, acknowledged) = {
            let metrics = self.running().raft.metrics();
            let metrics = metrics.borrow_watched();
            let replication = metrics.replication.as_ref()?;
            let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
            let acknowledged = replication.get(&node)?.as_ref().map(|id| id.index);
            (next(metrics.last_log_index), next(acknowledged))
        };
        if node == self.running().node {
            return Some(Lag::default());
        }
        let bytes = self.running().log.bytes_in(self.id(), acknowledged..u64::MAX);
        Some(Lag { entries: last.saturating_sub(acknowledged), bytes })
    }

    /// How long ago a member was last heard of. `None` unless this node leads and has heard of it in
    /// its term.
    pub fn last_heard(&self, node: NodeId) -> Option<Duration> {
        let metrics = self.running().raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref()?.get(&node)?.as_ref()?;
        Some(heard.into_inner().elapsed())
    }
}

impl Running {
    fn members(&self) -> Members {
        let applied = self.membership.lock();
        let membership = applied.membership();
        Members {
            voters: membership.get_joint_config().clone(),
            learners: membership.learner_ids().collect(),
        }
    }

    /// The members, if this node leads and so may change them.
    fn members_here(&self) -> Result<Members, ChangeError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.running_state.is_err() {
            return Err(ChangeError::Stopped);
        }
        if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.node) {
            let leader = metrics.current_leader.filter(|leader| *leader != self.node);
            return Err(ChangeError::NotLeader { leader });
        }
        Ok(self.members())
    }

    async fn change(
        &self,
        change: ChangeMembers<NodeId, EmptyNode>,
        removed: Removed,
    ) -> Result<(), ChangeError> {
        let raft = self.raft.clone();
        // On Raft's runtime: a caller who goes away leaves no change half done.
        let changed = self.runtime.spawn(async move {
            raft.change_membership(change, removed == Removed::Learns).await.map(drop)
        });
        match timeout(self.tuning.propose_timeout, changed).await {
            Ok(Ok(changed)) => changed.map_err(change_error),
            Ok(Err(_)) => Err(ChangeError::Stopped),
            Err(_) => {
                let limit = self.tuning.propose_timeout;
                Err(ChangeError::Unknown(format!("not committed within {limit:?}")))
            }
        }
    }
}

fn change_error(error: OpenraftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ChangeError {
    let error = match error {
        OpenraftError::APIError(error) => error,
        OpenraftError::Fatal(_) => return ChangeError::Stopped,
    };
    match error {
        ClientWriteError::ForwardToLeader(to) => ChangeError::NotLeader { leader: to.leader_id },
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_) => ChangeError::InProgress,
            ChangeMembershipError::EmptyMembership(_) => ChangeError::NoVoters,
            ChangeMembershipError::LearnerNotFound(error) => {
                ChangeError::NotMember { node: error.node_id }
            }
            // Only openraft's other way to change members gives these.
            error => ChangeError::Unknown(error.to_string()),
        },
        ClientWriteError::LogEntryDiscarded(_) => {
            ChangeError::Unknown("another leader took over".to_string())
        }
        // The second step found another change than the first one had made.
        ClientWriteError::PreconditionFailed(error) => ChangeError::Unknown(error.to_string()),
    }
}
