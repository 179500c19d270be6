//! `piton cluster upgrade`: what a new release writes that older ones cannot read waits for this.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use piton_node::operator::{ClusterReport, NodeReport, OperatorCall, OperatorClient};
use serde_json::json;

use super::wait::{self, Done};
use crate::cluster_command::Output;
use crate::table;

/// The exit code of `--check` where it cannot be raised.
const IN_THE_WAY: u8 = 5;
/// How long the node that was asked may take to see it.
const SEEN_MAX: Duration = Duration::from_secs(10);

pub(super) async fn run(
    client: &OperatorClient,
    report: &ClusterReport,
    to: Option<u32>,
    check: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let Prospect { to, in_the_way } = Prospect::of(report, to);
    if check {
        match output {
            Output::Table => table::say(&text(report.level, to, &in_the_way)),
            Output::Json => {
                let nodes: Vec<&str> = in_the_way.iter().map(|node| node.id.as_str()).collect();
                let said = json!({ "level": report.level, "to": to, "in_the_way": nodes });
                table::say(&format!("{said}\n"));
            }
        }
        let is_free = in_the_way.is_empty();
        return Ok(if is_free { ExitCode::SUCCESS } else { ExitCode::from(IN_THE_WAY) });
    }
    if !in_the_way.is_empty() {
        bail!("{}", text(report.level, to, &in_the_way).trim_end());
    }
    client.ask(OperatorCall::Upgrade { to }).await?;
    wait::until(client, Some(SEEN_MAX), &Done::IsAtLevel(to), output).await
}

/// What raising the level comes to.
struct Prospect<'a> {
    to: u32,
    /// Nodes of older releases.
    in_the_way: Vec<&'a NodeReport>,
}

impl<'a> Prospect<'a> {
    /// A node counts as long as it has not been removed, whether it is heard of or not: it may come back.
    fn of(report: &'a ClusterReport, to: Option<u32>) -> Self {
        let members = || report.nodes.iter().filter(|node| node.state != "removed");
        let highest = members().map(|node| node.level).max();
        let to = to.or(highest).unwrap_or(report.level);
        Self { to, in_the_way: members().filter(|node| node.level < to).collect() }
    }
}

fn text(level: u32, to: u32, in_the_way: &[&NodeReport]) -> String {
    if to <= level {
        return format!("The cluster is at feature level {level}: there is nothing to raise.\n");
    }
    if in_the_way.is_empty() {
        return format!(
            "The cluster is at feature level {level}, and every node knows {to}: it can be raised. \
             Nodes of older releases are not let in any more then, and it cannot be taken back.\n"
        );
    }
    let nodes = in_the_way.iter().map(|node| {
        let release = node.release.as_deref().unwrap_or("unknown");
        format!("  {} at {}, of release {release}, knows {}\n", node.id, node.peer, node.level)
    });
    format!(
        "The cluster is at feature level {level} and cannot be raised to {to}, which these nodes do not \
         know:\n{}Start a newer release there, or remove them.\n",
        nodes.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_command::tests::sample;

    #[test]
    fn a_node_of_an_older_release_stands_in_the_way_until_it_is_removed() {
        let mut report = sample();
        let said = |report: &ClusterReport, to| {
            let Prospect { to, in_the_way } = Prospect::of(report, to);
            text(report.level, to, &in_the_way)
        };
        assert!(said(&report, None).contains("nothing to raise"));
        assert!(said(&report, Some(2)).contains("cannot be raised to 2"));
        report.nodes[1].level = 2;
        let text = said(&report, None);
        assert!(text.contains("cannot be raised to 2"), "{text}");
        assert!(text.contains("00000000000000a1 at 127.0.0.1:7234, of release 0.1.0, knows 1"));
        assert!(!text.contains("b2"), "{text}");
        // One that is silent may come back.
        report.nodes[0].silent_ms = None;
        assert!(!Prospect::of(&report, None).in_the_way.is_empty());
        report.nodes[0].state = "removed".to_owned();
        assert!(said(&report, None).contains("every node knows 2"));
    }
}
