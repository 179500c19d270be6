//! What a local cluster says when it is ready.

use piton_node::operator::ClusterReport;

use crate::dev_cluster::layout::{Layout, NodeLayout};
use crate::table;

/// Where the nodes are, who leads what, and what to try.
pub(super) fn ready(
    layout: &Layout,
    pid: impl Fn(&NodeLayout) -> Option<u32>,
    report: Option<&ClusterReport>,
    is_temporary: bool,
) -> String {
    let header = ["Node", "API", "HTTP", "Peers", "Pid", "Leads"];
    let rows = layout.nodes.iter().map(|node| {
        [
            node.id.to_string(),
            node.config.listen.grpc().to_string(),
            node.config.listen.http().to_string(),
            node.config.peer.listen().to_string(),
            pid(node).map(|pid| pid.to_string()).unwrap_or_default(),
            report.map(|report| led(report, node).join(", ")).unwrap_or_default(),
        ]
    });
    let directory = layout.directory.display();
    format!(
        "\
Piton {version} is ready: {nodes} nodes.

{table}
  Data        {directory} ({kept}; cluster.json has the ports and pids)

{advice}To start a node again that was killed, and to see who leads what:
  piton dev --restart-node N --data-dir {directory}
  piton cluster status --data-dir {directory}
Ctrl-C stops all.
",
        version = env!("CARGO_PKG_VERSION"),
        nodes = layout.nodes.len(),
        table = table::indented(&header, rows),
        kept = if is_temporary { "removed at exit" } else { "kept" },
        advice = advice(layout, pid, report).unwrap_or_default(),
    )
}

/// Clients of one node do not notice that another one dies: one that leads little is best to talk to,
/// and one that leads much to kill.
fn advice(
    layout: &Layout,
    pid: impl Fn(&NodeLayout) -> Option<u32>,
    report: Option<&ClusterReport>,
) -> Option<String> {
    let report = report?;
    let count = |node: &&NodeLayout| led(report, node).len();
    // Of two that lead as much, the first.
    let leads_most = layout.nodes.iter().rev().max_by_key(count)?;
    let others = layout.nodes.iter().filter(|node| node.id != leads_most.id);
    let talked_to = others.min_by_key(count)?;
    Some(format!(
        "Point any Temporal SDK at one of them, say {}, and kill another one, such as node {} by\n\
         `kill -9 {}`: whatever it leads is taken over, and what runs goes on.\n",
        talked_to.config.listen.grpc(),
        leads_most.id,
        pid(leads_most)?,
    ))
}

/// What a node leads, in words.
fn led(report: &ClusterReport, node: &NodeLayout) -> Vec<String> {
    let peer = node.config.peer.listen().to_string();
    let Some(told) = report.nodes.iter().find(|told| told.peer == peer) else {
        return Vec::new();
    };
    let led = report.shards.iter().filter(|shard| shard.leader.as_ref() == Some(&told.id));
    let shards = led.map(|shard| format!("shard {}", shard.name));
    told.leads_meta.then(|| "meta".to_owned()).into_iter().chain(shards).collect()
}

#[cfg(test)]
mod tests {
    use piton_node::config::Config;

    use super::*;
    use crate::cluster_command::tests::sample;
    use crate::dev_cluster::layout::AskedPorts;

    #[test]
    fn it_says_whom_to_talk_to_and_whom_to_kill() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.directory = directory.path().to_owned();
        let layout = Layout::plan(2, config, AskedPorts::default()).unwrap();
        let text = ready(&layout, |node| Some(40 + node.id), Some(&sample()), true);
        assert!(text.contains("127.0.0.1:8233  127.0.0.1:7234  41   meta, shard 0\n"), "{text}");
        assert!(
            text.contains("say 127.0.0.1:7234, and kill another one, such as node 1"),
            "{text}"
        );
        assert!(text.contains("`kill -9 41`") && text.contains("removed at exit"), "{text}");
        assert!(!ready(&layout, |_| None, None, false).contains("kill -9"));
    }
}
