//! Waits until what was recorded has been carried out, and says meanwhile what is left.

use std::process::ExitCode;
use std::time::Duration;

use piton_core::id::ShardId;
use piton_node::operator::{
    ClusterReport, NodeReport, OperatorClient, OperatorError, ShardReport, write_id,
};
use piton_raft::NodeId;
use serde_json::json;
use tokio::time::Instant;

use crate::cluster_command::Output;
use crate::table;

const LOOK: Duration = Duration::from_millis(300);
/// The exit code where it takes longer than was waited for.
const NOT_YET: u8 = 4;

/// What is waited for.
pub(super) enum Done {
    LeadsNothing(NodeId),
    IsUp(NodeId),
    IsRemoved(NodeId),
    Moved { shard: ShardId, to: NodeId },
    Rebalances { is_paused: bool },
    IsAtLevel(u32),
}

impl Done {
    /// What is left to do, in words; `None`: it is done.
    fn left(&self, report: &ClusterReport) -> Option<String> {
        match self {
            Self::LeadsNothing(node) => {
                let node = state_of(report, *node)?;
                let left = node.leads + u32::from(node.leads_meta);
                match (node.state.as_str(), left) {
                    ("draining" | "removed", 0) => None,
                    (_, left) => Some(format!("it leads {left} groups still")),
                }
            }
            Self::IsUp(node) => {
                let node = state_of(report, *node)?;
                (node.state != "up").then(|| format!("it is {} still", node.state))
            }
            Self::IsRemoved(node) => {
                let id = write_id(*node);
                let node = report.node(&id)?;
                let holds = |shard: &&ShardReport| {
                    shard.placed.contains(&id) || shard.members.iter().any(|m| m.node == id)
                };
                let groups = report.shards.iter().chain([&report.meta]).filter(holds).count();
                (node.state != "removed").then(|| format!("it belongs to {groups} groups still"))
            }
            Self::Moved { shard, to } => {
                let (shard, to) = (shard_of(report, *shard)?, write_id(*to));
                let behind = shard.members.iter().find(|member| member.node == to);
                let behind = behind.and_then(|member| member.behind);
                let is_done = shard.placed.contains(&to) && shard.is_whole(u64::MAX);
                (!is_done).then(|| match behind {
                    Some(behind) => format!("{behind} entries are to be sent"),
                    None => "the new replica is not there yet".to_owned(),
                })
            }
            Self::Rebalances { is_paused } => {
                (report.is_rebalancing_paused != *is_paused).then(not_seen)
            }
            Self::IsAtLevel(level) => (report.level < *level).then(not_seen),
        }
    }
}

fn not_seen() -> String {
    "the node that was asked has not seen it yet".to_owned()
}

fn state_of(report: &ClusterReport, node: NodeId) -> Option<&NodeReport> {
    report.node(&write_id(node))
}

fn shard_of(report: &ClusterReport, shard: ShardId) -> Option<&ShardReport> {
    let name = shard.to_string();
    report.shards.iter().find(|shard| shard.name == name)
}

/// Waits for it; without a limit, it is enough that it is recorded.
///
/// # Errors
/// When no node can be asked any more.
pub(super) async fn until(
    client: &OperatorClient,
    limit: Option<Duration>,
    done: &Done,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let Some(limit) = limit else {
        finish(output, "recorded", None);
        return Ok(ExitCode::SUCCESS);
    };
    let until = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let left = match client.report().await {
            Ok(report) => done.left(&report),
            // The node that was asked may be the one that goes; others come back.
            Err(error @ (OperatorError::Unreachable(_) | OperatorError::Unknown { .. }))
                if Instant::now() < until =>
            {
                Some(error.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        let Some(left) = left else {
            is_done(output);
            return Ok(ExitCode::SUCCESS);
        };
        if Instant::now() >= until {
            finish(output, "recorded", Some(&left));
            return Ok(ExitCode::from(NOT_YET));
        }
        if said != left {
            table::log(&format!("{left}\n"));
            said = left;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says that what was asked for has been carried out.
pub(super) fn is_done(output: Output) {
    finish(output, "done", None);
}

fn finish(output: Output, outcome: &str, left: Option<&str>) {
    match (output, left) {
        (Output::Json, left) => {
            table::say(&format!("{}\n", json!({ "outcome": outcome, "left": left })))
        }
        (Output::Table, None) if outcome == "done" => table::say("Done.\n"),
        (Output::Table, None) => {
            table::say("Recorded; `piton cluster status` says how it goes on.\n")
        }
        (Output::Table, Some(left)) => {
            table::say(&format!("Recorded, and not done yet: {left}.\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_command::tests::sample;

    const A: NodeId = NodeId(0xa1);
    const B: NodeId = NodeId(0xb2);

    #[test]
    fn a_drained_node_leads_nothing() {
        let mut report = sample();
        let done = Done::LeadsNothing(A);
        assert_eq!(done.left(&report).unwrap(), "it leads 2 groups still");
        (report.nodes[0].leads, report.nodes[0].leads_meta) = (0, false);
        // It may be given a leadership as long as the order has not been seen.
        assert!(done.left(&report).is_some());
        report.nodes[0].state = "draining".to_owned();
        assert_eq!(done.left(&report), None);
        assert_eq!(Done::IsUp(A).left(&report).unwrap(), "it is draining still");
        assert_eq!(Done::IsUp(B).left(&report), None);
    }

    #[test]
    fn a_move_is_done_when_the_new_replica_votes_and_the_old_one_is_gone() {
        let mut report = sample();
        let shard = ShardId(0);
        assert_eq!(Done::Moved { shard, to: B }.left(&report), None);
        report.shards[0].placed.remove(1);
        assert_eq!(Done::Moved { shard, to: B }.left(&report).unwrap(), "7 entries are to be sent");
        assert!(Done::IsRemoved(B).left(&report).is_some());
        report.nodes[1].state = "removed".to_owned();
        assert_eq!(Done::IsRemoved(B).left(&report), None);
    }
}
