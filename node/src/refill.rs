//! A node of a cluster whose log is damaged: the others have what it lost, so it comes back as another node,
//! which they fill.
//!
//! It cannot come back as itself: it no longer knows what it has acknowledged, nor for whom it has voted.
//! What it holds stays as it is until the others have let its successor in, and is then set aside; it is
//! removed when all that the node held is whole elsewhere.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use piton_raft::{GroupId, LOG_DIRECTORY, RaftError, SNAPSHOT_DIRECTORY, held_alone};
use piton_store::with_causes;

use crate::accept_loss::states_in;
use crate::config::Config;
use crate::identity::{Identity, IdentityError, KeptIdentity};
use crate::node::NodeError;
use crate::storage::{STORE_DIRECTORY, StorageError};

/// What a node holds.
const PARTS: [&str; 3] = [LOG_DIRECTORY, SNAPSHOT_DIRECTORY, STORE_DIRECTORY];

/// Where that which was damaged lies.
const DIRECTORY: &str = "damaged";

/// Why a node does not give up what it holds.
#[derive(Debug, thiserror::Error)]
pub enum RefillError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("find out whether other nodes have what is damaged here")]
    Look(#[source] RaftError),
    #[error("set {} aside", path.display())]
    SetAside {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("remove {}, which is of no use any more", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a thread ended early")]
    Thread(#[from] tokio::task::JoinError),
}

/// Names a successor for a node whose start found its log damaged, if other nodes have all that it held.
/// False: the node stays as it is.
///
/// # Errors
/// See [`RefillError`].
pub(crate) async fn give_up(
    config: &Config,
    directory: &Path,
    why: &NodeError,
) -> Result<bool, RefillError> {
    let is_damage =
        matches!(why, NodeError::Storage(StorageError::LogDamaged(_) | StorageError::Misfit(_)));
    if !is_damage || !config.cluster.refill {
        return Ok(false);
    }
    // Nobody else says which file it was: the error goes where the node starts all the same.
    tracing::error!(damage = with_causes(why), "the log is damaged");
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || give_up_now(&directory)).await?
}

fn give_up_now(directory: &Path) -> Result<bool, RefillError> {
    let Some(mut identity) = Identity::kept(directory)? else { return Ok(false) };
    if identity.peers().is_empty() {
        return Ok(false);
    }
    // What cannot be moved by its name is not begun with: from then on, no start would get any further.
    if let Some(part) = PARTS
        .map(|part| directory.join(part))
        .into_iter()
        .find(|part| is_elsewhere(directory, part))
    {
        let part = part.display();
        tracing::error!(%part, "the log is damaged, and this lies on a file system of its own or is a link: the node cannot set it aside");
        return Ok(false);
    }
    let states = states_in(directory).unwrap_or_default();
    let alone = held_alone(identity.node(), directory, &states).map_err(RefillError::Look)?;
    if let Some(GroupId(group)) = alone.first() {
        tracing::error!(
            group,
            "the log is damaged, and no other node may have what it says of this group"
        );
        return Ok(false);
    }
    identity.name_successor();
    identity.keep(directory)?;
    Ok(true)
}

/// Whether a node was replaced that did not get to set all aside.
///
/// # Errors
/// See [`RefillError`].
pub(crate) async fn is_replaced(config: &Config, directory: &Path) -> Result<bool, RefillError> {
    if !config.cluster.refill {
        return Ok(false);
    }
    let directory = directory.to_owned();
    let kept = tokio::task::spawn_blocking(move || Identity::kept(&directory)).await?;
    // What is wrong with it is said by who needs it.
    Ok(kept.is_ok_and(|kept| kept.is_some_and(|kept| kept.is_replaced())))
}

/// Moves what a node held out of the way of its successor, which was let in. A crash on the way is harmless:
/// the next start asks again to be let in, as the same successor, and goes on.
///
/// # Errors
/// When something cannot be moved.
pub(crate) fn set_aside(directory: &Path) -> Result<(), RefillError> {
    let Some(mut identity) = Identity::kept(directory)? else { return Ok(()) };
    // ORDER: before anything is moved. From here on the node is no more, wherever a crash comes.
    identity.note_replaced();
    identity.keep(directory)?;
    let aside = directory.join(DIRECTORY).join(format!("{:016x}", identity.node().0));
    fs::create_dir_all(&aside).map_err(not_set_aside(&aside))?;
    for name in PARTS {
        let part = directory.join(name);
        if part.exists() {
            fs::rename(&part, free_name(&aside, name)).map_err(not_set_aside(&part))?;
        }
    }
    for moved in [&aside, &directory.join(DIRECTORY), &directory.to_owned()] {
        File::open(moved).and_then(|moved| moved.sync_all()).map_err(not_set_aside(moved))?;
    }
    tracing::warn!(
        gone = %identity.node(), damaged = %aside.display(),
        "the log was damaged: this node comes back as another one, and is filled by the others"
    );
    Ok(())
}

/// Somebody may have put back what had been set aside.
fn free_name(aside: &Path, name: &str) -> PathBuf {
    let further = (2..).map(|number| aside.join(format!("{name}-{number}")));
    let mut names = std::iter::once(aside.join(name)).chain(further);
    names.find(|path| !path.exists()).unwrap_or_else(|| aside.join(name))
}

/// Removes what was set aside, after the cluster has let go of the node that held it.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn end(identity: &KeptIdentity) -> Result<(), RefillError> {
    let path = identity.directory().join(DIRECTORY);
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(RefillError::Remove { path, source });
        }
        Ok(()) | Err(_) => {}
    }
    identity.change(Identity::has_replaced)?;
    Ok(())
}

