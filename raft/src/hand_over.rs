//! Leadership is handed over, before a node stops and to spread the load.
//!
//! openraft asks a successor once and takes that back in no term: where its request is lost, or meets a
//! node that has just ended, the leader decides nothing and sends no heartbeats until it is missed. So
//! the successor is asked again, and then the others.

use std::collections::BTreeSet;
use std::iter::repeat_n;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::timeout;

use crate::config::NodeId;
use crate::group::{Group, Running};
use crate::transport::Lane;

/// Taking over takes a sync and a round trip; whoever has not in this time is asked again, or another one.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often the one is asked who is to lead, before any other voter will do.
const ASKS: usize = 2;

impl Group {
    /// Hands leadership to `to`, or to another voter where that one does not take it up. True: one of
    /// them did. Does nothing if this node does not lead, or is `to`.
    pub fn transfer_leader(&self, to: NodeId) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            if to == self.running().node {
                return false;
            }
            let others = self.running().successors(None).into_iter().filter(|other| *other != to);
            let asked: Vec<NodeId> = repeat_n(to, ASKS).chain(others).collect();
            self.running().ask_to_lead(&asked).await.is_some()
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

    /// Asks one after the other to take over, until one has; who was asked last then. `None`: this node
    /// does not lead, or nobody has.
    pub(crate) async fn ask_to_lead(&self, successors: &[NodeId]) -> Option<NodeId> {
        let mut leadership = self.leadership.clone();
        let led = *leadership.borrow_and_update();
        if led.leader != Some(self.node) {
            return None;
        }
        for to in successors {
            // A group that has stopped leads nothing.
            let _ = self.raft.trigger().transfer_leader(*to).await;
            let taken_over = leadership.wait_for(|now| now.term > led.term);
            if let Ok(taken_over) = timeout(ASK_AGAIN, taken_over).await {
                return taken_over.is_ok().then_some(*to);
            }
        }
        tracing::warn!(group = %self.id, asked = ?successors, "nobody took the leadership over");
        None
    }
}
