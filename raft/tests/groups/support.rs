//! A replica that remembers what it applied, and nodes to run it on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use piton_raft::log::{DiskFile, RealDisk};
use piton_raft::{
    ChangeError, CommittedEntry, Disk, Group, GroupId, Groups, MemoryNetwork, NodeConfig, NodeId,
    Removed, Replica, ReplicaError, SNAPSHOT_DIRECTORY, SnapshotError, SnapshotRows, Transport,
    Tuning,
};
use piton_store::{Mark, Row};

pub(crate) const GROUP: GroupId = GroupId(3);

/// What a ledger holds: payloads by log index, and where that stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Book {
    pub(crate) mark: Option<Mark>,
    pub(crate) lines: BTreeMap<u64, Bytes>,
}

#[derive(Default)]
struct Shared {
    live: Book,
    /// What survives a restart.
    kept: Book,
    restores: usize,
    clears: usize,
    /// Fail with an error, or panic, when this payload is applied.
    fails_on: Option<Bytes>,
    panics_on: Option<Bytes>,
    fails_to_clear: bool,
    reading: Option<Arc<Reading>>,
}

/// Counts the snapshots that are read at the same time, over several ledgers.
#[derive(Default)]
pub(crate) struct Reading {
    now_and_most: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Reading {
    pub(crate) fn most(&self) -> usize {
        self.now_and_most.lock().1
    }

    fn begin(&self) {
        let (now, most) = &mut *self.now_and_most.lock();
        *now += 1;
        *most = (*most).max(*now);
        self.changed.notify_all();
    }

    /// Gives another one the time to come.
    fn await_another(&self) {
        let alone = |(_, most): &mut (usize, usize)| *most < 2;
        let mut counts = self.now_and_most.lock();
        self.changed.wait_while_for(&mut counts, alone, Duration::from_millis(300));
    }

    fn end(&self) {
        self.now_and_most.lock().0 -= 1;
    }
}

/// The test's view of a ledger; also what survives of it.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    shared: Arc<Mutex<Shared>>,
    held: Arc<(Mutex<bool>, Condvar)>,
}

impl Ledger {
    /// A replica over what survived.
    pub(crate) fn replica(&self) -> Box<dyn Replica> {
        let mut shared = self.shared.lock();
        shared.live = shared.kept.clone();
        Box::new(LedgerReplica { shared: self.shared.clone(), held: self.held.clone() })
    }

    /// Makes the replica wait before it applies anything more, or lets it go on.
    pub(crate) fn hold(&self, hold: bool) {
        *self.held.0.lock() = hold;
        self.held.1.notify_all();
    }

    pub(crate) fn checkpoint(&self) {
        let mut shared = self.shared.lock();
        shared.kept = shared.live.clone();
    }

    /// Loses the stored state, as when a store is discarded.
    pub(crate) fn lose(&self) {
        self.shared.lock().kept = Book::default();
    }

    /// Pretends that the store stands elsewhere than it does.
    pub(crate) fn set_kept(&self, book: Book) {
        self.shared.lock().kept = book;
    }

    pub(crate) fn book(&self) -> Book {
        self.shared.lock().live.clone()
    }

    pub(crate) fn payloads(&self) -> Vec<Bytes> {
        self.shared.lock().live.lines.values().cloned().collect()
    }

    pub(crate) fn applied(&self) -> u64 {
        self.shared.lock().live.mark.as_ref().map_or(0, |mark| mark.index)
    }

    pub(crate) fn restores(&self) -> usize {
        self.shared.lock().restores
    }

    pub(crate) fn clears(&self) -> usize {
        self.shared.lock().clears
    }

    pub(crate) fn fail_on(&self, payload: &str) {
        self.shared.lock().fails_on = Some(Bytes::copy_from_slice(payload.as_bytes()));
    }

    /// As if the process ended before its rows are gone.
    pub(crate) fn fail_to_clear(&self, fails: bool) {
        self.shared.lock().fails_to_clear = fails;
    }

    pub(crate) fn count_reading(&self, reading: &Arc<Reading>) {
        self.shared.lock().reading = Some(reading.clone());
    }

    pub(crate) fn panic_on(&self, payload: &str) {
        self.shared.lock().panics_on = Some(Bytes::copy_from_slice(payload.as_bytes()));
    }
}

struct LedgerReplica {
    shared: Arc<Mutex<Shared>>,
    held: Arc<(Mutex<bool>, Condvar)>,
}

impl LedgerReplica {
    fn await_turn(&self) {
        self.held.1.wait_while(&mut self.held.0.lock(), |held| *held);
    }
}

impl Replica for LedgerReplica {
    fn applied(&self) -> Option<Mark> {
        self.shared.lock().live.mark.clone()
    }

