//! `piton dev --nodes N`: a cluster of real nodes on this machine, each a process of its own that this
//! one starts, watches and stops. A node that was killed stays down until it is started again by
//! `piton dev --restart-node`.
//!
//! Read in this order: `layout` (directories, ports, `cluster.json`), `process` (one node), `control`
//! (how another process asks), this (what happens when).

mod control;
mod layout;
mod process;
mod said;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use piton_node::config::Config;
use piton_node::operator::{ClusterReport, ReplicaRole};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::signals::Signals;
use crate::table;
pub(crate) use control::restart_node;
pub(crate) use layout::{AskedPorts, refuse_single_node};
use layout::{Layout, NodeLayout};
use process::{Event, Process};

/// How long to wait until every shard has its replicas before all is called ready anyway.
const WHOLE_WAIT: Duration = Duration::from_secs(60);
const WHOLE_LOOK: Duration = Duration::from_millis(200);
/// A replica with so much to catch up with can stand in for another one.
const BEHIND_MAX: u64 = 200;
/// A node that was heard of so lately is there.
const HEARD_MS: u64 = 3_000;

/// Runs a local cluster of so many nodes until it is told to stop.
///
/// # Errors
/// When the directory or a port cannot be used, and when a node does not start.
pub(crate) async fn run(nodes: u32, config: Config, asked: AskedPorts) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let temporary = config.data.ephemeral.then(tempfile::tempdir).transpose();
    let temporary = temporary.context("create a temporary directory")?;
    let mut config = config;
    if let Some(temporary) = &temporary {
        (config.data.directory, config.data.ephemeral) = (temporary.path().to_owned(), false);
    }
    let layout = Layout::plan(nodes, config, asked)?;
    let mut control = control::listen(&layout.directory)?;
    let (say, mut events) = mpsc::unbounded_channel();
    let mut local = Local { layout, processes: BTreeMap::new(), waiting: BTreeMap::new(), say };
    let started = tokio::select! {
        started = local.start_all(&mut events) => started,
        () = signals.asked_to_stop() => {
            local.stop(&mut events, &mut signals).await;
            return Ok(());
        }
    };
    if let Err(error) = started {
        local.stop(&mut events, &mut signals).await;
        return Err(error);
    }
    local.say_ready(temporary.is_some()).await;
    loop {
        tokio::select! {
            Some(event) = events.recv() => local.take(event)?,
            Some((node, asker)) = control.requests.recv() => local.restart(node, asker)?,
            () = signals.asked_to_stop() => break,
        }
    }
    table::say("Stopping.\n");
    local.stop(&mut events, &mut signals).await;
    Ok(())
}

struct Local {
    layout: Layout,
    processes: BTreeMap<u32, Process>,
    /// Who waits for a node to be ready again.
    waiting: BTreeMap<u32, Vec<UnixStream>>,
    say: mpsc::UnboundedSender<Event>,
}

impl Local {
    /// Starts every node and waits until each is ready and every shard has its replicas.
    async fn start_all(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Event>,
    ) -> anyhow::Result<()> {
        let all: Vec<u32> = self.layout.nodes.iter().map(|node| node.id).collect();
        if let Some(founder) = self.layout.founder() {
            // The others have somebody to join then.
            self.start(founder)?;
            self.await_ready(&[founder], events).await?;
        }
        let others: Vec<u32> =
            all.into_iter().filter(|id| !self.processes.contains_key(id)).collect();
        for id in &others {
            self.start(*id)?;
        }
        self.await_ready(&others, events).await?;
        self.await_whole(events).await
    }

    fn start(&mut self, id: u32) -> anyhow::Result<()> {
        // A node whose data was wiped meanwhile joins, and founds no second cluster.
        self.layout.decide_origins();
        let node = self.layout.node(id).with_context(|| format!("there is no node {id}"))?;
        node.write_config()?;
        let process = Process::start(node, self.layout.nodes.len(), self.say.clone())?;
        self.layout.set_pid(id, Some(process.pid()))?;
        self.processes.insert(id, process);
        Ok(())
    }

    async fn await_ready(
        &mut self,
        wanted: &[u32],
        events: &mut mpsc::UnboundedReceiver<Event>,
    ) -> anyhow::Result<()> {
        let mut missing = wanted.to_vec();
        while !missing.is_empty() {
            match events.recv().await.context("no node is there any more")? {
                Event::Ready { id, .. } => missing.retain(|other| *other != id),
                Event::Ended { id, how, .. } => bail!("node {id} did not start: {how}"),
            }
        }
        Ok(())
    }

