//! `piton cluster`: asks a node about its cluster, and has things moved.

mod show;
mod upgrade;
mod wait;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use piton_core::id::ShardId;
use piton_node::config::{Config, PeerConfig};
use piton_node::operator::{
    ClusterReport, NodeReport, OperatorAnswer, OperatorCall, OperatorClient, OperatorError,
};
use piton_node::peer::PeerAddress;
use piton_raft::NodeId;
use piton_shard::NodeState;

use crate::{dev_cluster, table};
use wait::Done;

const EXAMPLES: &str = "\
Examples:
  piton cluster status --address node1:7234
      Nodes, shards, leaders and how far replicas are behind; --watch refreshes it.
  piton cluster drain 127.0.0.1:7234
      That node hands over all that it leads; --undo lets it lead again.
  piton cluster remove 3f0c
      Everything is moved away from the node whose id begins so, and then it is removed.
  piton cluster status --output json | jq '.nodes[].state'

Which node is asked: --address, or else that of --config, or else what runs on --data-dir, or else
127.0.0.1:7234. With certificates in [peer] of --config, the connection is made with them.

A node is named by its id, by the first digits of it, or by any of its addresses.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no node can be reached; 4 recorded, and not
carried out within --timeout; 5 of `status --check`: something is missing; 5 of `upgrade --check`: a node
stands in the way.
";

/// `piton cluster`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ClusterCommand {
    /// Peer address of a node to ask, as host:port; may be repeated: the first that answers is asked.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "PITON_ADDRESS",
        value_delimiter = ','
    )]
    address: Vec<PeerAddress>,
    /// A node's configuration: its peer address and its certificates are used.
    #[arg(long, global = true, value_name = "FILE", env = "PITON_CONFIG")]
    config: Option<PathBuf>,
    /// The data directory of a node or of a local cluster that runs on this machine [default:
    /// ./piton-data].
    #[arg(long, global = true, value_name = "DIR", env = "PITON_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// How it is written.
    #[arg(long, global = true, value_name = "FORM", default_value = "table")]
    output: Output,
    #[command(subcommand)]
    order: Order,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
