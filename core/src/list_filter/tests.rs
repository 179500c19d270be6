use std::collections::BTreeMap;

use super::*;
use crate::run::Status;
use crate::time::Timestamp;
use crate::visibility::{Figures, ParentExecution};

fn record(id: &str, status: Status) -> VisibilityRecord {
    let closed = !status.is_open();
    VisibilityRecord {
        workflow_id: id.into(),
        run_id: "run".into(),
        first_run_id: "run".into(),
        workflow_type: "order's".into(),
        task_queue: "orders".into(),
        status,
        start_time: Timestamp::from_millis(1_000),
        execution_time: Timestamp::from_millis(2_000),
        close_time: closed.then_some(Timestamp::from_millis(5_000)),
        figures: closed.then_some(Figures {
            history_length: 11,
            history_bytes: 900,
            transitions: 5,
        }),
        parent: (id == "child").then(|| ParentExecution {
            namespace_id: "ns".into(),
            workflow_id: "mother".into(),
            run_id: "m".into(),
        }),
        root: ("root".into(), "r".into()),
        memo: Default::default(),
        search_attributes: BTreeMap::new(),
        priority: None,
    }
}

/// Which of three runs a filter lets pass: an open one, a closed one, a closed child.
fn passing(text: &str) -> String {
    let filter = ListFilter::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let runs = [
        record("open", Status::Running),
        record("done", Status::Completed),
        record("child", Status::Failed),
    ];
    let ids: Vec<_> =
        runs.iter().filter(|r| filter.matches(r)).map(|r| r.workflow_id.as_str()).collect();
    ids.join(" ")
}

