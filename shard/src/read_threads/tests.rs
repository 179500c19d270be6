use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures::FutureExt;

use super::*;

async fn here(threads: &ReadThreads) -> ThreadId {
    threads.look_up(|| thread::current().id()).await.expect("it does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reads_run_on_no_thread_of_the_runtime_and_wait_in_line() {
    let threads = ReadThreads::new(2, 1);
    let api = tokio::spawn(async { thread::current().id() }).await.expect("it ends");
    let at_work = Arc::new(AtomicUsize::new(0));
    let reads = (0..20).map(|_| {
        let (threads, at_work) = (threads.clone(), Arc::clone(&at_work));
        tokio::spawn(async move {
            let read = threads.look_up(move || {
                let others = at_work.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                at_work.fetch_sub(1, Ordering::SeqCst);
                (others, thread::current().id())
            });
            read.await
        })
    });
    for read in reads.collect::<Vec<_>>() {
        let (others, thread) = read.await.expect("it ends").expect("it does not panic");
        assert!(others < 2, "{others} others were at work");
        assert_ne!(thread, api, "no thread of the API reads");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_goes_away_leaves_the_line_and_no_thread_is_used_twice() {
    let threads = ReadThreads::new(1, 1);
    let (begun, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let mut first = Box::pin({
        let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        threads.look_up(move || {
            begun.wait();
            go_on.wait();
        })
    });
    assert!(first.as_mut().now_or_never().is_none());
    begun.wait();
    let mut second = Box::pin(threads.look_up(|| panic!("its caller went away")));
    assert!(second.as_mut().now_or_never().is_none());
    drop((first, second));
    let mut third = Box::pin(here(&threads));
    let waits = tokio::time::timeout(Duration::from_millis(20), third.as_mut()).await;
    assert!(waits.is_err(), "the thread of one that went away counts until it is done");
    go_on.wait();
    third.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_look_up_does_not_wait_for_scans_and_a_panic_gives_its_place_back() {
    let threads = ReadThreads::new(1, 1);
    let (begun, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let scan = {
        let (threads, begun, go_on) = (threads.clone(), Arc::clone(&begun), Arc::clone(&go_on));
        tokio::spawn(async move {
            let slice = threads.scan(move || {
                begun.wait();
                go_on.wait();
            });
            slice.await
        })
    };
    let waits = tokio::task::spawn_blocking(move || begun.wait()).await;
    waits.expect("the scan has begun");
    for _ in 0..3 {
        let refused = threads.look_up(|| panic!("a read of a test")).await;
        assert!(matches!(refused, Err(ShardError::Internal(_))));
    }
    here(&threads).await;
    go_on.wait();
    scan.await.expect("it ends").expect("it does not panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn scans_go_on_where_no_thread_of_their_own_could_be_started() {
    let threads = ReadThreads::new(1, 2);
    threads.scanners.set(None).expect("no scan came before");
    let api = tokio::spawn(async { thread::current().id() }).await.expect("it ends");
    for _ in 0..3 {
        let scanned = threads.scan(|| thread::current().id()).await.expect("it is done");
        assert_ne!(scanned, api, "no thread of the API scans");
    }
}
