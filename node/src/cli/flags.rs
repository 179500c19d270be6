//! The flags of a command that runs a node.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap::builder::BoolishValueParser;
use piton_core::limits::Limits;
use piton_node::config::{Config, LogFormat, StoreEngine};

use crate::EXAMPLES;

/// What a node can be told on the command line, or by variables.
#[derive(Args)]
pub(crate) struct Flags {
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, env = "PITON_IP", value_parser = read_ip)]
    ip: Option<IpAddr>,
    /// Port of the API; 0 takes any free one [default: 7233].
    #[arg(long, env = "PITON_PORT")]
    port: Option<u16>,
    /// Port of /metrics, /healthz and /readyz; 0 takes any free one [default: 8233].
    #[arg(long, env = "PITON_HTTP_PORT")]
    http_port: Option<u16>,
    /// Where everything is kept [default: ./piton-data].
    #[arg(long, value_name = "DIR", env = "PITON_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Keep everything in a temporary directory that is removed at exit.
    #[arg(
        long,
        env = "PITON_EPHEMERAL",
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    ephemeral: Option<bool>,
    /// Port for other nodes; 0 takes any free one [default: 7234; of `dev`: any].
    #[arg(long, env = "PITON_PEER_PORT")]
    peer_port: Option<u16>,
    /// Address for other nodes to connect to; other than loopback it takes certificates [default:
    /// 127.0.0.1].
    #[arg(long, env = "PITON_PEER_IP", value_parser = read_ip)]
    peer_ip: Option<IpAddr>,
    /// What other nodes are told to connect to; the host must stand in this node's certificate [default: the
    /// peer address and port].
    #[arg(long, value_name = "HOST:PORT", env = "PITON_PEER_ADVERTISED")]
    peer_advertised: Option<String>,
    /// With an empty data directory: join the cluster of this node, by host:port of its peer port; may be
    /// repeated.
    #[arg(long, value_name = "HOST:PORT", env = "PITON_JOIN", value_delimiter = ',')]
    join: Vec<String>,
    /// With an empty data directory: found a new cluster. `dev` does so unless it joins one.
    #[arg(
        long,
        env = "PITON_BOOTSTRAP",
        value_name = "YES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    bootstrap: Option<bool>,
    /// What fails together with this node: replicas of a shard are spread over zones.
    #[arg(long, value_name = "NAME", env = "PITON_ZONE")]
    zone: Option<String>,
    /// Namespace to register besides `default`; may be repeated.
    #[arg(long, value_name = "NAME", env = "PITON_NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Search attribute to add to the namespaces named at start; may be repeated.
    #[arg(long, value_name = "NAME=TYPE", env = "PITON_SEARCH_ATTRIBUTE", value_delimiter = ',')]
    search_attribute: Vec<String>,
    /// Limit of the API to set; may be repeated. The cluster keeps it. All are listed below.
    #[arg(long, value_name = "KEY=VALUE", env = "PITON_LIMIT", value_delimiter = ',')]
    limit: Vec<String>,
    /// How long a workflow with nothing to do stays in memory; 0: not at all [default: 10000].
    #[arg(long, value_name = "MS", env = "PITON_IDLE_MS")]
    idle_ms: Option<u64>,
    /// Workflows kept in memory; beyond it the longest unused leave early [default: 4096].
    #[arg(long, value_name = "COUNT", env = "PITON_IN_MEMORY_MAX")]
    in_memory_max: Option<u64>,
    /// Rows kept in memory before they must be in the store [default: 67108864].
    #[arg(long, value_name = "BYTES", env = "PITON_TABLE_BYTES")]
    table_bytes: Option<u64>,
    /// Log of one shard that makes a snapshot of it due, after which the log is freed [default: 67108864].
    #[arg(long, value_name = "BYTES", env = "PITON_SNAPSHOT_LOG_BYTES")]
    snapshot_log_bytes: Option<u64>,
    /// What keeps the store; one that another engine made is rebuilt from the log [default: redb].
    #[arg(long, value_name = "ENGINE", env = "PITON_STORE")]
    store: Option<StoreEngine>,
    /// Shards of a cluster that is first started [default: one for each core, at most 16].
    #[arg(long, value_name = "COUNT", env = "PITON_SHARDS")]
    shards: Option<u32>,
    /// What is logged, such as `info` or `warn,piton_shard=debug` [default: info; of `dev`: warn].
    #[arg(long, value_name = "FILTER", env = "PITON_LOG")]
    log: Option<String>,
    /// How it is logged [default: text].
    #[arg(long, value_name = "FORMAT", env = "PITON_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