    async fn await_whole(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Event>,
    ) -> anyhow::Result<()> {
        let client = self.layout.operator()?;
        let until = Instant::now() + WHOLE_WAIT;
        while Instant::now() < until {
            if let Ok(report) = client.report().await
                && is_whole(&report, self.layout.nodes.len())
            {
                return Ok(());
            }
            let event = tokio::time::timeout(WHOLE_LOOK, events.recv()).await;
            if let Ok(Some(Event::Ended { id, how, .. })) = event {
                bail!("node {id} has ended: {how}");
            }
        }
        tracing::warn!("not every shard has all of its replicas yet");
        Ok(())
    }

    /// A node has become ready, or has ended.
    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        let (id, pid) = event.of();
        // A process that has been replaced since says nothing about its node.
        if self.processes.get(&id).is_none_or(|process| process.pid() != pid) {
            return Ok(());
        }
        match event {
            Event::Ready { .. } => {
                table::say(&format!("Node {id} is ready (pid {pid}).\n"));
                control::answer(self.waiting.remove(&id), Ok(()));
            }
            Event::Ended { how, .. } => {
                let was_asked = self.processes.remove(&id).is_some_and(|gone| gone.is_stopping());
                self.layout.set_pid(id, None)?;
                if was_asked && self.waiting.contains_key(&id) {
                    return self.start(id);
                }
                let directory = self.layout.directory.display();
                table::say(&format!(
                    "Node {id} has ended: {how}. To start it again:\n  \
                     piton dev --restart-node {id} --data-dir {directory}\n",
                ));
                let failed = format!("node {id} has ended: {how}");
                control::answer(self.waiting.remove(&id), Err(failed));
            }
        }
        Ok(())
    }

    /// Starts a node that has ended; one that runs is stopped first.
    fn restart(&mut self, id: u32, asker: UnixStream) -> anyhow::Result<()> {
        if self.layout.node(id).is_none() {
            let nodes = self.layout.nodes.len();
            let refused = format!("there is no node {id}: they are numbered 1 to {nodes}");
            control::answer(Some(vec![asker]), Err(refused));
            return Ok(());
        }
        self.waiting.entry(id).or_default().push(asker);
        match self.processes.get_mut(&id) {
            Some(running) => {
                running.stop();
                Ok(())
            }
            None => self.start(id),
        }
    }

    /// Stops all nodes; those that take longer than it takes to ask twice are killed.
    async fn stop(&mut self, events: &mut mpsc::UnboundedReceiver<Event>, signals: &mut Signals) {
        for process in self.processes.values_mut() {
            process.stop();
        }
        while !self.processes.is_empty() {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Ended { id, .. }) => _ = self.processes.remove(&id),
                    Some(Event::Ready { .. }) => {}
                    None => return,
                },
                () = signals.asked_to_stop() => return,
            }
        }
        self.layout.forget_pids();
    }

    async fn say_ready(&self, is_temporary: bool) {
        let report = match self.layout.operator() {
            Ok(client) => client.report().await.ok(),
            Err(_) => None,
        };
        let running = |node: &NodeLayout| self.processes.get(&node.id).map(Process::pid);
        table::say(&said::ready(&self.layout, running, report.as_ref(), is_temporary));
    }
}

/// Whether any one of so many nodes may be lost without a loss.
fn is_whole(report: &ClusterReport, nodes: usize) -> bool {
    let heard = |ms: Option<u64>| ms.is_some_and(|ms| ms <= HEARD_MS);
    let there = report.nodes.iter().filter(|node| heard(node.silent_ms)).count();
    let voters = nodes.min(report.replicas as usize);
    // An even number outlives no more losses than one less.
    let voters = if voters.is_multiple_of(2) { voters.saturating_sub(1) } else { voters };
    let mut groups = report.shards.iter().chain([&report.meta]);
    there >= nodes
        && groups.all(|shard| {
            let votes = shard.members.iter().filter(|m| m.role != ReplicaRole::Learner).count();
            votes >= voters && shard.is_whole(BEHIND_MAX)
        })
}

/// A way to the nodes of the cluster that lies in a data directory, if there is one.
///
/// # Errors
/// When what is there cannot be read.
pub(crate) fn peers_in(directory: &Path) -> anyhow::Result<Vec<std::net::SocketAddr>> {
    layout::peers_in(directory)
}
