//! openraft's own storage suite, run over this crate's log store and state machine.

use std::sync::Arc;

use bytes::Bytes;
use openraft::StorageError;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use piton_store::{Mark, Row};
use tempfile::TempDir;

use crate::config::NodeId;
use crate::error::{ReplicaError, SnapshotError};
use crate::execution::Execution;
use crate::log::{GroupId, Log, LogConfig, RealDisk};
use crate::log_store::LogStore;
use crate::replica::{CommittedEntry, Replica, SnapshotRows};
use crate::replica_thread::ReplicaThread;
use crate::snapshot::Snapshots;
use crate::state_machine::StateMachine;
use crate::types::{StoredMembership, TypeConfig, log_id};
use crate::wire;

const GROUP: GroupId = GroupId(7);

/// A replica that keeps its mark and nothing else; every entry counts as checkpointed at once.
#[derive(Default)]
pub(crate) struct MarkOnly {
    mark: Option<Mark>,
}

impl Replica for MarkOnly {
    fn applied(&self) -> Option<Mark> {
        self.mark.clone()
    }

    fn checkpointed(&self) -> u64 {
        // The suite applies entry 0 alone, or nothing at all, and then wants a snapshot: never 0.
        self.mark.as_ref().map_or(1, |mark| mark.index.max(1))
    }

    fn apply(
        &mut self,
        entries: Vec<CommittedEntry>,
        mark: Mark,
    ) -> Result<Vec<Bytes>, ReplicaError> {
        self.mark = Some(mark);
        Ok(entries.into_iter().map(|entry| entry.payload).collect())
    }

    fn advance(&mut self, mark: Mark) {
        self.mark = Some(mark);
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotRows>, ReplicaError> {
        // The suite purges logs of which nothing was applied and then asks for a snapshot.
        let mark = self.mark.clone();
        let mark = mark.unwrap_or_else(|| wire::mark(&log_id(0, 0), &StoredMembership::default()));
        Ok(Box::new(NoRows { mark }))
    }

    fn restore(
        &mut self,
        mark: Mark,
        rows: &mut dyn Iterator<Item = Result<Row, SnapshotError>>,
    ) -> Result<(), ReplicaError> {
        for row in rows {
            row.map_err(|error| ReplicaError::new("restore", error))?;
        }
        self.mark = Some(mark);
        Ok(())
    }

    fn clear(&mut self) -> Result<(), ReplicaError> {
        self.mark = None;
        Ok(())
    }
}

struct NoRows {
    mark: Mark,
}

impl SnapshotRows for NoRows {
    fn mark(&self) -> Mark {
        self.mark.clone()
    }

    fn next_rows(&mut self, _limit: usize) -> Result<Vec<Row>, ReplicaError> {
        Ok(Vec::new())
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("make a directory");
        let disk = Arc::new(RealDisk);
        let config = LogConfig { segment_bytes: 1 << 20, ..LogConfig::default() };
        let (log, _) = Log::open(disk.clone(), dir.path().join("log"), config).expect("open");
        let at = dir.path().join("snapshot");
        let snapshots = Snapshots::open(disk, at, GROUP, Arc::default()).expect("open");
        let replica = Box::new(MarkOnly::default());
        let replica =
            ReplicaThread::start(Execution::Threads, || {}, GROUP, replica).expect("start");
        let (replica, snapshots) = (Arc::new(replica), Arc::new(snapshots));
        let machine = StateMachine::new(NodeId(1), GROUP, replica, snapshots, None);
        // Small reads, so that every longer one is put together from pieces.
        Ok((dir, LogStore::new(log, GROUP, 64), machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_suite_of_openraft_passes() {
    Suite::test_all(Builder).await.expect("the suite passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_id_beyond_the_log_is_read_as_its_last_entry() {
    let (_dir, mut store, _machine) = Builder.build().await.expect("build");
    let entry = |index| crate::types::Entry {
        log_id: log_id(1, index),
        payload: crate::types::Payload::Blank,
    };
    store.blocking_append([entry(0), entry(1)]).await.expect("append");
    store.save_committed(Some(log_id(2, 9))).await.expect("save");
    assert_eq!(store.read_committed().await.expect("read"), Some(log_id(1, 1)));
    store.save_committed(Some(log_id(1, 0))).await.expect("save");
    assert_eq!(store.read_committed().await.expect("read"), Some(log_id(1, 0)));
}