pub(crate) fn long_help() -> String {
    let mut text = format!("{EXAMPLES}\nLimits for --limit, with their defaults (bytes, ms):\n");
    for (name, default, what) in Limits::ALL {
        text.push_str(&format!("  {name:<34} {default:>11}  {}\n", what.trim()));
    }
    text
}

impl Flags {
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    pub(crate) fn http_port(&self) -> Option<u16> {
        self.http_port
    }

    pub(crate) fn peer_port(&self) -> Option<u16> {
        self.peer_port
    }

    /// Sets what was given.
    ///
    /// # Errors
    /// When something given cannot be used, with the name of its flag.
    pub(crate) fn overlay(self, config: &mut Config) -> anyhow::Result<()> {
        fn set<T>(place: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *place = given;
            }
        }
        set(&mut config.listen.ip, self.ip);
        set(&mut config.listen.port, self.port);
        set(&mut config.listen.http_port, self.http_port);
        match (self.ephemeral, self.data_dir) {
            (Some(true), Some(_)) => anyhow::bail!(
                "--data-dir keeps what --ephemeral removes: give one of them (or PITON_DATA_DIR, \
                 PITON_EPHEMERAL)"
            ),
            // A directory that is named here is meant to be used, whatever a file says.
            (ephemeral, Some(directory)) => {
                config.data.directory = directory;
                config.data.ephemeral = ephemeral.unwrap_or(false);
            }
            (ephemeral, None) => set(&mut config.data.ephemeral, ephemeral),
        }
        set(&mut config.peer.port, self.peer_port);
        set(&mut config.peer.ip, self.peer_ip);
        set(&mut config.peer.advertised, self.peer_advertised);
        set(&mut config.cluster.zone, self.zone);
        if !self.join.is_empty() {
            config.cluster.join = self.join;
            // What a command founds by default, it does not where it is told to join.
            config.cluster.bootstrap = false;
        } else if self.bootstrap == Some(true) {
            // A node's file names the others for good, and the first node founds once.
            config.cluster.join.clear();
        }
        set(&mut config.cluster.bootstrap, self.bootstrap);
        set(&mut config.data.table_bytes, self.table_bytes);
        set(&mut config.data.snapshot_log_bytes, self.snapshot_log_bytes);
        set(&mut config.data.store, self.store);
        set(&mut config.shards.idle_ms, self.idle_ms);
        set(&mut config.shards.in_memory_max, self.in_memory_max);
        config.shards.count = self.shards.or(config.shards.count);
        set(&mut config.log.filter, self.log);
        set(&mut config.log.format, self.log_format);
        self.namespace.into_iter().for_each(|name| config.add_namespace(name));
        for given in &self.search_attribute {
            config.add_search_attribute(given).context("--search-attribute")?;
        }
        for given in &self.limit {
            config.set_limit(given).context("--limit")?;
        }
        config.check()?;
        Ok(())
    }
}

