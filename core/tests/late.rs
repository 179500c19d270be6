//! What comes late, twice, or from a clock that is behind: it counts for nothing.

mod flow;

use flow::*;
use piton_core::error::Rejection;
use piton_core::id::EventId;
use piton_core::request::{ActivityRef, RunRequest, Taker};
use piton_core::run::{ActivityTask, Reply};
use piton_core::time::{Span, Timestamp};

const SCHEDULED: EventId = EventId(5);

/// A run with one activity, whose Scheduled event is [`SCHEDULED`].
fn with_activity() -> Flow {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.complete(&task, vec![schedule_activity("a")]).expect("the task is held");
    flow
}

fn take(flow: &mut Flow, stamp: u32, ticket: &str) -> Option<Box<ActivityTask>> {
    let taker = Taker {
        identity: "worker".into(),
        request_id: ticket.into(),
        sticky: false,
        worker_version: None,
    };
    let created = flow.run.activities.get(&SCHEDULED).map(|a| a.note.attempt_scheduled_at);
    let created = created.unwrap_or(Timestamp::MIN);
    match flow.ask(RunRequest::StartActivity { scheduled: SCHEDULED, stamp, created, taker }) {
        Ok(Reply::Activity(task)) => Some(task),
        Ok(Reply::Gone) => None,
        other => panic!("neither a task nor gone: {other:?}"),
    }
}

fn complete(flow: &mut Flow, task: &ActivityTask) -> Result<Reply, Rejection> {
    let (attempt, stamp) = (task.attempt, task.stamp);
    let activity = ActivityRef::Attempt { scheduled: SCHEDULED, attempt, stamp };
    let identity = "worker".to_owned();
    flow.ask(RunRequest::CompleteActivity { activity, result: None, identity })
}

#[test]
fn offer_and_token_of_an_attempt_that_was_put_back_are_worth_nothing() {
    let mut flow = with_activity();
    let first = take(&mut flow, 1, "first").expect("offered");
    let undelivered = RunRequest::ActivityUndelivered {
        scheduled: SCHEDULED,
        stamp: first.stamp,
        request_id: "first".into(),
    };
    flow.ask(undelivered).expect("never refused");
    assert!(take(&mut flow, first.stamp, "second").is_none(), "an offer under the old stamp");
    let second = take(&mut flow, first.stamp + 1, "second").expect("offered again");
    assert_eq!(second.attempt, first.attempt, "nobody has had it");
    let refused = complete(&mut flow, &first);
    assert!(matches!(refused, Err(Rejection::ActivityNotFound(_))), "{refused:?}");
    complete(&mut flow, &second).expect("the attempt under way");
}

#[test]
fn a_timer_that_waits_for_the_held_task_does_not_fire_again() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.complete(&task, vec![start_timer("t", Span::from_secs(5))]).expect("the task is held");
    flow.signal("wakes");
    let held = flow.take();
    flow.due_after(Span::from_secs(5));
    flow.due_after(Span::from_secs(1));
    flow.complete(&held, vec![]).expect("the task is held");
    assert_eq!(flow.history().matches("TimerFired").count(), 1, "{}", flow.history());
}

/// A new leader's clock may be behind the old one's.
#[test]
fn times_of_a_history_do_not_go_back_with_the_clock() {
    let mut flow = Flow::start();
    flow.wait(Span::from_secs(60));
    flow.signal("late");
    let task = flow.take();
    flow.now = flow.now - Span::from_secs(30);
    flow.complete(&task, vec![start_timer("t", Span::from_secs(5))]).expect("the task is held");
    flow.signal("early");
    let times = flow.run.uncommitted.iter().map(|event| {
        Timestamp::from_proto(event.event_time.as_ref()).expect("every event has a time")
    });
    assert!(times.is_sorted(), "{:?}", flow.run.uncommitted);
}

/// A ticket of an attempt whose commit failed is presented again, for nobody knows what became of it. By
/// then the task has another answer, and its activity the same number.
#[test]
fn a_ticket_of_an_activity_that_was_never_scheduled_takes_no_other() {
    let mut flow = with_activity();
    let attempt = |flow: &mut Flow, created| {
        let taker = Taker {
            identity: "worker".into(),
            request_id: "ticket".into(),
            sticky: false,
            worker_version: None,
        };
        let stamp = 1;
        flow.ask(RunRequest::StartActivity { scheduled: SCHEDULED, stamp, created, taker })
    };
    let created = flow.run.activities[&SCHEDULED].note.attempt_scheduled_at;
    let other = created - Span::from_nanos(1);
    assert_eq!(attempt(&mut flow, other), Ok(Reply::Gone));
    assert!(matches!(attempt(&mut flow, created), Ok(Reply::Activity(_))));
    assert_eq!(attempt(&mut flow, other), Ok(Reply::Gone), "nor the one under way");
}
