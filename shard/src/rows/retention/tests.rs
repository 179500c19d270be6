use piton_core::id::Position;
use piton_core::list_filter::ListFilter;
use piton_core::time::Span;

use super::*;
use crate::replica::entry::{TransitionRecord, Verdict};
use crate::replica::tests::TestShard;
use crate::rows::tests::Driver;
use crate::rows::visibility;
use crate::rows::{current_delete, current_write};

/// Deletes what expired as the workflow's actor does; answers how many transitions it took.
fn delete(shard: &mut TestShard, row: &ExpireRow, limit: usize) -> usize {
    for count in 0.. {
        let rows = shard.rows();
        let deletion = deletion_writes(&rows, row, limit).expect("it reads");
        if deletion.writes.is_empty() {
            return count;
        }
        assert!(deletion.writes.len() <= limit + 8);
        let current = rows.current(&row.key.key).expect("it reads").expect("there is a workflow");
        let mut writes = deletion.writes;
        if deletion.done && matches!(row.what, Expired::Run(_)) {
            writes.push(current_delete(&row.key.key));
        } else {
            let mut moved = current.clone();
            moved.position = Position(current.position.0 + 1);
            writes.push(current_write(1, &row.key.key, &moved).expect("a short row"));
        }
        let record =
            TransitionRecord { term: 1, key: row.key.clone(), base: current.position, writes };
        assert_eq!(shard.put(&[record]), [Verdict::Applied]);
        if deletion.done {
            return count + 1;
        }
        if let Expired::Run(run_id) = &row.what {
            assert!(rows.load_run(&row.key.key, run_id).expect("it reads").is_none());
        }
    }
    unreachable!("it ends")
}

#[test]
fn an_expired_run_leaves_no_row_behind() {
    let mut driver = Driver::start(TestShard::new(), "w", Timestamp::from_millis(1_000));
    for _ in 0..20 {
        driver.signal();
    }
    driver.complete();
    let closed = driver.now;
    let mut shard = driver.shard;
    let before = closed + Span::from_secs(60) - Span::from_nanos(1);
    assert_eq!(expired(&shard.rows(), before, 10).expect("it reads"), []);
    let due = expired(&shard.rows(), closed + Span::from_secs(60), 10).expect("it reads");
    assert_eq!(due.len(), 1);

    let transitions = delete(&mut shard, &due[0], 5);
    assert!(transitions > 4, "{transitions} transitions for more than 20 rows");
    let mut left = Vec::new();
    let collect = |row: piton_store::Row| {
        left.push(row.key);
        Ok(true)
    };
    shard.rows().each_in(bytes::Bytes::new(), end_of(&[0xfe]), collect).expect("it reads");
    assert_eq!(left, [keys::range()]);
    assert_eq!(delete(&mut shard, &due[0], 5), 0, "a second time there is nothing to do");
}

#[test]
fn a_run_in_deletion_is_not_listed_and_other_runs_stay() {
    let mut driver = Driver::start(TestShard::new(), "gone", Timestamp::from_millis(1_000));
    driver.complete();
    let closed = driver.now;
    let other = Driver::start(driver.shard, "stays", Timestamp::from_millis(1_000));
    let mut shard = other.shard;
    let due = expired(&shard.rows(), closed + Span::from_secs(60), 10).expect("it reads");
    delete(&mut shard, &due[0], 1_000);
    let filter = ListFilter::parse("").expect("valid");
    let listed = visibility::tests::list(&shard.rows(), &"ns".into(), &filter, None, 10);
    assert_eq!(listed.expect("it reads").len(), 1);
    let run_id = other.live.expect("it was started").run_id;
    assert!(shard.rows().load_run(&other.key, &run_id).expect("it reads").is_some());
}

#[test]
fn an_expired_request_id_is_forgotten_alone() {
    let driver = Driver::start(TestShard::new(), "w", Timestamp::from_millis(1_000));
    let (id, key) = (RequestId::from("request"), driver.key.clone());
    let entity = crate::rows::EntityKey::from(key.clone());
    let row = crate::rows::RequestRow {
        run_id: driver.run_id(),
        event_id: piton_core::id::EventId(1),
        at: Timestamp::from_millis(5_000),
        kind: crate::rows::RequestKind::Start,
    };
    let keep = Span::from_secs(1);
    let mut writes =
        Vec::from(crate::rows::request_writes(1, &entity, &id, &row, keep).expect("short"));
    let mut shard = driver.shard;
    let mut current = shard.rows().current(&key).expect("reads").expect("there is one");
    let base = current.position;
    current.position = Position(base.0 + 1);
    writes.push(current_write(1, &key, &current).expect("a short row"));
    shard.put(&[TransitionRecord { term: 1, key: entity.clone(), base, writes }]);
    assert_eq!(shard.rows().request(&entity, &id).expect("it reads"), Some(row));

    assert_eq!(expired(&shard.rows(), Timestamp::from_millis(5_999), 10).expect("it reads"), []);
    let due = expired(&shard.rows(), Timestamp::from_millis(6_000), 10).expect("it reads");
    assert_eq!(due[0].what, Expired::Request(id.clone()));
    assert_eq!(delete(&mut shard, &due[0], 10), 1);
    assert_eq!(shard.rows().request(&entity, &id).expect("it reads"), None);
    assert!(shard.rows().current(&key).expect("it reads").is_some());
    assert_eq!(expired(&shard.rows(), Timestamp::MAX, 10).expect("it reads"), []);
}
