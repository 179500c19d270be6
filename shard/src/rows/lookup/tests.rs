use piton_core::list_filter::{Asked, ListFilter};
use piton_core::time::Timestamp;

use super::*;
use crate::replica::tests::TestShard;
use crate::rows::scan::{Scanning, to_end};
use crate::rows::tests::Driver;
use crate::rows::visibility::{Counting, ListedRun, Listing};

/// Six workflows of one to three runs each, every other one closed.
fn shard() -> TestShard {
    let mut shard = TestShard::new();
    for (n, id) in ["a", "ab", "b", "c\u{0}d", "c", "e"].into_iter().enumerate() {
        let mut driver = Driver::start(shard, id, Timestamp::from_millis(1_000 * (n as i64 + 1)));
        for _ in 0..n % 3 {
            driver.continue_as_new();
        }
        if n % 2 == 0 {
            driver.complete();
        }
        shard = driver.shard;
    }
    shard
}

fn asked_ids(filter: &ListFilter) -> BTreeSet<String> {
    match filter.asked() {
        Asked::Ids(ids) => ids,
        other => panic!("no ids: {other:?}"),
    }
}

fn listed(
    rows: &WorkflowRows,
    filter: &ListFilter,
    after: Option<&[u8]>,
    limit: usize,
) -> [Vec<ListedRun>; 2] {
    let namespace = NamespaceId::from("ns");
    let listing = || Listing::new(&namespace, filter.clone(), after, limit);
    let scanned = to_end(rows, Scanning::new(listing())).expect("it reads");
    let lookup = Lookup::new(&namespace, &asked_ids(filter), listing());
    [scanned, to_end(rows, lookup).expect("it reads")]
}

#[test]
fn what_is_looked_up_is_what_a_scan_finds() {
    let shard = shard();
    let rows = shard.rows();
    let mut found = 0;
    for text in [
        "WorkflowId = 'a'",
        "WorkflowId = 'ab'",
        "WorkflowId = 'b'",
        "WorkflowId = 'c\u{0}d'",
        "WorkflowId = 'nobody'",
        "WorkflowId = 'b' AND ExecutionStatus = 'Running'",
        "WorkflowId IN ('b', 'ab', 'c') AND ExecutionStatus != 'Running'",
        "WorkflowId = 'b' AND WorkflowId = 'c'",
        "WorkflowId IN ('e', 'c', 'a', 'nobody') OR WorkflowId = 'b'",
    ] {
        let filter = ListFilter::parse(text).expect("a valid filter");
        let [scanned, looked_up] = listed(&rows, &filter, None, 100);
        assert_eq!(scanned, looked_up, "{text}");
        found += scanned.len();
        for limit in 0..4 {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let [scanned, looked_up] = listed(&rows, &filter, after.as_deref(), limit);
                assert_eq!(scanned, looked_up, "{text}, {limit} behind {after:?}");
                let Some((key, _)) = scanned.last() else { break };
                after = Some(key.clone());
            }
        }
        let namespace = NamespaceId::from("ns");
        let counting = || Counting::new(&namespace, filter.clone());
        let counted = to_end(&rows, Lookup::new(&namespace, &asked_ids(&filter), counting()));
        let scanned = to_end(&rows, Scanning::new(counting())).expect("it reads");
        assert_eq!(counted.expect("it reads"), scanned, "{text}");
    }
    assert!(found > 15, "{found} runs were found");
}

#[test]
fn a_lookup_reads_the_runs_of_its_workflow_in_slices() {
    let mut driver = Driver::start(TestShard::new(), "a", Timestamp::from_millis(1_000));
    for _ in 0..9 {
        driver.continue_as_new();
    }
    let (rows, namespace) = (driver.shard.rows(), NamespaceId::from("ns"));
    let filter = ListFilter::parse("WorkflowId = 'a'").expect("a valid filter");
    let counting = Counting::new(&namespace, filter.clone());
    let mut lookup = Lookup::new(&namespace, &asked_ids(&filter), counting);
    let mut slices = 1;
    while !lookup.go_on(&rows, RUN_ROWS).expect("it reads") {
        slices += 1;
    }
    assert!(slices >= 10, "{slices}");
    assert_eq!(lookup.answer().total, 10);
}
