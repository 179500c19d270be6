use piton_core::id::{Position, RequestId};
use piton_core::limits::Limits;
use piton_core::proto::common::{SearchAttributes, WorkflowType};
use piton_core::proto::workflowservice::StartWorkflowExecutionRequest;
use piton_core::request::{
    Drawn, RunRequest, SearchAttributeCheck, StartRequest, TerminateRequest,
};
use piton_core::run::{Reply, decide_start};
use piton_core::time::Span;

use super::*;
use crate::entity::tests::leading_shard;
use crate::entity::{batch, expire};
use crate::rows::retention;

struct AllKnown;

impl SearchAttributeCheck for AllKnown {
    fn check(&self, _: &mut SearchAttributes) -> Result<(), String> {
        Ok(())
    }
}

/// A new run with its first events.
pub(crate) fn begun(key: &WorkflowKey, run_id: &str) -> RunState {
    let start = StartWorkflowExecutionRequest {
        workflow_id: key.workflow_id.to_string(),
        workflow_type: Some(WorkflowType { name: "Order".into() }),
        request_id: run_id.into(),
        ..StartWorkflowExecutionRequest::default()
    };
    let request = StartRequest { start: Box::new(start), signal: None, parent: None };
    let decided = drawn(run_id, |drawn| decide_start(key, None, request, drawn));
    decided.expect("a first start is accepted").successor.expect("a start begins a run")
}

/// The run, terminated.
pub(crate) fn ended(run: RunState) -> RunState {
    let run_id = run.run_id.clone();
    let request = RunRequest::Terminate(TerminateRequest::default());
    let decided = drawn(run_id.as_str(), |drawn| run.decide(request, drawn));
    decided.expect("it is open").run.expect("it is changed")
}

fn drawn<T>(run_id: &str, with: impl FnOnce(&Drawn<'_>) -> T) -> T {
    with(&Drawn {
        now: Timestamp::from_millis(1_000),
        term: 1,
        number: 1,
        run_id: run_id.into(),
        limits: &Limits::default(),
        namespace_name: "default",
        namespaces: &[],
        search_attributes: &AllKnown,
    })
}

/// As a reset will: one run is changed, another begun beside it, and a third becomes the current one.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_comes_to_several_runs_is_one_transition() {
    let shard = leading_shard().await;
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "order".into() };
    let handle = Arc::new(WorkflowHandle::new(10, Timestamp::MIN));
    let mut hosted = Hosted::new(Arc::clone(&shard), handle, key.clone());
    let [one, two, three] = ["one", "two", "three"].map(|run_id| begun(&key, run_id));
    let mut batch = Batch::default();
    let decided = Decided {
        run: Some(one),
        others: vec![two],
        successor: Some(three),
        reply: Ok(Reply::Done),
    };
    hosted.accept(decided, &mut batch);
    batch::commit(&mut hosted, batch).await.expect("it is committed");

    let current = shard.rows.current(&key).expect("it reads").expect("there is a run");
    assert_eq!((current.position, current.run.run_id), (Position(1), "three".into()));
    for run_id in ["one", "two", "three"] {
        let run = shard.rows.load_run(&key, &run_id.into()).expect("it reads");
        assert!(run.is_some_and(|run| run.next_event_id == EventId(3)), "run {run_id}");
    }
}

/// A request id may outlive its workflow, whose position is 0 then and stays so.
#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_begins_anew_behind_the_last_request_id_of_the_one_before() {
    let shard = leading_shard().await;
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "order".into() };
    let handle = Arc::new(WorkflowHandle::new(10, Timestamp::MIN));
    let mut hosted = Hosted::new(Arc::clone(&shard), handle, key.clone());
    let (run_id, at, kind) = ("gone".into(), Timestamp::from_millis(1), RequestKind::Signal);
    let row = RequestRow { run_id, event_id: EventId(3), at, kind };
    let mut writes = Vec::new();
    for id in ["one", "two"] {
        let keep = Span::from_millis(1);
        writes.extend(
            rows::request_writes(&key.clone().into(), &RequestId::from(id), &row, keep)
                .expect("small"),
        );
    }
    writes.push(rows::current_delete(&key));
    batch::propose(&mut hosted, writes).await.expect("it is committed");
    hosted.position = Position(0);

    let expired = retention::expired(&shard.rows, Timestamp::MAX, 10).expect("it reads");
    assert_eq!(expired.len(), 2);
    for row in &expired {
        expire::expire(&mut hosted, row).await.expect("it is committed");
    }
    assert_eq!(retention::expired(&shard.rows, Timestamp::MAX, 10).expect("it reads"), []);
    let mut batch = Batch::default();
    let successor = Some(begun(&key, "new"));
    hosted.accept(
        Decided { run: None, others: Vec::new(), successor, reply: Ok(Reply::Done) },
        &mut batch,
    );
    batch::commit(&mut hosted, batch).await.expect("it is committed");
    let current = shard.rows.current(&key).expect("it reads").expect("there is a run");
    assert_eq!((current.position, current.run.run_id), (Position(1), "new".into()));
}
