//! The network between the nodes: every node is told to the others by the address of a proxy here,
//! which passes TCP on, or holds it, slows it and breaks it, for each ordered pair of nodes.
//!
//! A node has one address in the cluster's state, so all others call the same proxy. It tells them
//! apart by who owns the socket at the other end, which the kernel shows under /proc; that takes no
//! rights, no change of the server, and works the same with TLS. What flows from one node to another
//! obeys that pair's condition, whoever made the connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction of one connection.
const CHUNKS: usize = 32;

/// What befalls bytes on their way from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Condition {
    /// Nothing arrives; nobody is told.
    pub(crate) is_cut: bool,
    pub(crate) delay: Duration,
    pub(crate) bytes_per_second: Option<u64>,
    /// Chances in a thousand that a chunk breaks its connection.
    pub(crate) break_permille: u32,
    /// Connections that were made while it was smaller are broken.
    pub(crate) resets: u64,
}

/// Conditions of all ordered pairs.
pub(crate) struct Links {
    nodes: usize,
    /// From `source * nodes + target`.
    pairs: Vec<watch::Sender<Condition>>,
    /// When the link is free again, for those that are slow.
    free_at: Vec<Mutex<Instant>>,
    pids: Mutex<Vec<Option<u32>>>,
}

impl Links {
    pub(crate) fn new(nodes: usize) -> Arc<Self> {
        let pairs = (0..nodes * nodes).map(|_| watch::Sender::new(Condition::default())).collect();
        let free_at = (0..nodes * nodes).map(|_| Mutex::new(Instant::now())).collect();
        Arc::new(Self { nodes, pairs, free_at, pids: Mutex::new(vec![None; nodes]) })
    }

    /// Whose sockets are whose.
    pub(crate) fn set_pid(&self, node: usize, pid: Option<u32>) {
        self.pids.lock()[node] = pid;
    }

    pub(crate) fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Condition)) {
        self.pairs[from * self.nodes + to].send_modify(change);
    }

    /// Ends all faults. Connections that hold go on.
    pub(crate) fn heal(&self) {
        for pair in &self.pairs {
            pair.send_modify(|now| *now = Condition { resets: now.resets, ..Condition::default() });
        }
    }

    fn cuts_into(&self, to: usize) -> bool {
        (0..self.nodes).any(|from| self.pairs[from * self.nodes + to].borrow().is_cut)
    }

    fn source_of(&self, peer: SocketAddr, proxy: SocketAddr) -> Option<usize> {
        let inode = inode_of(peer, proxy)?;
        let pids = self.pids.lock().clone();
        pids.iter().position(|pid| pid.is_some_and(|pid| owns(pid, inode)))
    }

    /// When `bytes` that are sent now have left, on a link that may be slow.
    fn departure(&self, pair: usize, condition: Condition, bytes: usize) -> Instant {
        let now = Instant::now();
        let Some(rate) = condition.bytes_per_second else { return now };
        let mut free_at = self.free_at[pair].lock();
        let span = Duration::from_secs_f64(bytes as f64 / rate as f64);
        *free_at = (*free_at).max(now) + span;
        *free_at
    }
}

/// The proxy in front of one node.
pub(crate) struct Proxy {
    links: Arc<Links>,
    node: usize,
    address: SocketAddr,
    target: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    pub(crate) fn new(links: &Arc<Links>, node: usize, port: u16, target: u16) -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let links = Arc::clone(links);
        let (address, target) = (local(port), local(target));
        Self { links, node, address, target, accepting: Mutex::new(None) }
    }

    /// Takes connections, as the node does from now on.
    pub(crate) async fn open(&self) -> io::Result<()> {
        if self.accepting.lock().is_some() {
            return Ok(());
        }
        let listener = TcpListener::bind(self.address).await?;
        let (links, node, address, target) =
            (Arc::clone(&self.links), self.node, self.address, self.target);
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((inner, peer)) = listener.accept().await else { continue };
                tokio::spawn(carry(Arc::clone(&links), node, inner, peer, address, target));
            }
        });
        *self.accepting.lock() = Some(accepting);
        Ok(())
    }

    /// Refuses connections, as a machine does on which the node does not run. One that is cut off
    /// refuses nothing: that would be an answer.
    pub(crate) async fn close(&self) {
        if self.links.cuts_into(self.node) {
            return;
        }
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // An abort is what was asked for.
            let _ = accepting.await;
        }
    }
}

