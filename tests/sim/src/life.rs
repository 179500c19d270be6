//! One life of a node's process, and what it may touch of the world: once it is over, its disk, its
//! store and its network refuse whatever is left of it in this process.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use piton_raft::NodeId;
use piton_raft::log::{Disk, DiskFile, FaultyDisk};
use piton_store::{Batch, KeyRange, MemoryStore, Order, Row, Store, StoreError};
use tokio::sync::watch;

use crate::chance::Chance;

/// From the start of a node's process to its end.
pub(crate) struct Life {
    pub(crate) node: NodeId,
    /// Counts the lives of all nodes.
    pub(crate) number: u64,
    alive: AtomicBool,
    gone: watch::Sender<bool>,
}

impl Life {
    pub(crate) fn new(node: NodeId, number: u64) -> Arc<Self> {
        let (alive, gone) = (AtomicBool::new(true), watch::Sender::new(false));
        Arc::new(Self { node, number, alive, gone })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Ends it. False: it was over.
    pub(crate) fn end(&self) -> bool {
        let ends = self.alive.swap(false, Ordering::Relaxed);
        self.gone.send_replace(true);
        ends
    }

    /// Returns when it is over.
    pub(crate) async fn over(&self) {
        // The sender lives as long as this.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

/// Points that nodes come to, and at which they can be crashed.
#[derive(Clone, Default)]
pub(crate) struct Points {
    armed: Arc<Mutex<BTreeMap<&'static str, Armed>>>,
    /// How often each node came to each point.
    counts: Arc<Mutex<BTreeMap<(&'static str, NodeId), u64>>>,
}

struct Armed {
    node: NodeId,
    /// Crashes when the point is reached the so many-th time.
    countdown: u64,
    crash: Box<dyn FnOnce() + Send>,
}

impl Points {
    pub(crate) fn arm(
        &self,
        point: &'static str,
        node: NodeId,
        countdown: u64,
        crash: impl FnOnce() + Send + 'static,
    ) {
        let armed = Armed { node, countdown, crash: Box::new(crash) };
        self.armed.lock().insert(point, armed);
    }

    pub(crate) fn disarm_all(&self) {
        self.armed.lock().clear();
    }

    /// How often a node has come to a point.
    pub(crate) fn count(&self, node: NodeId, point: &'static str) -> u64 {
        self.counts.lock().get(&(point, node)).copied().unwrap_or(0)
    }

    /// The same of all nodes.
    pub(crate) fn count_all(&self, point: &'static str) -> u64 {
        self.counts.lock().iter().filter(|((of, _), _)| *of == point).map(|(_, count)| count).sum()
    }

    /// A node has come to a point.
    pub(crate) fn reached(&self, node: NodeId, point: &'static str) {
        *self.counts.lock().entry((point, node)).or_default() += 1;
        let mut armed = self.armed.lock();
        let Some(this) = armed.get_mut(point).filter(|armed| armed.node == node) else { return };
        this.countdown = this.countdown.saturating_sub(1);
        if this.countdown > 0 {
            return;
        }
        let crash = armed.remove(point).map(|armed| armed.crash);
        drop(armed);
        if let Some(crash) = crash {
            crash();
        }
    }
}

/// A node's disk in one life.
#[derive(Clone)]
pub(crate) struct LifeDisk {
    pub(crate) disk: FaultyDisk,
    pub(crate) life: Arc<Life>,
    pub(crate) points: Points,
    pub(crate) chance: Chance,
    /// The longest that a sync takes. Shared by all lives.
    pub(crate) sync_ms_max: Arc<AtomicU64>,
    /// Where the log's last batch begins in its segment: what lies before is proven by it.
    pub(crate) proven: Arc<AtomicU64>,
}

impl fmt::Debug for LifeDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk of node {}", self.life.node)
    }
}

impl LifeDisk {
    fn file(&self, file: Arc<dyn DiskFile>, path: &Path) -> Arc<dyn DiskFile> {
        // The points are those of the log's commits.
        let is_log = path.parent().is_some_and(|dir| dir.ends_with("log"));
        Arc::new(LifeFile { file, is_log, disk: self.clone() })
    }
}

impl Disk for LifeDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.create(path)?, path))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.open(path)?, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn next_sync_takes(&self) -> Duration {
        let longest = self.sync_ms_max.load(Ordering::Relaxed);
        Duration::from_millis(self.chance.between(longest / 2, longest.max(1) + 1))
    }
}

#[derive(Debug)]
struct LifeFile {
    file: Arc<dyn DiskFile>,
    is_log: bool,
    disk: LifeDisk,
}

impl LifeFile {
    fn reached(&self, point: &'static str) {
        if self.is_log {
            self.disk.points.reached(self.disk.life.node, point);
        }
    }
}

impl DiskFile for LifeFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.reached("before append");
        self.file.write_at(bytes, offset)?;
        if self.is_log && bytes.iter().any(|byte| *byte != 0) {
            self.disk.proven.store(offset, Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.reached("after append");
        self.file.sync()?;
        self.reached("after sync");
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

/// A node's store in one life.
pub(crate) struct LifeStore {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) life: Arc<Life>,
}

impl LifeStore {
    fn live(&self) -> Result<&MemoryStore, StoreError> {
        if self.life.is_alive() {
            Ok(&self.store)
        } else {
            Err(StoreError::Stopped { doing: "use a store after its node ended" })
        }
    }
}

impl Store for LifeStore {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.live()?.get(key)
    }

    fn scan(
        &self,
        range: KeyRange<'_>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        self.live()?.scan(range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        self.live()?.write(batch)
    }

    fn clear_prefix(&self, prefix: &[u8]) -> Result<(), StoreError> {
        self.live()?.clear_prefix(prefix)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.live()?.sync()
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        self.live()?.bytes_on_disk()
    }

    fn close(&self) {}
}
