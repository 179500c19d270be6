//! Thousands of random requests to runs of one workflow, from a seed. After every commit: the
//! invariants hold, the fold of what is stored equals the live state, and what the fold owes equals
//! what the changes said. Histories are well formed, and a worker got what was stored later.

mod flow;
mod random_numbers;

use std::collections::BTreeMap;
use std::sync::Arc;

use flow::{AllKnown, check_history, command as of, queue};
use piton_core::effect::{Effect, EffectKey, TaskKey, TaskOffer};
use piton_core::id::{EventId, NamespaceId, RunId, WorkflowKey};
use piton_core::limits::Limits;
use piton_core::note::{Note, NoteKey};
use piton_core::proto::command::command::Attributes as C;
use piton_core::proto::command::{self, Command};
use piton_core::proto::common::{
    ActivityType, Payloads, RetryPolicy, WorkerVersionStamp, WorkflowType,
};
use piton_core::proto::enums::{CommandType, ParentClosePolicy, WorkflowIdConflictPolicy};
use piton_core::proto::failure::Failure;
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::taskqueue::StickyExecutionAttributes;
use piton_core::proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
    StartWorkflowExecutionRequest,
};
use piton_core::request::{
    ActivityRef, CancelRequest, ChildRefusal, Drawn, ExternalRefusal, RunRequest, Signal,
    StartRequest, Taker, TerminateRequest, WorkflowTaskRef,
};
use piton_core::run::{Decided, Met, Milestone, Reply, RunState, StartedTask, decide_start};
use piton_core::time::{Span, Timestamp};
use piton_core::transition::{self, Change};
use piton_core::{effect, invariant};
use random_numbers::Random;

/// What a shard would have stored of one run.
#[derive(Default)]
struct Stored {
    events: Vec<HistoryEvent>,
    notes: BTreeMap<NoteKey, Note>,
    effects: BTreeMap<EffectKey, Effect>,
    /// Left behind now and then; the last one counts.
    milestone: Option<Milestone>,
}

impl Stored {
    fn put(&mut self, change: Change) {
        self.events.extend(change.events.into_iter().map(Arc::unwrap_or_clone));
        for (key, note) in change.notes {
            match note {
                Some(note) => drop(self.notes.insert(key, note)),
                None => drop(self.notes.remove(&key)),
            }
        }
        for key in change.settled {
            assert!(self.effects.remove(&key).is_some(), "settled what was not owed: {key:?}");
        }
        for (key, effect) in change.owed {
            assert!(self.effects.insert(key, effect).is_none(), "owed twice");
        }
    }
}

fn task_of(effect: &Effect) -> Option<&TaskOffer> {
    match effect {
        Effect::Task(offer) => Some(offer),
        Effect::Timer(..) | Effect::Errand(..) => None,
    }
}

