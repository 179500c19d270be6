//! Workflow tasks: normal, transient and sticky ones, buffering, commands that are refused.

mod flow;

use flow::*;
use piton_core::effect::{ChildOutcome, ChildResult, Effect, TaskKey, TimerKind};
use piton_core::error::Rejection;
use piton_core::id::{EventId, RunId};
use piton_core::limits::Limits;
use piton_core::proto::command::Command;
use piton_core::proto::command::command::Attributes as C;
use piton_core::proto::common::Payloads;
use piton_core::proto::enums::{CommandType, WorkflowTaskFailedCause};
use piton_core::proto::history::history_event::Attributes as A;
use piton_core::proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
};
use piton_core::request::{ActivityRef, RunRequest, Taker, WorkflowTaskRef};
use piton_core::run::{Reply, StartedTask, Status};
use piton_core::time::Span;
use piton_core::transition::Change;

/// Completes the held task as a worker that keeps the run in its cache.
fn complete_sticky(flow: &mut Flow, task: &StartedTask, commands: Vec<Command>) {
    flow.answer(task, sticky_completion(commands)).expect("the task is held");
}

#[test]
fn taking_a_task_changes_nothing_that_is_stored() {
    let mut flow = Flow::start();
    let mut before = flow.run.clone();
    before.take_uncommitted();
    flow.run.take_uncommitted();
    let task = flow.take();
    assert!(Change::between(Some(&before), &mut flow.run).is_empty());
    let suffix: Vec<String> = task.suffix.iter().map(line).collect();
    assert_eq!(suffix, ["3 WorkflowTaskStarted of 2"]);
    assert_eq!((task.history_from.0, task.history_end.0), (1, 3));
}

#[test]
fn a_completion_writes_the_events_that_were_handed_out() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.wait(Span::from_millis(700));
    flow.complete(&task, vec![complete_workflow()]).expect("valid");
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders
        3 WorkflowTaskStarted of 2
        4 WorkflowTaskCompleted of 2, 3
        5 WorkflowExecutionCompleted",
    );
    assert_eq!(*flow.run.uncommitted[2], task.suffix[0]);
    assert_eq!(flow.run.status, Status::Completed);
    assert!(flow.effects().is_empty());
}

#[test]
fn only_the_token_of_the_held_task_counts() {
    let mut flow = Flow::start();
    let task = flow.take();
    let before = flow.run.clone();
    for stale in [
        StartedTask { number: task.number + 1, ..task.clone() },
        StartedTask { term: task.term - 1, ..task.clone() },
    ] {
        assert_eq!(flow.complete(&stale, vec![]), Err(Rejection::WorkflowTaskNotFound));
    }
    assert_eq!(flow.run, before);
    flow.complete(&task, vec![]).expect("it is held");
    assert_eq!(flow.complete(&task, vec![]), Err(Rejection::WorkflowTaskNotFound));
}

#[test]
fn a_ticket_gets_the_same_task_again_and_another_gets_none() {
    let mut flow = Flow::start();
    let Some(TaskKey::Workflow { scheduled, stamp }) = flow.offer().map(|o| o.key) else {
        panic!("no offer")
    };
    let mut take = |ticket: &str| {
        let taker = Taker {
            identity: "w".into(),
            request_id: ticket.into(),
            sticky: false,
            worker_version: None,
        };
        flow.ask(RunRequest::TakeWorkflowTask { scheduled, stamp, taker }).expect("never refused")
    };
    let first = take("ticket-a");
    assert!(matches!(first, Reply::WorkflowTask(_)));
    assert_eq!(take("ticket-a"), first);
    assert_eq!(take("ticket-b"), Reply::Gone);
}

