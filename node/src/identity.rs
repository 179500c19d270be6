//! Who this node is: a random id, kept in its data directory, and the id of its cluster. A node
//! whose directory was wiped comes back as another one.
//!
//! `node.toml` says whether there is a log, and the log and the snapshots have a copy of it beside
//! them. So a log that vanished is missed, and one of another node is not taken for this one's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use piton_raft::{Disk, LOG_DIRECTORY, NodeId, SNAPSHOT_DIRECTORY, log};
use piton_store::EngineKind;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::storage::STORE_DIRECTORY;

pub(crate) const FILE: &str = "node.toml";
const TEMPORARY_FILE: &str = "node.toml.new";
/// More than such a file can have.
const COPY_BYTES_MAX: usize = 64 << 10;
/// What has a copy beside it.
const COPIES: [&str; 2] = [LOG_DIRECTORY, SNAPSHOT_DIRECTORY];

/// Why the node's identity cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("read the node's identity from {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the node's identity in {} is damaged: put a copy in its place ({}/{FILE} or {}/{FILE} in the same \
         directory is one, if it is there), or remove the whole data directory",
        path.display(), LOG_DIRECTORY, SNAPSHOT_DIRECTORY
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error(
        "{} is missing, though {} is there: put it back ({}/{FILE} is a copy of it, if it is there), or \
         choose another directory with --data-dir",
        path.display(), beside.display(), LOG_DIRECTORY
    )]
    Missing { path: PathBuf, beside: PathBuf },
    #[error(
        "this node has a log, but there is none in {}: put it back (is a file system not mounted?); if \
         it is lost for good, `piton data accept-loss --data-dir {}` says what that costs",
        log.display(), directory.display()
    )]
    LogMissing { log: PathBuf, directory: PathBuf },
    #[error(
        "{} is of node {found}, but the data directory is of node {node}: put there what belongs there",
        path.display()
    )]
    OtherNode { path: PathBuf, node: String, found: String },
    #[error("write the node's identity to {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// 16 hexadecimal digits.
    node_id: String,
    pub(crate) cluster_id: String,
    /// How many shards the cluster was first started with. Kept here, since it has to be known
    /// before any shard is opened.
    pub(crate) shards: u32,
    /// The node has written a log, and promised what is in it.
    #[serde(default)]
    has_log: bool,
    /// The node founds its cluster, and has not done with it: whatever group has no past here begins
    /// here, and what the cluster is to have at first is set up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_founding: bool,
    /// The node has drawn its id, and does not know yet whether a cluster has let it in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_joining: bool,
    /// What this node holds was found damaged: the node that comes in its place, if the others let that one in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    successor: Option<String>,
    /// The others have let the successor in: this node is no more, whatever it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_replaced: bool,
    /// The node in whose place this one came, until the cluster has let go of that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instead_of: Option<String>,
    /// The port for other nodes, where any free one will do: they look for the node where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer_port: Option<u16>,
    /// Where the other nodes of the cluster are, as far as was known last; by their ids.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    peers: BTreeMap<String, String>,
}

/// Nodes and their peer addresses.
pub(crate) type Peers = BTreeMap<NodeId, String>;

/// The identity of a node that has its data directory open, for those who add to it.
#[derive(Clone)]
pub(crate) struct KeptIdentity {
    kept: Arc<Kept>,
}

struct Kept {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    identity: Mutex<Identity>,
}

impl KeptIdentity {
    pub(crate) fn new(disk: Arc<dyn Disk>, directory: &Path, identity: Identity) -> Self {
        let (directory, identity) = (directory.to_owned(), Mutex::new(identity));
        Self { kept: Arc::new(Kept { disk, directory, identity }) }
    }

    pub(crate) fn now(&self) -> Identity {
        self.kept.identity.lock().clone()
    }

    /// The data directory that it is kept in.
    pub(crate) fn directory(&self) -> &Path {
        &self.kept.directory
    }

