//! The binary `piton`: flags and variables to a configuration, a node, and an orderly end.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use piton_node::config::Config;
use piton_node::{Devices, Failure, Node, NodeError, StorageError, init_tracing};
use tokio::runtime::Runtime;

use crate::cluster_command::ClusterCommand;
use crate::dev_cluster::AskedPorts;
use crate::flags::{Flags, long_help, read_ip};
use crate::signals::Signals;

mod allocator;
mod cluster_command;
mod dev_cluster;
mod flags;
mod signals;
mod table;

const EXAMPLES: &str = "\
Examples:
  piton dev
      A cluster of one on 127.0.0.1:7233, data in ./piton-data.
  piton dev --ephemeral --port 7300 --http-port 8300
      Another one beside it, gone when it ends.
  piton dev --nodes 3
      A cluster of three on 127.0.0.1:7233, 7234 and 7235; kill one, and the others go on.
  piton dev --namespace orders --search-attribute Customer=Keyword
      Also has the namespace `orders`; all namespaces know the attribute.
  piton dev --limit signals_max=20000 --limit history_events_max=100000
      With two limits of its own.
  piton server --config deploy/piton.toml --data-dir /var/lib/piton
      From a file; flags and PITON_* variables win over it.

Exit codes of a node: 0 told to stop; 1 refused or failed; 2 wrong usage; 6 the cluster has no place for
it, since it was removed or is of too old a release: starting it again does not help.

Every flag can be given as a variable: --data-dir as PITON_DATA_DIR; several values of one flag are
separated by commas there.
";

/// A durable-execution server that speaks the Temporal API.
#[derive(Parser)]
#[command(name = "piton", version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a cluster of one or more nodes on this machine, for development: same code, same storage,
    /// same guarantees.
    #[command(after_long_help = long_help())]
    Dev {
        /// Nodes, each a process of its own; ports count up from that of the first.
        #[arg(long, value_name = "COUNT", env = "PITON_NODES", value_parser = clap::value_parser!(u32).range(1..=9))]
        nodes: Option<u32>,
        /// Start a node of the cluster that runs on --data-dir again, by its number, and wait until it is
        /// ready.
        #[arg(long, value_name = "NUMBER", conflicts_with = "nodes")]
        restart_node: Option<u32>,
        #[command(flatten)]
        flags: Flags,
    },
    /// Runs a node from a configuration file.
    #[command(after_long_help = long_help())]
    Server {
        /// TOML; deploy/piton.toml has every key.
        #[arg(long, value_name = "FILE", env = "PITON_CONFIG")]
        config: Option<PathBuf>,
        /// Stop when standard input ends; for whoever starts this as a part of itself.
        #[arg(long, hide = true)]
        on_leash: bool,
        #[command(flatten)]
        flags: Flags,
    },
    /// Says how a cluster is, and has things moved in it.
    Cluster(ClusterCommand),
    /// Asks the node on this machine whether it serves; exits with 0 if it does, and with 1 if not.
    #[command(after_long_help = HEALTH)]
    Health {
        /// The node's configuration file, which says where it listens.
        #[arg(long, value_name = "FILE", env = "PITON_CONFIG")]
        config: Option<PathBuf>,
        /// Address that it listens on [default: 127.0.0.1].
        #[arg(long, env = "PITON_IP", value_parser = read_ip)]
        ip: Option<IpAddr>,
        /// Its port of /healthz and /readyz [default: 8233].
        #[arg(long, env = "PITON_HTTP_PORT")]
        http_port: Option<u16>,
        /// Ask only whether the process answers (/healthz), not whether it serves (/readyz).
        #[arg(long)]
        live: bool,
    },
    /// Looks after the data directory of a node that does not run.
    #[command(subcommand)]
    Data(DataCommand),
}

#[derive(Subcommand)]
enum DataCommand {
    /// Says what a data directory has lost, and lets the node start on the rest.
    #[command(after_long_help = ACCEPT_LOSS)]
    AcceptLoss {
        /// The node's data directory [default: ./piton-data].
        #[arg(long, value_name = "DIR", env = "PITON_DATA_DIR")]
        data_dir: Option<PathBuf>,
        /// Accept what is said to be lost. Without it nothing is changed.
        #[arg(long)]
        yes: bool,
    },
}

