//! One node of a local cluster: a process that ends with this one.

use std::process::Stdio;
use std::thread::available_parallelism;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dev_cluster::layout::NodeLayout;
use crate::table;

/// How many threads tokio gives a process, unless who started this one says so.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// What happens to a node's process.
#[derive(Debug)]
pub(super) enum Event {
    Ready { id: u32, pid: u32 },
    Ended { id: u32, pid: u32, how: String },
}

impl Event {
    pub(super) fn of(&self) -> (u32, u32) {
        match *self {
            Self::Ready { id, pid } | Self::Ended { id, pid, .. } => (id, pid),
        }
    }
}

/// A node's process; killed where this is dropped.
pub(super) struct Process {
    pid: u32,
    /// As long as it is open, the node runs: it ends with whoever started it, however that ended.
    leash: Option<ChildStdin>,
    watching: JoinHandle<()>,
}

impl Process {
    /// Starts a node, one of so many. It is told all by its file: what the environment says has been read
    /// into that.
    ///
    /// # Errors
    /// When there is no process to be had.
    pub(super) fn start(
        node: &NodeLayout,
        nodes: usize,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PITON_") {
                command.env_remove(name);
            }
        }
        if std::env::var_os(THREADS).is_none() {
            // All of them run on this machine: threads for which there is no core only wake each other.
            let cores = available_parallelism().map_or(1, usize::from);
            command.env(THREADS, (cores / nodes.max(1)).max(1).to_string());
        }
        command.args(["server", "--on-leash", "--config"]).arg(&node.config_file);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C is for this process, which stops the others in order.
        command.process_group(0).kill_on_drop(true);
        let id = node.id;
        let mut child = command.spawn().with_context(|| format!("start node {id}"))?;
        let pid = child.id().with_context(|| format!("node {id} has ended at once"))?;
        let leash = child.stdin.take();
        let watching = tokio::spawn(watch(id, pid, child, events));
        Ok(Self { pid, leash, watching })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to stop.
    pub(super) fn stop(&mut self) {
        self.leash = None;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.leash.is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

async fn watch(id: u32, pid: u32, mut child: Child, events: mpsc::UnboundedSender<Event>) {
    // Nobody who listens: this process is about to end.
    let say = |event| _ = events.send(event);
    let said = child.stderr.take().map(|stderr| tokio::spawn(repeat(id, stderr)));
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        // It says one thing on this side: that it is ready.
        if let Ok(Some(_)) = lines.next_line().await {
            say(Event::Ready { id, pid });
        }
    }
    let how = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    if let Some(said) = said {
        // Its last words come before the news of its end. An abort is no news.
        let _ = said.await;
    }
    say(Event::Ended { id, pid, how });
}

/// Repeats what a node logs, with its number before it.
async fn repeat(id: u32, stderr: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        table::log(&format!("node {id} | {line}\n"));
    }
}