#[test]
fn events_wait_for_the_held_task_and_results_come_last() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.complete(&task, vec![schedule_activity("a"), schedule_activity("b")]).expect("valid");
    flow.signal("wake");
    let task = flow.take();
    for id in ["a", "b"] {
        let activity = ActivityRef::Id(id.into());
        let (result, identity) = (None, "worker".to_owned());
        flow.ask(RunRequest::CompleteActivity { activity, result, identity }).expect("pending");
    }
    flow.signal("late");
    let again = ActivityRef::Id("a".into());
    let twice = RunRequest::CompleteActivity { activity: again, result: None, identity: "".into() };
    assert!(matches!(flow.ask(twice), Err(Rejection::ActivityNotFound(_))));
    flow.complete(&task, vec![start_timer("t", Span::from_millis(1))]).expect("valid");
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders
        3 WorkflowTaskStarted of 2
        4 WorkflowTaskCompleted of 2, 3
        5 ActivityTaskScheduled
        6 ActivityTaskScheduled
        7 WorkflowExecutionSignaled wake
        8 WorkflowTaskScheduled attempt 1 on orders
        9 WorkflowTaskStarted of 8
        10 WorkflowTaskCompleted of 8, 9
        11 TimerStarted
        12 ActivityTaskStarted of 5
        13 ActivityTaskStarted of 6
        14 WorkflowExecutionSignaled late
        15 ActivityTaskCompleted of 5, 12
        16 ActivityTaskCompleted of 6, 13
        17 WorkflowTaskScheduled attempt 1 on orders",
    );
}

#[test]
fn closing_with_unseen_events_fails_the_task() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.signal("unseen");
    let refused = flow.complete(&task, vec![complete_workflow()]);
    assert_eq!(refused, Err(Rejection::CommandsRefused("UnhandledCommand".into())));
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders
        3 WorkflowTaskStarted of 2
        4 WorkflowTaskFailed of 2, 3: UnhandledCommand
        5 WorkflowExecutionSignaled unseen
        6 WorkflowTaskScheduled attempt 1 on orders",
    );
}

#[test]
fn cancelling_the_only_unseen_timer_lets_the_workflow_close() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.complete(&task, vec![start_timer("t", Span::from_millis(100))]).expect("valid");
    flow.signal("wake");
    let task = flow.take();
    flow.due_after(Span::from_millis(100));
    assert_eq!(flow.run.buffered.len(), 1);
    flow.complete(&task, vec![cancel_timer("t"), complete_workflow()]).expect("nothing is unseen");
    assert!(flow.history().ends_with("10 TimerCanceled\n11 WorkflowExecutionCompleted"));
}

#[test]
fn a_transient_task_is_written_only_when_it_completes() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.fail(&task);
    for attempt in 2..4 {
        let task = flow.take();
        assert_eq!(task.attempt, attempt);
        let suffix: Vec<String> = task.suffix.iter().map(line).collect();
        let scheduled = format!("5 WorkflowTaskScheduled attempt {attempt} on orders");
        assert_eq!(suffix, [scheduled, "6 WorkflowTaskStarted of 5".to_owned()]);
        flow.time_out(&task);
    }
    let failed = "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders
        3 WorkflowTaskStarted of 2
        4 WorkflowTaskFailed of 2, 3: Unspecified";
    assert_history(&flow.run, failed);
    let task = flow.take();
    flow.complete(&task, vec![]).expect("valid");
    assert_history(
        &flow.run,
        &format!(
            "{failed}
            5 WorkflowTaskScheduled attempt 4 on orders
            6 WorkflowTaskStarted of 5
            7 WorkflowTaskCompleted of 5, 6"
        ),
    );
    assert!(flow.run.uncommitted[4..6].iter().map(AsRef::as_ref).eq(&task.suffix));
}

#[test]
fn from_the_fourth_attempt_on_a_task_gets_more_time() {
    let mut flow = Flow::start();
    let mut times = Vec::new();
    for _ in 0..12 {
        let task = flow.take();
        times.push((task.due - task.started_at).as_millis() / 1000);
        flow.time_out(&task);
    }
    assert_eq!(times, [10, 10, 10, 15, 20, 30, 50, 90, 170, 330, 610, 610]);
}