const ACCEPT_LOSS: &str = "\
A node does not start where its log lacks something that it had acknowledged: a log that is missing,
cut short or damaged. Put it back from where it went, if there is a way. Where there is none, this
has the log begin at the best that the store and the snapshots hold; what came later is lost for
good. A node of a cluster of several is not asked: the others have what it lost.

Example:
  piton data accept-loss --data-dir /var/lib/piton
      Says what is lost, and changes nothing.
  piton data accept-loss --data-dir /var/lib/piton --yes
      Accepts it; a damaged log is kept beside the new one.
";

const HEALTH: &str = "\
For containers without a shell, and for scripts. It waits for an answer for at most five seconds.

Example:
  piton health
      Of a node on port 8233, or where PITON_CONFIG, PITON_IP and PITON_HTTP_PORT say.
  piton health --live --http-port 8300
      Whether the process answers, even if it cannot serve for the time being.
";

/// How long a node may take to say how it is.
const HEALTH_WAIT: Duration = Duration::from_secs(5);

/// Variables that look as if they were meant for us and mean nothing, each with the one that comes
/// closest.
fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<(String, Option<String>)> {
    let command = Cli::command();
    let known: Vec<String> = command
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()))
        .collect();
    let closest = |name: &str| {
        let distance = |known: &&String| strsim::damerau_levenshtein(name, known);
        known.iter().min_by_key(distance).filter(|known| distance(known) <= 3).cloned()
    };
    names
        .filter(|name| name.starts_with("PITON_") && !known.contains(name))
        .map(|name| (name.clone(), closest(&name)))
        .collect()
}

/// A variable that is misspelt would otherwise be a setting that silently is not made.
fn warn_of_unknown_variables() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for (name, closest) in unknown_variables(names) {
        match closest {
            Some(closest) => tracing::warn!(name, "unknown variable: is {closest} meant?"),
            None => tracing::warn!(name, "unknown variable"),
        }
    }
}

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        // `{:#}` prints the whole chain of causes on one line.
        table::log(&format!("piton: {error:#}\n"));
        exit_code(&error)
    })
}

/// The cluster has no place for this node: whoever starts nodes again need not try.
#[derive(Debug, thiserror::Error)]
#[error("stopped, since the cluster has no place for this node: {0}")]
struct Unwanted(String);

/// The exit code of a node for which its cluster has no place.
const UNWANTED: u8 = 6;

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let refused =
        matches!(error.downcast_ref(), Some(NodeError::Storage(StorageError::Unwanted(_))));
    if refused || error.is::<Unwanted>() { ExitCode::from(UNWANTED) } else { ExitCode::FAILURE }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Data(DataCommand::AcceptLoss { data_dir, yes }) => {
            let data_dir = data_dir.unwrap_or_else(|| Config::default().data.directory);
            let said = piton_node::accept_loss(&data_dir, yes)?;
            std::io::stdout().write_all(said.as_bytes()).context("say what is lost")?;
        }
        Command::Health { config, ip, http_port, live } => {
            let mut listen =
                config.as_deref().map(Config::read).transpose()?.unwrap_or_default().listen;
            listen.ip = ip.unwrap_or(listen.ip);
            listen.http_port = http_port.unwrap_or(listen.http_port);
            let page = if live { "/healthz" } else { "/readyz" };
            piton_node::probe(listen.http(), page, HEALTH_WAIT)?;
        }
        Command::Cluster(command) => {
            return runtime()?.block_on(cluster_command::run(command));
        }
        Command::Dev { restart_node: Some(node), flags, .. } => {
            let config = prepare(dev_config(), flags)?;
            runtime()?.block_on(dev_cluster::restart_node(node, &config.data.directory))?;
            table::say(&format!("Node {node} is ready.\n"));
        }
        Command::Dev { nodes: Some(nodes), flags, .. } if nodes > 1 => {
            let asked =
                AskedPorts { api: flags.port(), http: flags.http_port(), peer: flags.peer_port() };
            let config = prepare(dev_config(), flags)?;
            runtime()?.block_on(dev_cluster::run(nodes, config, asked))?;
        }
        Command::Dev { flags, .. } => {
            let config = prepare(dev_config(), flags)?;
            if !config.data.ephemeral {
                dev_cluster::refuse_single_node(&config.data.directory)?;
            }
            runtime()?.block_on(run_node(config, false))?;
        }
        Command::Server { config, on_leash, flags } => {
            let config = config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
            let config = prepare(config, flags)?;
            runtime()?.block_on(run_node(config, on_leash))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a command that runs nodes does first.
fn prepare(mut config: Config, flags: Flags) -> anyhow::Result<Config> {
    flags.overlay(&mut config)?;
    init_tracing(&config.log);
    warn_of_unknown_variables();
    piton_node::raise_file_handle_limit();
    Ok(config)
}

fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.thread_name("piton").enable_all().on_thread_park(allocator::give_back);
    builder.build().context("start the runtime")
}

