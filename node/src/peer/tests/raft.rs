//! Raft's groups over real connections.

use std::collections::BTreeSet;

use piton_raft::log::RealDisk;
use piton_raft::{
    CommittedEntry, Group, GroupId, Groups, NodeConfig, Replica, ReplicaError, SnapshotError,
    SnapshotRows, Tuning,
};
use piton_store::{Mark, Row};

use super::secure::Authority;
use super::*;

const GROUP: GroupId = GroupId(3);

/// Keeps what was applied.
#[derive(Clone, Default)]
struct Book {
    lines: Arc<Mutex<Vec<Bytes>>>,
    mark: Arc<Mutex<Option<Mark>>>,
}

impl Replica for Book {
    fn applied(&self) -> Option<Mark> {
        self.mark.lock().clone()
    }

    fn checkpointed(&self) -> u64 {
        0
    }

    fn apply(
        &mut self,
        entries: Vec<CommittedEntry>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError> {
        let verdicts = entries.iter().map(|_| Bytes::new()).collect();
        self.lines.lock().extend(entries.into_iter().map(|entry| entry.payload));
        self.advance(mark);
        Ok(verdicts)
    }

    fn advance(&mut self, mark: Mark) {
        *self.mark.lock() = Some(mark);
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotRows>, ReplicaError> {
        Err(ReplicaError::new("take a snapshot", "the log is short"))
    }

    fn restore(
        &mut self,
        _: Mark,
        _: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
    ) -> Result<(), ReplicaError> {
        Err(ReplicaError::new("restore", "there is no snapshot"))
    }

    fn clear(&mut self) -> Result<(), ReplicaError> {
        Err(ReplicaError::new("clear", "nothing is kept"))
    }
}

struct RaftNode {
    node: TestNode,
    groups: Groups,
    group: Group,
    book: Book,
    _directory: tempfile::TempDir,
}

async fn raft_node(node: TestNode, members: &BTreeSet<NodeId>) -> RaftNode {
    let directory = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        node: node.id,
        dir: directory.path().to_owned(),
        disk: Arc::new(RealDisk),
        transport: node.net.transport(),
        states: Vec::new(),
        // As in a real node: frames and timers on one thread, which nothing else holds up.
        tuning: Tuning { runtime: Some(node.raft()), ..Tuning::default() },
    };
    let groups = tokio::task::spawn_blocking(|| Groups::open(config)).await.unwrap().unwrap();
    let book = Book::default();
    let group = groups.bootstrap_with(GROUP, members, Box::new(book.clone())).await.unwrap();
    RaftNode { node, groups, group, book, _directory: directory }
}

fn leader(nodes: &[RaftNode]) -> Option<&RaftNode> {
    let leader = nodes[0].group.leadership().borrow().leader?;
    let agreed = nodes.iter().all(|node| node.group.leadership().borrow().leader == Some(leader));
    nodes.iter().find(|node| agreed && node.node.id == leader)
}

/// Proposes at the leader, whoever that is, until it is committed.
async fn commit(nodes: &[RaftNode], payload: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "{payload} is not committed in time");
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        if let Some(leader) = leader(nodes)
            && leader.group.propose(payload).await.is_ok()
        {
            return;
        }
        tick().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_replicate_and_survive_a_cut_over_tls() {
    let authority = Authority::new();
    let (mut networks, mut proxies) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let (plan, proxy) = authority.plan(id).behind_proxy().await;
        networks.push(plan.start());
        proxies.push((NodeId(id), proxy));
    }
    let addresses: Vec<_> = proxies.iter().map(|(id, proxy)| (*id, proxy.address)).collect();
    networks.iter().for_each(|network| network.knows(&addresses));
    let members: BTreeSet<NodeId> = networks.iter().map(|network| network.id).collect();
    let mut nodes = Vec::new();
    for network in networks {
        nodes.push(raft_node(network, &members).await);
    }
    await_until("a leader is elected", || leader(&nodes).is_some()).await;
    commit(&nodes, "before").await;

    // Every connection to the leader is cut, and made again.
    let led = leader(&nodes).unwrap().node.id;
    let (_, proxy) = proxies.iter().find(|(id, _)| *id == led).unwrap();
    proxy.cut();
    let reconnects = "piton_peer_reconnects_total{lane=\"entries\"}";
    await_until("the others are connected with it again", || {
        let mut others = nodes.iter().filter(|node| node.node.id != led);
        others.all(|node| node.node.metric(reconnects) >= 1.0 && node.node.reaches(led))
    })
    .await;
    for number in 0..100 {
        commit(&nodes, &format!("after {number}")).await;
    }
    await_until("all have applied all", || {
        nodes.iter().all(|node| node.book.lines.lock().iter().any(|line| line == "after 99"))
    })
    .await;
    let books: Vec<Vec<Bytes>> = nodes.iter().map(|node| node.book.lines.lock().clone()).collect();
    assert!(books.iter().all(|book| *book == books[0]));
    assert!(nodes.iter().all(|node| node.node.lost.lock().is_empty()), "nobody was gone");
    for node in &nodes {
        node.groups.shutdown().await;
    }
}
