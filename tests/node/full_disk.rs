//! A disk that fills up, and files that are gone while the node runs: what is refused, what goes on,
//! and what the node says (P6).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use piton_node::{Devices, Failure, Space};
use piton_raft::log::{Faults, FaultyDisk};
use piton_store::StoreError;
use tempfile::TempDir;
use tonic::Code;

use crate::checked_store::CheckedStore;
use crate::client::{execution, signal_of, start_of};
use crate::nodes::{Running, config};
use crate::worker::ORDER;

async fn await_until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        looks.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_is_nearly_full_writes_are_refused_and_reads_go_on() {
    let free = Arc::new(AtomicU64::new(1 << 40));
    let measured = Arc::clone(&free);
    let devices = Devices {
        measure_space: Arc::new(move |_| {
            Ok(Space { size_bytes: 1 << 40, free_bytes: measured.load(Ordering::SeqCst) })
        }),
        ..Devices::default()
    };
    let running = Running::start_with(config(None), devices).await.unwrap();
    let api = running.api();
    api.start(start_of("before", ORDER, "never-polled")).await.unwrap();
    free.store(1 << 20, Ordering::SeqCst);
    await_until("a signal is refused", || async {
        let refused = api.signal(signal_of("before", "more")).await;
        refused.is_err_and(|refused| {
            assert!(refused.text.contains("disk is nearly full"), "{refused}");
            refused.code == Code::ResourceExhausted
        })
    })
    .await;
    let refused = api.start(start_of("meanwhile", ORDER, "never-polled")).await.unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused}");
    let events = api.history(&execution("before")).await.unwrap();
    assert!(events.len() >= 2, "a read goes on");
    free.store(1 << 40, Ordering::SeqCst);
    await_until("there is room", || async {
        api.start(start_of("after", ORDER, "never-polled")).await.is_ok()
    })
    .await;
    running.stop().await;
}

/// Goal: the store meets a full disk that nobody had measured: the node stays, and nothing is rebuilt.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_meets_a_full_disk_has_writes_refused_and_goes_on() {
    let is_full = Arc::new(AtomicBool::new(false));
    let met = Arc::clone(&is_full);
    let check = move |key: &[u8]| {
        if key.is_empty() && met.load(Ordering::SeqCst) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(StoreError::Full { doing: "write a batch", source: source.into() });
        }
        Ok(())
    };
    let devices = Devices {
        wrap_store: Arc::new(move |store| {
            Arc::new(CheckedStore { store, check: Box::new(check.clone()) })
        }),
        ..Devices::default()
    };
    let running = Running::start_with(config(None), devices).await.unwrap();
    let api = running.api();
    api.start(start_of("before", ORDER, "never-polled")).await.unwrap();
    is_full.store(true, Ordering::SeqCst);
    await_until("a signal is refused", || async {
        let refused = api.signal(signal_of("before", "more")).await;
        refused.is_err_and(|refused| refused.code == Code::ResourceExhausted)
    })
    .await;
    assert!(api.history(&execution("before")).await.is_ok(), "a read goes on");
    let failed = tokio::time::timeout(Duration::from_millis(50), running.node.failed()).await;
    assert!(failed.is_err(), "{failed:?}");
    is_full.store(false, Ordering::SeqCst);
    await_until("there is room", || async {
        api.start(start_of("after", ORDER, "never-polled")).await.is_ok()
    })
    .await;
    running.stop().await;
}

/// Goal: a disk on which not a byte is left holds up what is under way, and no more: the node stays,
/// and what waited is done once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_room_waits_for_it() {
    let directory = TempDir::new().unwrap();
    let disk = FaultyDisk::new(1);
    let config = config(Some(directory.path()));
    let running = Running::start_on(config, Arc::new(disk.clone())).await.unwrap();
    let api = running.api();
    api.start(start_of("before", ORDER, "never-polled")).await.unwrap();
    disk.set_faults(Faults { capacity: Some(0), ..Faults::default() });
    let waiting: Vec<_> = (0..200)
        .map(|number| {
            let api = running.api();
            let name = format!("waits-{number}");
            tokio::spawn(async move { api.start(start_of(&name, ORDER, "never-polled")).await })
        })
        .collect();
    await_until("the disk has refused", || async { disk.refused_for_space() > 0 }).await;
    assert!(api.history(&execution("before")).await.is_ok(), "a read goes on");
    disk.set_faults(Faults::default());
    for started in waiting {
        started.await.unwrap().unwrap();
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_files_are_deleted_says_so_and_ends() {
    for gone in ["log", "node.toml"] {
        let directory = TempDir::new().unwrap();
        let running = Running::start(config(Some(directory.path()))).await;
        let path = directory.path().join(gone);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let failure = tokio::time::timeout(Duration::from_secs(20), running.node.failed()).await;
        let Ok(Failure::Directory(reason)) = failure else { panic!("{gone}: {failure:?}") };
        assert!(reason.contains(gone) && reason.contains("is gone"), "{reason}");
        running.stop().await;
    }
}