/// `on_leash`: for whoever reads one line on standard output when it is ready, and closes standard input
/// to have it stop.
async fn run_node(config: Config, on_leash: bool) -> anyhow::Result<()> {
    // Asked for before anything is opened, so that no signal is missed while starting.
    let mut signals = Signals::listen()?;
    if on_leash {
        signals = signals.on_leash()?;
    }
    let devices = Devices { on_idle: allocator::give_back, ..Devices::default() };
    let mut node = tokio::select! {
        node = Node::start_on(config, devices) => node?,
        // What is half open is durable anyway.
        () = signals.asked_to_stop() => return Ok(()),
    };
    if on_leash {
        table::say("ready\n");
    } else {
        say_ready(&node);
    }
    loop {
        tokio::select! {
            failure = node.failed() => match failure {
                // ORDER: ends at once. A node that cannot make anything durable must not go on, and
                // an orderly stop would write.
                Failure::Log(reason) => anyhow::bail!(
                    "stopped, since nothing can be made durable any more: {reason}"
                ),
                Failure::Directory(reason) => anyhow::bail!("stopped: {reason}"),
                Failure::Unwanted(reason) => return Err(Unwanted(reason).into()),
                Failure::Group(reason) => anyhow::bail!("stopped, to start anew: {reason}"),
                Failure::Store(reason) => {
                    tracing::error!(reason, "the store failed and is rebuilt from the log");
                    node = node.rebuild_store().await?;
                    tracing::warn!("the store is rebuilt");
                }
            },
            () = signals.asked_to_stop() => break,
        }
    }
    if !on_leash {
        table::say("Stopping.\n");
    }
    tokio::select! {
        () = node.stop() => {}
        // Asked twice: what is acknowledged is durable, so there is nothing to wait for.
        () = signals.asked_to_stop() => {}
    }
    Ok(())
}

/// What is being developed is not this server: it keeps to what is unexpected.
fn dev_config() -> Config {
    let mut config = Config::default();
    "warn,openraft=error".clone_into(&mut config.log.filter);
    config.cluster.bootstrap = true;
    // Several of them may run on one machine.
    config.peer.port = 0;
    config
}

/// Says where the node is and what to do next.
fn say_ready(node: &Node) {
    let kept = if node.is_ephemeral() { "removed at exit" } else { "kept" };
    let text = format!(
        "\
Piton {version} is ready.

  API         {grpc}
  HTTP        http://{http}/metrics, /healthz, /readyz
  Peers       {peers}
  Data        {data} ({kept})
  Namespaces  {namespaces}

Run a first workflow: see examples/typescript/README.md, or point any Temporal SDK at {grpc}.
Ctrl-C stops.
",
        version = env!("CARGO_PKG_VERSION"),
        grpc = node.grpc_address(),
        http = node.http_address(),
        peers = node.peer_address(),
        data = node.data_directory().display(),
        namespaces = node.namespaces().join(", "),
    );
    table::say(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_declared_without_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_one_that_was_meant() {
        let given = ["PITON_DATADIR", "PITON_PORT", "PITON_SOMETHING_ELSE", "HOME"];
        let found = unknown_variables(given.into_iter().map(str::to_owned));
        let wanted = [
            ("PITON_DATADIR".to_owned(), Some("PITON_DATA_DIR".to_owned())),
            ("PITON_SOMETHING_ELSE".to_owned(), None),
        ];
        assert_eq!(found, wanted);
    }
}
