//! How what a cluster says is written.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use piton_core::id::ShardId;
use piton_node::CLOCK_OFF_MAX;
use piton_node::operator::{ClusterReport, NodeReport, OperatorClient, ReplicaRole, ShardReport};
use serde_json::json;

use crate::cluster_command::Output;
use crate::table;

/// A node that was heard of so lately is there.
const HEARD_MS: u64 = 5_000;
/// Entries on their way are not missing. With no more a replica may be given its shard to lead, too.
const BEHIND_MAX: u64 = 200;
/// How often `--watch` asks.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// The exit code of `status --check`.
const MISSING: u8 = 5;
/// Clears the terminal and begins at its top, as any terminal of this century understands.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(super) fn status(report: &ClusterReport, output: Output, check: bool) -> ExitCode {
    match output {
        Output::Table => table::say(&status_text(report)),
        Output::Json => say_json(report),
    }
    if check && !missing(report).is_empty() { ExitCode::from(MISSING) } else { ExitCode::SUCCESS }
}

/// Asks and writes until this process is told to stop.
pub(super) async fn watch(client: &OperatorClient) -> anyhow::Result<ExitCode> {
    loop {
        let text = match client.report().await {
            Ok(report) => status_text(&report),
            Err(error) => format!("{error}\n"),
        };
        table::say(&format!("{CLEAR}{text}"));
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

fn say_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => table::say(&format!("{text}\n")),
        Err(error) => table::log(&format!("piton: {error}\n")),
    }
}

pub(super) fn members(report: &ClusterReport, output: Output) -> ExitCode {
    match output {
        Output::Table => table::say(&nodes_text(report)),
        Output::Json => say_json(&report.nodes),
    }
    ExitCode::SUCCESS
}

pub(super) fn snapshots(taken: &BTreeMap<ShardId, u64>, output: Output) -> ExitCode {
    match output {
        Output::Table => {
            let header = ["Shard", "Index of its snapshot"];
            let rows = taken.iter().map(|(shard, index)| [shard.to_string(), index.to_string()]);
            table::say(&table::indented(&header, rows));
        }
        Output::Json => say_json(&json!({ "snapshots": taken })),
    }
    ExitCode::SUCCESS
}

pub(super) fn rebalancing(report: &ClusterReport, output: Output) -> ExitCode {
    match output {
        Output::Table => table::say(&format!("Rebalancing is {}.\n", rebalancing_word(report))),
        Output::Json => say_json(&json!({ "is_paused": report.is_rebalancing_paused })),
    }
    ExitCode::SUCCESS
}

fn rebalancing_word(report: &ClusterReport) -> &'static str {
    if report.is_rebalancing_paused { "paused" } else { "on" }
}

fn status_text(report: &ClusterReport) -> String {
    let missing = missing(report);
    let health = if missing.is_empty() {
        "All nodes are there, and every shard has its leader and its replicas.\n".to_owned()
    } else {
        missing.iter().map(|what| format!("! {what}\n")).collect()
    };
    format!(
        "Cluster {}, feature level {}, {} replicas of each shard, rebalancing {}; told by {}.\n{health}\n\
         {}\n{}",
        report.cluster,
        report.level,
        report.replicas,
        rebalancing_word(report),
        short(&report.told_by),
        nodes_text(report),
        shards_text(report),
    )
}

/// The first digits of an id, which tell any two nodes of a cluster apart.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn heard(node: &NodeReport) -> String {
    match node.silent_ms {
        None => "never".to_owned(),
        Some(ms) if ms < HEARD_MS => "now".to_owned(),
        Some(ms) if node.health == "down" => format!("down, {} s ago", ms / 1000),
        Some(ms) => format!("{} s ago", ms / 1000),
    }
}

fn nodes_text(report: &ClusterReport) -> String {
    let header = [
        "Node", "State", "Heard", "Leads", "Replicas", "API", "Peers", "Zone", "Release", "Level",
        "Clock",
    ];
    let nodes = report.nodes.iter().filter(|node| node.state != "removed");
    let rows = nodes.map(|node| {
        let meta = if node.leads_meta { " + meta" } else { "" };
        [
            short(&node.id).to_owned(),
            node.state.clone(),
            heard(node),
            format!("{}{meta}", node.leads),
            node.holds.to_string(),
            node.api.clone(),
            node.peer.clone(),
            node.zone.clone(),
            node.release.clone().unwrap_or_default(),
            node.level.to_string(),
            node.clock_ahead_ms.map(|ms| format!("{ms:+} ms")).unwrap_or_default(),
        ]
    });
    table::indented(&header, rows)
}