#[test]
fn a_transient_task_overtaken_by_an_event_is_a_normal_one() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.fail(&task);
    flow.signal("overtakes");
    let task = flow.take();
    assert_eq!(task.attempt, 1);
    flow.fail(&task);
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders
        3 WorkflowTaskStarted of 2
        4 WorkflowTaskFailed of 2, 3: Unspecified
        5 WorkflowExecutionSignaled overtakes
        6 WorkflowTaskScheduled attempt 1 on orders
        7 WorkflowTaskStarted of 6
        8 WorkflowTaskFailed of 6, 7: Unspecified",
    );
    assert_eq!(flow.take().attempt, 2);
}

#[test]
fn an_event_during_a_transient_task_makes_the_next_one_normal() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.fail(&task);
    let task = flow.take();
    flow.signal("seen later");
    flow.time_out(&task);
    assert!(flow.history().ends_with(
        "5 WorkflowExecutionSignaled seen later\n6 WorkflowTaskScheduled attempt 1 on orders"
    ));
}

#[test]
fn a_wrong_command_fails_the_task_and_nothing_of_the_completion_is_kept() {
    let mut flow = Flow::start();
    let task = flow.take();
    let commands = vec![start_timer("t", Span::from_millis(1)), cancel_timer("unknown")];
    let Err(Rejection::CommandsRefused(text)) = flow.complete(&task, commands.clone()) else {
        panic!("accepted")
    };
    assert!(text.starts_with("BadCancelTimerAttributes: "), "{text}");
    assert!(flow.history().ends_with("4 WorkflowTaskFailed of 2, 3: BadCancelTimerAttributes"));
    assert!(flow.run.timers.is_empty());

    // On a transient attempt it is refused, too, but the timeout paces the next one.
    let task = flow.take();
    let before = flow.run.clone();
    let refused = flow.complete(&task, commands);
    assert!(matches!(refused, Err(Rejection::InvalidArgument(_))), "{refused:?}");
    assert_eq!(flow.run, before);
}

#[test]
fn a_malformed_answer_leaves_the_task_held() {
    let mut flow = Flow::start();
    let task = flow.take();
    let before = flow.run.clone();
    let unknown = Command { command_type: 99, ..Command::default() };
    for commands in [
        vec![complete_workflow(), start_timer("t", Span::from_millis(1))],
        vec![complete_workflow(), complete_workflow()],
        vec![unknown],
        vec![Command::default()],
    ] {
        let refused = flow.complete(&task, commands);
        assert!(matches!(refused, Err(Rejection::InvalidArgument(_))), "{refused:?}");
    }
    let versioned =
        RespondWorkflowTaskCompletedRequest { versioning_behavior: 1, ..completion(vec![]) };
    let refused = flow.answer(&task, versioned);
    let text = "versioning_behavior is not supported yet".to_owned();
    assert_eq!(refused, Err(Rejection::InvalidArgument(text)));
    assert_eq!(flow.run, before);
}

#[test]
fn commands_of_features_that_are_not_built_fail_the_task_by_name() {
    for (command, expected) in [
        (
            command(
                CommandType::ProtocolMessage,
                C::ProtocolMessageCommandAttributes(Default::default()),
            ),
            "BadUpdateWorkflowExecutionMessage: ProtocolMessage commands are not supported yet.",
        ),
        (
            command(
                CommandType::ScheduleNexusOperation,
                C::ScheduleNexusOperationCommandAttributes(Default::default()),
            ),
            "BadScheduleNexusOperationAttributes: ScheduleNexusOperation commands are not \
             supported yet.",
        ),
        (
            Command { command_type: CommandType::StartTimer.into(), ..Command::default() },
            "BadStartTimerAttributes: StartTimerCommandAttributes is not set on StartTimerCommand.",
        ),
    ] {
        let mut flow = Flow::start();
        let task = flow.take();
        let refused = flow.complete(&task, vec![command]);
        assert_eq!(refused, Err(Rejection::CommandsRefused(expected.into())));
    }
}

