//! A run driven step by step, and its history in one line per event.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use piton_core::effect::{Effect, TaskKey, TaskOffer};
use piton_core::error::Rejection;
use piton_core::id::{NamespaceId, RunId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::proto::command::command::Attributes as C;
use piton_core::proto::command::{self, Command};
use piton_core::proto::common::{ActivityType, SearchAttributes, WorkflowType};
use piton_core::proto::enums::{CommandType, EventType, TimeoutType};
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::history::history_event::Attributes as A;
use piton_core::proto::taskqueue::{StickyExecutionAttributes, TaskQueue};
use piton_core::proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
    StartWorkflowExecutionRequest,
};
use piton_core::request::{
    Drawn, Parent, RunRequest, SearchAttributeCheck, Signal, StartRequest, Taker, WorkflowTaskRef,
};
use piton_core::run::{Decided, Reply, RunState, StartedTask, decide_start};
use piton_core::time::{Span, Timestamp};
use piton_core::transition::Change;

pub struct AllKnown;

impl SearchAttributeCheck for AllKnown {
    fn check(&self, _: &mut SearchAttributes) -> Result<(), String> {
        Ok(())
    }
}

/// The current run of one workflow. Nothing is committed: `uncommitted` is the whole history.
pub struct Flow {
    pub run: RunState,
    /// Runs that were the current one before.
    pub ended: Vec<RunState>,
    pub now: Timestamp,
    pub limits: Limits,
    number: u64,
}

impl Flow {
    /// Starts a run of type `Order` on the queue `orders`.
    pub fn start() -> Self {
        Self::started(start_request("start-1"), Limits::default()).0
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::started(start_request("start-1"), limits).0
    }

    pub fn started(request: StartRequest, limits: Limits) -> (Self, Reply) {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let decided = draw(now, 1, &limits, |drawn| decide_start(&key(), None, request, drawn))
            .expect("the first start is never refused");
        let run = decided.successor.expect("a start makes a run");
        let flow = Self { run, ended: Vec::new(), now, limits, number: 1 };
        (flow, decided.reply.expect("the first start is never refused"))
    }

    /// Starts the workflow again.
    pub fn start_again(&mut self, request: StartRequest) -> Result<Reply, Rejection> {
        self.number += 1;
        let decided = draw(self.now, self.number, &self.limits, |drawn| {
            decide_start(&key(), Some((&self.run).into()), request, drawn)
        })?;
        self.accept(decided)
    }

    pub fn ask(&mut self, request: RunRequest) -> Result<Reply, Rejection> {
        self.number += 1;
        let decided =
            draw(self.now, self.number, &self.limits, |drawn| self.run.decide(request, drawn))?;
        self.accept(decided)
    }

    fn accept(&mut self, decided: Decided) -> Result<Reply, Rejection> {
        if let Some(run) = decided.run {
            self.run = run;
        }
        if let Some(next) = decided.successor {
            self.ended.push(std::mem::replace(&mut self.run, next));
        }
        decided.reply
    }

    pub fn wait(&mut self, span: Span) {
        self.now = self.now + span;
    }

    /// Lets time pass, then fires what is due.
    pub fn due_after(&mut self, span: Span) {
        self.wait(span);
        self.ask(RunRequest::Due).expect("nothing is refused to the clock");
    }

    pub fn signal(&mut self, name: &str) {
        let signal = Signal { name: name.into(), ..Signal::default() };
        self.ask(RunRequest::Signal(signal)).expect("the run is open");
    }

    /// All that the run owes.
    pub fn effects(&self) -> Vec<Effect> {
        Change::between(None, &mut self.run.clone()).owed.into_values().collect()
    }

    /// The offered workflow task.
    pub fn offer(&self) -> Option<TaskOffer> {
        self.effects().into_iter().find_map(|effect| match effect {
            Effect::Task(offer) if matches!(offer.key, TaskKey::Workflow { .. }) => Some(offer),
            _ => None,
        })
    }