fn shards_text(report: &ClusterReport) -> String {
    let header = ["Shard", "Leader", "Term", "Committed", "Applied", "Snapshot", "Others (behind)"];
    let rows = [&report.meta].into_iter().chain(&report.shards).map(|shard| {
        let leader = shard.leader.as_deref().map_or("none", short);
        [
            shard.name.clone(),
            leader.to_owned(),
            shard.term.to_string(),
            shard.committed_index.to_string(),
            shard.applied_index.to_string(),
            shard.snapshot_index.to_string(),
            others(shard),
        ]
    });
    table::indented(&header, rows)
}

fn others(shard: &ShardReport) -> String {
    let others = shard.members.iter().filter(|member| member.role != ReplicaRole::Leader);
    let texts = others.map(|member| {
        let behind = member.behind.map_or_else(|| "?".to_owned(), |behind| behind.to_string());
        let filled = if member.role == ReplicaRole::Learner { ", being filled" } else { "" };
        format!("{} ({behind}{filled})", short(&member.node))
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// What is not as it is to be, in words.
fn missing(report: &ClusterReport) -> Vec<String> {
    let members = report.nodes.iter().filter(|node| node.state != "removed");
    let nodes = members.flat_map(missing_of);
    let groups = [&report.meta].into_iter().chain(&report.shards);
    let shards = groups.filter_map(|shard| {
        let name = group_name(&shard.name);
        match &shard.leader {
            None => Some(format!("{name} has no leader")),
            Some(_) if shard.is_whole(BEHIND_MAX) => report.lacks_replicas(shard).map(|wanted| {
                format!("{name} has {} of {wanted} replicas yet", shard.placed.len())
            }),
            Some(_) => Some(format!("replicas of {name} are missing, behind or being moved")),
        }
    });
    nodes.chain(shards).collect()
}

fn missing_of(node: &NodeReport) -> Vec<String> {
    let id = short(&node.id);
    if node.silent_ms.is_none_or(|ms| ms >= HEARD_MS) {
        let word = if node.health == "down" { "down" } else { "not heard of" };
        return vec![format!("node {id} is {word}")];
    }
    let off =
        node.clock_ahead_ms.filter(|ms| u128::from(ms.unsigned_abs()) > CLOCK_OFF_MAX.as_millis());
    let clock = off.map(|ms| {
        format!("the clock of node {id} is off by {ms:+} ms: it fires no timers and leads nothing")
    });
    let stopped = node.stopped.iter();
    let stopped = stopped
        .map(|(group, why)| format!("node {id} cannot go on with {}: {why}", group_name(group)));
    clock.into_iter().chain(stopped).collect()
}

fn group_name(group: &str) -> String {
    match group {
        "meta" => "the meta group".to_owned(),
        number => format!("shard {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_command::tests::sample;

    #[test]
    fn a_status_says_who_leads_and_how_far_others_are() {
        let text = status_text(&sample());
        assert!(text.contains("All nodes are there"), "{text}");
        for line in [
            "  00000000  up     now    1 + meta  1         127.0.0.1:7134  127.0.0.1:7234",
            "  0      00000000  3     40         40       12        00000000 (7)",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut report = sample();
        report.nodes[1].silent_ms = Some(7_500);
        report.shards[0].leader = None;
        report.meta.members[1].behind = Some(5_000);
        let wanted = [
            "node 00000000 is not heard of",
            "replicas of the meta group are missing, behind or being moved",
            "shard 0 has no leader",
        ];
        assert_eq!(missing(&report), wanted);
        assert!(status_text(&report).contains("7 s ago"));
        report.nodes[1].health = "down".to_owned();
        assert_eq!(missing(&report)[0], "node 00000000 is down");
        assert!(status_text(&report).contains("down, 7 s ago"));
        assert_eq!(missing(&sample()), Vec::<String>::new());
        // A third node has come, which is to hold it, too.
        let mut report = sample();
        report.nodes.push(report.nodes[1].clone());
        assert_eq!(missing(&report), ["shard 0 has 2 of 3 replicas yet"]);
    }

    #[test]
    fn what_a_node_cannot_go_on_with_and_a_clock_that_is_off_are_named() {
        let mut report = sample();
        report.nodes[0].clock_ahead_ms = Some(-251);
        report.nodes[1].stopped = [("0".to_owned(), "it is newer".to_owned())].into();
        let wanted = [
            "the clock of node 00000000 is off by -251 ms: it fires no timers and leads nothing",
            "node 00000000 cannot go on with shard 0: it is newer",
        ];
        assert_eq!(missing(&report), wanted);
        assert!(status_text(&report).contains("-251 ms"));
        report.nodes[0].clock_ahead_ms = Some(250);
        assert_eq!(missing(&report).len(), 1);
    }
}
