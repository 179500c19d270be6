use std::sync::Arc;

use piton_core::id::RunId;
use piton_core::id::WorkflowKey;
use piton_core::placement::SLOTS;
use piton_core::run::Status;
use piton_core::time::Timestamp;
use piton_store::{CheckpointReport, MemoryStore};

use super::*;
use crate::replica::entry::encode_range;
use crate::rows::values::CurrentRun;
use crate::rows::{Current, current_delete, current_write};

/// A shard's replica without Raft: what a test hands in is committed.
pub(crate) struct TestShard {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) replica: ShardReplica,
    index: u64,
}

impl TestShard {
    /// A shard that owns all slots.
    pub(crate) fn new() -> TestShard {
        let mut shard = TestShard::without_range();
        let range = encode_range(1, &SlotRange { version: 1, slots: 0..SLOTS });
        assert_eq!(shard.commit(1, range), [Verdict::Applied]);
        shard
    }

    fn without_range() -> TestShard {
        let store = Arc::new(MemoryStore::new());
        let table = Table::open(store.clone(), 7).expect("an empty store opens");
        let replica = ShardReplica::open(WorkflowRows::new(table)).expect("an empty table opens");
        TestShard { store, replica, index: 0 }
    }

    pub(crate) fn rows(&self) -> WorkflowRows {
        self.replica.rows.clone()
    }

    pub(crate) fn commit(&mut self, term: u64, payload: Bytes) -> Vec<Verdict> {
        self.index += 1;
        let entry = CommittedEntry { term, index: self.index, payload };
        let verdicts = self.replica.apply(vec![entry], mark(self.index)).expect("it applies");
        entry::decode_verdicts(&verdicts[0]).expect("a replica answers verdicts")
    }

    /// Commits transitions in term 1, in one entry.
    pub(crate) fn put(&mut self, transitions: &[TransitionRecord]) -> Vec<Verdict> {
        self.commit(1, entry::encode_entry(1, transitions))
    }

    fn position(&self, id: &str) -> Position {
        self.rows().position(&key(id).into()).expect("it reads")
    }

    fn reopen(&mut self) {
        let table = Table::open(self.store.clone(), 7).expect("it opens");
        self.replica = ShardReplica::open(WorkflowRows::new(table)).expect("it opens");
        self.index = self.replica.applied().map_or(0, |mark| mark.index);
    }

    fn checkpoint(&self) {
        let report = self.replica.table().checkpoint(u64::MAX).expect("the memory engine writes");
        assert!(matches!(report, CheckpointReport::Written { .. }));
    }
}

fn mark(index: u64) -> Mark {
    Mark { index, bytes: Bytes::from_static(b"raft") }
}

pub(crate) fn key(id: &str) -> WorkflowKey {
    WorkflowKey { namespace: "ns".into(), workflow_id: id.into() }
}

fn current(position: u64) -> Current {
    let run = CurrentRun {
        run_id: RunId::from("run"),
        status: Status::Running,
        first_run_id: RunId::from("run"),
        start_request_id: "request".into(),
        start_time: Timestamp::from_millis(1),
        last_time: Timestamp::from_millis(2),
    };
    Current { position: Position(position), run }
}

/// A transition that moves `id` from `base` on and puts a row of its own.
fn step(term: u64, id: &str, base: u64, row: &'static str) -> TransitionRecord {
    let writes = vec![
        Write::put(row, row),
        current_write(1, &key(id), &current(base + 1)).expect("a short row"),
    ];
    TransitionRecord { term, key: key(id).into(), base: Position(base), writes }
}

