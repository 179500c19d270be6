//! Leaderships are handed over before a node stops, so that nobody waits until it is missed; and its polls are
//! withdrawn, so that no task is sent to it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use piton_raft::{Group, NodeId};
use tokio::time::{Instant, timeout};

use crate::message::NodeState;
use crate::meta::META_GROUP;
use crate::route::cluster::Cluster;
use crate::route::nodes::behind_of_successor;

/// How long a node that stops waits for the queues to hear that its polls have ended, and then for tasks that were
/// on their way by then: through a commit, and between nodes.
const WITHDRAWN_IN: Duration = Duration::from_secs(1);
const LAST_TASKS: Duration = Duration::from_millis(200);
/// How long a node that has been elected waits for its clock to be compared.
const VERDICT_MAX: Duration = Duration::from_millis(200);
/// How long a node that is to lead nothing keeps callers waiting for another leader.
const PASS_ON_MAX: Duration = Duration::from_secs(1);
/// A connection that broke is there again after so long, where both its ends are.
const RECONNECTED_IN: Duration = Duration::from_millis(50);
/// Entries that are sent in no time: who lacks so many more than another one is as good a successor.
const AS_NEAR: u64 = 100;

impl Cluster {
    /// Hands over all that this node leads before it stops, and is given nothing more to lead. Returns once
    /// it leads nothing that another node could, or the time is over; with it comes how much it leads still.
    pub fn hand_over_all(&self, limit: Duration) -> BoxFuture<'_, usize> {
        Box::pin(async move {
            self.host().stop_leading();
            self.hand_over_what_is_led(limit).await
        })
    }

    /// Returns once no task comes any more for a poll of this node, of which all have ended: a task that is sent to a
    /// process that is gone is nobody's until it times out, and as long as the process is there it says that
    /// the poll is gone.
    pub fn withdraw_polls(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let had_some = timeout(WITHDRAWN_IN, self.host().polls().all_withdrawn()).await;
            if self.members().len() > 1 && had_some.unwrap_or(true) {
                tokio::time::sleep(LAST_TASKS).await;
            }
        })
    }

    /// The clock of this node is far from those of the others, or is near them again. As long as it is far
    /// this node fires no timers, deletes nothing for its age, and hands over what it leads: it would leave
    /// its times in histories. True: that is another answer than before.
    pub fn trust_clock(&self, trusts: bool, limit: Duration) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let is_new = self.host().trust_clock(trusts);
            if !trusts {
                self.hand_over_what_is_led(limit).await;
            }
            is_new
        })
    }

    /// Has another node lead what this one, which is to lead nothing, has just been elected for: before anything is
    /// decided with a clock that is not relied on. False: this node may lead, or has to, since no other can.
    pub(crate) async fn passes_on(&self, group: &Group) -> bool {
        let mut trusts = self.host().trusts_clock();
        // One that has just started knows soon whether its clock is near the others'.
        let trusted = timeout(VERDICT_MAX, trusts.wait_for(|trusts| *trusts));
        let is_trusted = trusted.await.is_ok_and(|trusted| trusted.is_ok());
        let may_lead = is_trusted && !self.host().leads_nothing();
        !may_lead && self.hand_over(group, Instant::now() + PASS_ON_MAX).await
    }

    pub(super) async fn hand_over_what_is_led(&self, limit: Duration) -> usize {
        let until = Instant::now() + limit;
        let host = self.host();
        let shards = host.shard_ids().filter_map(|shard| host.replica(shard));
        let groups = shards.map(|replica| replica.group.clone());
        let is_shared = |group: &Group| {
            group.members().voters.iter().flatten().any(|node| *node != host.node())
        };
        let groups = groups.chain(host.groups().group(META_GROUP)).filter(is_shared);
        let groups: Vec<Group> = groups.collect();
        let handed = groups.iter().map(|group| self.hand_over(group, until));
        let handed = futures::future::join_all(handed).await;
        handed.into_iter().filter(|is_handed| !is_handed).count()
    }

    /// Whether this node does not lead the group any more.
    async fn hand_over(&self, group: &Group, until: Instant) -> bool {
        while group.leadership().borrow().leader == Some(self.host().node()) {
            let mut successors = self.successors(group);
            if successors.is_empty() || Instant::now() >= until {
                return false;
            }
            successors.retain(|to| group.is_connected(*to));
            if successors.is_empty() {
                // Those that were heard a moment ago are back in a moment, or soon not heard any more.
                tokio::time::sleep(RECONNECTED_IN).await;
            } else {
                // It is looked at anew, whichever way this ends.
                group.transfer_leader(&successors).await;
            }
        }
        true
    }

    /// Who can lead a group in this node's place at once: those that have about most of its log, in another order
    /// for each group, so that no node gets all that this one led.
    pub(crate) fn successors(&self, group: &Group) -> Vec<NodeId> {
        let state = self.meta().state();
        let sightings = self.sightings();
        let may_lead = |node: &NodeId| {
            let is_up = state.node(*node).is_some_and(|node| node.state == NodeState::Up);
            let stops = sightings.get(node).is_some_and(|seen| seen.status.leads_nothing);
            *node != self.host().node() && is_up && !stops
        };
        let members = group.members();
        let candidates = members.voters.iter().flatten().filter(|node| may_lead(node));
        let behind = |node: &NodeId| Some((behind_of_successor(group, *node).ok()?, *node));
        let current: BTreeMap<NodeId, u64> =
            candidates.filter_map(behind).map(|(behind, node)| (node, behind)).collect();
        let least = current.values().min().copied().unwrap_or_default();
        let near = current.into_iter().filter(|(_, behind)| *behind <= least + AS_NEAR);
        let mut near: Vec<NodeId> = near.map(|(node, _)| node).collect();
        let turn = usize::try_from(group.id().0).unwrap_or(0);
        if !near.is_empty() {
            let first = turn % near.len();
            near.rotate_left(first);
        }
        near
    }
}
