//! Where the nodes of a local cluster have their data and their ports, and the file that says so.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use piton_node::config::{Config, PeerConfig};
use piton_node::operator::OperatorClient;
use serde::{Deserialize, Serialize};

const CLUSTER_FILE: &str = "cluster.json";
/// What a node's data directory has, once it has been started there.
const IDENTITY_FILE: &str = "node.toml";

/// Ports that were asked for: of node 1, and one more for each further node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AskedPorts {
    pub(crate) api: Option<u16>,
    pub(crate) http: Option<u16>,
    pub(crate) peer: Option<u16>,
}

/// A local cluster, as it is to be started.
pub(super) struct Layout {
    pub(super) directory: PathBuf,
    pub(super) nodes: Vec<NodeLayout>,
    pids: Vec<Option<u32>>,
}

/// One node of it.
pub(super) struct NodeLayout {
    /// From 1 on.
    pub(super) id: u32,
    /// All that it is told.
    pub(super) config: Config,
    /// Where `config` is written for it.
    pub(super) config_file: PathBuf,
}

/// `cluster.json`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct ClusterFile {
    nodes: Vec<NodeEntry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct NodeEntry {
    id: u32,
    /// `null` where it does not run.
    pid: Option<u32>,
    api: u16,
    http: u16,
    peer: u16,
}

impl ClusterFile {
    fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(CLUSTER_FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let file = serde_json::from_str(&text);
        file.map(Some).with_context(|| format!("read {}", path.display()))
    }

    /// Whoever reads it meanwhile reads the old one or the new one.
    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let (path, temporary) =
            (directory.join(CLUSTER_FILE), directory.join(format!("{CLUSTER_FILE}.new")));
        let text = serde_json::to_string(self).context("write the nodes as JSON")? + "\n";
        let written =
            std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &path));
        written.with_context(|| format!("write {}", path.display()))
    }
}

/// One node by itself must not be started on a directory of several: it would wait for the others.
///
/// # Errors
/// Where that is so.
pub(crate) fn refuse_single_node(directory: &Path) -> anyhow::Result<()> {
    if let Some(ClusterFile { nodes }) = ClusterFile::read(directory)? {
        let (directory, nodes) = (directory.display(), nodes.len());
        bail!(
            "{directory} holds a local cluster of {nodes} nodes: start it with --nodes {nodes}, or \
             choose another directory with --data-dir"
        );
    }
    Ok(())
}

/// Where the nodes of a local cluster that run listen for other nodes.
pub(super) fn peers_in(directory: &Path) -> anyhow::Result<Vec<SocketAddr>> {
    let file = ClusterFile::read(directory)?.unwrap_or_default();
    let running = file.nodes.iter().filter(|node| node.pid.is_some());
    Ok(running.map(|node| (PeerConfig::default().ip, node.peer).into()).collect())
}

impl Layout {
    /// Plans a cluster of so many nodes in the directory of `config`. What has been there before keeps
    /// its ports, unless others are asked for.
    ///
    /// # Errors
    /// When the directory holds more nodes, or ports cannot be had.
    pub(super) fn plan(nodes: u32, config: Config, asked: AskedPorts) -> anyhow::Result<Self> {
        let directory = &config.data.directory;
        std::fs::create_dir_all(directory)
            .with_context(|| format!("create the data directory {}", directory.display()))?;
        let directory = directory.canonicalize().context("find the data directory")?;
        let before = ClusterFile::read(&directory)?.unwrap_or_default().nodes;
        if before.len() > nodes as usize {
            bail!(
                "{} holds {} nodes: start it with --nodes {}",
                directory.display(),
                before.len(),
                before.len()
            );
        }
        let mut planned = Vec::new();
        for id in 1..=nodes {
            let mut own = config.clone();
            own.data.directory = data_directory(&directory, id);
            let kept = before.iter().find(|entry| entry.id == id);
            let port = |asked: Option<u16>, kept: Option<u16>, default: u16| match asked {
                Some(0) => Ok(kept.unwrap_or(0)),
                None if kept.is_some() => Ok(kept.unwrap_or(0)),
                None if default == 0 => Ok(0),
                asked => {
                    let first = asked.unwrap_or(default);
                    let sum = u16::try_from(u32::from(first) + id - 1);
                    sum.with_context(|| {
                        format!("there is no port {first} + {} for node {id}", id - 1)
                    })
                }
            };
            let listen = &mut own.listen;
            listen.port = port(asked.api, kept.map(|k| k.api), config.listen.port)?;
            listen.http_port = port(asked.http, kept.map(|k| k.http), config.listen.http_port)?;
            own.peer.port = port(asked.peer, kept.map(|k| k.peer), config.peer.port)?;
            let config_file = directory.join(format!("node-{id}.toml"));
            planned.push(NodeLayout { id, config: own, config_file });
        }
        draw_ports(&mut planned)?;
        let pids = vec![None; planned.len()];
        let mut layout = Self { directory, nodes: planned, pids };
        layout.decide_origins();
        Ok(layout)
    }