#[test]
fn an_oversized_payload_terminates_the_run() {
    let mut flow = Flow::with_limits(Limits { blob_bytes_max: 100, ..Limits::default() });
    let task = flow.take();
    let data = vec![b'x'; 200].into();
    let payload = piton_core::proto::common::Payload { data, ..Default::default() };
    let attributes = piton_core::proto::command::CompleteWorkflowExecutionCommandAttributes {
        result: Some(Payloads { payloads: vec![payload] }),
    };
    let complete = command(
        CommandType::CompleteWorkflowExecution,
        C::CompleteWorkflowExecutionCommandAttributes(attributes),
    );
    let refused = flow.complete(&task, vec![complete]);
    assert!(matches!(refused, Err(Rejection::CommandsRefused(_))), "{refused:?}");
    assert!(flow.history().ends_with(
        "4 WorkflowTaskFailed of 2, 3: BadScheduleActivityAttributes\n\
         5 WorkflowExecutionTerminated: BadScheduleActivityAttributes: \
         CompleteWorkflowExecutionCommandAttributes.Result exceeds size limit."
    ));
}

#[test]
fn a_worker_that_keeps_the_run_gets_the_next_task_on_its_sticky_queue() {
    let mut flow = Flow::start();
    let task = flow.take();
    complete_sticky(&mut flow, &task, vec![]);
    flow.signal("wake");
    assert_eq!(flow.offer().map(|o| o.queue.name.to_string()).as_deref(), Some("sticky-1"));
    let task = flow.take();
    assert_eq!((task.history_from.0, task.previous_started.0), (4, 3));
    assert_eq!(&*task.queue.name, "orders");

    // A failure there clears it, and is not counted.
    flow.fail(&task);
    assert!(flow.history().ends_with("9 WorkflowTaskScheduled attempt 1 on orders"));
    assert_eq!(flow.take().history_from.0, 1);
}

#[test]
fn a_task_that_nobody_takes_from_a_sticky_queue_times_out() {
    let mut flow = Flow::start();
    let task = flow.take();
    complete_sticky(&mut flow, &task, vec![]);
    flow.signal("wake");
    flow.due_after(Span::from_millis(4_999));
    assert_eq!(flow.offer().map(|o| o.queue.is_sticky()), Some(true));
    flow.due_after(Span::from_millis(1));
    assert!(flow.history().ends_with(
        "6 WorkflowTaskScheduled attempt 1 on sticky-1\n\
         7 WorkflowTaskTimedOut of 6, 0: ScheduleToStart\n\
         8 WorkflowTaskScheduled attempt 1 on orders"
    ));
    assert!(flow.run.note.sticky.is_none());
}

#[test]
fn a_task_taken_in_time_does_not_time_out_on_its_sticky_queue() {
    let mut flow = Flow::start();
    let task = flow.take();
    complete_sticky(&mut flow, &task, vec![]);
    flow.signal("wake");
    let task = flow.take();
    let before = flow.history();
    flow.due_after(Span::from_millis(5_000));
    assert_eq!(flow.history(), before);
    let due = flow.effects().into_iter().find_map(|effect| match effect {
        Effect::Timer(due, TimerKind::WorkflowTaskScheduleToStart(_)) => Some(due),
        _ => None,
    });
    assert_eq!(due, Some(task.due), "the timer is not due again while the task may be held");
    flow.complete(&task, vec![]).expect("it is held");
}

#[test]
fn without_a_sticky_poller_the_task_moves_as_it_is_written() {
    let mut flow = Flow::start();
    let task = flow.take();
    complete_sticky(&mut flow, &task, vec![]);
    flow.signal("wake");
    let before = (flow.history(), flow.offer().expect("offered"));
    let TaskKey::Workflow { stamp, .. } = before.1.key else { unreachable!() };
    flow.ask(RunRequest::StickyUnavailable { stamp }).expect("never refused");
    let offer = flow.offer().expect("offered");
    assert_eq!(flow.history(), before.0);
    assert_eq!(&*offer.queue.name, "orders");
    assert_ne!(offer.key, before.1.key, "the older offer may not be taken any more");
    assert_eq!(flow.take().history_from.0, 1);
}

