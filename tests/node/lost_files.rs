//! Files of a node that are lost between two of its lives: where something that was acknowledged went
//! with them, the node refuses to start, says what to do, and touches nothing; where it can be
//! rebuilt, it is (D9, D13, P1).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use piton_node::accept_loss;
use tempfile::TempDir;

use crate::client::{execution, start_of};
use crate::nodes::{Running, chain, config};
use crate::worker::{ORDER, await_until};

const WORKFLOWS: usize = 20;

fn name(number: usize) -> String {
    format!("lost-{number}")
}

/// A node's directory after an orderly stop, in which the store stands at the log's end.
async fn laid_down() -> TempDir {
    let directory = TempDir::new().unwrap();
    let running = Running::start(config(Some(directory.path()))).await;
    start_some(&running, 0..WORKFLOWS).await;
    running.stop().await;
    directory
}

async fn start_some(running: &Running, numbers: Range<usize>) {
    for number in numbers {
        let start = start_of(&name(number), ORDER, "never-polled");
        running.api().start(start).await.unwrap_or_else(|refused| panic!("{refused:?}"));
    }
}

/// How many of the workflows are there.
async fn found(running: &Running) -> usize {
    found_of(running, 0..WORKFLOWS).await
}

async fn found_of(running: &Running, numbers: Range<usize>) -> usize {
    let mut found = 0;
    for number in numbers {
        let history = running.api().history(&execution(&name(number))).await;
        found += usize::from(history.is_ok());
    }
    found
}

/// Every file but the lock and its bytes. A redb file that is opened and closed may differ.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if !path.ends_with("piton.lock") && !path.ends_with("store.redb") {
                files.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Starts a node that must not come up, and answers why it did not; it must have touched nothing.
async fn refused(directory: &Path) -> String {
    let before = files(directory);
    let started = Running::start_with(config(Some(directory)), Default::default()).await;
    let Err(error) = started else { panic!("the node starts") };
    let after = files(directory);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a file was changed");
    chain(&error)
}

fn rename(directory: &Path, from: &str, to: &str) {
    fs::rename(directory.join(from), directory.join(to)).unwrap();
}