    /// The first node founds the cluster where there is none yet. Whoever has no data joins the others,
    /// a node whose disk was wiped among them.
    pub(super) fn decide_origins(&mut self) {
        let has_data: Vec<bool> = self.nodes.iter().map(NodeLayout::has_data).collect();
        let is_new = !has_data.contains(&true);
        let peers: Vec<String> =
            self.nodes.iter().map(|node| node.config.peer.listen().to_string()).collect();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let founds = is_new && at == 0;
            let others = peers
                .iter()
                .enumerate()
                .filter(|&(other, _)| other != at && (has_data[other] || is_new && other == 0));
            node.config.cluster.bootstrap = founds;
            node.config.cluster.join =
                if founds { Vec::new() } else { others.map(|(_, peer)| peer.clone()).collect() };
        }
    }

    /// Who has to be ready before others can join.
    pub(super) fn founder(&self) -> Option<u32> {
        self.nodes.iter().find(|node| node.config.cluster.bootstrap).map(|node| node.id)
    }

    pub(super) fn node(&self, id: u32) -> Option<&NodeLayout> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Notes which process a node is.
    pub(super) fn set_pid(&mut self, id: u32, pid: Option<u32>) -> anyhow::Result<()> {
        if let Some(at) = self.nodes.iter().position(|node| node.id == id) {
            self.pids[at] = pid;
        }
        self.write()
    }

    /// Notes that none runs, as far as that can be noted.
    pub(super) fn forget_pids(&mut self) {
        self.pids.fill(None);
        if let Err(error) = self.write() {
            tracing::warn!(error = format!("{error:#}"), "cluster.json is not up to date");
        }
    }

    fn write(&self) -> anyhow::Result<()> {
        let entries = self.nodes.iter().zip(&self.pids).map(|(node, &pid)| NodeEntry {
            id: node.id,
            pid,
            api: node.config.listen.port,
            http: node.config.listen.http_port,
            peer: node.config.peer.port,
        });
        ClusterFile { nodes: entries.collect() }.write(&self.directory)
    }

    /// A way to ask all of them.
    pub(super) fn operator(&self) -> anyhow::Result<OperatorClient> {
        let addresses = self.nodes.iter().map(|node| node.config.peer.listen().into());
        let peer = &self.nodes.first().context("there are no nodes")?.config.peer;
        OperatorClient::new(peer, addresses.collect()).context("ask the nodes")
    }
}

impl NodeLayout {
    /// Writes what it is told, for its next start.
    ///
    /// # Errors
    /// When that cannot be written.
    // INVARIANT: only while it does not run. A node that starts may read its file at any moment.
    pub(super) fn write_config(&self) -> anyhow::Result<()> {
        let text = toml::to_string(&self.config).context("write a node's configuration")?;
        std::fs::write(&self.config_file, text)
            .with_context(|| format!("write {}", self.config_file.display()))
    }

    fn has_data(&self) -> bool {
        self.config.data.directory.join(IDENTITY_FILE).exists()
    }
}

/// A cluster of one that grows keeps its first node where it is.
fn data_directory(directory: &Path, id: u32) -> PathBuf {
    let own = directory.join(format!("node-{id}"));
    let is_grown = id == 1 && directory.join(IDENTITY_FILE).exists() && !own.exists();
    if is_grown { directory.to_owned() } else { own }
}

