//! The rules one by one, at their bounds.

use piton_proto::common::Payload;

use super::*;

fn limits() -> Limits {
    Limits { blob_bytes_max: 100, memo_bytes_max: 100, ..Limits::default() }
}

fn payload(bytes: usize) -> Payload {
    Payload { data: vec![b'x'; bytes].into(), ..Payload::default() }
}

fn payloads(bytes: usize) -> Payloads {
    Payloads { payloads: vec![payload(bytes)] }
}

/// What a refusal says, or "ok".
fn said<T>(result: Result<T, ApiError>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn ids_are_given_and_at_most_a_thousand_bytes_long() {
    let check = |value: &str| said(required("WorkflowId", value, &limits()));
    assert_eq!(check(""), "WorkflowId is not set on request.");
    assert_eq!(check(&"x".repeat(1_000)), "ok");
    assert_eq!(check(&"x".repeat(1_001)), "WorkflowId length exceeds limit.");
    assert_eq!(said(optional("Identity", "", &limits())), "ok");
}

#[test]
fn a_run_id_is_empty_or_a_uuid() {
    assert_eq!(run_id("").unwrap(), None);
    let upper = "01890A5D-AC96-774B-BCCE-B302099A8057";
    assert_eq!(run_id(upper).unwrap().unwrap().as_str(), upper.to_lowercase());
    for given in ["1", "not-a-uuid", "01890a5d-ac96-774b-bcce-b302099a805"] {
        assert_eq!(said(run_id(given)), "Invalid RunId.", "{given}");
    }
}

#[test]
fn an_execution_names_a_workflow() {
    let check = |given: Option<WorkflowExecution>| {
        said(execution(&NamespaceId::from("n"), given.as_ref(), &limits()))
    };
    let of = |workflow_id: &str, run_id: &str| {
        Some(WorkflowExecution { workflow_id: workflow_id.into(), run_id: run_id.into() })
    };
    assert_eq!(check(None), "Execution is not set on request.");
    assert_eq!(check(of("", "")), "WorkflowId is not set on request.");
    assert_eq!(check(of("w", "r")), "Invalid RunId.");
    assert_eq!(check(of("w", "")), "ok");
}

#[test]
fn reserved_queue_names_and_unknown_kinds_are_refused() {
    let check = |name: &str, kind: i32| {
        let normal_name = "normal".to_owned();
        said(queue(Some(&TaskQueue { name: name.into(), kind, normal_name }), &limits()))
    };
    assert_eq!(said(queue(None, &limits())), "taskQueue is not set");
    assert_eq!(check("", 0), "missing task queue name");
    assert_eq!(
        check("/_sys/orders/1", 0),
        "Task queue name cannot start with reserved prefix /_sys/."
    );
    for kind in [TaskQueueKind::Unspecified, TaskQueueKind::Normal, TaskQueueKind::Sticky] {
        assert_eq!(check("orders", kind.into()), "ok");
    }
    assert_eq!(check("orders", 99), "TaskQueue.Kind is unknown.");
    let kind = TaskQueueKind::Sticky.into();
    let sticky = TaskQueue { name: "s".into(), kind, normal_name: "n".into() };
    assert_eq!(queue(Some(&sticky), &limits()).unwrap(), QueueName::sticky("s", "n"));
}

#[test]
fn blobs_memos_and_headers_have_their_sizes() {
    // One payload of 94 bytes is 98 with what frames it.
    assert_eq!(said(blob(Some(&payloads(94)), &limits())), "ok");
    assert_eq!(said(blob(Some(&payloads(98)), &limits())), "Blob data size exceeds limit.");
    let memo_of = |bytes| Memo { fields: [("k".to_owned(), payload(bytes))].into() };
    assert_eq!(said(memo(Some(&memo_of(50)), &limits())), "ok");
    assert_eq!(said(memo(Some(&memo_of(200)), &limits())), "Memo size exceeds limit.");
    let header_of = |bytes| Header { fields: [("k".to_owned(), payload(bytes))].into() };
    assert_eq!(said(header(Some(&header_of(200)), &limits())), "Header size exceeds limit.");
}

#[test]
fn user_metadata_has_a_short_summary_and_details() {
    let of = |summary: usize, details: usize| {
        let metadata =
            UserMetadata { summary: Some(payload(summary)), details: Some(payload(details)) };
        said(user_metadata(Some(&metadata), &limits()))
    };
    assert_eq!(of(390, 19_000), "ok");
    assert!(of(401, 0).starts_with("user metadata summary size"));
    assert!(of(0, 20_001).starts_with("user metadata details size"));
}

#[test]
fn links_are_few_and_small() {
    assert_eq!(said(links(&vec![Link::default(); 10])), "ok");
    assert!(said(links(&vec![Link::default(); 11])).starts_with("cannot attach more than 10"));
    let job = piton_proto::common::link::BatchJob { job_id: "x".repeat(4_000) };
    let large = Link { variant: Some(piton_proto::common::link::Variant::BatchJob(job)) };
    assert!(said(links(&[large])).starts_with("link exceeds allowed size"));
}

#[test]
fn priorities_are_not_negative_and_fairness_keys_short() {
    let check = |priority_key, key: &str, fairness_weight| {
        let fairness_key = key.to_owned();
        said(priority(Some(&Priority { priority_key, fairness_key, fairness_weight })))
    };
    assert_eq!(check(0, "", 0.0), "ok");
    assert_eq!(check(5, &"k".repeat(64), 0.5), "ok");
    assert_eq!(check(-1, "", 0.0), "priority key can't be negative");
    assert!(check(1, &"k".repeat(65), 0.0).starts_with("fairness key length"));
    assert!(check(1, "", -1.0).starts_with("fairness weight"));
    assert!(check(1, "", f32::NAN).starts_with("fairness weight"));
}

#[test]
fn a_page_has_at_most_as_many_rows_as_allowed() {
    for (given, rows) in [(0, 256), (10, 10), (1_000, 256), (-1, 256), (i32::MIN, 256)] {
        assert_eq!(page_size(given, 256), rows, "{given}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_is_answered_a_second_before_its_client_stops_waiting() {
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    let check = |client| poll_deadline(client, now, &limits());
    assert_eq!(said(check(None)), "Context timeout is not set.");
    let hurried = Some(now + Duration::from_millis(1_999));
    assert!(matches!(check(hurried), Err(ApiError::PollTimeTooShort)));
    assert_eq!(check(Some(after(2))).unwrap(), after(1));
    assert_eq!(check(Some(after(30))).unwrap(), after(29));
    assert_eq!(check(Some(after(70))).unwrap(), after(60));
}

#[tokio::test(start_paused = true)]
async fn a_held_request_gives_a_client_in_a_hurry_half_of_its_time() {
    let now = Instant::now();
    let hold = Duration::from_secs(20);
    let after = |millis| now + Duration::from_millis(millis);
    assert_eq!(held_until(None, now, hold), after(20_000));
    assert_eq!(held_until(Some(after(1_000)), now, hold), after(500));
    assert_eq!(held_until(Some(after(5_000)), now, hold), after(4_000));
    assert_eq!(held_until(Some(after(60_000)), now, hold), after(20_000));
}

#[test]
fn versioned_workers_and_queue_rates_are_refused_by_field() {
    let options = |mode: WorkerVersioningMode| WorkerDeploymentOptions {
        build_id: "b".to_owned(),
        worker_versioning_mode: mode.into(),
        ..WorkerDeploymentOptions::default()
    };
    assert_eq!(said(unversioned(Some(&options(WorkerVersioningMode::Unversioned)))), "ok");
    let refused = said(unversioned(Some(&options(WorkerVersioningMode::Versioned))));
    assert!(refused.starts_with("deployment_options.worker_versioning_mode"), "{refused}");
    assert_eq!(said(no_rate_limit(None)), "ok");
    assert_eq!(said(no_rate_limit(Some(100_000.0))), "ok");
    assert!(said(no_rate_limit(Some(10.0))).starts_with("task_queue_metadata"));
    let old = WorkerVersionCapabilities { use_versioning: true, ..Default::default() };
    assert!(said(no_version_sets(Some(&old))).starts_with("worker_version_capabilities"));
}

#[test]
fn a_missing_request_id_is_drawn_and_a_given_one_kept() {
    let mut given = "mine".to_owned();
    request_id(&mut given, &limits()).unwrap();
    assert_eq!(given, "mine");
    let (mut one, mut other) = (String::new(), String::new());
    request_id(&mut one, &limits()).unwrap();
    request_id(&mut other, &limits()).unwrap();
    assert!(Uuid::try_parse(&one).is_ok() && one != other);
}