    /// Changes it in memory and in its file. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Identity)) -> Result<(), IdentityError> {
        let Kept { disk, directory, identity } = &*self.kept;
        let mut identity = identity.lock();
        let mut next = identity.clone();
        change(&mut next);
        if next != *identity {
            next.keep(directory)?;
            *identity = next;
        }
        identity.keep_copies(disk.as_ref(), directory)
    }

    /// Notes that there is a log, and that it can be used: a node that comes in this one's place is not
    /// wanted any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn note_log(&self) -> Result<(), IdentityError> {
        self.change(|identity| {
            identity.has_log = true;
            (identity.successor, identity.is_replaced) = (None, false);
        })
    }
}

impl Identity {
    /// The identity kept in a data directory; `None` where it is empty.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is missing beside data.
    pub(crate) fn of(disk: &dyn Disk, directory: &Path) -> Result<Option<Self>, IdentityError> {
        if let Some(kept) = Self::kept(directory)? {
            return Ok(Some(kept));
        }
        let path = directory.join(FILE);
        let beside = data_in(disk, directory);
        let beside = beside.map_err(|source| IdentityError::Read { path: path.clone(), source })?;
        if let Some(beside) = beside {
            return Err(IdentityError::Missing { path, beside });
        }
        Ok(None)
    }

