//! A bug of ours in one workflow (D5, P6).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use piton_node::Devices;
use piton_node::config::Config;

use crate::checked_store::CheckedStore;
use crate::client::start_of;
use crate::nodes::{Running, config};
use crate::worker::{ORDER, complete, start_timer};

const UNLUCKY: &str = "unlucky";
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node whose store panics once: when a key is read that is meant.
async fn start_unlucky(
    config: Config,
    is_meant: impl Fn(&[u8]) -> bool + Clone + Send + Sync + 'static,
) -> (Running, Arc<AtomicUsize>) {
    let panics = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&panics);
    let devices = Devices {
        wrap_store: Arc::new(move |store| {
            let (count, is_meant) = (Arc::clone(&count), is_meant.clone());
            let check = move |key: &[u8]| {
                if is_meant(key) && count.fetch_add(1, Ordering::SeqCst) == 0 {
                    panic!("a bug that the test put here");
                }
                Ok(())
            };
            Arc::new(CheckedStore { store, check: Box::new(check) })
        }),
        ..Devices::default()
    };
    (Running::start_with(config, devices).await.unwrap(), panics)
}

/// The timers of a shard whose actor panicked fire: those in rows and those that come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_fire_although_their_actor_has_panicked() {
    const SPAN: Duration = Duration::from_millis(1_500);
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(Some(directory.path()));
    config.shards.count = Some(1);
    let running = Running::start(config.clone()).await;
    let api = running.api();
    api.start(start_of("sleeps", ORDER, "sleeps")).await.unwrap();
    let task = api.poll_workflow_task("sleeps").await.unwrap();
    api.complete_workflow_task(&task.task_token, vec![start_timer("t", SPAN)]).await.unwrap();
    running.stop().await;

    // The first rows of timers that the actor reads. A key begins with its group's number.
    let is_timer = |key: &[u8]| key.get(4) == Some(&b'T');
    let (running, panics) = start_unlucky(config, is_timer).await;
    let api = running.api();
    for timer in ["next", "last"] {
        let polled = tokio::time::timeout(PATIENCE, api.poll_workflow_task("sleeps")).await;
        let task = polled.expect("no timer fires any more").unwrap();
        assert!(!task.task_token.is_empty(), "no timer fires any more");
        let next = vec![start_timer(timer, SPAN / 10)];
        api.complete_workflow_task(&task.task_token, next).await.unwrap();
    }
    assert!(panics.load(Ordering::SeqCst) > 1, "it was not read again");
    running.stop().await;
}

/// The tasks of a queue whose actor panicked come all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_come_although_the_actor_of_their_queue_has_panicked() {
    // More than a queue's window holds; it asks for the rest when half of that is gone.
    const TASKS: usize = 1_020;
    let mut config = config(None);
    config.shards.count = Some(1);
    let is_task =
        |key: &[u8]| key.get(4) == Some(&b'Q') && key.windows(7).any(|part| part == b"crowded");
    let (running, panics) = start_unlucky(config, is_task).await;
    let api = running.api();
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..TASKS {
        let (api, start) = (Arc::clone(&api), start_of(&format!("{number}"), ORDER, "crowded"));
        starts.spawn(async move { api.start(start).await.unwrap() });
    }
    starts.join_all().await;
    assert_eq!(panics.load(Ordering::SeqCst), 0, "all of them were offered as they came");
    for number in 0..TASKS {
        let polled = tokio::time::timeout(PATIENCE, api.poll_workflow_task("crowded")).await;
        let task = polled.unwrap_or_else(|_| panic!("{number} tasks came")).unwrap();
        assert!(!task.task_token.is_empty(), "{number} tasks came");
        api.complete_workflow_task(&task.task_token, vec![complete()]).await.unwrap();
    }
    assert!(panics.load(Ordering::SeqCst) > 1, "it did not ask again");
    running.stop().await;
}

/// Whoever asks hears of it, and the next request finds another actor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_one_workflow_ends_its_actor_only() {
    let panics = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&panics);
    let devices = Devices {
        wrap_store: Arc::new(move |store| {
            let count = Arc::clone(&count);
            // The actor's first look at its workflow.
            let check = move |key: &[u8]| {
                let is_its = key.windows(UNLUCKY.len()).any(|part| part == UNLUCKY.as_bytes());
                if is_its && count.fetch_add(1, Ordering::SeqCst) == 0 {
                    panic!("a bug that the test put here");
                }
                Ok(())
            };
            Arc::new(CheckedStore { store, check: Box::new(check) })
        }),
        ..Devices::default()
    };
    let running = Running::start_with(config(None), devices).await.unwrap();
    let api = running.api();
    let refused = api.start(start_of(UNLUCKY, ORDER, "orders")).await.unwrap_err();
    assert_eq!(refused.code, tonic::Code::Unavailable, "{refused}");
    assert_eq!(panics.load(Ordering::SeqCst), 1);
    for workflow_id in ["another", UNLUCKY] {
        let started = api.start(start_of(workflow_id, ORDER, "orders"));
        let started = tokio::time::timeout(PATIENCE, started).await;
        started.unwrap_or_else(|_| panic!("nobody answers {workflow_id}")).unwrap();
    }
    running.stop().await;
}