struct World {
    random: Random,
    seed: u64,
    step: usize,
    now: Timestamp,
    number: u64,
    limits: Limits,
    key: WorkflowKey,
    /// The current run as committed, and after the decisions that are not committed yet.
    committed: Option<RunState>,
    live: Option<RunState>,
    stored: BTreeMap<RunId, Stored>,
    /// Tasks that workers hold, perhaps for long.
    tasks: Vec<StartedTask>,
    seen: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let limits = Limits {
            buffered_events_max: 6,
            history_events_max: 300,
            history_events_suggest: 100,
            pending_activities_max: 5,
            signals_max: 40,
            ..Limits::default()
        };
        Self {
            random: Random(seed),
            seed,
            step: 0,
            now: Timestamp::from_millis(1_700_000_000_000),
            number: 0,
            limits,
            key: WorkflowKey { namespace: NamespaceId::from("ns"), workflow_id: "w".into() },
            committed: None,
            live: None,
            stored: BTreeMap::new(),
            tasks: Vec::new(),
            seen: BTreeMap::new(),
        }
    }

    fn drawn<R>(&mut self, with: impl FnOnce(&Drawn<'_>) -> R) -> R {
        self.number += 1;
        let run_id = format!("00000000-0000-0000-0000-{:012}", self.number);
        with(&Drawn {
            now: self.now,
            term: 1,
            number: self.number,
            run_id: RunId::from(run_id),
            limits: &self.limits,
            namespace_name: "default",
            namespaces: &[],
            search_attributes: &AllKnown,
        })
    }

    fn step(&mut self) {
        self.step += 1;
        if self.random.one_in(3) {
            let millis = [1, 50, 1_000, 5_000, 20_000][self.random.below(5)];
            self.now = self.now + Span::from_millis(millis);
        }
        match self.live.clone() {
            Some(run) if run.status.is_open() || !run.note.owed.is_empty() => self.ask(&run),
            _ => self.start(),
        }
        if !self.random.one_in(4) {
            self.commit();
        }
        if self.random.one_in(40) {
            self.rehost();
        }
    }

    fn start(&mut self) {
        self.commit();
        let conflict = match self.random.below(3) {
            0 => WorkflowIdConflictPolicy::TerminateExisting,
            1 => WorkflowIdConflictPolicy::UseExisting,
            _ => WorkflowIdConflictPolicy::Unspecified,
        };
        let timeout = self.random.one_in(2).then(|| Span::from_secs(300).to_proto());
        let start = StartWorkflowExecutionRequest {
            workflow_id: "w".into(),
            workflow_type: Some(WorkflowType { name: "Order".into() }),
            task_queue: Some(queue("q")),
            request_id: format!("start-{}", self.step),
            workflow_id_conflict_policy: conflict.into(),
            workflow_run_timeout: timeout,
            request_eager_execution: self.random.one_in(2),
            ..Default::default()
        };
        let is_child = self.random.one_in(3);
        let parent = is_child.then(|| piton_core::request::Parent {
            link: effect::ParentLink {
                namespace_id: "ns".into(),
                workflow_id: "parent".into(),
                run_id: "parent-run".into(),
                initiated: EventId(5),
            },
            namespace_name: "default".into(),
            root: Default::default(),
        });
        let with_signal = !is_child && self.random.one_in(3);
        let signal = with_signal.then(|| Signal { name: "s".into(), ..Signal::default() });
        let request = StartRequest { start: Box::new(start), signal, parent };
        let (key, live) = (self.key.clone(), self.live.clone());
        let decided = self.drawn(|d| decide_start(&key, live.as_ref().map(Met::from), request, d));
        if let Ok(decided) = decided {
            self.accept(decided);
        }
    }

    fn ask(&mut self, run: &RunState) {
        if self.random.one_in(60) {
            return self.start();
        }
        let Some((name, request)) = self.request(run) else { return };
        *self.seen.entry(name).or_default() += 1;
        let answered = match &request {
            RunRequest::CompleteWorkflowTask { token, .. } => Some(*token),
            _ => None,
        };
        let decided = self.drawn(|d| run.decide(request, d));
        let Ok(decided) = decided else { return };
        if let (Some(token), Ok(_)) = (answered, &decided.reply) {
            self.check_written(token, decided.run.as_ref().expect("the run was there"));
        }
        self.accept(decided);
    }

    /// What the worker got is what history says now.
    fn check_written(&self, token: WorkflowTaskRef, run: &RunState) {
        let task = self.tasks.iter().find(|t| (t.term, t.number) == (token.term, token.number));
        for event in &task.expect("somebody holds the answered task").suffix {
            let written = run.uncommitted.iter().find(|e| e.event_id == event.event_id);
            assert_eq!(
                written.map(AsRef::as_ref),
                Some(event),
                "seed {} step {}",
                self.seed,
                self.step
            );
        }
    }

    fn accept(&mut self, decided: Decided) {
        match decided.reply {
            Ok(Reply::WorkflowTask(task)) => self.tasks.push(*task),
            Ok(Reply::WorkflowTaskCompleted { next: Some(task), .. }) => self.tasks.push(*task),
            Ok(Reply::Started { eager: Some(task), .. }) => self.tasks.push(*task),
            _ => {}
        }
        if let Some(run) = decided.run {
            self.live = Some(run);
        }
        if let Some(next) = decided.successor {
            self.commit();
            // The errands of the run before are not this test's: it follows the current run.
            self.committed = None;
            self.live = Some(next);
            self.commit();
        }
    }

    fn commit(&mut self) {
        let Some(live) = &mut self.live else { return };
        let before = self.committed.as_ref().filter(|b| b.run_id == live.run_id);
        let new_tasks = transition::new_tasks(before, live);
        let change = Change::between(before, live);
        let tasks: Vec<_> = change.owed.values().filter_map(task_of).collect();
        let mut new_tasks: Vec<_> = new_tasks.iter().collect();
        new_tasks.sort_by_key(|offer| &offer.key);
        let (seed, step) = (self.seed, self.step);
        assert_eq!(new_tasks, tasks, "seed {seed} step {step}: the new tasks differ");
        let milestone = before.filter(|_| self.random.one_in(15)).and_then(Milestone::of);
        let stored = self.stored.entry(live.run_id.clone()).or_default();
        stored.milestone = milestone.or(stored.milestone.take());
        stored.put(change);
        self.committed = Some(live.clone());
        if let Err(broken) = invariant::check(live) {
            panic!("seed {seed} step {step}: {broken}");
        }
        let mut settled = RunState { held: None, ..live.clone() };
        let mut folded = self.fold(&settled);
        assert_eq!(folded, settled, "seed {seed} step {step}: the fold differs");
        let owed = Change::between(None, &mut folded).owed;
        let stored = &self.stored[&settled.run_id];
        assert_eq!(owed, stored.effects, "seed {seed} step {step}: the effects differ");
        settled.take_uncommitted();
        check_history(&stored.events);
    }

    fn fold(&self, run: &RunState) -> RunState {
        let stored = &self.stored[&run.run_id];
        let notes: Vec<_> = stored.notes.iter().map(|(k, n)| (*k, n.clone())).collect();
        let (key, run_id) = (run.key.clone(), run.run_id.clone());
        let (at, events) = (format!("seed {} step {}", self.seed, self.step), &stored.events);
        let whole =
            RunState::from_history(key.clone(), run_id.clone(), events.clone(), notes.clone());
        let whole = whole.unwrap_or_else(|e| panic!("{at}: {e}"));
        let Some(milestone) = stored.milestone.clone() else { return whole };
        let from = milestone.next_event_id;
        let rest = events.iter().filter(|event| EventId(event.event_id) >= from).cloned();
        let short = RunState::from_milestone(key, run_id, milestone, rest, notes);
        assert_eq!(short.as_ref(), Ok(&whole), "{at}: from {from}");
        whole
    }

    fn rehost(&mut self) {
        self.commit();
        let Some(live) = self.live.clone() else { return };
        let folded = self.fold(&live);
        let decided = self.drawn(|d| folded.decide(RunRequest::Rehosted, d));
        self.committed = Some(folded);
        self.live = decided.expect("re-hosting is never refused").run;
        self.commit();
        let live = self.live.as_ref().expect("it was there");
        assert!(live.buffered.is_empty() && live.held.is_none());
    }

    fn request(&mut self, run: &RunState) -> Option<(&'static str, RunRequest)> {
        let request = match self.random.below(20) {
            0 | 1 => {
                ("signal", RunRequest::Signal(Signal { name: "s".into(), ..Signal::default() }))
            }
            2 if self.random.one_in(8) => {
                ("cancel", RunRequest::RequestCancel(CancelRequest::default()))
            }
            3 if self.random.one_in(30) => {
                ("terminate", RunRequest::Terminate(TerminateRequest::default()))
            }
            4 => ("due", RunRequest::Due),
            5 if self.random.one_in(4) => ("reset sticky", RunRequest::ResetSticky),
            6 => ("activity", self.activity_answer(run)?),
            7 => ("activity", self.activity_answer(run)?),
            8 => ("child", self.child_answer(run)?),
            9 => ("external", self.external_answer(run)?),
            10 => ("parent", RunRequest::ParentRecorded),
            11 => ("errand", RunRequest::ErrandDone(*run.note.owed.first()?)),
            12 | 13 => self.offer(run)?,
            _ => match &run.held {
                None => self.offer(run)?,
                Some(held) => self.task_answer(held.term, held.number),
            },
        };
        Some(request)
    }

    fn offer(&mut self, run: &RunState) -> Option<(&'static str, RunRequest)> {
        let owed = Change::between(None, &mut run.clone()).owed;
        let tasks: Vec<_> = owed.values().filter_map(task_of).cloned().collect();
        let offer = self.random.pick(&tasks)?;
        let request_id = format!("ticket-{}", self.step / 2);
        let sticky = offer.queue.is_sticky();
        let (identity, request_id) = ("worker".into(), request_id.into());
        let taker = Taker { identity, request_id, sticky, worker_version: None };
        Some(match offer.key {
            TaskKey::Workflow { stamp, .. } if self.random.one_in(10) => {
                ("sticky unavailable", RunRequest::StickyUnavailable { stamp })
            }
            TaskKey::Workflow { scheduled, stamp } => {
                ("take", RunRequest::TakeWorkflowTask { scheduled, stamp, taker })
            }
            TaskKey::Activity { scheduled, stamp } => {
                let created = offer.created;
                ("start activity", RunRequest::StartActivity { scheduled, stamp, created, taker })
            }
        })
    }

    fn task_answer(&mut self, term: u64, number: u64) -> (&'static str, RunRequest) {
        let token = WorkflowTaskRef { term, number };
        match self.random.below(12) {
            0 => {
                let answer = Box::new(RespondWorkflowTaskFailedRequest::default());
                ("fail task", RunRequest::FailWorkflowTask { token, answer })
            }
            1 => ("task timeout", RunRequest::WorkflowTaskTimedOut { number }),
            2 => ("undelivered", RunRequest::WorkflowTaskUndelivered { number }),
            _ => {
                let answer = Box::new(self.completion());
                ("complete", RunRequest::CompleteWorkflowTask { token, answer })
            }
        }
    }

    #[allow(deprecated, reason = "workers still say so what build they are of")]
    fn completion(&mut self) -> RespondWorkflowTaskCompletedRequest {
        let mut commands: Vec<Command> = Vec::new();
        for _ in 0..self.random.below(4) {
            commands.extend(self.command());
        }
        if self.random.one_in(15) {
            commands.push(self.closing_command());
        }
        let sticky_attributes = self.random.one_in(2).then(|| StickyExecutionAttributes {
            worker_task_queue: Some(queue("sticky")),
            schedule_to_start_timeout: Some(Span::from_secs(5).to_proto()),
        });
        let build_id = format!("build-{}", self.random.below(3));
        let stamp = WorkerVersionStamp { build_id, ..WorkerVersionStamp::default() };
        RespondWorkflowTaskCompletedRequest {
            commands,
            worker_version_stamp: self.random.one_in(2).then_some(stamp),
            identity: "worker".into(),
            sticky_attributes,
            return_new_workflow_task: self.random.one_in(2),
            force_create_new_workflow_task: self.random.one_in(6),
            ..Default::default()
        }
    }

    fn closing_command(&mut self) -> Command {
        match self.random.below(4) {
            0 => of(
                CommandType::CompleteWorkflowExecution,
                C::CompleteWorkflowExecutionCommandAttributes(Default::default()),
            ),
            1 => of(
                CommandType::CancelWorkflowExecution,
                C::CancelWorkflowExecutionCommandAttributes(Default::default()),
            ),
            2 => of(
                CommandType::FailWorkflowExecution,
                C::FailWorkflowExecutionCommandAttributes(
                    command::FailWorkflowExecutionCommandAttributes {
                        failure: Some(Failure::default()),
                    },
                ),
            ),
            _ => of(
                CommandType::ContinueAsNewWorkflowExecution,
                C::ContinueAsNewWorkflowExecutionCommandAttributes(Default::default()),
            ),
        }
    }

    fn command(&mut self) -> Option<Command> {
        let name = format!("{}", self.random.below(4));
        let some_event = self.live.as_ref().and_then(|run| {
            let ids: Vec<EventId> = run.activities.keys().copied().collect();
            self.random.pick(&ids)
        });
        Some(match self.random.below(8) {
            0 | 1 => of(
                CommandType::ScheduleActivityTask,
                C::ScheduleActivityTaskCommandAttributes(self.activity()),
            ),
            2 => of(
                CommandType::RequestCancelActivityTask,
                C::RequestCancelActivityTaskCommandAttributes(
                    command::RequestCancelActivityTaskCommandAttributes {
                        scheduled_event_id: some_event?.0,
                    },
                ),
            ),
            3 => of(
                CommandType::StartTimer,
                C::StartTimerCommandAttributes(command::StartTimerCommandAttributes {
                    timer_id: name,
                    start_to_fire_timeout: Some(
                        Span::from_millis(self.random.below(9_000) as i64).to_proto(),
                    ),
                }),
            ),
            4 => of(
                CommandType::CancelTimer,
                C::CancelTimerCommandAttributes(command::CancelTimerCommandAttributes {
                    timer_id: self.live.as_ref()?.timers.values().next()?.timer_id.clone(),
                }),
            ),
            5 => of(
                CommandType::StartChildWorkflowExecution,
                C::StartChildWorkflowExecutionCommandAttributes(self.child(name)),
            ),
            6 => of(
                CommandType::SignalExternalWorkflowExecution,
                C::SignalExternalWorkflowExecutionCommandAttributes(
                    command::SignalExternalWorkflowExecutionCommandAttributes {
                        execution: Some(execution()),
                        signal_name: "s".into(),
                        ..Default::default()
                    },
                ),
            ),
            _ => of(
                CommandType::RequestCancelExternalWorkflowExecution,
                C::RequestCancelExternalWorkflowExecutionCommandAttributes(
                    command::RequestCancelExternalWorkflowExecutionCommandAttributes {
                        workflow_id: "other".into(),
                        ..Default::default()
                    },
                ),
            ),
        })
    }

    fn activity(&mut self) -> command::ScheduleActivityTaskCommandAttributes {
        let whole = self.random.one_in(2).then(|| Span::from_secs(30).to_proto());
        command::ScheduleActivityTaskCommandAttributes {
            activity_id: format!("a{}", self.random.below(50)),
            activity_type: Some(ActivityType { name: "Charge".into() }),
            task_queue: Some(Default::default()),
            start_to_close_timeout: Some(Span::from_secs(10).to_proto()),
            heartbeat_timeout: self.random.one_in(2).then(|| Span::from_secs(3).to_proto()),
            schedule_to_close_timeout: whole,
            schedule_to_start_timeout: self.random.one_in(2).then(|| Span::from_secs(6).to_proto()),
            retry_policy: Some(RetryPolicy {
                maximum_attempts: self.random.below(3) as i32,
                ..Default::default()
            }),
            request_eager_execution: self.random.one_in(3),
            ..Default::default()
        }
    }

    fn child(&mut self, name: String) -> command::StartChildWorkflowExecutionCommandAttributes {
        let policies = [
            ParentClosePolicy::Terminate,
            ParentClosePolicy::Abandon,
            ParentClosePolicy::RequestCancel,
        ];
        command::StartChildWorkflowExecutionCommandAttributes {
            workflow_id: name,
            workflow_type: Some(WorkflowType { name: "Child".into() }),
            parent_close_policy: policies[self.random.below(3)].into(),
            ..Default::default()
        }
    }

    fn activity_answer(&mut self, run: &RunState) -> Option<RunRequest> {
        let pending: Vec<_> = run.activities.values().cloned().collect();
        let pending = self.random.pick(&pending)?;
        let (attempt, stamp) = (pending.note.attempt, pending.note.stamp);
        let activity = match self.random.one_in(5) {
            true => ActivityRef::Id(pending.attributes.activity_id.clone()),
            false => ActivityRef::Attempt { scheduled: pending.scheduled_event_id, attempt, stamp },
        };
        let identity = "worker".to_owned();
        Some(match self.random.below(6) {
            0 | 1 => RunRequest::CompleteActivity {
                activity,
                result: Some(Payloads::default()),
                identity,
            },
            2 => RunRequest::FailActivity {
                activity,
                failure: Some(Failure::default()),
                last_heartbeat_details: None,
                identity,
            },
            3 => RunRequest::CancelActivity { activity, details: None, identity },
            4 => RunRequest::HeartbeatActivity { activity, details: None, identity: String::new() },
            _ => {
                let request_id = pending.note.started.as_ref()?.request_id.clone();
                let scheduled = pending.scheduled_event_id;
                RunRequest::ActivityUndelivered { scheduled, stamp, request_id }
            }
        })
    }

    fn child_answer(&mut self, run: &RunState) -> Option<RunRequest> {
        let ids: Vec<EventId> = run.children.keys().copied().collect();
        let initiated = self.random.pick(&ids)?;
        let run_id = RunId::from(format!("child-run-{initiated}"));
        Some(match self.random.below(4) {
            0 | 1 => RunRequest::ChildStarted { initiated, run_id, header: None },
            2 => RunRequest::ChildRefused { initiated, cause: ChildRefusal::AlreadyExists },
            _ => RunRequest::ChildClosed {
                initiated,
                outcome: Box::new(effect::ChildOutcome {
                    workflow_id: "child".into(),
                    run_id: run_id.clone(),
                    first_run: run_id,
                    workflow_type: "Child".into(),
                    result: effect::ChildResult::Terminated,
                }),
            },
        })
    }

    fn external_answer(&mut self, run: &RunState) -> Option<RunRequest> {
        let refusal = self.random.one_in(2).then_some(ExternalRefusal::NotFound);
        if let Some((&initiated, _)) = run.external_signals.iter().next() {
            return Some(RunRequest::ExternalSignalDone { initiated, refusal });
        }
        let (&initiated, _) = run.external_cancels.iter().next()?;
        Some(RunRequest::ExternalCancelDone { initiated, refusal })
    }
}

fn execution() -> piton_core::proto::common::WorkflowExecution {
    piton_core::proto::common::WorkflowExecution {
        workflow_id: "other".into(),
        run_id: String::new(),
    }
}

#[test]
fn random_requests_keep_every_run_equal_to_its_fold() {
    let mut seen: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut kinds: BTreeMap<i32, usize> = BTreeMap::new();
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..500 {
            world.step();
        }
        world.commit();
        for (name, n) in world.seen {
            *seen.entry(name).or_default() += n;
        }
        for event in world.stored.values().flat_map(|stored| &stored.events) {
            *kinds.entry(event.event_type).or_default() += 1;
        }
    }
    for name in ["signal", "due", "take", "complete", "fail task", "start activity", "undelivered"]
    {
        assert!(seen.get(name).is_some_and(|&n| n > 50), "{name} was hardly tried: {seen:?}");
    }
    // Every kind of event that is built occurs, but for those that take search attributes or memo.
    for kind in (1..=24).chain([26, 27, 28, 29, 30, 31, 36, 37, 38, 39]) {
        assert!(kinds.contains_key(&kind), "no event of type {kind}: {kinds:?}");
    }
}
