//! A bug of ours in one workflow (D5, P6).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use piton_node::Devices;

use crate::checked_store::CheckedStore;
use crate::client::start_of;
use crate::nodes::{Running, config};
use crate::worker::ORDER;

const UNLUCKY: &str = "unlucky";
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

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
