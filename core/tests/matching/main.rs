//! A task queue, held against naive models with thousands of random calls from a seed: one that keeps
//! everything in lists (`naive`), and shards whose rows do not fit into the queue's window (`overload`).
//! Here: one case for each rule.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that panics has failed, and what it prints is read"
)]

mod naive;
mod overload;

use std::collections::BTreeMap;

use piton_core::id::ShardId;
use piton_core::matching::{
    Bounds, Class, Matching, Offered, Poll, Polled, Standing, Task, stride,
};
use piton_core::time::{Span, Timestamp};

type Queue = Matching<u64, u64>;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 29);
        x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())].clone())
    }
}

fn bounds(window: usize, lanes: usize) -> Bounds {
    Bounds {
        window,
        lanes,
        volatile: 1_000,
        spent: 1_000,
        patience_of_rows: None,
        patience_of_volatile: None,
        memory: Span::from_secs(300),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::default() + Span::from_secs(seconds)
}

fn class(priority: u8, fairness_key: &str) -> Class {
    Class { priority, version: "".into(), fairness_key: fairness_key.into() }
}

fn task(id: u64, shard: u32, class: Class, created: Timestamp) -> Task<u64> {
    let (origin, standing) = (ShardId(shard), Standing::Row);
    Task { id, origin, class, stride: stride(1.0), created, standing }
}

fn poll(id: u64, worker: &str) -> Poll<u64> {
    Poll {
        id,
        version: "".into(),
        identity: worker.to_owned(),
        worker_version: None,
        worker: worker.to_owned(),
    }
}

fn taken(queue: &mut Queue, id: u64) -> Option<Task<u64>> {
    match queue.poll(poll(id, "w"), at(0)) {
        Polled::Matched(met) => Some(met.task),
        Polled::Waits | Polled::Known | Polled::ShutDown(_) => None,
    }
}

/// Keys of one priority take turns by their weights, however many tasks one of them has.
#[test]
fn keys_take_turns_by_weight() {
    let mut queue = Queue::new(bounds(10_000, 100), at(0));
    let mut id = 0;
    for (key, weight, count) in [("flood", 1.0, 3_000), ("heavy", 3.0, 300), ("light", 0.5, 300)] {
        for _ in 0..count {
            id += 1;
            let task = Task { stride: stride(weight), ..task(id, 0, class(3, key), at(0)) };
            queue.offer(task, false, at(0));
        }
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for poll in 0..90 {
        let task = taken(&mut queue, poll).unwrap();
        *counts.entry(task.class.fairness_key.to_string()).or_default() += 1;
    }
    let of = |key: &str| counts[key];
    assert_eq!(of("flood") + of("heavy") + of("light"), 90);
    assert!((19..=21).contains(&of("flood")), "{counts:?}");
    assert!((59..=61).contains(&of("heavy")), "{counts:?}");
    assert!((9..=11).contains(&of("light")), "{counts:?}");
}

/// The same as on the official server: no weight is the weight 1, and none is below a thousandth.
#[test]
fn strides_are_a_thousand_parts_by_weight() {
    for (weight, expected) in [
        (0.0, 1_000),
        (-1.0, 1_000),
        (f32::NAN, 1_000),
        (1.0, 1_000),
        (2.0, 500),
        (1e9, 1),
        (f32::INFINITY, 1),
        (1e-9, 999_999),
    ] {
        assert_eq!(stride(weight), expected, "weight {weight}");
    }
}

#[test]
fn a_poll_that_comes_again_is_not_queued_twice() {
    let mut queue = Queue::new(bounds(10, 10), at(0));
    assert_eq!(queue.poll(poll(1, "w"), at(0)), Polled::Waits);
    assert_eq!(queue.poll(poll(1, "w"), at(1)), Polled::Known);
    let first = queue.offer(task(1, 0, class(3, ""), at(0)), false, at(1));
    assert!(matches!(first, Offered::Matched(_)));
    // It was matched; a call that is late or repeated must not meet another task.
    assert_eq!(queue.poll(poll(1, "w"), at(2)), Polled::Known);
    queue.withdraw_poll(&2);
    assert_eq!(queue.poll(poll(2, "w"), at(2)), Polled::Known);
    assert_eq!(queue.offer(task(2, 0, class(3, ""), at(0)), false, at(2)), Offered::Waits);
}

#[test]
fn volatile_tasks_go_before_the_rows_of_their_priority_and_are_bounded() {
    let mut queue = Queue::new(Bounds { volatile: 2, ..bounds(10, 10) }, at(0));
    let volatile = |id, priority| Task {
        standing: Standing::Volatile,
        ..task(id, 0, class(priority, ""), at(9))
    };
    queue.offer(task(1, 0, class(2, ""), at(0)), false, at(9));
    queue.offer(task(2, 0, class(3, ""), at(0)), false, at(9));
    assert_eq!(queue.offer(volatile(3, 3), false, at(9)), Offered::Waits);
    assert_eq!(queue.offer(volatile(4, 3), false, at(9)), Offered::Waits);
    assert!(matches!(queue.offer(volatile(5, 3), false, at(9)), Offered::Refused(_)));
    let order: Vec<_> = (0..4).map(|id| taken(&mut queue, id).unwrap().id).collect();
    assert_eq!(order, [1, 3, 4, 2]);
}

#[test]
fn a_queue_without_a_poll_refuses_what_would_wait_in_vain() {
    let patience = Some(Span::from_secs(10));
    let bounds = Bounds { patience_of_rows: patience, patience_of_volatile: None, ..bounds(10, 9) };
    let mut queue = Queue::new(bounds, at(0));
    let row = |id| task(id, 0, class(3, ""), at(0));
    assert_eq!(queue.offer(row(1), false, at(10)), Offered::Waits);
    assert!(matches!(queue.offer(row(2), false, at(11)), Offered::Refused(_)));
    let volatile = Task { standing: Standing::Volatile, ..row(3) };
    assert_eq!(queue.offer(volatile, false, at(11)), Offered::Waits);
    assert!(matches!(queue.poll(poll(1, "w"), at(12)), Polled::Matched(_)));
    assert_eq!(queue.offer(row(4), false, at(13)), Offered::Waits);
}

/// What waits in the queue of a worker that shuts down goes back at once, and so does what comes.
#[test]
fn the_queue_of_a_worker_that_shuts_down_is_left_by_all() {
    let bounds = Bounds { patience_of_rows: Some(Span::from_secs(10)), ..bounds(10, 10) };
    let mut queue = Queue::new(bounds, at(0));
    let row = |id| task(id, 0, class(3, ""), at(0));
    queue.offer(row(1), false, at(1));
    queue.offer(row(2), true, at(1));
    let left = queue.close("w", at(1));
    assert_eq!(left.tasks.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(queue.wants().len(), 1, "more of them stand behind");
    assert!(matches!(queue.offer(row(3), false, at(1)), Offered::Refused(_)));
    assert!(matches!(queue.poll(poll(1, "w"), at(1)), Polled::ShutDown(_)));
    // A worker that gave no name, or another one: it is served again.
    assert_eq!(queue.poll(poll(2, ""), at(2)), Polled::Waits);
    assert!(matches!(queue.offer(row(4), false, at(2)), Offered::Matched(_)));
    queue.poll(poll(3, "x"), at(3));
    assert_eq!(queue.close("w", at(3)).polls.len(), 1, "whoever waited there");
}

/// A task whose commit failed may be here all the same. What was decided instead may go by the same id: it
/// is later, and the other one is nobody's.
#[test]
fn of_two_tasks_by_one_id_the_later_one_waits() {
    let mut queue = Queue::new(bounds(10, 10), at(0));
    for created in [2, 1, 3, 2] {
        let offered = queue.offer(task(7, 0, class(3, ""), at(created)), false, at(0));
        assert_eq!(offered, Offered::Waits);
        assert_eq!(queue.len(), 1);
    }
    assert_eq!(taken(&mut queue, 1).map(|task| task.created), Some(at(3)));
    assert_eq!(taken(&mut queue, 2), None);
}