    fn checkpointed(&self) -> u64 {
        self.shared.lock().kept.mark.as_ref().map_or(0, |mark| mark.index)
    }

    fn apply(
        &mut self,
        entries: Vec<CommittedEntry>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError> {
        self.await_turn();
        let mut shared = self.shared.lock();
        let mut verdicts = Vec::new();
        for entry in entries {
            if shared.fails_on.as_ref() == Some(&entry.payload) {
                return Err(ReplicaError::new("apply entries", "told to fail"));
            }
            assert!(shared.panics_on.as_ref() != Some(&entry.payload), "told to panic");
            let last = shared.live.mark.as_ref().map(|mark| mark.index);
            assert!(last.is_none_or(|last| last < entry.index), "applied twice");
            let verdict = format!("{}:{}:{}", entry.term, entry.index, entry.payload.len());
            verdicts.push(Bytes::from(verdict));
            shared.live.lines.insert(entry.index, entry.payload);
        }
        shared.live.mark = Some(mark);
        Ok(verdicts)
    }

    fn advance(&mut self, mark: Mark) {
        self.await_turn();
        self.shared.lock().live.mark = Some(mark);
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotRows>, ReplicaError> {
        let (book, reading) = {
            let shared = self.shared.lock();
            (shared.kept.clone(), shared.reading.clone())
        };
        let mark = book.mark.ok_or_else(|| ReplicaError::new("take a snapshot", "empty"))?;
        if let Some(reading) = &reading {
            reading.begin();
        }
        Ok(Box::new(BookRows { mark, lines: book.lines.into_iter(), reading }))
    }

    fn restore(
        &mut self,
        mark: Mark,
        rows: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
    ) -> Result<(), ReplicaError> {
        let mut lines = BTreeMap::new();
        for row in rows {
            let row = row.map_err(|error| ReplicaError::new("restore a snapshot", error))?;
            let index: [u8; 8] = row.key[..].try_into().expect("keys are 8 bytes");
            lines.insert(u64::from_be_bytes(index), row.value);
        }
        let mut shared = self.shared.lock();
        shared.live = Book { mark: Some(mark), lines };
        shared.kept = shared.live.clone();
        shared.restores += 1;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), ReplicaError> {
        let mut shared = self.shared.lock();
        if shared.fails_to_clear {
            return Err(ReplicaError::new("clear its rows", "told to fail"));
        }
        shared.live = Book::default();
        shared.kept = Book::default();
        shared.clears += 1;
        Ok(())
    }
}

struct BookRows {
    mark: Mark,
    lines: std::collections::btree_map::IntoIter<u64, Bytes>,
    reading: Option<Arc<Reading>>,
}

impl Drop for BookRows {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.end();
        }
    }
}

impl SnapshotRows for BookRows {
    fn mark(&self) -> Mark {
        self.mark.clone()
    }

    fn next_rows(&mut self, limit: usize) -> Result<Vec<Row>, ReplicaError> {
        if let Some(reading) = &self.reading {
            reading.await_another();
        }
        let rows = self.lines.by_ref().take(limit);
        let rows = rows
            .map(|(index, value)| Row { key: Bytes::copy_from_slice(&index.to_be_bytes()), value });
        Ok(rows.collect())
    }
}

pub(crate) fn tuning() -> Tuning {
    let mut tuning = Tuning::quick();
    tuning.log.segment_bytes = 1 << 20;
    tuning.log.preallocate_bytes = 64 << 10;
    tuning
}

/// The real disk, whose syncs can be made to hang.
#[derive(Clone, Debug, Default)]
pub(crate) struct HangingDisk {
    hangs: Arc<(Mutex<Hangs>, Condvar)>,
}

/// What hangs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hangs {
    #[default]
    Nothing,
    Everything,
    Snapshots,
}

impl HangingDisk {
    pub(crate) fn hang(&self) {
        *self.hangs.0.lock() = Hangs::Everything;
    }

    /// Only what is synced in the snapshots' directory hangs.
    pub(crate) fn hang_snapshots(&self) {
        *self.hangs.0.lock() = Hangs::Snapshots;
    }

    pub(crate) fn go_on(&self) {
        *self.hangs.0.lock() = Hangs::Nothing;
        self.hangs.1.notify_all();
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let is_snapshot = path.parent().is_some_and(|dir| dir.ends_with(SNAPSHOT_DIRECTORY));
        Arc::new(HangingFile { disk: self.clone(), is_snapshot, file })
    }
}

#[derive(Debug)]
struct HangingFile {
    disk: HangingDisk,
    is_snapshot: bool,
    file: Arc<dyn DiskFile>,
}

