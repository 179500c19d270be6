//! What holds of every run after every decision and every fold, by name. Tests and the simulator
//! check all of it after each step; the server itself does not. That a state equals the fold of
//! what is stored takes what is stored, so it is checked there.

use std::collections::BTreeSet;

use crate::effect::ErrandKey;
use crate::id::EventId;
use crate::run::{RunState, Step};

/// An invariant that a state breaks: a bug of ours, never of a caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {detail}")]
pub struct Broken {
    pub name: &'static str,
    pub detail: String,
}

type Check = fn(&RunState) -> Result<(), String>;

/// Every invariant with its name.
const ALL: [(&str, Check); 10] = [
    ("uncommitted events end where the next one begins", uncommitted_events_are_the_last),
    ("a run is closed if and only if it has a close event", closed_has_close_event),
    ("a closed run waits for nothing", closed_waits_for_nothing),
    ("a closed run owes errands it still knows of", owed_errands_are_known),
    ("what is pending was begun by an event of this history", pending_was_begun),
    ("a held task is the scheduled one", held_is_scheduled),
    ("a scheduled task is fit to be taken", scheduled_task_is_sound),
    ("events wait for a held task only", buffered_events_wait),
    ("ids of pending activities and timers are unique", pending_ids_are_unique),
    ("an activity's attempt is in one place", attempts_are_sound),
];

/// Checks every invariant of one run.
///
/// # Errors
/// The first that is broken.
pub fn check(run: &RunState) -> Result<(), Broken> {
    ALL.iter().try_for_each(|(name, holds)| holds(run).map_err(|detail| Broken { name, detail }))
}

/// `Ok` where `holds`, else the detail.
fn ensure(holds: bool, detail: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(detail()) }
}

fn uncommitted_events_are_the_last(run: &RunState) -> Result<(), String> {
    let first = run.next_event_id.0 - run.uncommitted.len() as i64;
    for (event, expected) in run.uncommitted.iter().zip(first..) {
        ensure(event.event_id == expected, || {
            format!("event {} stands where {expected} belongs", event.event_id)
        })?;
    }
    ensure(first >= 1, || {
        format!("{} events, next id {}", run.uncommitted.len(), run.next_event_id)
    })
}

fn closed_has_close_event(run: &RunState) -> Result<(), String> {
    let closed = !run.status.is_open();
    ensure(closed == run.close_event.is_some() && closed == run.close_time.is_some(), || {
        format!("{:?} with close time {:?}", run.status, run.close_time)
    })?;
    let last = run.close_event.as_ref().map(|event| EventId(event.event_id).next());
    ensure(last.is_none_or(|after| after == run.next_event_id), || {
        format!("next event is {}", run.next_event_id)
    })
}

fn closed_waits_for_nothing(run: &RunState) -> Result<(), String> {
    if run.status.is_open() {
        return Ok(());
    }
    let kept = [
        ("activities", run.activities.len()),
        ("timers", run.timers.len()),
        ("external signals", run.external_signals.len()),
        ("external cancels", run.external_cancels.len()),
        ("buffered events", run.buffered.len()),
        ("workflow task", usize::from(run.has_workflow_task())),
        ("held task", usize::from(run.is_task_held())),
        ("sticky queue", usize::from(run.note.sticky.is_some())),
        ("wait for the parent", usize::from(run.note.waits_for_parent)),
        ("backoff", usize::from(run.note.first_task_at.is_some())),
    ];
    let left: Vec<_> = kept.iter().filter(|(_, n)| *n > 0).collect();
    ensure(left.is_empty(), || format!("{left:?}"))
}

fn owed_errands_are_known(run: &RunState) -> Result<(), String> {
    let owed: BTreeSet<ErrandKey> = run.note.owed.iter().copied().collect();
    ensure(owed.len() == run.note.owed.len(), || format!("owed twice: {:?}", run.note.owed))?;
    ensure(owed.is_empty() || !run.status.is_open(), || format!("an open run owes {owed:?}"))?;
    for errand in &owed {
        let known = match errand {
            ErrandKey::CloseChild(initiated) => {
                run.children.get(initiated).is_some_and(|child| child.started.is_some())
            }
            ErrandKey::ReportClose => run.started.parent_workflow_execution.is_some(),
            ErrandKey::StartChild(_)
            | ErrandKey::Signal(_)
            | ErrandKey::Cancel(_)
            | ErrandKey::ReportStart => false,
        };
        ensure(known, || format!("{errand:?}"))?;
    }
    Ok(())
}

fn pending_was_begun(run: &RunState) -> Result<(), String> {
    let pending = [
        ("activity", run.activities.last_key_value().map(|(id, _)| *id)),
        ("timer", run.timers.last_key_value().map(|(id, _)| *id)),
        ("child", run.children.last_key_value().map(|(id, _)| *id)),
        ("external signal", run.external_signals.last_key_value().map(|(id, _)| *id)),
        ("external cancel", run.external_cancels.last_key_value().map(|(id, _)| *id)),
        ("completed task", Some(run.previous_started)),
        ("cancel request", run.cancel_requested),
    ];
    for (name, id) in pending {
        ensure(id.is_none_or(|id| id < run.next_event_id), || format!("{name} {id:?}"))?;
    }
    let keyed = run.activities.iter().all(|(id, a)| *id == a.scheduled_event_id)
        && run.timers.iter().all(|(id, t)| *id == t.started_event_id)
        && run.children.iter().all(|(id, c)| *id == c.initiated_event_id);
    ensure(keyed, || "something stands under another event's id".to_owned())
}