/// An address, or the one name that every machine knows.
pub(crate) fn read_ip(text: &str) -> Result<IpAddr, String> {
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    text.parse().map_err(|_| "an IP address, or localhost, is expected".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Command};

    fn parse(arguments: &[&str]) -> anyhow::Result<Config> {
        let cli = Cli::try_parse_from([&["piton"], arguments].concat())?;
        let mut config = Config::default();
        let (Command::Dev { flags, .. } | Command::Server { flags, .. }) = cli.command else {
            panic!("it runs no node");
        };
        flags.overlay(&mut config)?;
        Ok(config)
    }

    #[test]
    fn flags_win_over_defaults_and_repeat() {
        let config = parse(&[
            "dev",
            "--ip",
            "::1",
            "--port",
            "0",
            "--http-port",
            "9",
            "--namespace",
            "a",
            "--namespace",
            "b,default",
            "--search-attribute",
            "Customer=Keyword",
            "--limit",
            "signals_max=5",
            "--limit",
            "blob_bytes_max=7",
            "--idle-ms",
            "0",
            "--in-memory-max",
            "100",
            "--table-bytes",
            "65536",
            "--snapshot-log-bytes",
            "4096",
            "--store",
            "sled",
            "--ephemeral",
        ]);
        let config = config.unwrap();
        assert_eq!(config.listen.grpc(), "[::1]:0".parse().unwrap());
        assert_eq!(config.listen.http_port, 9);
        assert_eq!(config.namespaces.names, ["default", "a", "b"]);
        assert_eq!(config.namespaces.search_attributes["Customer"], "Keyword");
        assert_eq!((config.limits["signals_max"], config.limits["blob_bytes_max"]), (5, 7));
        assert_eq!((config.shards.idle_ms, config.data.table_bytes), (0, 65_536));
        assert_eq!((config.shards.in_memory_max, config.data.snapshot_log_bytes), (100, 4096));
        assert_eq!(config.data.store, StoreEngine::Sled);
        assert!(config.data.ephemeral);
    }

    #[test]
    fn a_named_directory_is_kept_unless_ephemeral_is_said_too() {
        let config = parse(&["dev", "--ephemeral=0", "--data-dir", "here"]).unwrap();
        assert_eq!((config.data.ephemeral, config.data.directory), (false, "here".into()));
        let mut file = Config::default();
        file.data.ephemeral = true;
        let cli = Cli::try_parse_from(["piton", "dev", "--data-dir", "here"]).unwrap();
        let (Command::Dev { flags, .. } | Command::Server { flags, .. }) = cli.command else {
            panic!("it runs no node");
        };
        flags.overlay(&mut file).unwrap();
        assert!(!file.data.ephemeral);
        assert!(parse(&["dev", "--ephemeral=1"]).unwrap().data.ephemeral);
    }

    #[test]
    fn what_a_command_founds_does_not_join_what_its_file_names() {
        let overlaid = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["piton", "server"], arguments].concat()).unwrap();
            let Command::Server { flags, .. } = cli.command else { panic!("it is no server") };
            let mut config = Config::default();
            config.cluster.join = vec!["node2:7234".to_owned()];
            flags.overlay(&mut config).map(|()| config)
        };
        let config = overlaid(&["--bootstrap", "--peer-advertised", "node1:7234"]).unwrap();
        assert!(config.cluster.bootstrap && config.cluster.join.is_empty());
        assert_eq!(config.peer.advertised, "node1:7234");
        let config = overlaid(&["--bootstrap=false"]).unwrap();
        assert_eq!(config.cluster.join, ["node2:7234"]);
        let error = overlaid(&["--bootstrap", "--join", "node3:7234"]).unwrap_err().to_string();
        assert!(error.contains("give one of them"), "{error}");
    }

    #[test]
    fn localhost_is_an_address_and_other_names_are_refused() {
        let config = parse(&["dev", "--ip", "localhost"]).unwrap();
        assert_eq!(config.listen.grpc(), "127.0.0.1:7233".parse().unwrap());
        let error = parse(&["dev", "--ip", "example.org"]).unwrap_err().to_string();
        assert!(error.contains("--ip") && error.contains("localhost"), "{error}");
    }

    #[test]
    fn wrong_flags_are_refused_with_their_name() {
        for (arguments, text) in [
            (&["dev", "--limit", "x=1"][..], "no limit called `x`"),
            (&["dev", "--search-attribute", "x"][..], "name=Type"),
            (&["dev", "--port", "70000"][..], "--port"),
            (&["dev", "--store", "rocks"][..], "--store"),
            (&["dev", "--ephemeral", "--data-dir", "x"][..], "--data-dir"),
        ] {
            let error = format!("{:#}", parse(arguments).unwrap_err());
            assert!(error.contains(text), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_long_help_lists_every_limit_with_its_default() {
        let help = long_help();
        for (name, default, _) in Limits::ALL {
            let line = help.lines().find(|line| line.trim().starts_with(name));
            assert!(line.is_some_and(|l| l.contains(&default.to_string())), "{name}");
        }
    }
}
