//! How runs begin and end: id policies, eager start, children, terminate, timeouts,
//! continue-as-new, and what a closed run still owes.

mod flow;

use flow::*;
use piton_core::effect::{Effect, Errand, ErrandKey, TimerKind};
use piton_core::error::Rejection;
use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::note::{Note, NoteKey, RunNote};
use piton_core::proto::command::command::Attributes as C;
use piton_core::proto::command::{self, Command};
use piton_core::proto::common::{Link, Memo, Payload, WorkflowType, link};
use piton_core::proto::enums::{
    CommandType, ParentClosePolicy, RetryState, WorkflowIdConflictPolicy as Conflict,
    WorkflowIdReusePolicy as Reuse,
};
use piton_core::proto::failure::Failure;
use piton_core::proto::history::WorkflowExecutionStartedEventAttributes;
use piton_core::proto::history::history_event::Attributes as A;
use piton_core::request::{RunRequest, Signal, StartRequest, TerminateRequest};
use piton_core::run::{FoldError, Reply, RunState, Status, Step};
use piton_core::time::Span;

fn again(request_id: &str, conflict: Conflict, reuse: Reuse) -> StartRequest {
    let mut request = start_request(request_id);
    request.start.set_workflow_id_conflict_policy(conflict);
    request.start.set_workflow_id_reuse_policy(reuse);
    request
}

fn terminate(flow: &mut Flow) {
    let request = TerminateRequest { reason: "because".into(), ..TerminateRequest::default() };
    flow.ask(RunRequest::Terminate(request)).expect("the run is open");
}

fn fail_workflow() -> Command {
    let attributes =
        command::FailWorkflowExecutionCommandAttributes { failure: Some(Failure::default()) };
    command(
        CommandType::FailWorkflowExecution,
        C::FailWorkflowExecutionCommandAttributes(attributes),
    )
}

fn continue_as_new(
    attributes: command::ContinueAsNewWorkflowExecutionCommandAttributes,
) -> Command {
    command(
        CommandType::ContinueAsNewWorkflowExecution,
        C::ContinueAsNewWorkflowExecutionCommandAttributes(attributes),
    )
}

fn started(run: &RunState) -> &WorkflowExecutionStartedEventAttributes {
    match run.uncommitted[0].attributes.as_ref() {
        Some(A::WorkflowExecutionStartedEventAttributes(a)) => a,
        other => panic!("not a Started event: {other:?}"),
    }
}

#[test]
fn a_start_with_a_signal_puts_it_before_the_first_task() {
    let signal = Signal { name: "hello".into(), ..Signal::default() };
    let request = StartRequest { signal: Some(signal), ..start_request("r") };
    let (flow, reply) = Flow::started(request, Limits::default());
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowExecutionSignaled hello
        3 WorkflowTaskScheduled attempt 1 on orders",
    );
    assert!(matches!(reply, Reply::Started { started: true, eager: None, .. }));
}