    /// Keeps it in a data directory from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn keep(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join(FILE);
        self.write(directory).map_err(|source| IdentityError::Write { path, source })
    }

    /// The identity kept in a data directory, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub(crate) fn kept(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .map_err(|source| IdentityError::Damaged { path, source: Box::new(source) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Read { path, source }),
        }
    }

    /// Checks that log and snapshots are this node's, and that the log is there if it ever was.
    ///
    /// # Errors
    /// When they are not, or cannot be read.
    pub(crate) fn check_log(&self, disk: &dyn Disk, directory: &Path) -> Result<(), IdentityError> {
        for path in COPIES.map(|of| directory.join(of).join(FILE)) {
            // A number that is damaged is a number still, and another one of shards would mix them up.
            if let Some(copy) = read_copy(disk, &path)?
                && copy.described() != self.described()
            {
                let (node, found) = (self.described(), copy.described());
                return Err(IdentityError::OtherNode { path, node, found });
            }
        }
        let log = directory.join(LOG_DIRECTORY);
        let there = log::is_there(disk, &log);
        let there = there.map_err(|source| IdentityError::Read { path: log.clone(), source })?;
        if self.has_log && !there {
            return Err(IdentityError::LogMissing { log, directory: directory.to_owned() });
        }
        Ok(())
    }

    /// What never changes once there is a log.
    fn described(&self) -> String {
        format!("{} of cluster {} with {} shards", self.node_id, self.cluster_id, self.shards)
    }

    /// Has a copy of it beside the log, once there is one.
    fn keep_copies(&self, disk: &dyn Disk, directory: &Path) -> Result<(), IdentityError> {
        if !self.has_log {
            return Ok(());
        }
        for dir in COPIES.map(|of| directory.join(of)) {
            let path = dir.join(FILE);
            if read_copy(disk, &path)?.as_ref() != Some(self) {
                let written = self.write_copy(disk, &dir, &path);
                written.map_err(|source| IdentityError::Write { path, source })?;
            }
        }
        Ok(())
    }

    /// The copy beside a log whose `node.toml` is missing.
    pub(crate) fn copy_in(
        disk: &dyn Disk,
        directory: &Path,
    ) -> Result<Option<Self>, IdentityError> {
        for path in COPIES.map(|of| directory.join(of).join(FILE)) {
            if let Some(copy) = read_copy(disk, &path)? {
                return Ok(Some(copy));
            }
        }
        Ok(None)
    }

    fn write_copy(&self, disk: &dyn Disk, dir: &Path, path: &Path) -> io::Result<()> {
        let temporary = dir.join(TEMPORARY_FILE);
        match disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        disk.create_dir(dir)?;
        let file = disk.create(&temporary)?;
        let text = toml::to_string(self).map_err(io::Error::other)?;
        file.write_at(text.as_bytes(), 0)?;
        // ORDER: as in `write`.
        file.sync()?;
        disk.rename(&temporary, path)?;
        disk.sync_dir(dir)
    }

    pub(crate) fn node(&self) -> NodeId {
        let number = u64::from_str_radix(&self.node_id, 16);
        NodeId(number.expect("parse and draw let only hexadecimal digits in"))
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let identity: Self = toml::from_str(text)?;
        for id in [Some(&identity.node_id), identity.successor.as_ref()].into_iter().flatten() {
            u64::from_str_radix(id, 16).map_err(serde::de::Error::custom)?;
        }
        Ok(identity)
    }

    /// An id that no other node has.
    fn draw_node() -> NodeId {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        NodeId((high ^ low).max(1))
    }

    /// The first node of a new cluster.
    pub(crate) fn founder(shards: u32) -> Self {
        let cluster_id = Uuid::new_v4().to_string();
        Self { is_founding: true, ..Self::member(Self::draw_node(), cluster_id, shards) }
    }

    /// A node that asks to be let into a cluster.
    pub(crate) fn joiner() -> Self {
        Self { is_joining: true, ..Self::member(Self::draw_node(), String::new(), 0) }
    }

    /// Draws the id of the node that comes in the place of this one, unless that was done before.
    pub(crate) fn name_successor(&mut self) {
        self.successor.get_or_insert_with(|| hexadecimal(Self::draw_node()));
    }

    /// Whether the others have let in the node that comes in the place of this one.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced && self.successor.is_some()
    }

    /// The others have let in the node that comes in the place of this one.
    pub(crate) fn note_replaced(&mut self) {
        self.is_replaced = true;
    }

    /// The node that comes in the place of this one, which gives up what it holds. It asks the nodes that
    /// this one knew, to be let into the same cluster. `None`: nothing here was found damaged.
    pub(crate) fn successor(&self) -> Option<Self> {
        let node_id = self.successor.clone()?;
        Some(Self {
            is_joining: true,
            peer_port: self.peer_port,
            peers: self.peers.clone(),
            instead_of: Some(self.node_id.clone()),
            node_id,
            ..Self::member(self.node(), self.cluster_id.clone(), self.shards)
        })
    }

    /// In whose place this node came, while the cluster has not let go of that one.
    pub(crate) fn instead_of(&self) -> Option<NodeId> {
        let number = u64::from_str_radix(self.instead_of.as_ref()?, 16);
        number.ok().map(NodeId)
    }

    /// The cluster has let go of the node in whose place this one came.
    pub(crate) fn has_replaced(&mut self) {
        self.instead_of = None;
    }

    /// It was let in.
    pub(crate) fn joined(&mut self, cluster_id: String, shards: u32, peers: &Peers) {
        (self.cluster_id, self.shards, self.is_joining) = (cluster_id, shards, false);
        self.set_peers(peers);
    }

    fn member(node: NodeId, cluster_id: String, shards: u32) -> Self {
        Self {
            node_id: hexadecimal(node),
            cluster_id,
            shards,
            has_log: false,
            is_founding: false,
            is_joining: false,
            successor: None,
            is_replaced: false,
            instead_of: None,
            peer_port: None,
            peers: BTreeMap::new(),
        }
    }

    /// Where the other nodes are.
    pub(crate) fn peers(&self) -> Peers {
        let peers = self.peers.iter().filter_map(|(node, address)| {
            Some((NodeId(u64::from_str_radix(node, 16).ok()?), address.clone()))
        });
        peers.collect()
    }

    /// Whether these are where the other nodes are.
    pub(crate) fn is_with(&self, peers: &Peers) -> bool {
        let mut with = self.clone();
        with.set_peers(peers);
        with == *self
    }

    pub(crate) fn set_peers(&mut self, peers: &Peers) {
        let others = peers.iter().filter(|(node, _)| **node != self.node());
        self.peers = others.map(|(node, address)| (hexadecimal(*node), address.clone())).collect();
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        // ORDER: the file is whole and durable before it gets its name, and the name is durable
        // before this node promises anything to anyone under it.
        let temporary = directory.join(TEMPORARY_FILE);
        let mut file = File::create(&temporary)?;
        let text = toml::to_string(self).map_err(io::Error::other)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, directory.join(FILE))?;
        File::open(directory)?.sync_all()
    }
}

fn hexadecimal(node: NodeId) -> String {
    format!("{:016x}", node.0)
}