#[test]
fn a_filter_lets_the_right_runs_pass() {
    for (text, passes) in [
        ("", "open done child"),
        ("  ", "open done child"),
        ("WorkflowId = 'open'", "open"),
        ("WorkflowId = \"open\"", "open"),
        ("`WorkflowId` != 'open'", "done child"),
        ("WorkflowId STARTS_WITH 'o'", "open"),
        ("WorkflowId starts_with ''", "open done child"),
        ("WorkflowId STARTS_WITH 'O'", ""),
        ("WorkflowId STARTS_WITH 'op%'", ""),
        ("WorkflowId NOT STARTS_WITH 'o'", "done child"),
        ("ParentWorkflowId STARTS_WITH 'moth'", "child"),
        ("ParentWorkflowId NOT STARTS_WITH 'x'", "child"),
        ("WorkflowType='order''s'", "open done child"),
        (r"WorkflowType = 'order\'s'", "open done child"),
        (r#"WorkflowType = "order\'s""#, "open done child"),
        (r"WorkflowType = 'order\\s'", ""),
        (r"WorkflowId != '\\' AND WorkflowId = 'op\en'", "open"),
        ("ExecutionDuration >= 2000000000", "done child"),
        ("ExecutionDuration >= '3.1s'", ""),
        ("HistoryLength >= 1.1e1", "done child"),
        ("WorkflowId >= 'done' AND WorkflowId < 'e'", "done"),
        ("WorkflowId IN ('open', 'child')", "open child"),
        ("WorkflowId between 'a' and 'd'", "child"),
        ("ExecutionStatus = 'Running'", "open"),
        ("ExecutionStatus != 'Running'", "done child"),
        ("ExecutionStatus = 1", "open"),
        ("ExecutionStatus in ('Completed', 'WORKFLOW_EXECUTION_STATUS_FAILED')", "done child"),
        ("ExecutionStatus = 'Paused'", ""),
        ("StartTime = '1970-01-01T00:00:01Z'", "open done child"),
        ("StartTime < '1970-01-01T00:00:01.000000001Z'", "open done child"),
        ("StartTime <= 999999999", ""),
        ("CloseTime > '1970-01-01T01:00:00+01:00'", "done child"),
        ("CloseTime != 0", "done child"),
        ("ExecutionDuration = '3s'", "done child"),
        ("ExecutionDuration BETWEEN 2999999999 AND 3000000000", "done child"),
        (
            "HistoryLength > 10 AND HistorySizeBytes = 900 AND StateTransitionCount = 5",
            "done child",
        ),
        ("ParentWorkflowId = 'mother' AND ParentRunId = 'm'", "child"),
        ("ParentWorkflowId != 'mother'", ""),
        ("RootWorkflowId = 'root' AND RootRunId = 'r' AND RunId = 'run'", "open done child"),
        ("TaskQueue='orders' and WorkflowId='done' or WorkflowId='open'", "open done"),
        ("TaskQueue='x' AND (WorkflowId='done' OR WorkflowId='open')", ""),
        ("((WorkflowId='done'))", "done"),
        ("WorkflowId='done' GROUP BY ExecutionStatus", "done"),
        ("group by ExecutionStatus", "open done child"),
    ] {
        assert_eq!(passing(text), passes, "{text}");
    }
}

#[test]
fn a_filter_that_is_not_understood_is_refused_with_its_position() {
    for (text, position, part) in [
        ("WorkflowId", 11, "malformed SQL query: syntax error at position 11"),
        ("WorkflowId = ", 14, "syntax error at position 14"),
        ("WorkflowId = 'x", 14, "has no end"),
        (
            "WorkflowId = x",
            14,
            "right side of comparison expression (did you forget to quote \"x\"?)",
        ),
        (
            "WorkflowId = 7",
            14,
            "invalid value type for search attribute WorkflowId of type Keyword: 7 (type: int64)",
        ),
        ("Colour = 'red'", 1, "invalid query: invalid search attribute: Colour"),
        ("workflowid = 'x'", 1, "invalid search attribute: workflowid"),
        ("BuildIds = 'x'", 1, "operation is not supported: filtering by search attribute BuildIds"),
        ("WorkflowId LIKE 'x'", 12, "operation is not supported: operator 'LIKE'"),
        ("WorkflowId STARTS_WITH ('x')", 24, "syntax error at position 24 near '('"),
        (
            "WorkflowId STARTS_WITH 5",
            24,
            "invalid value type for search attribute WorkflowId of type Keyword: 5 (type: int64)",
        ),
        (
            "HistoryLength STARTS_WITH '5'",
            27,
            "invalid value type for search attribute HistoryLength of type Int: \"5\" (type: string)",
        ),
        ("StartTime STARTS_WITH '2026'", 23, "unable to parse datetime '2026'"),
        (
            "ExecutionDuration STARTS_WITH '1s'",
            19,
            "operator 'STARTS_WITH' not supported for Int type search attribute 'ExecutionDuration'",
        ),
        ("ExecutionStatus STARTS_WITH 'Run'", 29, "invalid ExecutionStatus value 'Run'"),
        ("WorkflowId IS NULL", 12, "not supported: operator 'IS'"),
        ("WorkflowId NOT IN ('x')", 12, "not supported: operator 'NOT'"),
        ("NOT (WorkflowId = 'x')", 1, "not supported: operator 'NOT'"),
        ("WorkflowId <> 'x'", 12, "near '<>'"),
        ("WorkflowId = 'x' ORDER BY StartTime", 18, "not supported: 'ORDER BY' clause"),
        ("WorkflowId = 'x' LIMIT 5", 18, "operation is not supported: 'LIMIT' clause"),
        ("WorkflowId = 'x' AND", 21, "syntax error at position 21"),
        ("WorkflowId = 'x')", 17, "near ')'"),
        ("(WorkflowId = 'x'", 18, "syntax error at position 18"),
        ("WorkflowId IN ()", 16, "near ')'"),
        ("WorkflowId BETWEEN 'a' OR 'b'", 24, "near 'OR'"),
        ("ExecutionStatus = 'Sleeping'", 19, "invalid ExecutionStatus value 'Sleeping'"),
        ("ExecutionStatus = 0", 19, "invalid ExecutionStatus value '0'"),
        ("ExecutionStatus > 'Running'", 17, "operation is not supported"),
        ("StartTime > 'today'", 13, "invalid expression: unable to parse datetime 'today'"),
        ("StartTime > '5'", 13, "unable to parse datetime '5'"),
        (
            "StartTime > 1.5",
            13,
            "invalid value type for search attribute StartTime of type Datetime: 1.5 (type: float64)",
        ),
        (
            "HistoryLength > '3'",
            17,
            "invalid value type for search attribute HistoryLength of type Int: \"3\" (type: string)",
        ),
        ("HistoryLength > 1.5", 17, "not a whole number"),
        (
            "ExecutionDuration >= 2e9",
            22,
            "invalid expression: unexpected value type float64 for search attribute ExecutionDuration",
        ),
        ("ExecutionDuration BETWEEN 1 AND 2e9", 33, "unexpected value type float64"),
        (
            "ExecutionDuration = 'x'",
            21,
            "invalid duration value for search attribute ExecutionDuration: x",
        ),
        ("GROUP BY WorkflowType", 10, "clause is not supported for search attribute WorkflowType"),
        ("GROUP BY Colour", 10, "invalid search attribute: Colour"),
        ("GROUP ExecutionStatus", 7, "near 'ExecutionStatus'"),
        ("GROUP BY ExecutionStatus, RunId", 25, "near ','"),
        ("WorkflowId = 'ä' ; DROP", 19, "near ';'"),
    ] {
        let error = ListFilter::parse(text).expect_err(text);
        assert_eq!(error.position, position, "{text}: {error}");
        let shown = error.to_string();
        assert!(shown.starts_with("invalid query: ") && shown.contains(part), "{text}: {shown}");
    }
}

#[test]
fn an_attribute_that_the_namespace_defines_is_not_called_invalid() {
    let error = ListFilter::parse("Colour = 'red'").expect_err("it is not built");
    let defined = error.clone().where_defined(|name| name == "Colour").to_string();
    assert!(defined.contains("not supported: filtering by search attribute Colour"), "{defined}");
    assert_eq!(error.clone().where_defined(|_| false), error);
}

#[test]
fn a_filter_is_bounded_in_depth_and_length() {
    let nested = |depth| format!("{}RunId='x'{}", "(".repeat(depth), ")".repeat(depth));
    assert!(ListFilter::parse(&nested(DEPTH_MAX)).is_ok());
    let error = ListFilter::parse(&nested(100_000)).expect_err("too deep");
    assert_eq!(error.position, DEPTH_MAX + 1);
    let long = vec!["RunId='x'"; TERMS_MAX + 1].join(" OR ");
    assert!(ListFilter::parse(&long).expect_err("too long").reason.contains("at most"));
}

#[test]
fn only_a_count_may_be_grouped_and_the_caller_can_tell() {
    let grouped = ListFilter::parse("GROUP BY ExecutionStatus").expect("is understood");
    assert_eq!(grouped.group_by(), Some(GroupBy::ExecutionStatus));
    assert_eq!(ListFilter::parse("RunId='x'").expect("is understood").group_by(), None);
}

#[test]
fn lists_of_open_and_of_closed_runs_are_narrowed_by_all_that_is_given() {
    let check = |asked: Narrowed, expected: &str| {
        let filter = ListFilter::narrowed(asked.clone());
        let runs = [
            record("open", Status::Running),
            record("done", Status::Completed),
            record("child", Status::Failed),
        ];
        let fits = runs.iter().filter(|run| filter.matches(run));
        let ids: Vec<_> = fits.map(|run| run.workflow_id.as_str()).collect();
        assert_eq!(ids.join(" "), expected, "{asked:?}");
    };
    let closed = Narrowed::default;
    check(Narrowed { is_open: true, ..closed() }, "open");
    check(closed(), "done child");
    let status = Some(WorkflowExecutionStatus::Failed);
    check(Narrowed { status, ..closed() }, "child");
    check(Narrowed { workflow_id: Some("done".into()), ..closed() }, "done");
    check(Narrowed { workflow_id: Some("open".into()), ..closed() }, "");
    check(Narrowed { workflow_type: Some("order's".into()), ..closed() }, "done child");
    check(Narrowed { run_id: Some("other".into()), ..closed() }, "");
    check(Narrowed { started_from: Some(Timestamp::from_millis(1_000)), ..closed() }, "done child");
    check(Narrowed { started_from: Some(Timestamp::from_millis(1_001)), ..closed() }, "");
    check(Narrowed { started_until: Some(Timestamp::from_millis(999)), ..closed() }, "");
}

#[test]
fn a_filter_names_the_workflows_that_can_pass() {
    let ids = |ids: &[&str]| Asked::Ids(ids.iter().map(|id| (*id).to_owned()).collect());
    let prefix = |text: &str| Asked::Prefix(text.to_owned());
    for (text, asked) in [
        ("", Asked::All),
        ("WorkflowId = 'b'", ids(&["b"])),
        ("WorkflowId IN ('b', 'a', 'b')", ids(&["a", "b"])),
        ("WorkflowId STARTS_WITH 'a'", prefix("a")),
        ("WorkflowId NOT STARTS_WITH 'a'", Asked::All),
        ("WorkflowId != 'b'", Asked::All),
        ("WorkflowId > 'b'", Asked::All),
        ("RunId = 'b'", Asked::All),
        ("WorkflowId = 'b' AND RunId = 'r'", ids(&["b"])),
        ("RunId = 'r' AND ExecutionStatus = 'Running' AND WorkflowId = 'b'", ids(&["b"])),
        ("WorkflowId = 'b' OR RunId = 'r'", Asked::All),
        ("WorkflowId = 'b' OR WorkflowId = 'a'", ids(&["a", "b"])),
        ("WorkflowId = 'b' AND WorkflowId = 'a'", ids(&[])),
        ("WorkflowId IN ('ab', 'b') AND WorkflowId STARTS_WITH 'a'", ids(&["ab"])),
        ("WorkflowId STARTS_WITH 'a' AND WorkflowId STARTS_WITH 'ab'", prefix("ab")),
        ("WorkflowId STARTS_WITH 'ab' OR WorkflowId STARTS_WITH 'a'", prefix("a")),
        ("WorkflowId STARTS_WITH 'a' OR WorkflowId STARTS_WITH 'b'", Asked::All),
        ("WorkflowId STARTS_WITH 'a' OR WorkflowId = 'b'", Asked::All),
        ("(WorkflowId = 'a' OR WorkflowId = 'b') AND WorkflowType = 'x'", ids(&["a", "b"])),
        ("WorkflowId = 'a' GROUP BY ExecutionStatus", ids(&["a"])),
    ] {
        let filter = ListFilter::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(filter.asked(), asked, "{text}");
    }
    let narrowed = Narrowed { workflow_id: Some("a".into()), ..Narrowed::default() };
    assert_eq!(ListFilter::narrowed(narrowed).asked(), ids(&["a"]));
}
