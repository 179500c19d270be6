//! A leader whose process is gone is replaced at once, instead of after the election timeout.
//!
//! That a connection was refused says little: this node's link may be broken, and the leader well. So
//! the others are asked first, and a member stands only where a majority of the voters has lost the
//! leader, too. Then nobody's lease is broken that anybody holds, and no term is raised in vain.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use tokio::time::sleep;

use crate::config::NodeId;
use crate::frame::{Answer, Request};
use crate::group::Running;
use crate::transport::Lane;

/// Members stand for a lost leader's place within this time, so that not all do at one moment.
const SPREAD_MILLIS: u64 = 50;
/// How often they ask and stand, before it is left to the election timeout.
const ROUNDS: u64 = 4;
/// How long an answer may take: who is asked may wait a little for the same news.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);

/// Stands for the place of `peer`, if it leads and a majority has lost it.
pub(crate) async fn replace_lost(group: Arc<Running>, peer: NodeId) {
    let execution = group.tuning.execution;
    let pause = |round: u64| {
        let drawn = execution.draw((u64::from(group.id.0) << 8) | round);
        Duration::from_millis(drawn % SPREAD_MILLIS)
    };
    let mut leads = group.leadership.borrow().leader == Some(peer);
    for round in 0..ROUNDS {
        if !leads {
            return;
        }
        sleep(pause(round)).await;
        if !group.switch.is_lost(peer) {
            return;
        }
        if group.others_have_lost(peer).await {
            group.stand_for(peer).await;
            // Where two stood, each has its own vote, and nobody leads.
            sleep(Duration::from_millis(2 * SPREAD_MILLIS)).await;
        }
        leads = group.leadership.borrow().leader.is_none_or(|leader| leader == peer);
    }
}

impl Running {
    /// Whether a majority of each set of voters has lost `peer`, this node among them.
    async fn others_have_lost(&self, peer: NodeId) -> bool {
        let sets = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().clone()
        };
        let voters: BTreeSet<NodeId> = sets.iter().flatten().copied().collect();
        if !voters.contains(&self.node) {
            return false;
        }
        let others = voters.iter().copied().filter(|voter| ![self.node, peer].contains(voter));
        let mut answers: FuturesUnordered<_> = others
            .map(|voter| async move {
                let request = Request::PeerLost { peer };
                let ask = self.switch.ask(voter, Lane::Urgent, self.id, request, ANSWER_LIMIT);
                let answer = ask.await;
                matches!(answer, Ok(Answer::PeerLost(true))).then_some(voter)
            })
            .collect();
        let mut lost_by = BTreeSet::from([self.node]);
        let agreed = |lost_by: &BTreeSet<NodeId>| {
            sets.iter().all(|set| set.intersection(lost_by).count() > set.len() / 2)
        };
        while !agreed(&lost_by) {
            match answers.next().await {
                Some(voter) => lost_by.extend(voter),
                None => return false,
            }
        }
        true
    }

    /// Stands for election as if `peer` had handed its leadership over: the others then do not wait
    /// for its lease to end. Safe, since answers do not rest on leases (D5a).
    async fn stand_for(&self, peer: NodeId) {
        if !self.may_stand() {
            return;
        }
        let (vote, leader) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.vote, metrics.current_leader)
        };
        // A refusal means that somebody else was quicker.
        match leader {
            Some(leader) if leader == peer => {
                let request = TransferLeaderRequest::new(vote, self.node, None);
                let _ = self.raft.handle_transfer_leader(request).await;
            }
            Some(_) => {}
            None => {
                let _ = self.raft.trigger().elect(false).await;
            }
        }
    }
}
