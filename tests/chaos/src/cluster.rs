//! The nodes: processes of the server with a directory, ports and a log each, behind proxies for
//! what they say to each other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::certificates::Authority;
use crate::members::Members;
use crate::proxy::{Links, Proxy};

/// A debug-like build on a busy machine may take a while.
pub(crate) const READY_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const HTTP_MAX: Duration = Duration::from_secs(2);

/// What a cluster is made of.
pub(crate) struct Spec {
    pub(crate) binary: PathBuf,
    /// What nodes run in place of it.
    pub(crate) faulty: Option<PathBuf>,
    pub(crate) directory: PathBuf,
    pub(crate) nodes: usize,
    pub(crate) shards: u32,
    /// 0: any free ones.
    pub(crate) first_port: u16,
    pub(crate) has_tls: bool,
    /// Log of a shard after which it is cut: small, so that who was away needs a snapshot.
    pub(crate) snapshot_log_bytes: u64,
}

pub(crate) struct Cluster {
    pub(crate) links: Arc<Links>,
    pub(crate) members: Members,
    /// One more than there are members: it joins where another one goes.
    nodes: Vec<Node>,
    spec: Spec,
}

struct Node {
    api: u16,
    http: u16,
    /// As the others know it.
    peer: u16,
    proxy: Proxy,
    config: PathBuf,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Cluster {
    /// Founds a cluster; all nodes are members and ready when this returns.
    pub(crate) async fn found(spec: Spec) -> Result<Cluster> {
        let count = spec.nodes + 1;
        let links = Links::new(count);
        let authority = if spec.has_tls { Some(Authority::new(&spec.directory)?) } else { None };
        let ports = free_ports(spec.first_port, count * 4)?;
        let mut nodes = Vec::new();
        for node in 0..count {
            let [api, http, peer, proxy] = ports[node * 4..][..4] else { unreachable!() };
            let directory = spec.directory.join(format!("n{node}"));
            fs::create_dir_all(&directory)?;
            let mut config = format!(
                "[listen]\nport = {api}\nhttp_port = {http}\n[data]\ndirectory = {:?}\n\
                 snapshot_log_bytes = {}\n[peer]\nport = {peer}\nadvertised = \"127.0.0.1:{proxy}\"\n",
                directory.join("data"),
                spec.snapshot_log_bytes,
            );
            if let Some(authority) = &authority {
                config += &authority.certify(&directory)?;
            }
            let path = directory.join("config.toml");
            fs::write(&path, config)?;
            let log = directory.join("log");
            File::create(&log)?;
            let (peer, proxy) = (proxy, Proxy::new(&links, node, proxy, peer));
            let child = Mutex::new(None);
            nodes.push(Node { api, http, peer, proxy, config: path, log, child });
        }
        let members = Members::of_first(spec.nodes);
        let cluster = Cluster { links, members, nodes, spec };
        let shards = cluster.spec.shards.to_string();
        cluster.start_with(0, &["--bootstrap", "--shards", &shards]).await?;
        cluster.await_ready(0).await?;
        for node in 1..cluster.spec.nodes {
            cluster.join(node, &[0]).await?;
        }
        // Every shard outlives a node from now on: the founder had them all to itself.
        cluster.await_whole().await?;
        Ok(cluster)
    }

    /// Starts a node that has nothing, to join these; it is ready when this returns.
    pub(crate) async fn join(&self, node: usize, others: &[usize]) -> Result<()> {
        let addresses: Vec<String> = others.iter().map(|other| self.peer(*other)).collect();
        let flags: Vec<&str> = addresses.iter().flat_map(|a| ["--join", a.as_str()]).collect();
        self.start_with(node, &flags).await?;
        self.await_ready(node).await
    }

    /// The node that is no member.
    pub(crate) fn spare(&self) -> Option<usize> {
        let members = self.members.all();
        (0..self.nodes.len()).find(|node| !members.contains(node))
    }

    /// All that a node keeps is gone.
    pub(crate) fn wipe(&self, node: usize) -> Result<()> {
        let data = self.data(node);
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))
    }

    /// Nodes that there are, members or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The server's program, as an operator uses it on a node's machine.
    pub(crate) fn program(&self) -> Command {
        clean(&self.spec.binary)
    }

    /// What a node's wall clock is ahead by from now on. Nodes that run the faulty binary look.
    pub(crate) fn set_clock(&self, node: usize, ahead_ms: i64) -> Result<()> {
        fs::write(self.nodes[node].config.with_file_name("clock"), ahead_ms.to_string())
            .context("set a clock")
    }

    /// Where other nodes and operators find a node.
    pub(crate) fn peer(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[node].peer)
    }

    pub(crate) fn has_certificates(&self) -> bool {
        self.spec.has_tls
    }

    pub(crate) fn config(&self, node: usize) -> &Path {
        &self.nodes[node].config
    }

    pub(crate) fn shards(&self) -> u32 {
        self.spec.shards
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.spec.directory
    }

    /// Where a node keeps everything.
    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.spec.directory.join(format!("n{node}")).join("data")
    }

    pub(crate) fn api(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[node].api)
    }

    pub(crate) fn api_port(&self, node: usize) -> u16 {
        self.nodes[node].api
    }

    pub(crate) async fn start(&self, node: usize) -> Result<()> {
        self.start_with(node, &[]).await
    }

    async fn start_with(&self, node: usize, flags: &[&str]) -> Result<()> {
        let here = &self.nodes[node];
        ensure!(here.child.lock().is_none(), "node {node} runs already");
        let log = File::options().append(true).open(&here.log)?;
        let program = self.spec.faulty.as_ref().unwrap_or(&self.spec.binary);
        let mut command = clean(program);
        // As `piton dev --nodes` does: all of them run on this machine.
        if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("TOKIO_WORKER_THREADS", (cores / self.nodes.len()).max(1).to_string());
        }
        let child = command
            .args(["server", "--config"])
            .arg(&here.config)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.spec.binary.display()))?;
        self.links.set_pid(node, Some(child.id()));
        *here.child.lock() = Some(child);
        here.proxy.open().await.context("open the proxy")
    }

    /// Waits until a node says that it answers.
    pub(crate) async fn await_ready(&self, node: usize) -> Result<()> {
        let end = Instant::now() + READY_MAX;
        while !self.is_ready(node).await {
            if let Some(how) = self.ended(node) {
                bail!("node {node} ended by itself: {how}");
            }
            ensure!(Instant::now() < end, "node {node} is not ready after {READY_MAX:?}");
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn is_ready(&self, node: usize) -> bool {
        self.get(node, "/readyz").await.is_ok_and(|answer| answer.contains(" 200 "))
    }

    /// How a process ended that nobody ended.
    pub(crate) fn ended(&self, node: usize) -> Option<String> {
        let mut child = self.nodes[node].child.lock();
        let status = child.as_mut()?.try_wait().ok()??;
        Some(status.to_string())
    }

    /// SIGKILL. The process is gone when this returns, and its proxy refuses.
    pub(crate) async fn kill(&self, node: usize) {
        let child = self.nodes[node].child.lock().take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.links.set_pid(node, None);
        self.nodes[node].proxy.close().await;
    }

    /// SIGKILL of several at once.
    pub(crate) async fn kill_all(&self, nodes: &[usize]) {
        for node in nodes {
            self.signal(*node, Signal::KILL);
        }
        for node in nodes {
            self.kill(*node).await;
        }
    }

    /// SIGTERM: it may take its time. False: it took too long, and was killed.
    pub(crate) async fn stop(&self, node: usize, limit: Duration) -> bool {
        self.signal(node, Signal::TERM);
        let end = Instant::now() + limit;
        while self.ended(node).is_none() {
            if Instant::now() >= end {
                self.kill(node).await;
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
        self.kill(node).await;
        true
    }

    pub(crate) fn pause(&self, node: usize) {
        self.signal(node, Signal::STOP);
    }

    pub(crate) fn resume(&self, node: usize) {
        self.signal(node, Signal::CONT);
    }

    fn signal(&self, node: usize, signal: Signal) {
        let child = self.nodes[node].child.lock();
        let pid = child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(pid) = pid {
            // It may have ended; who waits for it sees so.
            let _ = kill_process(pid, signal);
        }
    }

    /// Which node says that it leads a shard. Nodes that do not answer lead none.
    pub(crate) async fn leaders(&self) -> BTreeMap<u32, usize> {
        let mut leaders = BTreeMap::new();
        for node in 0..self.nodes.len() {
            if self.nodes[node].child.lock().is_none() {
                continue;
            }
            let Ok(answer) = self.get(node, "/metrics").await else { continue };
            for line in answer.lines() {
                let Some(rest) = line.strip_prefix("piton_shard_leader{shard=\"") else { continue };
                let Some((shard, value)) = rest.split_once("\"} ") else { continue };
                if let (Ok(shard), "1") = (shard.parse(), value.trim()) {
                    leaders.insert(shard, node);
                }
            }
        }
        leaders
    }

    /// How often a node found damage on its disk, and how many groups it gave up to be refilled.
    pub(crate) async fn damage(&self, node: usize) -> (u64, u64) {
        let answer = self.get(node, "/metrics").await.unwrap_or_default();
        let sum = |name: &str| {
            let lines = answer.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        (sum("piton_damage_found_total"), sum("piton_damage_refilled_total"))
    }

    async fn get(&self, node: usize, path: &str) -> Result<String> {
        let asked = async {
            let mut stream =
                TcpStream::connect((Ipv4Addr::LOCALHOST, self.nodes[node].http)).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        Ok(tokio::time::timeout(HTTP_MAX, asked).await??)
    }

    /// Whether a node's log tells of a panic.
    pub(crate) fn panics(&self, node: usize) -> Vec<String> {
        let log = fs::read_to_string(&self.nodes[node].log).unwrap_or_default();
        log.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
    }

    /// Leaves the logs and removes what the nodes stored.
    pub(crate) fn remove_data(&self) {
        for node in 0..self.nodes.len() {
            let _ = fs::remove_dir_all(self.data(node));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some(mut child) = node.child.lock().take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// A program without what the environment says of the developer's own server.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        // How much the nodes log is for who runs this to say.
        if name.to_string_lossy().starts_with("PITON_") && name != "PITON_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// All are held until all are known, so that they differ.
fn free_ports(first: u16, count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|index| match first {
            0 => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
            first => TcpListener::bind((Ipv4Addr::LOCALHOST, first + index as u16)),
        })
        .collect::<Result<Vec<_>, _>>()
        .context("find free ports")?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A directory for this run, empty.
pub(crate) fn fresh_directory(path: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(path);
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    Ok(fs::canonicalize(path)?)
}