#[test]
fn the_next_task_comes_with_the_answer_when_the_worker_asks_for_it() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.signal("late");
    let answer = RespondWorkflowTaskCompletedRequest {
        return_new_workflow_task: true,
        ..sticky_completion(vec![])
    };
    let Ok(Reply::WorkflowTaskCompleted { next: Some(next), .. }) = flow.answer(&task, answer)
    else {
        panic!("no next task")
    };
    assert!(flow.history().ends_with("6 WorkflowTaskScheduled attempt 1 on sticky-1"));
    assert_eq!((next.history_from.0, next.history_end.0, next.started_event_id.0), (4, 7, 7));
    flow.complete(&next, vec![complete_workflow()]).expect("it is held");
    assert_eq!(flow.run.status, Status::Completed);
}

#[test]
fn heartbeats_keep_a_task_only_for_so_long() {
    let mut flow = Flow::start();
    let mut task = flow.take();
    let answer = RespondWorkflowTaskCompletedRequest {
        force_create_new_workflow_task: true,
        return_new_workflow_task: true,
        ..completion(vec![])
    };
    for _ in 0..6 {
        flow.wait(Span::from_secs(300));
        match flow.answer(&task, answer.clone()) {
            Ok(Reply::WorkflowTaskCompleted { next: Some(next), .. }) => task = *next,
            other => panic!("no next task: {other:?}"),
        }
    }
    flow.wait(Span::from_millis(1));
    assert_eq!(flow.answer(&task, answer), Err(Rejection::WorkflowTaskNotFound));
    assert!(flow.history().contains("WorkflowTaskTimedOut of 20, 21: StartToClose"));
    assert_eq!(flow.take().attempt, 2);
}

#[test]
fn too_many_waiting_events_take_the_task_from_its_worker() {
    let mut flow = Flow::with_limits(Limits { buffered_events_max: 2, ..Limits::default() });
    let task = flow.take();
    for name in ["one", "two", "three"] {
        flow.signal(name);
    }
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders
        3 WorkflowTaskStarted of 2
        4 WorkflowTaskFailed of 2, 3: ForceCloseCommand
        5 WorkflowExecutionSignaled one
        6 WorkflowExecutionSignaled two
        7 WorkflowExecutionSignaled three
        8 WorkflowTaskScheduled attempt 1 on orders",
    );
    assert_eq!(flow.complete(&task, vec![]), Err(Rejection::WorkflowTaskNotFound));
}

/// The pair of an activity's Started and Completed may straddle the forced flush.
#[test]
fn a_result_that_forces_the_flush_names_its_started_event() {
    let mut flow = Flow::with_limits(Limits { buffered_events_max: 1, ..Limits::default() });
    let task = flow.take();
    flow.complete(&task, vec![schedule_activity("a")]).expect("valid");
    flow.signal("wake");
    flow.take();
    flow.signal("waits");
    let activity = ActivityRef::Id("a".into());
    let complete = RunRequest::CompleteActivity { activity, result: None, identity: "w".into() };
    flow.ask(complete).expect("pending");
    assert!(flow.history().ends_with(
        "10 WorkflowExecutionSignaled waits\n\
         11 ActivityTaskStarted of 5\n\
         12 ActivityTaskCompleted of 5, 11\n\
         13 WorkflowTaskScheduled attempt 1 on orders"
    ));
}

/// What happens together forces the flush together.
#[test]
fn timers_that_force_the_flush_all_fire_before_the_next_task() {
    let mut flow = Flow::with_limits(Limits { buffered_events_max: 1, ..Limits::default() });
    let task = flow.take();
    let timers = ["a", "b", "c"].map(|id| start_timer(id, Span::from_secs(5)));
    flow.complete(&task, timers.into()).expect("valid");
    flow.signal("wake");
    flow.take();
    flow.due_after(Span::from_secs(5));
    assert!(
        flow.history().ends_with(
            "12 TimerFired a of 5\n13 TimerFired b of 6\n14 TimerFired c of 7\n\
             15 WorkflowTaskScheduled attempt 1 on orders"
        ),
        "{}",
        flow.history()
    );
}

