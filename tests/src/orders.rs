//! The workload's workflows: a plan that the workflow type spells out, and what workflow code would
//! do after the events of a history.

use std::time::Duration;

use piton_proto::command::command::Attributes;
use piton_proto::command::{
    CancelWorkflowExecutionCommandAttributes, Command, CompleteWorkflowExecutionCommandAttributes,
    ContinueAsNewWorkflowExecutionCommandAttributes, ScheduleActivityTaskCommandAttributes,
    StartChildWorkflowExecutionCommandAttributes, StartTimerCommandAttributes,
};
use piton_proto::common::{
    ActivityType, Payload, Payloads, RetryPolicy, WorkflowExecution, WorkflowType,
};
use piton_proto::enums::{CommandType, EventType};
use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes as Event;
use piton_proto::taskqueue::TaskQueue;

/// What a workflow does: some activities, timers and a child at once; then it waits for them and for
/// signals, and ends or goes on as a new run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub activities: u64,
    pub timer_ms: u64,
    pub children: u64,
    pub signals: u64,
    pub continues: u64,
    /// All of them take `timer_ms`.
    pub timers: u64,
}

impl Default for Plan {
    /// A timer that fires at once, and nothing else.
    fn default() -> Self {
        Self { activities: 0, timer_ms: 0, children: 0, signals: 0, continues: 0, timers: 1 }
    }
}

impl Plan {
    pub fn workflow_type(&self) -> WorkflowType {
        let Plan { activities, timer_ms, children, signals, continues, timers } = self;
        let name =
            format!("order/{activities}/{timer_ms}/{children}/{signals}/{continues}/{timers}");
        WorkflowType { name }
    }

    pub fn of(workflow_type: &str) -> Self {
        let mut numbers = workflow_type.split('/').skip(1).map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Plan {
            activities: next(),
            timer_ms: next(),
            children: next(),
            signals: next(),
            continues: next(),
            timers: next(),
        }
    }
}

pub fn duration(span: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}

pub fn task_queue(name: &str) -> Option<TaskQueue> {
    Some(TaskQueue { name: name.to_owned(), ..TaskQueue::default() })
}

pub fn payloads(text: &str) -> Payloads {
    let data = text.as_bytes().to_vec().into();
    Payloads { payloads: vec![Payload { data, ..Payload::default() }] }
}

/// What workflow code decides, with the times that a worker is given.
#[derive(Clone, Debug)]
pub struct Code {
    pub queue: String,
    /// An attempt of an activity.
    pub attempt: Duration,
    pub workflow_task: Duration,
}

impl Code {
    /// What it does after these events of the run.
    pub fn decide(
        &self,
        workflow_type: &str,
        execution: &WorkflowExecution,
        events: &[HistoryEvent],
    ) -> Vec<Command> {
        let plan = Plan::of(workflow_type);
        let count = |kinds: &[EventType]| {
            events.iter().filter(|event| kinds.contains(&event.event_type())).count() as u64
        };
        if count(&[EventType::WorkflowExecutionCancelRequested]) > 0 {
            let attributes = CancelWorkflowExecutionCommandAttributes { details: None };
            let attributes = Attributes::CancelWorkflowExecutionCommandAttributes(attributes);
            return vec![command(CommandType::CancelWorkflowExecution, attributes)];
        }
        if count(&[EventType::TimerStarted]) == 0 {
            let mut commands: Vec<_> = (0..plan.activities).map(|n| self.schedule(n)).collect();
            commands.extend((0..plan.timers).map(|n| start_timer(n, plan.timer_ms)));
            if plan.children > 0 {
                commands.push(self.start_child(&execution.workflow_id, &execution.run_id));
            }
            return commands;
        }
        let activities = count(&[
            EventType::ActivityTaskCompleted,
            EventType::ActivityTaskFailed,
            EventType::ActivityTaskTimedOut,
        ]);
        let children = count(&[
            EventType::ChildWorkflowExecutionCompleted,
            EventType::ChildWorkflowExecutionTerminated,
            EventType::ChildWorkflowExecutionCanceled,
            EventType::StartChildWorkflowExecutionFailed,
        ]);
        let is_over = activities == plan.activities
            && children == plan.children
            && count(&[EventType::TimerFired]) == plan.timers
            && count(&[EventType::WorkflowExecutionSignaled]) >= plan.signals;
        if is_over { vec![self.end(plan)] } else { Vec::new() }
    }

