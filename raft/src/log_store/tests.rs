use std::path::PathBuf;
use std::pin::pin;

use bytes::Bytes;
use futures::FutureExt;

use super::*;
use crate::config::NodeId;
use crate::log::{FaultyDisk, LogConfig, ManualWriter};

const GROUP: GroupId = GroupId(7);

/// A group's log on a disk in memory; nothing reaches it but by the writer.
fn store() -> (LogStore, Log, ManualWriter) {
    let disk = std::sync::Arc::new(FaultyDisk::new(1));
    let opened = Log::open_manual(disk, PathBuf::from("/log"), LogConfig::default());
    let (log, _, writer) = opened.expect("open the log");
    (LogStore::new(log.clone(), GROUP, 1 << 20), log, writer)
}

#[tokio::test]
async fn a_vote_is_saved_when_it_is_durable() {
    let (mut store, _log, mut writer) = store();
    let vote = Vote::new(3, NodeId(1));
    let mut saved = pin!(store.save_vote(&vote));
    assert!((&mut saved).now_or_never().is_none(), "nothing has been written");
    assert!(writer.write_batch());
    saved.await.expect("save the vote");
}

#[tokio::test]
async fn a_truncation_is_done_when_it_is_durable() {
    let (mut store, log, mut writer) = store();
    let entry = EntryRecord { index: 1, term: 1, bytes: Bytes::from_static(b"one") };
    log.append(GROUP, vec![entry], |outcome| outcome.expect("append"));
    assert!(writer.write_batch());
    let mut truncated = pin!(store.truncate_after(None));
    assert!((&mut truncated).now_or_never().is_none(), "nothing has been written");
    assert!(writer.write_batch());
    truncated.await.expect("truncate");
}