async fn carry(
    links: Arc<Links>,
    to: usize,
    inner: TcpStream,
    peer: SocketAddr,
    address: SocketAddr,
    target: SocketAddr,
) {
    // Who is no node, as an administrator's tool, is not hurt.
    let from = links.source_of(peer, address);
    let there = from.map(|from| from * links.nodes + to);
    let back = from.map(|from| to * links.nodes + from);
    // A connection that is being made breaks as well.
    let resets = |pair: Option<usize>| pair.map_or(0, |pair| links.pairs[pair].borrow().resets);
    let (resets_there, resets_back) = (resets(there), resets(back));
    if let Some(pair) = there {
        passable(&links, pair).await;
    }
    let Ok(outer) = TcpStream::connect(target).await else { return };
    let (_, _) = (inner.set_nodelay(true), outer.set_nodelay(true));
    let (inner_read, inner_write) = inner.into_split();
    let (outer_read, outer_write) = outer.into_split();
    // An end in one direction leaves the other open; a break ends both.
    let _ = tokio::try_join!(
        pump(&links, there, resets_there, inner_read, outer_write),
        pump(&links, back, resets_back, outer_read, inner_write)
    );
}

/// The connection is broken.
struct Broke;

/// Waits while the link is cut.
async fn passable(links: &Links, pair: usize) {
    let mut condition = links.pairs[pair].subscribe();
    // The sender lives as long as the links.
    let _ = condition.wait_for(|now| !now.is_cut).await;
}

/// Carries what comes in one direction to its end.
///
/// # Errors
/// When it breaks.
async fn pump(
    links: &Links,
    pair: Option<usize>,
    resets: u64,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) -> Result<(), Broke> {
    let Some(pair) = pair else {
        tokio::io::copy(&mut from, &mut to).await.map_err(|_| Broke)?;
        return to.shutdown().await.map_err(|_| Broke);
    };
    let (tx, rx) = mpsc::channel(CHUNKS);
    let mut condition = links.pairs[pair].subscribe();
    let taking = async {
        take(from, tx).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // It delivers what was taken before the end, and then the end.
        delivered = deliver(links, pair, rx, to) => delivered,
        () = taking => Err(Broke),
        _ = condition.wait_for(|now| now.resets != resets) => Err(Broke),
    }
}

async fn take(mut from: OwnedReadHalf, tx: mpsc::Sender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || tx.send((Instant::now(), buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn deliver(
    links: &Links,
    pair: usize,
    mut rx: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
) -> Result<(), Broke> {
    let mut random = SmallRng::from_os_rng();
    while let Some((came, bytes)) = rx.recv().await {
        passable(links, pair).await;
        let condition = *links.pairs[pair].borrow();
        if random.random_range(0..1_000) < condition.break_permille {
            return Err(Broke);
        }
        let departure = links.departure(pair, condition, bytes.len());
        tokio::time::sleep_until(departure.max(came) + condition.delay).await;
        // It may have been cut while the bytes were on their way.
        passable(links, pair).await;
        to.write_all(&bytes).await.map_err(|_| Broke)?;
    }
    passable(links, pair).await;
    to.shutdown().await.map_err(|_| Broke)
}

/// The socket at `local` that is connected to `remote`, both on this machine.
fn inode_of(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let hex = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            let ip = u32::from_le_bytes(v4.ip().octets());
            Some(format!("{ip:08X}:{:04X}", v4.port()))
        }
        SocketAddr::V6(_) => None,
    };
    let (local, remote) = (hex(local)?, hex(remote)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&&*remote);
        if is_it { fields.get(9)?.parse().ok() } else { None }
    })
}

fn owns(pid: u32, inode: u64) -> bool {
    let name = format!("socket:[{inode}]");
    let Ok(handles) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    handles
        .flatten()
        .any(|handle| std::fs::read_link(handle.path()).is_ok_and(|link| *link == *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Arc<Links>, TcpStream, TcpStream) {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let links = Links::new(2);
        links.set_pid(0, Some(std::process::id()));
        let proxy = Proxy::new(&links, 1, port, target.local_addr().expect("bound").port());
        proxy.open().await.expect("it listens");
        let here = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connected");
        let (there, _) = target.accept().await.expect("passed on");
        (links, here, there)
    }

    async fn arrives(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read_exact(&mut byte));
        matches!(read.await, Ok(Ok(_)))
    }

    #[tokio::test]
    async fn a_cut_holds_one_direction_until_it_heals() {
        let (links, mut here, mut there) = pair().await;
        links.change(0, 1, |condition| condition.is_cut = true);
        here.write_all(b"a").await.expect("buffered");
        assert!(!arrives(&mut there).await);
        there.write_all(b"b").await.expect("buffered");
        assert!(arrives(&mut here).await);
        links.heal();
        assert!(arrives(&mut there).await);
    }

    #[tokio::test]
    async fn a_reset_breaks_connections() {
        let (links, mut here, _there) = pair().await;
        links.change(0, 1, |condition| condition.resets += 1);
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(10), here.read(&mut byte)).await;
        assert!(matches!(read, Ok(Err(_) | Ok(0))), "{read:?}");
    }
}