#[test]
fn a_fitting_transition_is_applied_and_moves_the_position() {
    let mut shard = TestShard::new();
    assert_eq!(shard.put(&[step(1, "a", 0, "x")]), [Verdict::Applied]);
    assert_eq!(shard.position("a"), Position(1));
    assert_eq!(shard.rows().current(&key("a")).expect("reads"), Some(current(1)));
    assert_eq!(shard.rows().get(b"x").expect("reads").as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_transition_on_another_position_is_dropped_alone() {
    let mut shard = TestShard::new();
    shard.put(&[step(1, "a", 0, "x"), step(1, "b", 0, "y")]);
    let verdicts = shard.put(&[step(1, "a", 0, "late"), step(1, "b", 1, "fits")]);
    assert_eq!(verdicts, [Verdict::Moved, Verdict::Applied]);
    assert_eq!(shard.rows().get(b"late").expect("reads"), None);
    assert_eq!((shard.position("a"), shard.position("b")), (Position(1), Position(2)));
}

#[test]
fn transitions_of_one_entry_see_each_others_positions() {
    let mut shard = TestShard::new();
    let verdicts = shard.put(&[step(1, "a", 0, "x"), step(1, "a", 0, "y"), step(1, "a", 1, "z")]);
    assert_eq!(verdicts, [Verdict::Applied, Verdict::Moved, Verdict::Applied]);
    assert_eq!(shard.position("a"), Position(2));
}

#[test]
fn entries_applied_together_see_each_others_positions() {
    let mut shard = TestShard::new();
    let payload = |base| entry::encode_entry(1, &[step(1, "a", base, "x")]);
    let entry = |index, base| CommittedEntry { term: 1, index, payload: payload(base) };
    let entries = vec![entry(2, 0), entry(3, 1), entry(4, 1)];
    let verdicts = shard.replica.apply(entries, mark(4)).expect("it applies");
    let verdicts: Vec<_> = verdicts.iter().map(|v| entry::decode_verdicts(v)).collect();
    let one = |verdict| Ok(vec![verdict]);
    assert_eq!(verdicts, [one(Verdict::Applied), one(Verdict::Applied), one(Verdict::Moved)]);
}

#[test]
fn a_transition_of_another_term_than_its_entry_is_dropped() {
    let mut shard = TestShard::new();
    let payload = entry::encode_entry(1, &[step(1, "a", 0, "x"), step(2, "b", 0, "y")]);
    assert_eq!(shard.commit(2, payload), [Verdict::WrongTerm, Verdict::Applied]);
    assert_eq!(shard.position("a"), Position(0));
}

#[test]
fn a_slot_outside_the_range_is_refused_before_anything_else() {
    let mut shard = TestShard::without_range();
    assert_eq!(shard.put(&[step(1, "a", 0, "x")]), [Verdict::SlotNotHere]);
    let slot = slot_of(&key("a")).0;
    let without = SlotRange { version: 1, slots: slot + 1..SLOTS };
    shard.commit(1, encode_range(1, &without));
    assert_eq!(shard.put(&[step(1, "a", 0, "x")]), [Verdict::SlotNotHere]);
    let with = SlotRange { version: 2, slots: slot..SLOTS };
    assert_eq!(shard.commit(1, encode_range(1, &with)), [Verdict::Applied]);
    assert_eq!(shard.put(&[step(1, "a", 0, "x")]), [Verdict::Applied]);
    // The same range again is fine, an older one is not.
    assert_eq!(shard.commit(1, encode_range(1, &with)), [Verdict::Applied]);
    assert_eq!(shard.commit(1, encode_range(1, &without)), [Verdict::Moved]);
    assert_eq!(shard.rows().range().expect("reads"), Some(with));
}

#[test]
fn deleting_the_current_row_begins_at_position_zero_again() {
    let mut shard = TestShard::new();
    shard.put(&[step(1, "a", 0, "x")]);
    let delete = TransitionRecord {
        term: 1,
        key: key("a").into(),
        base: Position(1),
        writes: vec![current_delete(&key("a"))],
    };
    let verdicts = shard.put(&[delete, step(1, "a", 1, "y"), step(1, "a", 0, "z")]);
    assert_eq!(verdicts, [Verdict::Applied, Verdict::Moved, Verdict::Applied]);
    assert_eq!(shard.position("a"), Position(1));
}

#[test]
fn a_committed_entry_that_does_not_decode_stops_the_shard() {
    let mut shard = TestShard::new();
    let bad = CommittedEntry { term: 1, index: 2, payload: Bytes::from_static(b"?") };
    let good = entry::encode_entry(1, &[step(1, "a", 0, "x")]);
    let good = CommittedEntry { term: 1, index: 1, payload: good };
    assert!(shard.replica.apply(vec![good, bad], mark(2)).is_err());
    assert_eq!(shard.position("a"), Position(0));
}

#[test]
fn a_reopened_replica_knows_range_and_positions_of_its_checkpoint() {
    let mut shard = TestShard::new();
    shard.put(&[step(1, "a", 0, "x")]);
    shard.checkpoint();
    shard.put(&[step(1, "a", 1, "lost")]);
    shard.store.crash();
    shard.reopen();
    assert_eq!((shard.index, shard.replica.checkpointed()), (2, 2));
    assert_eq!(shard.put(&[step(1, "a", 1, "again")]), [Verdict::Applied]);
}

#[test]
fn a_snapshot_restores_another_replica_to_the_same_state() {
    let mut shard = TestShard::new();
    for n in 0..3_000 {
        let id = format!("w{n}");
        shard.put(&[step(1, &id, 0, "x")]);
    }
    shard.checkpoint();
    let mut rows = shard.replica.snapshot().expect("there is a checkpoint");
    shard.put(&[step(1, "after", 0, "late")]);
    let mut other = TestShard::without_range();
    other.put(&[step(1, "gone", 0, "old")]);
    let mut pages = Vec::new();
    loop {
        let page = rows.next_rows(500).expect("it reads");
        if page.is_empty() {
            break;
        }
        pages.extend(page.into_iter().map(Ok));
    }
    other.replica.restore(rows.mark(), &mut pages.into_iter()).expect("it restores");
    assert_eq!(other.replica.applied().map(|mark| mark.index), Some(3_001));
    other.index = 3_001;
    assert_eq!(other.position("w2999"), Position(1));
    assert_eq!(other.position("after"), Position(0));
    assert_eq!(
        other.put(&[step(1, "w5", 1, "y"), step(1, "w5", 1, "z")]),
        [Verdict::Applied, Verdict::Moved]
    );
    other.replica.clear().expect("it clears");
    assert_eq!(other.put(&[step(1, "w5", 0, "y")]), [Verdict::SlotNotHere]);
}

/// Entries as Raft hands them to the thread that must not wait.
fn try_apply(shard: &mut TestShard, transitions: &[TransitionRecord]) -> Option<Vec<Verdict>> {
    let payload = entry::encode_entry(1, transitions);
    let committed = CommittedEntry { term: 1, index: shard.index + 1, payload };
    let verdicts = shard.replica.try_apply(&[committed], &mark(shard.index + 1));
    let verdicts = verdicts.expect("it applies")?;
    shard.index += 1;
    Some(entry::decode_verdicts(&verdicts[0]).expect("a replica answers verdicts"))
}

#[test]
fn an_entry_is_applied_without_the_store_once_its_workflows_are_known() {
    let mut shard = TestShard::new();
    assert_eq!(try_apply(&mut shard, &[step(1, "a", 0, "x")]), None, "it may be in the store");
    assert_eq!(shard.rows().get(b"x").expect("reads"), None, "nothing was done");
    // The leader's actor asks before it decides.
    assert_eq!(shard.rows().current(&key("a")).expect("reads"), None);
    assert_eq!(try_apply(&mut shard, &[step(1, "a", 0, "x")]), Some(vec![Verdict::Applied]));
    assert_eq!(shard.position("a"), Position(1));
    let mixed = [step(1, "a", 1, "y"), step(1, "b", 0, "z")];
    assert_eq!(try_apply(&mut shard, &mixed), None, "one of them is not known");
    assert_eq!(shard.put(&mixed), [Verdict::Applied, Verdict::Applied]);
    let verdicts = try_apply(&mut shard, &[step(1, "a", 1, "y"), step(1, "b", 1, "z")]);
    assert_eq!(verdicts, Some(vec![Verdict::Moved, Verdict::Applied]));
}

#[test]
fn positions_known_before_a_restore_are_not_used_after_it() {
    let mut other = TestShard::new();
    other.put(&[step(1, "a", 0, "x")]);
    other.checkpoint();
    let mut shard = TestShard::new();
    shard.put(&[step(1, "a", 0, "x")]);
    shard.put(&[step(1, "a", 1, "x")]);
    let mut rows = other.replica.snapshot().expect("a snapshot");
    let (mark, rows) = (rows.mark(), rows.next_rows(100).expect("reads"));
    shard.replica.restore(mark, &mut rows.into_iter().map(Ok)).expect("it restores");
    assert_eq!(try_apply(&mut shard, &[step(1, "a", 2, "y")]), None);
    assert_eq!(shard.put(&[step(1, "a", 2, "y")]), [Verdict::Moved]);
    assert_eq!(shard.put(&[step(1, "a", 1, "y")]), [Verdict::Applied]);
}