/// Whether a part of the data directory lies on another device than the directory.
fn is_elsewhere(directory: &Path, part: &Path) -> bool {
    let device =
        |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.is_symlink()));
    match (fs::metadata(directory), device(part)) {
        (Ok(directory), Ok((found, is_link))) => is_link || found != directory.dev(),
        _ => false,
    }
}

fn not_set_aside(path: &Path) -> impl FnOnce(io::Error) -> RefillError {
    move |source| RefillError::SetAside { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use piton_raft::NodeId;

    use super::*;

    /// Goal: what cannot be moved is not begun with. Else each further start ends there.
    #[test]
    fn a_log_that_lies_elsewhere_is_not_given_up() {
        let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut identity = Identity::founder(4);
        identity.set_peers(&[(NodeId(7), "127.0.0.1:7234".to_owned())].into());
        identity.keep(directory.path()).unwrap();
        std::os::unix::fs::symlink(other.path(), directory.path().join(LOG_DIRECTORY)).unwrap();
        assert!(!give_up_now(directory.path()).unwrap());
        assert_eq!(Identity::kept(directory.path()).unwrap().unwrap(), identity);
        fs::remove_file(directory.path().join(LOG_DIRECTORY)).unwrap();
        assert!(give_up_now(directory.path()).unwrap());
    }

    /// Goal: wherever a crash comes, the next start goes on as the same node, and nothing that was damaged is
    /// removed.
    #[test]
    fn a_crash_while_data_is_set_aside_is_harmless() {
        for moved in 0..=PARTS.len() {
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path();
            let mut identity = Identity::founder(4);
            identity.set_peers(&[(NodeId(7), "127.0.0.1:7234".to_owned())].into());
            assert_eq!(identity.successor(), None);
            for part in PARTS {
                fs::create_dir_all(directory.join(part)).unwrap();
                fs::write(directory.join(part).join("data"), part).unwrap();
            }
            identity.keep(directory).unwrap();
            assert!(give_up_now(directory).unwrap());
            let named = Identity::kept(directory).unwrap().unwrap().successor();
            // The others do not let it in yet: all is where it was, whatever starts and ends.
            assert!(give_up_now(directory).unwrap());
            assert_eq!(Identity::kept(directory).unwrap().unwrap().successor(), named);
            assert!(PARTS.iter().all(|part| directory.join(part).join("data").exists()));
            let kept = Identity::kept(directory).unwrap().unwrap();
            let next = kept.successor().unwrap();
            assert_eq!(kept.node(), identity.node());
            assert!(next.is_joining && next.node() != identity.node());
            assert_eq!((next.instead_of(), next.successor()), (Some(identity.node()), None));
            assert_eq!((next.peers(), &next.cluster_id), (identity.peers(), &identity.cluster_id));

            let aside = directory.join(DIRECTORY).join(format!("{:016x}", identity.node().0));
            fs::create_dir_all(&aside).unwrap();
            for part in &PARTS[..moved] {
                fs::rename(directory.join(part), aside.join(part)).unwrap();
            }
            set_aside(directory).unwrap();
            let kept = Identity::kept(directory).unwrap().unwrap();
            assert!(kept.is_replaced() && kept.successor() == named);
            // Somebody puts the log back, which is of no use any more.
            fs::create_dir_all(directory.join(LOG_DIRECTORY).join("again")).unwrap();
            set_aside(directory).unwrap();
            for part in PARTS {
                assert!(!directory.join(part).exists());
                assert_eq!(fs::read_to_string(aside.join(part).join("data")).unwrap(), part);
            }
            assert!(aside.join("log-2").join("again").exists());
        }
    }
}