impl Disk for HangingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.create(path).map(|file| self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path).map(|file| self.file(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
}

impl DiskFile for HangingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let (hangs, changed) = &*self.disk.hangs;
        let mut hangs = hangs.lock();
        let waits =
            |hangs| hangs == Hangs::Everything || hangs == Hangs::Snapshots && self.is_snapshot;
        while waits(*hangs) {
            changed.wait(&mut hangs);
        }
        drop(hangs);
        self.file.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

pub(crate) fn open(
    node: NodeId,
    dir: &Path,
    transport: Arc<dyn Transport>,
    tuning: Tuning,
) -> Groups {
    open_on(Arc::new(RealDisk), node, dir, transport, tuning)
}

pub(crate) fn open_on(
    disk: Arc<dyn Disk>,
    node: NodeId,
    dir: &Path,
    transport: Arc<dyn Transport>,
    tuning: Tuning,
) -> Groups {
    Groups::open(NodeConfig {
        node,
        dir: dir.to_path_buf(),
        disk,
        transport,
        states: Vec::new(),
        tuning,
    })
    .expect("open the groups")
}

pub(crate) fn members(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

/// One node of a test cluster, running or not.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) ledger: Ledger,
    pub(crate) disk: HangingDisk,
    pub(crate) running: Option<(Groups, Group)>,
    dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn groups(&self) -> &Groups {
        &self.running.as_ref().expect("the node runs").0
    }

    pub(crate) fn group(&self) -> &Group {
        &self.running.as_ref().expect("the node runs").1
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Nodes 1 to n, with one group, connected in memory.
pub(crate) struct Cluster {
    pub(crate) network: MemoryNetwork,
    pub(crate) nodes: Vec<Node>,
    pub(crate) tuning: Tuning,
    /// How many of the nodes, from the first, found the group. Growing to them one by one would cost
    /// each test some changes of the members that it is not about.
    founders: u64,
}

impl Cluster {
    /// All nodes found the group together.
    pub(crate) async fn start(count: u64, tuning: Tuning) -> Cluster {
        Cluster::start_founded_by(count, count, tuning).await
    }

    /// The first nodes found the group; the others wait for a leader to fill them.
    pub(crate) async fn start_founded_by(founders: u64, count: u64, tuning: Tuning) -> Cluster {
        let nodes = (1..=count)
            .map(|id| Node {
                id: NodeId(id),
                ledger: Ledger::default(),
                disk: HangingDisk::default(),
                running: None,
                dir: tempfile::tempdir().expect("make a directory"),
            })
            .collect();
        let mut cluster = Cluster { network: MemoryNetwork::new(), nodes, tuning, founders };
        for index in 0..cluster.nodes.len() {
            cluster.start_node(index).await;
        }
        cluster
    }

    pub(crate) async fn start_node(&mut self, index: usize) {
        let founders = members(&(1..=self.founders).collect::<Vec<_>>());
        let node = &mut self.nodes[index];
        let transport = self.network.transport(node.id);
        let (disk, dir) = (Arc::new(node.disk.clone()), node.dir.path());
        let groups = open_on(disk, node.id, dir, transport, self.tuning.clone());
        let replica = node.ledger.replica();
        let group = if founders.contains(&node.id) {
            groups.bootstrap_with(GROUP, &founders, replica).await
        } else {
            groups.start(GROUP, replica).await
        };
        node.running = Some((groups, group.expect("start the group")));
    }

    pub(crate) async fn stop_node(&mut self, index: usize) {
        let (groups, _) = self.nodes[index].running.take().expect("the node runs");
        self.network.remove(self.nodes[index].id);
        groups.shutdown().await;
    }

    /// The node that serves, once there is one among `among`.
    pub(crate) async fn await_leader(&self, among: &[usize]) -> usize {
        let mut found = None;
        await_until("a leader serves", || {
            found = among.iter().copied().find(|index| {
                let node = &self.nodes[*index];
                node.running.is_some() && node.group().leadership().borrow().serving
            });
            found.is_some()
        })
        .await;
        found.expect("found")
    }

    /// Changes the voters at whoever leads, until it is done: a learner needs a moment to catch up.
    pub(crate) async fn set_voters(&self, voters: &[u64], removed: Removed) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let leader = self.await_leader(&self.running()).await;
            match self.nodes[leader].group().set_voters(members(voters), removed).await {
                Ok(()) => return,
                Err(
                    ChangeError::NotLeader { .. }
                    | ChangeError::Lags { .. }
                    | ChangeError::InProgress,
                ) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < deadline, "the voters are not {voters:?}");
        }
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].running.is_some()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test that has failed must not wait for a disk for ever.
        for node in &self.nodes {
            node.disk.go_on();
        }
    }
}

/// Waits for a state, with a deadline.
pub(crate) async fn await_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        looks.tick().await;
    }
}

pub(crate) fn bytes(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}
