//! What an operator does to the cluster: by the server's own commands, as on a node's machine.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::time::sleep;

use crate::cluster::{Cluster, READY_MAX};

/// How long a command may take to be carried out.
const CARRIED_OUT_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// So many replicas has a shard where there are enough nodes.
const REPLICAS: usize = 3;

/// What `piton cluster status --output json` says.
#[derive(Deserialize)]
pub(crate) struct Status {
    nodes: Vec<Member>,
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Member {
    id: String,
    state: String,
    peer: String,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) leader: Option<String>,
    /// Ids of nodes.
    pub(crate) placed: Vec<String>,
}

impl Status {
    /// The id of the node at that address; `None`: there is none, or several.
    fn id_at(&self, peer: &str) -> Option<String> {
        let there = |member: &&Member| member.peer == peer && member.state != "removed";
        let mut there = self.nodes.iter().filter(there);
        match (there.next(), there.next()) {
            (Some(member), None) => Some(member.id.clone()),
            _ => None,
        }
    }

    /// Shards that a node has replicas of.
    pub(crate) fn held_by(&self, id: &str) -> Vec<Shard> {
        let holds = |shard: &&Shard| shard.placed.iter().any(|node| node == id);
        self.shards.iter().filter(holds).cloned().collect()
    }

    /// Whether every shard has all the replicas that it can have.
    fn is_replicated(&self, members: usize) -> bool {
        self.shards.iter().all(|shard| shard.placed.len() >= members.min(REPLICAS))
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }
}

/// What a command answered, and its exit code.
struct Answer {
    code: i32,
    text: String,
    error: String,
}

impl Cluster {
    async fn ask(&self, order: &[&str]) -> Result<Answer> {
        let members = self.members.all();
        let mut command = self.program();
        command.arg("cluster").args(order).args(["--output", "json"]);
        for member in &members {
            command.args(["--address", &self.peer(*member)]);
        }
        if self.has_certificates() {
            // Each node's machine has some.
            command.arg("--config").arg(self.config(members[0]));
        }
        command.stdin(Stdio::null());
        // It ends by itself when it has waited for so long.
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        Ok(Answer {
            code: output.status.code().unwrap_or(-1),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Gives an order and waits until it is carried out.
    ///
    /// # Errors
    /// When it is refused, or takes too long.
    pub(crate) async fn order(&self, order: &[&str]) -> Result<()> {
        let Answer { code, text, error } = self.ask(order).await?;
        ensure!(code == 0, "`piton cluster {}` ends with {code}: {text}{error}", order.join(" "));
        Ok(())
    }

    /// The same for an order that takes long.
    ///
    /// # Errors
    /// When it is refused, or takes too long.
    pub(crate) async fn order_patiently(&self, order: &[&str]) -> Result<()> {
        let limit = CARRIED_OUT_MAX.as_secs().to_string();
        self.order(&[order, &["--timeout", &limit]].concat()).await
    }

    /// How nodes and shards are.
    ///
    /// # Errors
    /// When no node says so.
    pub(crate) async fn status(&self) -> Result<Status> {
        let Answer { code, text, error } = self.ask(&["status"]).await?;
        ensure!(code == 0, "`piton cluster status` ends with {code}: {error}");
        serde_json::from_str(&text).context("what `piton cluster status` says")
    }

    /// By which id the cluster knows a node.
    ///
    /// # Errors
    /// When it does not know it.
    pub(crate) async fn id_of(&self, node: usize) -> Result<String> {
        let id = self.status().await?.id_at(&self.peer(node));
        id.with_context(|| format!("the cluster does not know node {node}"))
    }

    /// Waits until all nodes are heard of, and every shard is led and has all its replicas.
    ///
    /// # Errors
    /// When it takes too long.
    pub(crate) async fn await_whole(&self) -> Result<()> {
        let end = Instant::now() + READY_MAX;
        loop {
            let said = self.ask(&["status", "--check"]).await?;
            let status: Option<Status> = serde_json::from_str(&said.text).ok();
            let is_replicated =
                status.is_some_and(|status| status.is_replicated(self.members.count()));
            if said.code == 0 && is_replicated {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("the cluster is not whole after {READY_MAX:?}: {}{}", said.text, said.error);
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_came_back_under_another_id_is_the_one_that_was_not_removed() {
        let member = |id: &str, state: &str| Member {
            id: id.to_owned(),
            state: state.to_owned(),
            peer: "127.0.0.1:1".to_owned(),
        };
        let mut status =
            Status { nodes: vec![member("a", "up"), member("b", "up")], shards: Vec::new() };
        assert_eq!(status.id_at("127.0.0.1:1"), None);
        status.nodes[0].state = "removed".to_owned();
        assert_eq!(status.id_at("127.0.0.1:1").as_deref(), Some("b"));
    }
}