/// What lies in a directory that only a node can have written.
fn data_in(disk: &dyn Disk, directory: &Path) -> io::Result<Option<PathBuf>> {
    let log = directory.join(LOG_DIRECTORY);
    if log::is_there(disk, &log)? {
        return Ok(Some(log));
    }
    let snapshots = directory.join(SNAPSHOT_DIRECTORY);
    let names = match disk.list(&snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    let store = directory.join(STORE_DIRECTORY);
    let engines = EngineKind::ALL.map(|engine| store.join(engine.name()));
    let is_snapshot = |name: &String| name.ends_with(".snapshot");
    Ok(match () {
        () if names.iter().any(is_snapshot) => Some(snapshots),
        () if engines.iter().any(|engine| engine.exists()) => Some(store),
        () => None,
    })
}

/// A copy that is damaged says nothing, and is written anew.
fn read_copy(disk: &dyn Disk, path: &Path) -> Result<Option<Identity>, IdentityError> {
    let read = || -> io::Result<String> {
        let file = disk.open(path)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).unwrap_or(0).min(COPY_BYTES_MAX)];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => Ok(Identity::parse(&text)
            .inspect_err(|error| {
                let (path, error) = (path.display(), error.message());
                tracing::warn!(%path, error, "a copy of the node's identity is damaged");
            })
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use piton_raft::log::RealDisk;

    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_a_wiped_one_gets_another() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Identity::of(&RealDisk, directory.path()).unwrap(), None);
        let first = Identity::founder(4);
        first.keep(directory.path()).unwrap();
        assert_eq!(Identity::of(&RealDisk, directory.path()).unwrap().as_ref(), Some(&first));
        fs::remove_file(directory.path().join(FILE)).unwrap();
        assert_eq!(Identity::of(&RealDisk, directory.path()).unwrap(), None);
        assert_ne!(Identity::founder(4).node(), first.node());
    }

    #[test]
    fn an_identity_that_is_missing_beside_data_is_not_drawn_anew() {
        for data in ["log/00000000000000000001.log", "snapshot/3-7.snapshot", "store/redb/x"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(data);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            let error = Identity::of(&RealDisk, directory.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Missing { .. }), "{data}: {error}");
            assert!(!directory.path().join(FILE).exists());
        }
    }

    /// Goal: a bit that flipped in a number leaves a number, which no parser refuses.
    #[test]
    fn an_identity_that_differs_from_its_copy_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let first = Identity::founder(4);
        KeptIdentity::new(Arc::clone(&disk), directory.path(), first.clone()).note_log().unwrap();
        for flipped in [
            Identity { shards: 5, ..first.clone() },
            Identity { cluster_id: "another".to_owned(), ..first.clone() },
        ] {
            let error = flipped.check_log(disk.as_ref(), directory.path()).unwrap_err();
            assert!(matches!(error, IdentityError::OtherNode { .. }), "{error}");
        }
    }

    /// Goal: what only says the same again keeps no node from starting when it is damaged.
    #[test]
    fn a_damaged_copy_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let identity = Identity::founder(4);
        let kept = KeptIdentity::new(Arc::clone(&disk), directory.path(), identity.clone());
        kept.note_log().unwrap();
        let log = directory.path().join(LOG_DIRECTORY);
        fs::write(log.join("00000000000000000001.log"), "").unwrap();
        fs::write(log.join(FILE), "node_id = \"\u{7f}\"").unwrap();
        kept.now().check_log(disk.as_ref(), directory.path()).unwrap();
        let copy = Identity::copy_in(disk.as_ref(), directory.path()).unwrap();
        assert_eq!(copy, Some(kept.now()), "there is another copy");
        kept.change(|_| {}).unwrap();
        assert_eq!(read_copy(disk.as_ref(), &log.join(FILE)).unwrap(), Some(kept.now()));
    }

    #[test]
    fn a_damaged_identity_is_not_replaced_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        for damaged in ["", "node_id = \"xyz\"\ncluster_id = \"c\"\n", "node_id = 7"] {
            fs::write(directory.path().join(FILE), damaged).unwrap();
            let error = Identity::of(&RealDisk, directory.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{damaged}: {error}");
        }
    }
}