    /// Takes the offered workflow task, on the queue that it is offered on.
    pub fn take(&mut self) -> StartedTask {
        let offer = self.offer().expect("a task is offered");
        let TaskKey::Workflow { scheduled, stamp } = offer.key else { unreachable!() };
        let request_id = format!("ticket-{}", self.number).into();
        let sticky = offer.queue.is_sticky();
        let taker = Taker { identity: "worker".into(), request_id, sticky, worker_version: None };
        match self.ask(RunRequest::TakeWorkflowTask { scheduled, stamp, taker }) {
            Ok(Reply::WorkflowTask(task)) => *task,
            other => panic!("not handed out: {other:?}"),
        }
    }

    pub fn answer(
        &mut self,
        task: &StartedTask,
        answer: RespondWorkflowTaskCompletedRequest,
    ) -> Result<Reply, Rejection> {
        let token = WorkflowTaskRef { term: task.term, number: task.number };
        self.ask(RunRequest::CompleteWorkflowTask { token, answer: Box::new(answer) })
    }

    pub fn complete(
        &mut self,
        task: &StartedTask,
        commands: Vec<Command>,
    ) -> Result<Reply, Rejection> {
        self.answer(task, completion(commands))
    }

    pub fn fail(&mut self, task: &StartedTask) {
        let token = WorkflowTaskRef { term: task.term, number: task.number };
        let answer = Box::new(RespondWorkflowTaskFailedRequest::default());
        self.ask(RunRequest::FailWorkflowTask { token, answer }).expect("the task is held");
    }

    pub fn time_out(&mut self, task: &StartedTask) {
        let number = task.number;
        self.ask(RunRequest::WorkflowTaskTimedOut { number }).expect("never refused");
    }

    /// One line per event of the current run.
    pub fn history(&self) -> String {
        history(&self.run)
    }
}

fn key() -> WorkflowKey {
    WorkflowKey { namespace: NamespaceId::from("ns"), workflow_id: "order-1".into() }
}