/// Draws ports where any will do. They are held until all are known, so that they differ.
fn draw_ports(nodes: &mut [NodeLayout]) -> anyhow::Result<()> {
    let mut held = Vec::new();
    let mut draw = |ip: IpAddr, port: &mut u16| -> anyhow::Result<()> {
        if *port == 0 {
            let listener = TcpListener::bind((ip, 0)).context("find a free port")?;
            *port = listener.local_addr().context("find a free port")?.port();
            held.push(listener);
        }
        Ok(())
    };
    for NodeLayout { config, .. } in nodes {
        draw(config.listen.ip, &mut config.listen.port)?;
        draw(config.listen.ip, &mut config.listen.http_port)?;
        draw(config.peer.ip, &mut config.peer.port)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> Config {
        let mut config = Config::default();
        config.data.directory = directory.to_owned();
        config.peer.port = 0;
        config
    }

    fn ports(layout: &Layout) -> Vec<[u16; 3]> {
        let ports = layout.nodes.iter().map(|node| {
            let Config { listen, peer, .. } = &node.config;
            [listen.port, listen.http_port, peer.port]
        });
        ports.collect()
    }

    #[test]
    fn ports_follow_the_first_and_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let asked = AskedPorts { api: Some(7300), ..AskedPorts::default() };
        let mut first = Layout::plan(3, config.clone(), asked).unwrap();
        let drawn = ports(&first);
        let api: Vec<u16> = drawn.iter().map(|ports| ports[0]).collect();
        let http: Vec<u16> = drawn.iter().map(|ports| ports[1]).collect();
        assert_eq!((api, http), (vec![7300, 7301, 7302], vec![8233, 8234, 8235]));
        first.set_pid(2, Some(7)).unwrap();
        let again = Layout::plan(3, config.clone(), AskedPorts::default()).unwrap();
        assert_eq!(ports(&again), drawn);
        let moved = AskedPorts { http: Some(9000), ..AskedPorts::default() };
        let moved = Layout::plan(3, config.clone(), moved).unwrap();
        assert_eq!(ports(&moved)[2], [7302, 9002, drawn[2][2]]);
        let high = AskedPorts { api: Some(65_534), ..AskedPorts::default() };
        assert!(Layout::plan(3, config, high).is_err());
    }

    #[test]
    fn the_first_founds_and_whoever_has_no_data_joins_those_that_have() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let origins = |layout: &Layout| -> Vec<(bool, usize)> {
            let clusters = layout.nodes.iter().map(|node| &node.config.cluster);
            clusters.map(|cluster| (cluster.bootstrap, cluster.join.len())).collect()
        };
        let fresh = Layout::plan(3, config.clone(), AskedPorts::default()).unwrap();
        assert_eq!(
            (origins(&fresh), fresh.founder()),
            (vec![(true, 0), (false, 1), (false, 1)], Some(1))
        );
        for node in &fresh.nodes[1..] {
            std::fs::create_dir_all(&node.config.data.directory).unwrap();
            std::fs::write(node.config.data.directory.join(IDENTITY_FILE), "").unwrap();
        }
        // The first one's disk is gone: it must not found another cluster.
        let wiped = Layout::plan(3, config, AskedPorts::default()).unwrap();
        assert_eq!((origins(&wiped)[0], wiped.founder()), ((false, 2), None));
    }

    #[test]
    fn one_node_grows_where_it_is_and_several_are_not_started_as_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(IDENTITY_FILE), "").unwrap();
        refuse_single_node(directory.path()).unwrap();
        let mut grown = Layout::plan(3, config(directory.path()), AskedPorts::default()).unwrap();
        assert_eq!(grown.nodes[0].config.data.directory, grown.directory);
        assert_eq!(grown.nodes[1].config.data.directory, grown.directory.join("node-2"));
        assert_eq!(grown.founder(), None);
        grown.set_pid(1, Some(7)).unwrap();
        let error = refuse_single_node(directory.path()).unwrap_err().to_string();
        assert!(error.contains("--nodes 3"), "{error}");
        let error = Layout::plan(2, config(directory.path()), AskedPorts::default()).err().unwrap();
        assert!(error.to_string().contains("--nodes 3"), "{error}");
    }

    #[test]
    fn the_file_names_ports_and_processes() {
        let directory = tempfile::tempdir().unwrap();
        let asked = AskedPorts { api: Some(7300), http: Some(8300), peer: Some(9300) };
        let mut layout = Layout::plan(2, config(directory.path()), asked).unwrap();
        layout.set_pid(1, Some(41)).unwrap();
        let text = std::fs::read_to_string(directory.path().join(CLUSTER_FILE)).unwrap();
        let wanted = concat!(
            r#"{"nodes":[{"id":1,"pid":41,"api":7300,"http":8300,"peer":9300},"#,
            r#"{"id":2,"pid":null,"api":7301,"http":8301,"peer":9301}]}"#,
            "\n"
        );
        assert_eq!(text, wanted);
        assert_eq!(peers_in(directory.path()).unwrap(), ["127.0.0.1:9300".parse().unwrap()]);
    }
}