enum Order {
    /// Says how nodes and shards are.
    Status {
        /// Again and again, until Ctrl-C.
        #[arg(long)]
        watch: bool,
        /// Exit with 5 where a node is not heard of, or a shard lacks a leader or a replica.
        #[arg(long)]
        check: bool,
    },
    /// Says which nodes belong to the cluster.
    Members,
    /// Has a node hand over all that it leads, for instance before its machine is restarted.
    Drain {
        node: String,
        /// Let it lead again.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Moves everything away from a node, and removes it for good.
    Remove {
        node: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// The same for a node that is gone, once another one has joined in its place.
    Replace {
        node: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Hands the leadership of a shard to another of its nodes.
    Transfer { shard: u32, to: String },
    /// Moves a replica of a shard from one node to another.
    Move {
        shard: u32,
        from: String,
        to: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Has the node that is asked take a snapshot of a shard, or of all.
    Snapshot { shard: Option<u32> },
    /// Raises the feature level, once all nodes run a new release: from then on it writes what older ones
    /// cannot read, and these are not let in any more.
    Upgrade {
        /// Only say whether it can be raised.
        #[arg(long)]
        check: bool,
        /// The level to raise it to [default: the highest that any node knows].
        #[arg(long, value_name = "LEVEL")]
        to: Option<u32>,
    },
    /// Says whether replicas and leaders are spread evenly, or has it paused or resumed.
    Rebalance { order: Option<Rebalance> },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rebalance {
    Pause,
    Resume,
}

#[derive(Args)]
struct Patience {
    /// Return as soon as it is recorded.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it is carried out.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

impl Patience {
    fn limit(&self) -> Option<Duration> {
        (!self.no_wait).then(|| Duration::from_secs(self.timeout))
    }
}

/// Runs it; says how it went by the exit code.
///
/// # Errors
/// What is to be said of a failure.
pub(crate) async fn run(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    let mut client = client(&command)?;
    match carry_out(&mut client, &command).await {
        Err(error) => match error.downcast_ref() {
            Some(OperatorError::Unreachable(_)) => {
                table::log(&format!("piton: {error:#}\n"));
                Ok(ExitCode::from(3))
            }
            _ => Err(error),
        },
        code => code,
    }
}

fn client(command: &ClusterCommand) -> anyhow::Result<OperatorClient> {
    let config = command.config.as_deref().map(Config::read).transpose()?;
    let peer = config.as_ref().map(|config| config.peer.clone()).unwrap_or_default();
    let addresses = match &config {
        _ if !command.address.is_empty() => command.address.clone(),
        Some(config) => vec![own_address(&config.peer)?],
        None => local_addresses(command.data_dir.as_deref())?,
    };
    OperatorClient::new(&peer, addresses).context("ask a node")
}

/// Where a node of that configuration is reached.
fn own_address(peer: &PeerConfig) -> anyhow::Result<PeerAddress> {
    if peer.advertised.is_empty() {
        return Ok(peer.listen().into());
    }
    peer.advertised.parse().context("peer.advertised")
}

/// Where the nodes of this machine are reached.
fn local_addresses(directory: Option<&Path>) -> anyhow::Result<Vec<PeerAddress>> {
    let default = Config::default().data.directory;
    let found = dev_cluster::peers_in(directory.unwrap_or(&default))?;
    if !found.is_empty() {
        return Ok(found.into_iter().map(PeerAddress::from).collect());
    }
    if let Some(directory) = directory {
        bail!(
            "nothing in {} says where its node is reached: give --address HOST:PORT",
            directory.display()
        );
    }
    Ok(vec![PeerConfig::default().listen().into()])
}

async fn carry_out(
    client: &mut OperatorClient,
    command: &ClusterCommand,
) -> anyhow::Result<ExitCode> {
    let report = client.report().await?;
    client.learn(&report);
    let client = &*client;
    let node = |name: &str| find_node(&report, name).and_then(id_of);
    let shard = |number: &u32| ShardId(*number);
    match &command.order {
        Order::Status { watch: true, .. } => show::watch(client).await,
        Order::Status { check, .. } => Ok(show::status(&report, command.output, *check)),
        Order::Members => Ok(show::members(&report, command.output)),
        Order::Drain { node: name, undo, patience } => {
            let id = node(name)?;
            let state = if *undo { NodeState::Up } else { NodeState::Draining };
            client.ask(OperatorCall::SetState { node: id, state }).await?;
            let done = if *undo { Done::IsUp(id) } else { Done::LeadsNothing(id) };
            wait::until(client, patience.limit(), &done, command.output).await
        }
        Order::Remove { node: name, patience } => {
            leave(client, command, node(name)?, patience).await
        }
        Order::Replace { node: name, patience } => {
            let gone = find_node(&report, name)?;
            check_replacement(&report, gone)?;
            leave(client, command, id_of(gone)?, patience).await
        }
        Order::Transfer { shard: number, to } => {
            let (shard, to) = (shard(number), node(to)?);
            // It is answered when the node leads. By the next look the rebalancer may have taken it back.
            client.ask(OperatorCall::Transfer { shard, to }).await?;
            wait::is_done(command.output);
            if !report.is_rebalancing_paused {
                table::log("Rebalancing is on, and may hand it on again.\n");
            }
            Ok(ExitCode::SUCCESS)
        }
        Order::Move { shard: number, from, to, patience } => {
            let (shard, from, to) = (shard(number), node(from)?, node(to)?);
            client.ask(OperatorCall::Move { shard, from, to }).await?;
            let done = Done::Moved { shard, to };
            wait::until(client, patience.limit(), &done, command.output).await
        }
        Order::Snapshot { shard: number } => {
            let call = OperatorCall::Snapshot { shard: number.as_ref().map(shard) };
            match client.ask(call).await? {
                (_, OperatorAnswer::Snapshots(taken)) => {
                    Ok(show::snapshots(&taken, command.output))
                }
                (address, _) => Err(OperatorError::NotUnderstood { address }.into()),
            }
        }
        Order::Upgrade { check, to } => {
            upgrade::run(client, &report, *to, *check, command.output).await
        }
        Order::Rebalance { order: None } => Ok(show::rebalancing(&report, command.output)),
        Order::Rebalance { order: Some(order) } => {
            let is_paused = *order == Rebalance::Pause;
            client.ask(OperatorCall::Rebalance { is_paused }).await?;
            let done = Done::Rebalances { is_paused };
            wait::until(client, Some(Duration::from_secs(10)), &done, command.output).await
        }
    }
}

async fn leave(
    client: &OperatorClient,
    command: &ClusterCommand,
    node: NodeId,
    patience: &Patience,
) -> anyhow::Result<ExitCode> {
    client.ask(OperatorCall::SetState { node, state: NodeState::Leaving }).await?;
    wait::until(client, patience.limit(), &Done::IsRemoved(node), command.output).await
}

/// A node is replaced where shards keep as many replicas as they are to have.
fn check_replacement(report: &ClusterReport, gone: &NodeReport) -> anyhow::Result<()> {
    let others = report.nodes.iter().filter(|node| node.id != gone.id && node.state == "up");
    let others = others.count();
    let replicas = report.replicas as usize;
    if others < replicas {
        bail!(
            "{others} other nodes are up, and each shard is to have {replicas} replicas: start \
             another node with --join first, or use `piton cluster remove`, which does with fewer"
        );
    }
    Ok(())
}

/// The node of that id, of an id that begins so, or of that address.
fn find_node<'a>(report: &'a ClusterReport, name: &str) -> anyhow::Result<&'a NodeReport> {
    if let Some(node) = report.node(name) {
        return Ok(node);
    }
    let lower = name.to_lowercase();
    let is_named = |node: &&NodeReport| {
        let addresses = [&node.peer, &node.api, &node.http];
        node.id.starts_with(&lower) || addresses.iter().any(|address| *address == name)
    };
    let members = report.nodes.iter().filter(|node| node.state != "removed");
    let matching: Vec<&NodeReport> = members.filter(is_named).collect();
    match matching.as_slice() {
        [] => bail!("no node is called {name}: `piton cluster members` lists them"),
        [node] => Ok(node),
        // A node whose disk was lost comes back at its address under another id.
        several => {
            let ids: Vec<&str> = several.iter().map(|node| node.id.as_str()).collect();
            bail!("{name} may mean any of {}: name one by its id", ids.join(", "))
        }
    }
}

fn id_of(node: &NodeReport) -> anyhow::Result<NodeId> {
    u64::from_str_radix(&node.id, 16).map(NodeId).context("a node's id is a hexadecimal number")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use piton_node::operator::{MemberReport, ReplicaRole, ShardReport};

    /// Two nodes that hold one shard.
    pub(crate) fn sample() -> ClusterReport {
        let node = |id: &str, port: u16, leads| NodeReport {
            id: id.to_owned(),
            state: "up".to_owned(),
            health: "heard".to_owned(),
            silent_ms: Some(120),
            peer: format!("127.0.0.1:{port}"),
            api: format!("127.0.0.1:{}", port - 100),
            http: format!("127.0.0.1:{}", port + 100),
            zone: String::new(),
            release: Some("0.1.0".to_owned()),
            level: 1,
            clock_ahead_ms: Some(2),
            stopped: BTreeMap::new(),
            leads,
            holds: 1,
            leads_meta: leads > 0,
        };
        let (a, b) = ("00000000000000a1".to_owned(), "00000000000000b2".to_owned());
        let shard = |name: &str| ShardReport {
            name: name.to_owned(),
            leader: Some(a.clone()),
            term: 3,
            committed_index: 40,
            applied_index: 40,
            snapshot_index: 12,
            members: vec![
                MemberReport { node: a.clone(), role: ReplicaRole::Leader, behind: Some(0) },
                MemberReport { node: b.clone(), role: ReplicaRole::Voter, behind: Some(7) },
            ],
            placed: vec![a.clone(), b.clone()],
            is_changing: false,
        };
        ClusterReport {
            cluster: "c".to_owned(),
            told_by: a.clone(),
            level: 1,
            replicas: 3,
            is_rebalancing_paused: false,
            nodes: vec![node(&a, 7234, 1), node(&b, 7235, 0)],
            meta: shard("meta"),
            shards: vec![shard("0")],
        }
    }

    #[test]
    fn a_node_is_found_by_address_id_and_the_beginning_of_it() {
        let report = sample();
        for name in ["127.0.0.1:7235", "127.0.0.1:7135", "127.0.0.1:7335", "00000000000000b2"] {
            assert_eq!(find_node(&report, name).unwrap().id, "00000000000000b2", "{name}");
        }
        assert_eq!(find_node(&report, "00000000000000A").unwrap().id, "00000000000000a1");
        let error = |name| find_node(&report, name).unwrap_err().to_string();
        assert!(error("0").contains("may mean any of 00000000000000a1, 00000000000000b2"));
        assert!(error("7").contains("no node is called 7"));
        // The second one has come back in the place of the first.
        let mut again = sample();
        again.nodes[1].peer = again.nodes[0].peer.clone();
        let error = find_node(&again, "127.0.0.1:7234").unwrap_err().to_string();
        assert!(error.contains("name one by its id"), "{error}");
    }

    #[test]
    fn a_replacement_takes_a_node_that_can_hold_replicas() {
        let mut report = sample();
        let gone = report.nodes[0].clone();
        let error = check_replacement(&report, &gone).unwrap_err().to_string();
        assert!(error.contains("1 other nodes are up"), "{error}");
        report.replicas = 1;
        check_replacement(&report, &gone).unwrap();
    }
}
