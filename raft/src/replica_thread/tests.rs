use super::*;
use crate::suite_tests::MarkOnly;

fn start() -> ReplicaThread {
    let replica = Box::new(MarkOnly::default());
    ReplicaThread::start(Execution::Threads, || {}, GroupId(1), replica).expect("it starts")
}

#[tokio::test]
async fn an_order_runs_on_the_callers_thread_unless_another_is_carried_out() {
    let thread = start();
    let here = thread::current().id();
    let ran_on = thread.call_here(|_| thread::current().id());
    assert_eq!(ran_on.expect("nobody is at work").expect("it is there"), here);
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let busy = thread.call(move |_| {
        begun.send(()).expect("the test waits");
        may_go_on.recv().expect("the test goes on");
        thread::current().id()
    });
    let meanwhile = async {
        has_begun.recv().expect("it begins");
        let refused = thread.call_here(|_| ()).is_none();
        go_on.send(()).expect("the order waits");
        refused
    };
    let (ran_on, refused) = futures::future::join(busy, meanwhile).await;
    assert_ne!(ran_on.expect("it is there"), here);
    assert!(refused);
}

#[tokio::test]
async fn after_a_panic_nothing_is_carried_out() {
    let thread = start();
    let panicked = thread.call_here(|_| -> () { panic!("a bug of the replica's") });
    assert!(panicked.expect("nobody is at work").is_err());
    assert!(thread.call_here(|_| ()).expect("nobody is at work").is_err());
    assert!(thread.call(|_| ()).await.is_err());
    thread.stop();
}