    fn schedule(&self, number: u64) -> Command {
        let attributes = ScheduleActivityTaskCommandAttributes {
            activity_id: format!("activity-{number}"),
            activity_type: Some(ActivityType { name: "step".to_owned() }),
            task_queue: task_queue(&self.queue),
            start_to_close_timeout: duration(self.attempt),
            schedule_to_close_timeout: duration(Duration::from_secs(600)),
            retry_policy: Some(RetryPolicy {
                initial_interval: duration(Duration::from_millis(100)),
                backoff_coefficient: 2.0,
                maximum_interval: duration(Duration::from_secs(1)),
                maximum_attempts: 5,
                ..RetryPolicy::default()
            }),
            ..ScheduleActivityTaskCommandAttributes::default()
        };
        let attributes = Attributes::ScheduleActivityTaskCommandAttributes(attributes);
        command(CommandType::ScheduleActivityTask, attributes)
    }

    fn start_child(&self, of: &str, run_id: &str) -> Command {
        let plan = Plan { activities: 1, timer_ms: 50, ..Plan::default() };
        let attributes = StartChildWorkflowExecutionCommandAttributes {
            workflow_id: format!("{of}/{run_id}"),
            workflow_type: Some(plan.workflow_type()),
            task_queue: task_queue(&self.queue),
            workflow_task_timeout: duration(self.workflow_task),
            ..StartChildWorkflowExecutionCommandAttributes::default()
        };
        let attributes = Attributes::StartChildWorkflowExecutionCommandAttributes(attributes);
        command(CommandType::StartChildWorkflowExecution, attributes)
    }

    fn end(&self, plan: Plan) -> Command {
        if plan.continues == 0 {
            let result = Some(payloads("done"));
            let attributes = CompleteWorkflowExecutionCommandAttributes { result };
            let attributes = Attributes::CompleteWorkflowExecutionCommandAttributes(attributes);
            return command(CommandType::CompleteWorkflowExecution, attributes);
        }
        let next = Plan { continues: plan.continues - 1, signals: 0, children: 0, ..plan };
        let attributes = ContinueAsNewWorkflowExecutionCommandAttributes {
            workflow_type: Some(next.workflow_type()),
            task_queue: task_queue(&self.queue),
            workflow_task_timeout: duration(self.workflow_task),
            ..ContinueAsNewWorkflowExecutionCommandAttributes::default()
        };
        let attributes = Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(attributes);
        command(CommandType::ContinueAsNewWorkflowExecution, attributes)
    }
}

fn command(kind: CommandType, attributes: Attributes) -> Command {
    Command { command_type: kind.into(), attributes: Some(attributes), ..Command::default() }
}

fn start_timer(number: u64, millis: u64) -> Command {
    let attributes = StartTimerCommandAttributes {
        timer_id: format!("timer-{number}"),
        start_to_fire_timeout: duration(Duration::from_millis(millis)),
    };
    command(CommandType::StartTimer, Attributes::StartTimerCommandAttributes(attributes))
}

/// What a query is answered: the run, and the signals that it has seen.
pub fn answer_to_query(run_id: &str, events: &[HistoryEvent]) -> Payloads {
    payloads(&format!("{run_id} {}", signals_in(events).join(" ")))
}

/// Names of the signals that a run has seen.
pub fn signals_in(events: &[HistoryEvent]) -> Vec<String> {
    let name = |event: &HistoryEvent| match event.attributes.as_ref() {
        Some(Event::WorkflowExecutionSignaledEventAttributes(signalled)) => {
            Some(signalled.signal_name.clone())
        }
        _ => None,
    };
    events.iter().filter_map(name).collect()
}
