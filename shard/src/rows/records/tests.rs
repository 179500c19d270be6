use std::collections::BTreeMap;

use piton_core::effect::{ErrandKey, QueueName};
use piton_core::id::{EventId, Position, WorkflowKey};
use piton_core::note::{ActivityStart, Sticky, WorkflowTaskKind, WorkflowTaskNote};
use piton_core::proto::common::link;
use piton_core::proto::common::{
    Link, Memo, Payload, Payloads, Priority, SearchAttributes, WorkerVersionStamp,
    WorkflowExecution,
};
use piton_core::proto::failure::Failure;
use piton_core::proto::sdk::UserMetadata;
use piton_core::run::{RunState, Status};
use piton_core::time::{Span, Timestamp};
use piton_core::visibility::{Figures, ParentExecution};
use piton_store::golden::Golden;

use super::*;
use crate::rows::range::SlotRange;
use crate::rows::values::{Current, RequestKind, encode_current, encode_range};

const GOLDEN: &str = include_str!("../../../testdata/records.txt");
const TIME: Timestamp = Timestamp::from_nanos(1_700_000_000_123_456_789);
const LATER: Timestamp = Timestamp::from_nanos(1_700_000_001_000_000_001);

fn payload() -> Payload {
    let metadata = [("encoding".to_owned(), "json/plain".into())];
    Payload { metadata: metadata.into(), data: "7".into(), ..Payload::default() }
}

fn link() -> Link {
    let job = link::BatchJob { job_id: "job".into() };
    Link { variant: Some(link::Variant::BatchJob(job)) }
}

fn current_run(status: Status) -> CurrentRun {
    CurrentRun {
        run_id: "run".into(),
        status,
        first_run_id: "first".into(),
        start_request_id: "request".into(),
        start_time: TIME,
        last_time: LATER,
    }
}

fn run_note() -> RunNote {
    let queue = QueueName::sticky("sticky", "normal");
    RunNote {
        transitions: 300,
        start_request_id: Some("request".into()),
        workflow_task: Some(WorkflowTaskNote {
            scheduled_event_id: EventId(5),
            kind: WorkflowTaskKind::Normal,
            attempt: 2,
            queue: queue.clone(),
            start_to_close: Span::from_secs(10),
            scheduled_at: TIME,
            original_scheduled_at: LATER,
            schedule_to_start_due: Some(LATER),
            stamp: 7,
        }),
        sticky: Some(Sticky { queue, schedule_to_start: Span::from_secs(5) }),
        next_attempt: 2,
        waits_for_parent: true,
        first_task_at: Some(TIME),
        owed: vec![
            ErrandKey::StartChild(EventId(1)),
            ErrandKey::Signal(EventId(2)),
            ErrandKey::Cancel(EventId(3)),
            ErrandKey::ReportStart,
            ErrandKey::ReportClose,
            ErrandKey::CloseChild(EventId(4)),
        ],
        next_buffered: 3,
        last_stamp: 8,
    }
}

fn activity_note() -> ActivityNote {
    let stamp = WorkerVersionStamp { build_id: "b1".into(), ..WorkerVersionStamp::default() };
    let start = ActivityStart {
        at: TIME,
        identity: "worker".into(),
        request_id: "ticket".into(),
        worker_version: Some(Proto(stamp)),
    };
    ActivityNote {
        attempt: 3,
        stamp: 4,
        attempt_scheduled_at: TIME,
        started: Some(start),
        last_failure: Some(Proto(Failure { message: "no".into(), ..Failure::default() })),
        last_worker_identity: "worker".into(),
        last_attempt_completed_at: Some(LATER),
        heartbeat_details: Some(Proto(Payloads { payloads: vec![payload()] })),
        heartbeat_at: Some(LATER),
        retry_wait: Some(Span::from_secs(2)),
    }
}

fn visibility() -> VisibilityRecord {
    let priority = Priority { priority_key: 2, fairness_key: "k".into(), fairness_weight: 1.5 };
    VisibilityRecord {
        workflow_id: "order-7".into(),
        run_id: "run".into(),
        first_run_id: "first".into(),
        workflow_type: "Order".into(),
        task_queue: "queue".into(),
        status: Status::Completed,
        start_time: TIME,
        execution_time: TIME,
        close_time: Some(LATER),
        figures: Some(Figures { history_length: 9, history_bytes: 1_000, transitions: 4 }),
        parent: Some(ParentExecution {
            namespace_id: "namespace".into(),
            workflow_id: "parent".into(),
            run_id: "parent-run".into(),
        }),
        root: ("root".into(), "root-run".into()),
        memo: Proto(Memo { fields: [("note".to_owned(), payload())].into() }),
        search_attributes: BTreeMap::from([("Customer".to_owned(), Proto(payload()))]),
        priority: Some(Proto(priority)),
    }
}