fn draw<R>(now: Timestamp, number: u64, limits: &Limits, with: impl FnOnce(&Drawn<'_>) -> R) -> R {
    with(&Drawn {
        now,
        term: 7,
        number,
        run_id: RunId::from(format!("run-{number}")),
        limits,
        namespace_name: "default",
        namespaces: &[],
        search_attributes: &AllKnown,
    })
}

pub fn start_request(request_id: &str) -> StartRequest {
    let start = StartWorkflowExecutionRequest {
        workflow_id: "order-1".into(),
        workflow_type: Some(WorkflowType { name: "Order".into() }),
        task_queue: Some(queue("orders")),
        request_id: request_id.into(),
        identity: "client".into(),
        ..Default::default()
    };
    StartRequest { start: Box::new(start), signal: None, parent: None }
}

/// A start as the child of a run `parent-run`.
pub fn child_request() -> StartRequest {
    let link = piton_core::effect::ParentLink {
        namespace_id: "ns".into(),
        workflow_id: "parent".into(),
        run_id: "parent-run".into(),
        initiated: piton_core::id::EventId(5),
    };
    let parent = Parent { link, namespace_name: "default".into(), root: Default::default() };
    StartRequest { parent: Some(parent), ..start_request("child-start") }
}

pub fn queue(name: &str) -> TaskQueue {
    TaskQueue { name: name.into(), ..TaskQueue::default() }
}

pub fn completion(commands: Vec<Command>) -> RespondWorkflowTaskCompletedRequest {
    RespondWorkflowTaskCompletedRequest {
        commands,
        identity: "worker".into(),
        ..Default::default()
    }
}

/// A completion by a worker that keeps the run in its cache.
pub fn sticky_completion(commands: Vec<Command>) -> RespondWorkflowTaskCompletedRequest {
    RespondWorkflowTaskCompletedRequest {
        sticky_attributes: Some(StickyExecutionAttributes {
            worker_task_queue: Some(queue("sticky-1")),
            schedule_to_start_timeout: Some(Span::from_secs(5).to_proto()),
        }),
        ..completion(commands)
    }
}

pub fn command(kind: CommandType, attributes: C) -> Command {
    Command { command_type: kind.into(), attributes: Some(attributes), ..Command::default() }
}

pub fn complete_workflow() -> Command {
    command(
        CommandType::CompleteWorkflowExecution,
        C::CompleteWorkflowExecutionCommandAttributes(Default::default()),
    )
}

pub fn start_timer(id: &str, span: Span) -> Command {
    let attributes = command::StartTimerCommandAttributes {
        timer_id: id.into(),
        start_to_fire_timeout: Some(span.to_proto()),
    };
    command(CommandType::StartTimer, C::StartTimerCommandAttributes(attributes))
}

pub fn cancel_timer(id: &str) -> Command {
    let attributes = command::CancelTimerCommandAttributes { timer_id: id.into() };
    command(CommandType::CancelTimer, C::CancelTimerCommandAttributes(attributes))
}

pub fn schedule_activity(id: &str) -> Command {
    let attributes = command::ScheduleActivityTaskCommandAttributes {
        activity_id: id.into(),
        activity_type: Some(ActivityType { name: "Charge".into() }),
        task_queue: Some(Default::default()),
        start_to_close_timeout: Some(Span::from_secs(10).to_proto()),
        ..Default::default()
    };
    command(CommandType::ScheduleActivityTask, C::ScheduleActivityTaskCommandAttributes(attributes))
}

pub fn start_child(id: &str) -> Command {
    let attributes = command::StartChildWorkflowExecutionCommandAttributes {
        workflow_id: id.into(),
        workflow_type: Some(WorkflowType { name: "Child".into() }),
        ..Default::default()
    };
    let attributes = C::StartChildWorkflowExecutionCommandAttributes(attributes);
    command(CommandType::StartChildWorkflowExecution, attributes)
}

pub fn history(run: &RunState) -> String {
    let lines: Vec<String> = run.uncommitted.iter().map(|event| line(event)).collect();
    lines.join("\n")
}

/// The event's id and type, with what tells it from others of its type.
pub fn line(event: &HistoryEvent) -> String {
    let kind = EventType::try_from(event.event_type).expect("events have types");
    let more = match event.attributes.as_ref().expect("events have attributes") {
        A::WorkflowTaskScheduledEventAttributes(a) => {
            let queue = a.task_queue.as_ref().map_or("", |q| &q.name);
            format!(" attempt {} on {queue}", a.attempt)
        }
        A::WorkflowTaskStartedEventAttributes(a) => format!(" of {}", a.scheduled_event_id),
        A::WorkflowTaskCompletedEventAttributes(a) => {
            format!(" of {}, {}", a.scheduled_event_id, a.started_event_id)
        }
        A::WorkflowTaskFailedEventAttributes(a) => {
            format!(" of {}, {}: {:?}", a.scheduled_event_id, a.started_event_id, a.cause())
        }
        A::WorkflowTaskTimedOutEventAttributes(a) => {
            let kind = TimeoutType::try_from(a.timeout_type).expect("known");
            format!(" of {}, {}: {kind:?}", a.scheduled_event_id, a.started_event_id)
        }
        A::WorkflowExecutionSignaledEventAttributes(a) => format!(" {}", a.signal_name),
        A::TimerFiredEventAttributes(a) => format!(" {} of {}", a.timer_id, a.started_event_id),
        A::ActivityTaskStartedEventAttributes(a) => format!(" of {}", a.scheduled_event_id),
        A::ActivityTaskCompletedEventAttributes(a) => {
            format!(" of {}, {}", a.scheduled_event_id, a.started_event_id)
        }
        A::ChildWorkflowExecutionStartedEventAttributes(a) => {
            format!(" of {}", a.initiated_event_id)
        }
        A::ChildWorkflowExecutionTerminatedEventAttributes(a) => {
            format!(" of {}, {}", a.initiated_event_id, a.started_event_id)
        }
        A::WorkflowExecutionTerminatedEventAttributes(a) => format!(": {}", a.reason),
        A::WorkflowExecutionContinuedAsNewEventAttributes(a) => {
            format!(" as {}", a.new_execution_run_id)
        }
        _ => String::new(),
    };
    format!("{} {kind:?}{more}", event.event_id)
}

/// Checks the whole history, written without the indentation of the test around it.
#[track_caller]
pub fn assert_history(run: &RunState, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(history(run), expected.join("\n"));
}

/// What a workflow's own tasks do not write.
fn keeps_its_time(attributes: &A) -> bool {
    matches!(
        attributes,
        A::ActivityTaskStartedEventAttributes(_)
            | A::ActivityTaskCompletedEventAttributes(_)
            | A::ActivityTaskFailedEventAttributes(_)
            | A::ActivityTaskTimedOutEventAttributes(_)
            | A::ActivityTaskCanceledEventAttributes(_)
            | A::TimerFiredEventAttributes(_)
            | A::WorkflowExecutionSignaledEventAttributes(_)
            | A::WorkflowExecutionCancelRequestedEventAttributes(_)
            | A::StartChildWorkflowExecutionFailedEventAttributes(_)
            | A::ChildWorkflowExecutionStartedEventAttributes(_)
            | A::ChildWorkflowExecutionCompletedEventAttributes(_)
            | A::ChildWorkflowExecutionFailedEventAttributes(_)
            | A::ChildWorkflowExecutionCanceledEventAttributes(_)
            | A::ChildWorkflowExecutionTimedOutEventAttributes(_)
            | A::ChildWorkflowExecutionTerminatedEventAttributes(_)
            | A::SignalExternalWorkflowExecutionFailedEventAttributes(_)
            | A::ExternalWorkflowExecutionSignaledEventAttributes(_)
            | A::RequestCancelExternalWorkflowExecutionFailedEventAttributes(_)
            | A::ExternalWorkflowExecutionCancelRequestedEventAttributes(_)
    )
}

/// Each event names those that it follows from, and times never go back, but for events that waited
/// for a task to end and for the start of an attempt: they keep their own.
#[track_caller]
pub fn check_history(events: &[HistoryEvent]) {
    let at = |id: i64| events[id as usize - 1].attributes.as_ref().expect("events have attributes");
    let mut last = None;
    for event in events {
        let time = event.event_time.as_ref().map(|t| (t.seconds, t.nanos));
        let own = event.attributes.as_ref().is_some_and(keeps_its_time);
        assert!(own || last <= time, "time went back at event {}", event.event_id);
        last = last.max(time);
        let id = event.event_id;
        match event.attributes.as_ref().expect("events have attributes") {
            A::WorkflowTaskStartedEventAttributes(a) => {
                let scheduled = at(a.scheduled_event_id);
                assert!(matches!(scheduled, A::WorkflowTaskScheduledEventAttributes(_)));
            }
            A::WorkflowTaskCompletedEventAttributes(a) => {
                assert_eq!(a.started_event_id, id - 1);
                assert!(matches!(at(id - 1), A::WorkflowTaskStartedEventAttributes(_)));
            }
            A::WorkflowTaskFailedEventAttributes(a) => {
                assert_eq!(a.started_event_id, id - 1);
            }
            A::ActivityTaskCompletedEventAttributes(a) => {
                let A::ActivityTaskStartedEventAttributes(started) = at(a.started_event_id) else {
                    panic!("event {id} names no Started event");
                };
                assert_eq!(started.scheduled_event_id, a.scheduled_event_id);
            }
            A::ActivityTaskFailedEventAttributes(a) => {
                let A::ActivityTaskStartedEventAttributes(started) = at(a.started_event_id) else {
                    panic!("event {id} names no Started event");
                };
                assert_eq!(started.scheduled_event_id, a.scheduled_event_id);
            }
            A::ChildWorkflowExecutionTerminatedEventAttributes(a) => {
                let A::ChildWorkflowExecutionStartedEventAttributes(s) = at(a.started_event_id)
                else {
                    panic!("event {id} names no Started event");
                };
                assert_eq!(s.initiated_event_id, a.initiated_event_id);
            }
            _ => {}
        }
    }
}
