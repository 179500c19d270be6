//! Leadership is handed over, before a node stops and to spread the load.
//!
//! openraft asks a successor once and takes that back in no term: where its request is lost, or meets a
//! node that has just ended, the leader decides nothing and sends no heartbeats until it is missed. So
//! the successor is asked again, and then one more that may lead.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::timeout;

use crate::config::NodeId;
use crate::group::{Group, Running};
use crate::transport::Lane;

/// Taking over takes some syncs and round trips, a few milliseconds in all; whoever has not in this time is
/// asked again, or another one.
const ASK_AGAIN: Duration = Duration::from_millis(150);
const ASKS: usize = 3;

impl Group {
    /// Hands leadership to the first of these voters, or to the second where that one does not take it up.
    /// Answers who leads then: `None`, if that is not known, or nobody took it up, or this node did not
    /// lead.
    pub fn transfer_leader(&self, successors: &[NodeId]) -> BoxFuture<'_, Option<NodeId>> {
        let running = self.running().clone();
        let successors = successors.iter().copied().filter(|to| *to != running.node);
        let successors: Vec<NodeId> = successors.collect();
        Box::pin(async move {
            let runtime = running.runtime.clone();
            // On Raft's runtime: a caller who goes away between two askings would leave the group without
            // a leader that decides.
            let asked = runtime.spawn(async move { running.ask_to_lead(&successors).await });
            asked.await.ok().flatten()
        })
    }

    /// Whether a member can be asked anything at the moment: there is a connection to it.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.running().switch.is_connected(node, Lane::Urgent)
    }
}

impl Running {
    /// The other voters, of those in `among`, in the order in which they lack least of the log. Nobody,
    /// if this node does not lead.
    pub(crate) fn successors(&self, among: Option<&BTreeSet<NodeId>>) -> Vec<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().collect();
        let is_meant = |to: &NodeId| {
            *to != self.node && voters.contains(to) && among.is_none_or(|among| among.contains(to))
        };
        let followers = metrics.replication.iter().flatten();
        let mut followers: Vec<_> = followers.filter(|(to, _)| is_meant(to)).collect();
        followers.sort_by_key(|(_, matching)| std::cmp::Reverse(**matching));
        followers.into_iter().map(|(to, _)| *to).collect()
    }

    /// Asks the first one twice, and then the second one, until one stands for election; who leads then.
    /// More of them that stand at the same time would only divide the votes.
    pub(crate) async fn ask_to_lead(&self, successors: &[NodeId]) -> Option<NodeId> {
        let mut leadership = self.leadership.clone();
        let led = *leadership.borrow_and_update();
        if led.leader != Some(self.node) {
            return None;
        }
        for to in successors.first().into_iter().chain(successors).take(ASKS) {
            // A group that has stopped leads nothing.
            let _ = self.raft.trigger().transfer_leader(*to).await;
            let stands = timeout(ASK_AGAIN, leadership.wait_for(|now| now.term > led.term));
            if stands.await.is_ok_and(|stands| stands.is_ok()) {
                let leads = leadership.wait_for(|now| now.leader.is_some());
                return timeout(ASK_AGAIN, leads).await.ok()?.ok()?.leader;
            }
        }
        tracing::warn!(group = %self.id, asked = ?successors, "nobody took the leadership over");
        None
    }
}