#[test]
fn an_open_run_is_kept_used_or_terminated_as_the_conflict_policy_says() {
    let mut flow = Flow::start();
    let before = flow.run.clone();
    let refused = flow.start_again(again("r2", Conflict::Fail, Reuse::AllowDuplicate));
    let Err(Rejection::AlreadyStarted { message, start_request_id, run_id, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(message.contains("Workflow execution is already running"), "{message}");
    assert_eq!((start_request_id.as_str(), run_id.as_str()), ("start-1", "run-1"));

    let used = flow.start_again(again("r3", Conflict::UseExisting, Reuse::AllowDuplicate));
    assert!(matches!(used, Ok(Reply::Started { started: false, .. })), "{used:?}");
    assert_eq!(flow.run, before);

    let new = flow.start_again(again("r4", Conflict::TerminateExisting, Reuse::AllowDuplicate));
    assert!(matches!(new, Ok(Reply::Started { started: true, .. })), "{new:?}");
    assert_eq!(flow.ended[0].status, Status::Terminated);
    let text = format!("{:?}", flow.ended[0].close_event);
    assert!(text.contains(flow.run.run_id.as_str()), "the details name the new run: {text}");
    assert_eq!(flow.run.status, Status::Running);
}

#[test]
fn a_signal_with_start_signals_an_open_run() {
    let mut flow = Flow::start();
    let signal = Signal { name: "hello".into(), ..Signal::default() };
    let request = StartRequest { signal: Some(signal), ..start_request("r2") };
    let reply = flow.start_again(request.clone());
    assert!(matches!(reply, Ok(Reply::Started { started: false, .. })), "{reply:?}");
    assert!(flow.history().ends_with("3 WorkflowExecutionSignaled hello"));

    let mut refused = request;
    refused.start.set_workflow_id_conflict_policy(Conflict::Fail);
    assert!(matches!(flow.start_again(refused), Err(Rejection::InvalidArgument(_))));
}

#[test]
fn a_closed_run_is_followed_as_the_reuse_policy_says() {
    type Close = fn() -> Command;
    let (complete, fail): (Close, Close) = (complete_workflow, fail_workflow);
    for (close, reuse, allowed) in [
        (complete, Reuse::AllowDuplicate, true),
        (complete, Reuse::AllowDuplicateFailedOnly, false),
        (complete, Reuse::RejectDuplicate, false),
        (fail, Reuse::AllowDuplicate, true),
        (fail, Reuse::AllowDuplicateFailedOnly, true),
        (fail, Reuse::RejectDuplicate, false),
    ] {
        let mut flow = Flow::start();
        let task = flow.take();
        flow.complete(&task, vec![close()]).expect("valid");
        let reply = flow.start_again(again("r2", Conflict::Unspecified, reuse));
        match reply {
            Ok(Reply::Started { started: true, .. }) => assert!(allowed, "{reuse:?}"),
            Err(Rejection::AlreadyStarted { .. }) => assert!(!allowed, "{reuse:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_same_request_id_gets_the_same_run_open_or_closed() {
    let mut flow = Flow::start();
    for _ in 0..2 {
        let before = flow.run.clone();
        let reply = flow.start_again(again("start-1", Conflict::Fail, Reuse::RejectDuplicate));
        let Ok(Reply::Started { run_id, started: true, .. }) = reply else { panic!("{reply:?}") };
        assert_eq!(run_id, before.run_id);
        assert_eq!(flow.run, before);
        if flow.run.status.is_open() {
            terminate(&mut flow);
        }
    }
}

#[test]
fn an_eager_start_hands_the_first_task_out_at_once() {
    let mut request = start_request("r");
    request.start.request_eager_execution = true;
    let (mut flow, reply) = Flow::started(request.clone(), Limits::default());
    let Reply::Started { eager: Some(task), .. } = reply else { panic!("{reply:?}") };
    assert_eq!(line(&task.suffix[0]), "3 WorkflowTaskStarted of 2");
    assert!(started(&flow.run).eager_execution_accepted);

    let Ok(Reply::Started { eager: Some(same), started: true, .. }) = flow.start_again(request)
    else {
        panic!("the repeated call gets no task")
    };
    assert_eq!(same, task);
    flow.complete(&task, vec![complete_workflow()]).expect("it is held");
    assert_eq!(flow.run.status, Status::Completed);
}

#[test]
fn a_child_runs_only_after_its_parent_has_recorded_it() {
    let (mut flow, _) = Flow::started(child_request(), Limits::default());
    flow.signal("early");
    assert!(flow.offer().is_none());
    assert!(matches!(
        &flow.effects()[..],
        [Effect::Errand(ErrandKey::ReportStart, Errand::ReportStart { .. })]
    ));
    for _ in 0..2 {
        flow.ask(RunRequest::ParentRecorded).expect("never refused");
    }
    assert_history(
        &flow.run,
        "1 WorkflowExecutionStarted
        2 WorkflowExecutionSignaled early
        3 WorkflowTaskScheduled attempt 1 on orders",
    );
}

/// Each condition of a whole run, with the steps that it leaves open.
#[test]
fn a_run_takes_the_steps_that_no_condition_is_in_the_way_of() {
    let (waiting, _) = Flow::started(child_request(), Limits::default());
    let mut backing_off = Flow::start();
    let task = backing_off.take();
    backing_off.complete(&task, vec![continue_as_new(Default::default())]).expect("valid");
    let mut closed = Flow::start();
    terminate(&mut closed);
    let all = [
        Step::ScheduleWorkflowTask,
        Step::DispatchWorkflowTask,
        Step::DispatchActivity,
        Step::Fire,
    ];
    for (run, expected) in [
        (&Flow::start().run, [true; 4]),
        (&waiting.run, [false, true, true, true]),
        (&backing_off.run, [false, true, true, true]),
        (&closed.run, [false; 4]),
    ] {
        assert_eq!(all.map(|step| run.may(step)), expected, "{:?}", run.status);
    }
}

#[test]
fn a_child_reports_its_end_until_that_is_settled() {
    let (mut flow, _) = Flow::started(child_request(), Limits::default());
    terminate(&mut flow);
    let effects = flow.effects();
    let [Effect::Errand(ErrandKey::ReportClose, Errand::ReportClose { outcome, .. })] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(outcome.first_run, flow.run.run_id);
    flow.ask(RunRequest::ErrandDone(ErrandKey::ReportClose)).expect("never refused");
    assert!(flow.effects().is_empty());
}

#[test]
fn a_close_by_the_server_fails_the_held_task_and_flushes_first() {
    let mut flow = Flow::start();
    flow.take();
    flow.signal("waits");
    terminate(&mut flow);
    assert!(flow.history().ends_with(
        "3 WorkflowTaskStarted of 2\n\
         4 WorkflowTaskFailed of 2, 3: ForceCloseCommand\n\
         5 WorkflowExecutionSignaled waits\n\
         6 WorkflowExecutionTerminated: because"
    ));
    let refused = flow.ask(RunRequest::Terminate(TerminateRequest::default()));
    assert_eq!(refused, Err(Rejection::AlreadyCompleted));
}

#[test]
fn a_close_by_the_server_leaves_no_trace_of_a_transient_task() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.fail(&task);
    flow.take();
    terminate(&mut flow);
    assert!(flow.history().ends_with(
        "4 WorkflowTaskFailed of 2, 3: Unspecified\n5 WorkflowExecutionTerminated: because"
    ));
}

#[test]
fn terminating_another_chain_is_refused() {
    let mut flow = Flow::start();
    let request = TerminateRequest { first_run_id: "other".into(), ..TerminateRequest::default() };
    let refused = flow.ask(RunRequest::Terminate(request));
    assert!(matches!(refused, Err(Rejection::NotFound(_))), "{refused:?}");
}

#[test]
fn a_run_times_out_at_its_deadline_and_not_before() {
    for (run, execution, retry_state) in [
        (60, 0, RetryState::RetryPolicyNotSet),
        (60, 90, RetryState::RetryPolicyNotSet),
        (0, 60, RetryState::Timeout),
    ] {
        let mut request = start_request("r");
        request.start.workflow_run_timeout = Some(Span::from_secs(run).to_proto());
        request.start.workflow_execution_timeout = Some(Span::from_secs(execution).to_proto());
        let (mut flow, _) = Flow::started(request, Limits::default());
        let due = flow.now + Span::from_secs(60);
        assert!(flow.effects().contains(&Effect::Timer(due, TimerKind::RunExpiry)));
        flow.due_after(Span::from_millis(59_999));
        assert_eq!(flow.run.status, Status::Running);
        flow.due_after(Span::from_millis(1));
        assert_eq!(flow.run.status, Status::TimedOut);
        let Some(A::WorkflowExecutionTimedOutEventAttributes(a)) =
            flow.run.close_event.as_ref().and_then(|e| e.attributes.as_ref())
        else {
            panic!("another close event")
        };
        assert_eq!(a.retry_state(), retry_state);
    }
}

#[test]
fn a_history_over_the_limit_terminates_the_run() {
    let mut flow = Flow::with_limits(Limits { history_events_max: 4, ..Limits::default() });
    flow.signal("three");
    flow.signal("four");
    assert_eq!(flow.run.status, Status::Running);
    flow.signal("five");
    assert!(flow.history().ends_with(
        "5 WorkflowExecutionSignaled five\n\
         6 WorkflowExecutionTerminated: Workflow history count exceeds limit."
    ));
}

#[test]
fn a_closing_parent_owes_started_children_their_policy() {
    let mut flow = Flow::start();
    let task = flow.take();
    let child = |policy: ParentClosePolicy| {
        let attributes = command::StartChildWorkflowExecutionCommandAttributes {
            workflow_id: format!("child-{policy:?}"),
            workflow_type: Some(WorkflowType { name: "Child".into() }),
            parent_close_policy: policy.into(),
            ..Default::default()
        };
        command(
            CommandType::StartChildWorkflowExecution,
            C::StartChildWorkflowExecutionCommandAttributes(attributes),
        )
    };
    let policies = [
        ParentClosePolicy::Unspecified,
        ParentClosePolicy::RequestCancel,
        ParentClosePolicy::Abandon,
        ParentClosePolicy::Terminate,
    ];
    flow.complete(&task, policies.map(child).into()).expect("valid");
    for initiated in [5, 6, 7] {
        let run_id = RunId::from(format!("child-run-{initiated}"));
        let initiated = EventId(initiated);
        flow.ask(RunRequest::ChildStarted { initiated, run_id, header: None }).expect("pending");
    }
    terminate(&mut flow);
    let errands: Vec<_> = flow
        .effects()
        .into_iter()
        .map(|effect| match effect {
            Effect::Errand(_, Errand::CloseChild { initiated, first_run, terminate, .. }) => {
                (initiated.0, first_run.as_str().to_owned(), terminate)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(errands, [(5, "child-run-5".into(), true), (6, "child-run-6".into(), false)]);
    let done = RunRequest::ErrandDone(ErrandKey::CloseChild(EventId(5)));
    flow.ask(done).expect("never refused");
    assert_eq!(flow.effects().len(), 1);
}

#[test]
fn continue_as_new_closes_the_run_and_begins_the_next() {
    let mut request = child_request();
    let field = |n: u8| [(format!("f{n}"), Payload::default())].into();
    request.start.memo = Some(Memo { fields: field(1) });
    request.start.workflow_execution_timeout = Some(Span::from_secs(100).to_proto());
    request.start.workflow_task_timeout = Some(Span::from_secs(7).to_proto());
    let (mut flow, _) = Flow::started(request, Limits::default());
    flow.ask(RunRequest::ParentRecorded).expect("never refused");
    let task = flow.take();
    flow.wait(Span::from_secs(2));
    let attributes = command::ContinueAsNewWorkflowExecutionCommandAttributes {
        workflow_type: Some(WorkflowType { name: "Order2".into() }),
        ..Default::default()
    };
    flow.complete(&task, vec![continue_as_new(attributes)]).expect("valid");
    let old = &flow.ended[0];
    let next = &flow.run;
    assert_eq!(old.status, Status::ContinuedAsNew);
    assert!(history(old).ends_with(&format!("ContinuedAsNew as {}", next.run_id)));
    assert!(old.note.owed.is_empty(), "the chain goes on, so there is nothing to report");
    assert_history(
        next,
        "1 WorkflowExecutionStarted
        2 WorkflowTaskScheduled attempt 1 on orders",
    );
    let (was, is) = (started(old), started(next));
    assert_eq!(is.workflow_type.as_ref().map(|t| t.name.as_str()), Some("Order2"));
    assert_eq!(is.first_execution_run_id, was.first_execution_run_id);
    assert_eq!(is.continued_execution_run_id, old.run_id.as_str());
    assert_eq!(is.original_execution_run_id, next.run_id.as_str());
    assert_eq!(is.workflow_execution_expiration_time, was.workflow_execution_expiration_time);
    assert_eq!(is.workflow_task_timeout, was.workflow_task_timeout);
    assert_eq!(is.parent_workflow_execution, was.parent_workflow_execution);
    assert_eq!((is.initiator, is.attempt), (1, 1));
    assert_eq!(is.memo, None);
}

/// Not those of a signal, which are that event's alone.
#[test]
fn links_of_the_start_stand_on_each_run_of_its_chain() {
    let link = |id: &str| {
        let job = link::BatchJob { job_id: id.into() };
        Link { variant: Some(link::Variant::BatchJob(job)) }
    };
    let mut request = start_request("start-1");
    request.start.links = vec![link("first"), link("second")];
    let (mut flow, _) = Flow::started(request, Limits::default());
    let signal = Signal { name: "s".into(), links: vec![link("signal")], ..Signal::default() };
    flow.ask(RunRequest::Signal(signal)).expect("the run is open");
    for _ in 0..2 {
        flow.wait(Span::from_secs(2));
        let task = flow.take();
        flow.complete(&task, vec![continue_as_new(Default::default())]).expect("valid");
        assert_eq!(flow.run.uncommitted[0].links, [link("first"), link("second")]);
    }
    assert_eq!(flow.ended.len(), 2);
}

#[test]
fn a_young_run_waits_before_it_continues() {
    let mut flow = Flow::start();
    let task = flow.take();
    flow.wait(Span::from_millis(300));
    flow.complete(&task, vec![continue_as_new(Default::default())]).expect("valid");
    assert_history(&flow.run, "1 WorkflowExecutionStarted");
    flow.signal("does not end the backoff");
    flow.due_after(Span::from_millis(699));
    assert!(flow.offer().is_none());
    flow.due_after(Span::from_millis(1));
    assert!(flow.offer().is_some());
    assert_eq!(
        started(&flow.run).first_workflow_task_backoff,
        Some(Span::from_millis(700).to_proto())
    );
}

#[test]
fn continue_as_new_refuses_what_is_not_built_by_name() {
    let cron = command::ContinueAsNewWorkflowExecutionCommandAttributes {
        cron_schedule: "* * * * *".into(),
        ..Default::default()
    };
    let mut flow = Flow::start();
    let task = flow.take();
    let refused = flow.complete(&task, vec![continue_as_new(cron)]);
    let text = "BadContinueAsNewAttributes: CronSchedule is not supported yet.".to_owned();
    assert_eq!(refused, Err(Rejection::CommandsRefused(text)));
}

/// Folds the history of a run after changing it.
fn fold(
    run: &RunState,
    change: impl FnOnce(&mut Vec<piton_core::proto::history::HistoryEvent>),
    notes: Vec<(NoteKey, Note)>,
) -> Result<RunState, FoldError> {
    let mut events = run.uncommitted.iter().map(|event| (**event).clone()).collect();
    change(&mut events);
    let key = WorkflowKey { namespace: "ns".into(), workflow_id: "order-1".into() };
    RunState::from_history(key, run.run_id.clone(), events, notes)
}

#[test]
fn damaged_rows_are_named() {
    let mut flow = Flow::start();
    terminate(&mut flow);
    let run = &flow.run;
    let own = || vec![(NoteKey::Run, Note::Run(run.note.clone()))];
    let run_id = || run.run_id.clone();
    assert_eq!(fold(run, |e| e.clear(), own()), Err(FoldError::NoHistory { run_id: run_id() }));
    let (expected, found) = (EventId(2), EventId(3));
    let gap = fold(run, |e| drop(e.remove(1)), own());
    assert_eq!(gap, Err(FoldError::Gap { run_id: run_id(), expected, found }));
    let not_started = fold(
        run,
        |e| {
            e.remove(0);
            e[0].event_id = 1;
        },
        own(),
    );
    assert_eq!(not_started, Err(FoldError::FirstNotStarted { run_id: run_id() }));
    let after_close = fold(
        run,
        |e| {
            let mut more = e[1].clone();
            more.event_id = 4;
            e.push(more);
        },
        own(),
    );
    let event_id = EventId(4);
    assert_eq!(after_close, Err(FoldError::AfterClose { run_id: run_id(), event_id }));
    let no_note = fold(run, |_| {}, vec![]);
    assert_eq!(no_note, Err(FoldError::NoRunNote { run_id: run_id() }));
    let key = NoteKey::Buffered(0);
    let wrong = vec![(key, Note::Run(RunNote::default()))];
    assert_eq!(fold(run, |_| {}, wrong), Err(FoldError::NoteKind { run_id: run_id(), key }));
    let whole = fold(run, |_| {}, own()).expect("nothing is damaged");
    assert_eq!(whole, RunState { uncommitted: vec![], ..run.clone() });
}
