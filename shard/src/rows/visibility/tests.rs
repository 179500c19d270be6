#![expect(clippy::single_range_in_vec_init, reason = "shards cover lists of slot ranges")]

use piton_core::time::Timestamp;

use super::*;
use crate::replica::tests::TestShard;
use crate::rows::scan::{Scanning, to_end};
use crate::rows::tests::Driver;

/// Four runs: c and d open (d later), a and b closed (b later).
fn shard() -> TestShard {
    let mut shard = TestShard::new();
    for (n, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let mut driver = Driver::start(shard, id, Timestamp::from_millis(1_000 * (n as i64 + 1)));
        if n < 2 {
            driver.complete();
        }
        shard = driver.shard;
    }
    shard
}

pub(crate) fn list(
    rows: &WorkflowRows,
    namespace: &NamespaceId,
    filter: &ListFilter,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<ListedRun>, LoadError> {
    to_end(rows, Scanning::new(Listing::new(namespace, filter.clone(), after, limit)))
}

fn count(
    rows: &WorkflowRows,
    namespace: &NamespaceId,
    filter: &ListFilter,
) -> Result<CountReply, LoadError> {
    to_end(rows, Scanning::new(Counting::new(namespace, filter.clone())))
}

fn ids(listed: &[ListedRun]) -> Vec<&str> {
    let id = |run: &'_ WorkflowExecutionInfo| run.execution.as_ref().map(|e| e.workflow_id.len());
    assert!(listed.iter().all(|(_, run)| id(run).is_some()));
    listed.iter().filter_map(|(_, run)| run.execution.as_ref()).map(|e| &*e.workflow_id).collect()
}

fn filter(text: &str) -> ListFilter {
    ListFilter::parse(text).expect("a valid filter")
}

#[test]
fn open_runs_come_first_and_the_latest_first() {
    let shard = shard();
    let all = list(&shard.rows(), &"ns".into(), &filter(""), None, 10).expect("it reads");
    assert_eq!(ids(&all), ["d", "c", "b", "a"]);
    let none = list(&shard.rows(), &"other".into(), &filter(""), None, 10).expect("it reads");
    assert!(none.is_empty());
}

#[test]
fn pages_go_on_behind_the_last_key_and_filters_apply() {
    let shard = shard();
    let (rows, ns) = (shard.rows(), NamespaceId::from("ns"));
    let mut after: Option<Vec<u8>> = None;
    let mut all = Vec::new();
    loop {
        let page = list(&rows, &ns, &filter(""), after.as_deref(), 1).expect("it reads");
        let Some((key, _)) = page.first() else { break };
        after = Some(key.clone());
        all.extend(ids(&page).into_iter().map(str::to_owned));
    }
    assert_eq!(all, ["d", "c", "b", "a"]);
    let closed = filter("ExecutionStatus = 'Completed'");
    assert_eq!(ids(&list(&rows, &ns, &closed, None, 10).expect("it reads")), ["b", "a"]);
}

#[test]
fn a_key_from_outside_reads_nothing_outside_the_namespace() {
    let shard = shard();
    let (rows, ns) = (shard.rows(), NamespaceId::from("ns"));
    let before = list(&rows, &ns, &filter(""), Some(b"A"), 10).expect("it reads");
    assert_eq!(ids(&before), ["d", "c", "b", "a"]);
    let behind = list(&rows, &ns, &filter(""), Some(b"z"), 10).expect("it reads");
    assert!(behind.is_empty());
}

#[test]
fn counts_are_total_or_by_status() {
    let shard = shard();
    let (rows, ns) = (shard.rows(), NamespaceId::from("ns"));
    let total = |text: &str| count(&rows, &ns, &filter(text)).expect("it reads").total;
    assert_eq!(total(""), 4);
    assert_eq!(total("WorkflowId = 'a'"), 1);
    let grouped = count(&rows, &ns, &filter("GROUP BY ExecutionStatus")).expect("it reads");
    let groups = vec![("Completed".to_owned(), 2), ("Running".to_owned(), 2)];
    assert_eq!(grouped, CountReply { total: 4, groups });
}

fn run(key: &[u8]) -> ListedRun {
    (key.to_vec(), WorkflowExecutionInfo::default())
}

#[test]
fn merged_pages_are_the_first_rows_of_all_shards() {
    let half = SLOTS / 2;
    let answers = |left: &[&[u8]], right: &[&[u8]]| {
        let left = left.iter().map(|key| run(key)).collect::<Vec<_>>();
        let right = right.iter().map(|key| run(key)).collect::<Vec<_>>();
        vec![(left, vec![half..SLOTS]), (right, vec![0..half])]
    };
    let next = |left: &[&[u8]], right: &[&[u8]]| {
        let (rows, next) = merge_lists(answers(left, right), 2).expect("all slots are covered");
        (rows.len(), next)
    };
    assert_eq!(next(&[b"1", b"4"], &[b"2"]), (2, Some(b"2".to_vec())));
    assert_eq!(next(&[b"1"], &[b"2"]), (2, None));
    assert_eq!(next(&[b"1", b"2"], &[]), (2, Some(b"2".to_vec())));
    assert_eq!(next(&[], &[]), (0, None));
}

#[test]
fn answers_that_do_not_tile_all_slots_are_refused() {
    let merged = |ranges: Vec<Range<u16>>| {
        let answers = |range: &Range<u16>| (CountReply::default(), vec![range.clone()]);
        let counted = merge_counts(ranges.iter().map(answers).collect()).is_some();
        let lists = ranges.into_iter().map(|range| (Vec::new(), vec![range]));
        assert_eq!(merge_lists(lists.collect(), 10).is_some(), counted);
        counted
    };
    assert!(merged(vec![5..SLOTS, 0..5, 5..5]));
    assert!(!merged(vec![0..5, 6..SLOTS]), "a gap");
    assert!(!merged(vec![0..6, 5..SLOTS]), "an overlap");
    assert!(!merged(vec![0..SLOTS, 0..SLOTS]), "twice");
    assert!(!merged(vec![0..5]), "cut short");
    assert!(!merged(vec![]), "nothing");
}