/// A child whose start was not known when it ended: one answer brings both.
#[test]
fn a_childs_start_and_end_that_force_the_flush_stand_before_the_next_task() {
    let mut flow = Flow::with_limits(Limits { buffered_events_max: 1, ..Limits::default() });
    let task = flow.take();
    flow.complete(&task, vec![start_child("child")]).expect("valid");
    flow.signal("wake");
    flow.take();
    flow.signal("waits");
    let outcome = Box::new(ChildOutcome {
        workflow_id: "child".into(),
        first_run: RunId::from("child-run"),
        run_id: RunId::from("child-run"),
        workflow_type: "Child".into(),
        result: ChildResult::Terminated,
    });
    flow.ask(RunRequest::ChildClosed { initiated: EventId(5), outcome }).expect("it is pending");
    assert!(
        flow.history().ends_with(
            "10 WorkflowExecutionSignaled waits\n\
             11 ChildWorkflowExecutionStarted of 5\n\
             12 ChildWorkflowExecutionTerminated of 5, 11\n\
             13 WorkflowTaskScheduled attempt 1 on orders"
        ),
        "{}",
        flow.history()
    );
}

#[test]
fn an_undelivered_task_is_offered_again_under_a_new_stamp() {
    let mut flow = Flow::start();
    let before = flow.offer().expect("offered");
    let task = flow.take();
    flow.signal("meanwhile");
    flow.ask(RunRequest::WorkflowTaskUndelivered { number: task.number }).expect("never refused");
    assert!(flow.history().ends_with("3 WorkflowExecutionSignaled meanwhile"));
    assert_ne!(flow.offer().expect("offered").key, before.key);
    assert_eq!(flow.complete(&task, vec![]), Err(Rejection::WorkflowTaskNotFound));
    assert_eq!(flow.take().attempt, 1);
}

#[test]
fn a_long_history_suggests_continue_as_new() {
    let mut flow = Flow::with_limits(Limits { history_events_suggest: 3, ..Limits::default() });
    let task = flow.take();
    let Some(A::WorkflowTaskStartedEventAttributes(started)) = &task.suffix[0].attributes else {
        panic!("not a Started event")
    };
    assert!(started.suggest_continue_as_new);
    assert_eq!(started.suggest_continue_as_new_reasons, [2]);
    assert_eq!(started.history_size_bytes as u64, flow.run.history_bytes);
}

#[test]
fn an_answer_too_large_for_a_message_terminates_the_run() {
    let mut flow = Flow::start();
    let task = flow.take();
    let mut answer = RespondWorkflowTaskFailedRequest::default();
    answer.set_cause(WorkflowTaskFailedCause::GrpcMessageTooLarge);
    let token = WorkflowTaskRef { term: task.term, number: task.number };
    flow.ask(RunRequest::FailWorkflowTask { token, answer: Box::new(answer) }).expect("held");
    assert!(flow.history().ends_with(
        "4 WorkflowTaskFailed of 2, 3: ForceCloseCommand\n\
         5 WorkflowExecutionTerminated: GrpcMessageTooLarge"
    ));
}

#[test]
fn what_waited_for_a_lost_leader_is_flushed_first() {
    let mut flow = Flow::start();
    flow.take();
    flow.signal("waits");
    flow.run.held = None;
    flow.ask(RunRequest::Rehosted).expect("never refused");
    assert!(flow.history().ends_with(
        "2 WorkflowTaskScheduled attempt 1 on orders\n3 WorkflowExecutionSignaled waits"
    ));
    assert_eq!(flow.take().suffix[0].event_id, 4);
}