/// Of a run with one of each that it may have pending.
fn milestone() -> Milestone {
    use piton_core::proto::history as event;
    use piton_core::proto::history::history_event::Attributes as A;
    let metadata = || UserMetadata { summary: Some(payload()), ..UserMetadata::default() };
    let started = event::WorkflowExecutionStartedEventAttributes {
        memo: Some(Memo { fields: [("note".to_owned(), payload())].into() }),
        search_attributes: Some(SearchAttributes {
            indexed_fields: [("Customer".to_owned(), payload())].into(),
        }),
        first_execution_run_id: "first".into(),
        ..Default::default()
    };
    let timer = event::TimerStartedEventAttributes {
        timer_id: "t".into(),
        start_to_fire_timeout: Some(Span::from_secs(5).to_proto()),
        ..Default::default()
    };
    let child = event::ChildWorkflowExecutionStartedEventAttributes {
        initiated_event_id: 4,
        workflow_execution: Some(WorkflowExecution { workflow_id: "c".into(), run_id: "r".into() }),
        ..Default::default()
    };
    let cancel = event::ActivityTaskCancelRequestedEventAttributes {
        scheduled_event_id: 2,
        ..Default::default()
    };
    let events = [
        A::WorkflowExecutionStartedEventAttributes(started),
        A::ActivityTaskScheduledEventAttributes(Default::default()),
        A::TimerStartedEventAttributes(timer),
        A::StartChildWorkflowExecutionInitiatedEventAttributes(Default::default()),
        A::ChildWorkflowExecutionStartedEventAttributes(child),
        A::SignalExternalWorkflowExecutionInitiatedEventAttributes(Default::default()),
        A::RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(Default::default()),
        A::ActivityTaskCancelRequestedEventAttributes(cancel),
        A::WorkflowExecutionCancelRequestedEventAttributes(Default::default()),
        A::WorkflowExecutionSignaledEventAttributes(Default::default()),
    ];
    let events = (1..).zip(events).map(|(event_id, attributes)| HistoryEvent {
        event_id,
        event_time: Some(TIME.to_proto()),
        user_metadata: Some(metadata()),
        links: if event_id == 1 { vec![link()] } else { Vec::new() },
        attributes: Some(attributes),
        ..HistoryEvent::default()
    });
    let key = WorkflowKey { namespace: "namespace".into(), workflow_id: "order-7".into() };
    let notes = [
        (NoteKey::Run, Note::Run(RunNote::default())),
        (NoteKey::Activity(EventId(2)), Note::Activity(activity_note())),
    ];
    let mut run = RunState::from_history(key, "run".into(), events, notes).expect("it folds");
    // A Completed event would leave an attribute whose bytes are not always the same.
    run.previous_started = EventId(9);
    let stamp = WorkerVersionStamp { build_id: "b1".into(), ..WorkerVersionStamp::default() };
    run.worker_version = Some(stamp.into());
    run.worker_deployment = "d".into();
    Milestone::of(&run).expect("it is open")
}

#[test]
fn a_shards_rows_are_encoded_as_ever_and_all_versions_are_read() {
    let mut golden = Golden::of(GOLDEN);
    for (name, status) in [
        ("Running", Status::Running),
        ("Completed", Status::Completed),
        ("Failed", Status::Failed),
        ("Canceled", Status::Canceled),
        ("Terminated", Status::Terminated),
        ("ContinuedAsNew", Status::ContinuedAsNew),
        ("TimedOut", Status::TimedOut),
    ] {
        golden.record(&CURRENT_RUN, &format!(", {name}"), &current_run(status));
    }
    for (name, kind) in [
        ("start", RequestKind::Start),
        ("attached", RequestKind::Attached),
        ("signal", RequestKind::Signal),
        ("cancel", RequestKind::Cancel),
    ] {
        let row = RequestRow { run_id: "run".into(), event_id: EventId(3), at: TIME, kind };
        golden.record(&REQUEST, &format!(", {name}"), &row);
    }
    golden.record(&RUN_NOTE, "", &run_note());
    golden.record(&RUN_NOTE, ", default", &RunNote::default());
    golden.record(&ACTIVITY_NOTE, "", &activity_note());
    let event = HistoryEvent { event_id: 4, version: 1, ..HistoryEvent::default() };
    golden.record(&BUFFERED_NOTE, "", &Proto(event));
    let normal = Some("normal".into());
    golden.record(&TASK, "", &TaskValue { normal, fairness_weight: 2.5 });
    golden.record(&VISIBILITY, "", &visibility());
    golden.record(&MILESTONE, "", &milestone());
    golden.finish();
}

#[test]
fn values_laid_out_by_hand_are_as_ever() {
    let mut golden = Golden::of(GOLDEN);
    let current = Current { position: Position(300), run: current_run(Status::Running) };
    golden.bytes("a current row", &encode_current(1, &current).expect("short"));
    let range = SlotRange { version: 2, slots: 5..4_096 };
    golden.bytes("the slot range", &encode_range(&range));
    golden.finish();
}

#[test]
fn a_value_of_a_newer_release_is_refused_by_kind_and_version() {
    let mut value = encode_note(1, &Note::Run(run_note())).expect("short").to_vec();
    value[0] += 1;
    let refused = decode_note(NoteKey::Run, &value).expect_err("it is newer").to_string();
    assert_eq!(refused, "decode a run's note of version 2: this release knows versions up to 1");
    let refused = EVENTS.body(&[9]).expect_err("it is newer").to_string();
    assert!(refused.contains("a batch of history of version 9"), "{refused}");
}
