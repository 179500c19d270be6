use piton_core::run::{Decided, Reply};
use piton_core::time::Timestamp;
use ractor::SpawnErr;

use super::*;
use crate::entity::batch;
use crate::entity::tests::leading_shard;
use crate::leader::hosting::WorkflowHandle;
use crate::message::{HeldEvents, MetaCall, MetaRequest, NewNamespace};
use crate::workflow::batch::tests::{begun, ended};
use crate::workflow::batch::{Batch, Hosted};

/// Longer than any read of a few rows takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn key() -> WorkflowKey {
    WorkflowKey { namespace: "namespace".into(), workflow_id: "order".into() }
}

/// A shard with a workflow whose first run is closed and whose second one is open.
async fn shard_with_two_runs() -> Arc<ShardRuntime> {
    let shard = leading_shard().await;
    let new = NewNamespace { name: "namespace".into(), ..NewNamespace::default() };
    let register = MetaRequest::RegisterNamespace { id: "namespace".into(), new };
    shard.cluster.meta().answer(MetaCall::Change(register)).await.expect("it is new");
    let handle = Arc::new(WorkflowHandle::new(10, Timestamp::MIN));
    let mut hosted = Hosted::new(Arc::clone(&shard), handle, key());
    let decided = Decided {
        run: Some(ended(begun(&key(), "closed"))),
        others: Vec::new(),
        successor: Some(begun(&key(), "open")),
        reply: Ok(Reply::Done),
    };
    let mut batch = Batch::default();
    hosted.accept(decided, &mut batch);
    batch::commit(&mut hosted, batch).await.expect("it is committed");
    shard
}

fn page_of(run_id: &str, token: Vec<u8>) -> ReadCall {
    let page = HistoryPage {
        token,
        max_events: 0,
        wait: None,
        close_only: false,
        reverse: false,
        held: HeldEvents::Hidden,
    };
    ReadCall::History { key: key(), run_id: Some(run_id.into()), page }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_runs_history_does_not_wait_for_the_open_runs_actor() {
    let shard = shard_with_two_runs().await;
    // In memory, and busy for ever.
    let busy = shard.workflows.get_or_host(&key(), 10, Timestamp::MIN, |_| {
        Err(SpawnErr::StartupFailed("it answers nothing".into()))
    });
    assert!(busy.is_open());
    let read = tokio::time::timeout(PATIENCE, shard.read_rows(page_of("closed", Vec::new()))).await;
    let answer = read.expect("it waits for nobody").expect("it is read");
    let Answer::History(page) = answer else { panic!("{answer:?}") };
    assert_eq!(page.events.len(), 3);
    assert_eq!(busy.mailbox.take().len(), 0, "the actor was asked");
}

/// As the official server says it of a token whose run has been deleted.
#[test]
fn a_run_that_went_while_it_was_read_is_not_found() {
    let gone = refused(HistoryError::Gone { key: key(), run_id: "gone".into() });
    let text = "workflow execution not found for workflow ID \"order\" and run ID \"gone\"";
    assert!(
        matches!(&gone, ShardError::Rejected(Rejection::NotFound(found)) if found == text),
        "{gone:?}"
    );
}