/// Cuts the newest segment that holds anything in half, as a file system does that lost its end.
fn cut_log(directory: &Path) -> PathBuf {
    let segments = fs::read_dir(directory.join("log")).unwrap();
    let mut segments: Vec<PathBuf> = segments.map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|of| of == "log"));
    let newest = segments.into_iter().max().unwrap();
    let bytes = fs::read(&newest).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    fs::write(&newest, &bytes[..used / 2]).unwrap();
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_vanished_is_missed_and_can_be_put_back() {
    let directory = laid_down().await;
    let path = directory.path();
    rename(path, "log", "elsewhere");
    for without_store in [false, true] {
        if without_store {
            rename(path, "store", "store-elsewhere");
        }
        let reason = refused(path).await;
        let log = path.canonicalize().unwrap().join("log");
        assert!(reason.contains(&log.display().to_string()), "{reason}");
        assert!(reason.contains("put it back") && reason.contains("accept-loss"), "{reason}");
    }
    rename(path, "elsewhere", "log");
    rename(path, "store-elsewhere", "store");
    let running = Running::start(config(Some(path))).await;
    assert_eq!(found(&running).await, WORKFLOWS);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_short_is_refused_by_file_and_place() {
    let directory = laid_down().await;
    let path = directory.path();
    let whole = files(path);
    let segment = cut_log(path);
    let reason = refused(path).await;
    assert!(reason.contains(&segment.file_name().unwrap().display().to_string()), "{reason}");
    assert!(reason.contains("at offset") && reason.contains("accept-loss"), "{reason}");
    fs::write(&segment, &whole[&segment]).unwrap();
    let running = Running::start(config(Some(path))).await;
    assert_eq!(found(&running).await, WORKFLOWS);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_vanished_is_missed() {
    let directory = laid_down().await;
    let path = directory.path();
    rename(path, "node.toml", "elsewhere");
    let reason = refused(path).await;
    assert!(reason.contains("node.toml is missing"), "{reason}");
    let said = accept_loss(path, true).unwrap();
    assert!(said.contains("there is a copy"), "{said}");
    let running = Running::start(config(Some(path))).await;
    assert_eq!(found(&running).await, WORKFLOWS);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_or_snapshots_that_vanished_are_made_anew() {
    let directory = laid_down().await;
    let path = directory.path();
    for gone in ["store", "snapshot"] {
        fs::remove_dir_all(path.join(gone)).unwrap();
        let running = Running::start(config(Some(path))).await;
        assert_eq!(found(&running).await, WORKFLOWS, "without {gone}");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_node_is_refused() {
    let (mine, other) = (laid_down().await, laid_down().await);
    for part in ["log", "store"] {
        rename(mine.path(), part, "mine");
        fs::rename(other.path().join(part), mine.path().join(part)).unwrap();
        let reason = refused(mine.path()).await;
        assert!(reason.contains("is of node"), "{part}: {reason}");
        fs::rename(mine.path().join(part), other.path().join(part)).unwrap();
        rename(mine.path(), "mine", part);
    }
    let running = Running::start(config(Some(mine.path()))).await;
    assert_eq!(found(&running).await, WORKFLOWS);
    running.stop().await;
}

/// Goal: the way out keeps what the store has, says what is gone, and leaves a node that takes new
/// work and restarts.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_is_accepted_keeps_what_the_store_has() {
    for cut in [false, true] {
        let directory = laid_down().await;
        let path = directory.path();
        if cut {
            cut_log(path);
        } else {
            fs::remove_dir_all(path.join("log")).unwrap();
        }
        let before = files(path);
        let said = accept_loss(path, false).unwrap();
        assert!(said.contains("Nothing was changed") && said.contains("which is kept"), "{said}");
        assert!(before == files(path), "it touched something");
        refused(path).await;
        let said = accept_loss(path, true).unwrap();
        assert!(said.contains("can be started"), "{said}");
        for life in 1..=2 {
            let running = Running::start(config(Some(path))).await;
            assert_eq!(found(&running).await, WORKFLOWS);
            start_some(&running, life * WORKFLOWS..(life + 1) * WORKFLOWS).await;
            running.stop().await;
        }
    }
}

/// Goal: after an accepted loss the store is the only one that has the rows, until a snapshot does, which
/// is taken at the start: a store can be discarded at any time.
///
/// The loss comes twice: where there is no snapshot, openraft would make one by itself.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_accepted_loss_a_snapshot_is_taken_and_the_store_can_go() {
    let directory = laid_down().await;
    let path = directory.path();
    for life in 1..=2 {
        let before = snapshots(path);
        fs::remove_dir_all(path.join("log")).unwrap();
        accept_loss(path, true).unwrap();
        let running = Running::start(config(Some(path))).await;
        // Two shards and the meta group.
        await_until("each group has a new snapshot", async || {
            (snapshots(path).difference(&before).count() == 3).then_some(())
        })
        .await;
        if life == 1 {
            start_some(&running, WORKFLOWS..2 * WORKFLOWS).await;
        }
        running.stop().await;
    }
    fs::remove_dir_all(path.join("store")).unwrap();
    let running = Running::start(config(Some(path))).await;
    assert_eq!(found_of(&running, 0..2 * WORKFLOWS).await, 2 * WORKFLOWS);
    running.stop().await;
}

fn snapshots(directory: &Path) -> BTreeSet<PathBuf> {
    let files = fs::read_dir(directory.join("snapshot")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "snapshot")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_damaged_is_set_aside_when_its_loss_is_accepted() {
    let directory = laid_down().await;
    let path = directory.path();
    let segment = cut_log(path);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[10] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let reason = refused(path).await;
    assert!(reason.contains("the log is damaged") && reason.contains("offset 0"), "{reason}");
    let said = accept_loss(path, true).unwrap();
    assert!(said.contains("log.damaged-1"), "{said}");
    assert!(path.join("log.damaged-1").exists());
    let running = Running::start(config(Some(path))).await;
    assert_eq!(found(&running).await, WORKFLOWS);
    running.stop().await;
}