fn held_is_scheduled(run: &RunState) -> Result<(), String> {
    let Some(held) = &run.held else { return Ok(()) };
    let Some(task) = &run.note.workflow_task else {
        return Err("held, but not scheduled".to_owned());
    };
    ensure(held.scheduled.is_none() == task.kind.is_written_ahead(), || {
        format!("a task of kind {:?} carries {:?}", task.kind, held.scheduled)
    })?;
    let first = held.scheduled.as_ref().unwrap_or(&held.started);
    ensure(held.answered || EventId(first.event_id) == run.next_event_id, || {
        format!("its first event is {}, the next one {}", first.event_id, run.next_event_id)
    })
}

fn scheduled_task_is_sound(run: &RunState) -> Result<(), String> {
    let Some(task) = &run.note.workflow_task else { return Ok(()) };
    ensure(task.attempt >= 1 && task.stamp <= run.note.last_stamp, || format!("{task:?}"))?;
    let written = task.kind.is_written_ahead();
    ensure(!written || task.scheduled_event_id < run.next_event_id, || format!("{task:?}"))?;
    ensure(task.kind.may_be_sticky() || !task.queue.is_sticky(), || {
        format!("a task of kind {:?} on a sticky queue", task.kind)
    })?;
    ensure(run.may(Step::ScheduleWorkflowTask), || "scheduled while it may not be".to_owned())
}

fn buffered_events_wait(run: &RunState) -> Result<(), String> {
    // After re-hosting nothing is held, until the first request flushes.
    let has_task = run.has_workflow_task();
    ensure(run.buffered.is_empty() || has_task, || format!("{} wait", run.buffered.len()))?;
    let last = run.buffered.last_key_value().map(|(number, _)| *number);
    ensure(last.is_none_or(|last| last < run.note.next_buffered), || format!("{last:?} is next"))?;
    let numbered = run.buffered.values().find(|event| event.event_id != 0);
    ensure(numbered.is_none(), || format!("has an id already: {numbered:?}"))
}

fn pending_ids_are_unique(run: &RunState) -> Result<(), String> {
    // One whose last event waits counts as closed, so its id may be used again.
    let (mut activities, mut timers) = (BTreeSet::new(), BTreeSet::new());
    for activity in run.activities.values().filter(|a| !run.is_activity_closing(a)) {
        let id = &activity.attributes.activity_id;
        ensure(activities.insert(id), || format!("activity {id}"))?;
    }
    for timer in run.timers.values().filter(|t| !run.is_timer_closing(t)) {
        ensure(timers.insert(&timer.timer_id), || format!("timer {}", timer.timer_id))?;
    }
    Ok(())
}

fn attempts_are_sound(run: &RunState) -> Result<(), String> {
    for activity in run.activities.values() {
        let note = &activity.note;
        let sound = note.attempt >= 1
            && note.stamp >= note.attempt
            && !(note.started.is_some() && note.retry_wait.is_some())
            && note.attempt_scheduled_at >= activity.scheduled_at;
        ensure(sound, || format!("activity {}: {note:?}", activity.scheduled_event_id))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::WorkflowKey;
    use crate::run::{Status, Timer};
    use crate::time::Timestamp;
    use piton_proto::history::HistoryEvent;
    use piton_proto::history::history_event::Attributes;

    fn run() -> RunState {
        let key = WorkflowKey { namespace: "ns".into(), workflow_id: "w".into() };
        let started = HistoryEvent {
            event_id: 1,
            attributes: Some(Attributes::WorkflowExecutionStartedEventAttributes(
                Default::default(),
            )),
            ..Default::default()
        };
        let note = (crate::note::NoteKey::Run, crate::note::Note::Run(Default::default()));
        RunState::from_history(key, "r".into(), [started], [note]).expect("it is one event")
    }

    #[test]
    fn a_broken_state_is_named() {
        assert_eq!(check(&run()), Ok(()));
        let broken = |change: fn(&mut RunState)| {
            let mut run = run();
            change(&mut run);
            check(&run).expect_err("it is broken").name
        };
        let closed = broken(|run| run.status = Status::Completed);
        assert_eq!(closed, "a run is closed if and only if it has a close event");
        let timer = broken(|run| {
            let started_event_id = EventId(9);
            let timer = Timer {
                timer_id: "t".into(),
                started_event_id,
                fires_at: Timestamp::from_nanos(1),
            };
            run.timers.insert(started_event_id, timer.into());
        });
        assert_eq!(timer, "what is pending was begun by an event of this history");
        let owed = broken(|run| run.note.owed.push(ErrandKey::ReportClose));
        assert_eq!(owed, "a closed run owes errands it still knows of");
        let waiting = broken(|run| {
            run.buffered.insert(0, HistoryEvent::default().into());
        });
        assert_eq!(waiting, "events wait for a held task only");
        let gap = broken(|run| run.uncommitted.push(std::sync::Arc::default()));
        assert_eq!(gap, "uncommitted events end where the next one begins");
    }
}
