//! A local cluster under test, `piton dev --nodes N`: its nodes are killed in turn, one at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What the last line says that a cluster writes when it is ready.
const READY: &str = "Ctrl-C stops all.";
/// A killed process is gone, and its starter has noticed, long before.
const GONE_LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// `cluster.json`.
#[derive(Debug, Deserialize)]
struct Nodes {
    nodes: Vec<NodeEntry>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct NodeEntry {
    id: u32,
    pub(super) pid: Option<u32>,
    pub(super) api: u16,
    pub(super) http: u16,
}

fn nodes(data: &Path) -> Result<Vec<NodeEntry>> {
    let path = data.join("cluster.json");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let Nodes { nodes } = serde_json::from_str(&text).context("read cluster.json")?;
    Ok(nodes)
}

/// The node of which suites are told.
pub(super) fn first(data: &Path) -> Result<NodeEntry> {
    nodes(data)?.into_iter().next().context("cluster.json has no nodes")
}

/// Whether the log says that every shard has its replicas.
pub(super) fn is_ready(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains(READY))
}

/// Kills the node whose turn it is by SIGKILL, and waits until that is known to whoever started it.
pub(super) fn kill(data: &Path, turn: u32) -> Result<u32> {
    let all = nodes(data)?;
    let at = turn as usize % all.len().max(1);
    let node = all.get(at).context("there is no node")?;
    let pid = node.pid.with_context(|| format!("node {} is down already", node.id))?;
    signal("-KILL", pid)?;
    let until = Instant::now() + GONE_LIMIT;
    while nodes(data)?.get(at).is_some_and(|node| node.pid.is_some()) {
        if Instant::now() > until {
            bail!("node {} was killed, and cluster.json does not say so", node.id);
        }
        std::thread::park_timeout(LOOK);
    }
    Ok(node.id)
}

/// Starts a node again; it is ready when this returns.
pub(super) fn restart(binary: &PathBuf, data: &Path, node: u32) -> Result<()> {
    let mut command = Command::new(binary);
    command.args(["dev", "--restart-node", &node.to_string(), "--data-dir"]).arg(data);
    let output = command.stdin(Stdio::null()).output().context("start the node again")?;
    if !output.status.success() {
        bail!("node {node} does not start: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Ctrl-C; whoever does not stop in time is killed.
pub(super) fn stop(child: &mut Child) {
    if signal("-INT", child.id()).is_ok() {
        let until = Instant::now() + GONE_LIMIT;
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn signal(signal: &str, pid: u32) -> Result<()> {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    if !status.context("run kill")?.success() {
        bail!("process {pid} cannot be sent {signal}");
    }
    Ok(())
}
