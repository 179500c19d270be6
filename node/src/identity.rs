//! Who this node is: a random id, kept in its data directory, and the id of its cluster. A node
//! whose directory was wiped comes back as another one (docs/design.md, "Node identity").

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use piton_raft::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const FILE: &str = "node.toml";
const TEMPORARY_FILE: &str = "node.toml.new";

/// Why the node's identity cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("read the node's identity from {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the node's identity in {} is damaged; restore that file, or remove the whole data directory", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
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
}

impl Identity {
    /// The identity kept in a data directory; drawn if there is none, for a cluster of `shards`.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is damaged.
    pub(crate) fn of(directory: &Path, shards: u32) -> Result<Self, IdentityError> {
        let path = directory.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text)
                .map_err(|source| IdentityError::Damaged { path, source: Box::new(source) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::draw(shards);
                identity
                    .write(directory)
                    .map_err(|source| IdentityError::Write { path, source })?;
                Ok(identity)
            }
            Err(source) => Err(IdentityError::Read { path, source }),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        let number = u64::from_str_radix(&self.node_id, 16);
        NodeId(number.expect("parse and draw let only hexadecimal digits in"))
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let identity: Self = toml::from_str(text)?;
        u64::from_str_radix(&identity.node_id, 16).map_err(serde::de::Error::custom)?;
        Ok(identity)
    }

    fn draw(shards: u32) -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let node_id = format!("{:016x}", (high ^ low).max(1));
        Self { node_id, cluster_id: Uuid::new_v4().to_string(), shards }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_a_wiped_one_gets_another() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::of(directory.path(), 4).unwrap();
        // What it was made with stays.
        assert_eq!(Identity::of(directory.path(), 16).unwrap(), first);
        fs::remove_file(directory.path().join(FILE)).unwrap();
        let second = Identity::of(directory.path(), 4).unwrap();
        assert_ne!(second.node(), first.node());
    }

    #[test]
    fn a_damaged_identity_is_not_replaced_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        for damaged in ["", "node_id = \"xyz\"\ncluster_id = \"c\"\n", "node_id = 7"] {
            fs::write(directory.path().join(FILE), damaged).unwrap();
            let error = Identity::of(directory.path(), 4).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{damaged}: {error}");
        }
    }
}
