use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use piton_core::effect::{Effect, EffectKey, ErrandKey, QueueName, TaskKey, TaskOffer};
use piton_core::id::RequestId;
use piton_core::limits::Limits;
use piton_core::proto::command::command::Attributes as C;
use piton_core::proto::command::{self, Command};
use piton_core::proto::common::{
    ActivityType, Link, SearchAttributes, WorkflowExecution, WorkflowType, link,
};
use piton_core::proto::enums::CommandType;
use piton_core::proto::taskqueue::TaskQueue;
use piton_core::proto::workflowservice::{
    RespondWorkflowTaskCompletedRequest, StartWorkflowExecutionRequest,
};
use piton_core::request::{
    Drawn, RunRequest, SearchAttributeCheck, Signal, StartRequest, Taker, WorkflowTaskRef,
};
use piton_core::run::{Decided, Reply, RunState, StartedTask, decide_start};
use piton_core::time::Span;
use piton_core::transition::Change;

use parking_lot::Mutex;
use piton_store::{MemoryStore, Passing, Store, Write, may_wait};

use super::*;
use crate::message::{QueueKey, QueueType};
use crate::replica::entry::{TransitionRecord, Verdict};
use crate::replica::tests::{TestShard, key};
use crate::rows::codes::{errand_codes, timer_codes};
use crate::rows::values::task_row;
use crate::rows::writes::effect_write;

/// How long a test waits for a thread before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct AllKnown;

impl SearchAttributeCheck for AllKnown {
    fn check(&self, _: &mut SearchAttributes) -> Result<(), String> {
        Ok(())
    }
}

/// One workflow driven through core, with every change stored as the actor would.
pub(crate) struct Driver {
    pub(crate) shard: TestShard,
    pub(crate) key: WorkflowKey,
    pub(crate) now: Timestamp,
    position: Position,
    number: u64,
    pub(crate) live: Option<RunState>,
    limits: Limits,
}

impl Driver {
    pub(crate) fn start(shard: TestShard, id: &str, now: Timestamp) -> Driver {
        let (position, limits) = (Position(0), Limits::default());
        let key = key(id);
        let mut driver = Driver { shard, key, now, position, number: 0, live: None, limits };
        let start = StartWorkflowExecutionRequest {
            workflow_id: id.into(),
            workflow_type: Some(WorkflowType { name: "Order".into() }),
            task_queue: Some(queue("q")),
            request_id: "start".into(),
            workflow_run_timeout: Some(Span::from_secs(600).to_proto()),
            links: vec![Link { variant: Some(link::Variant::BatchJob(Default::default())) }],
            ..Default::default()
        };
        let request = StartRequest { start: Box::new(start), signal: None, parent: None };
        let key = driver.key.clone();
        let decided = driver.drawn(|drawn| decide_start(&key, None, request, drawn));
        driver.accept(decided.expect("a first start is accepted"));
        driver
    }

    fn drawn<R>(&mut self, with: impl FnOnce(&Drawn<'_>) -> R) -> R {
        self.number += 1;
        with(&Drawn {
            now: self.now,
            term: 1,
            number: self.number,
            run_id: RunId::from(format!("run-{}-{}", self.key.workflow_id, self.number)),
            limits: &self.limits,
            namespace_name: "default",
            namespaces: &[],
            search_attributes: &AllKnown,
        })
    }

    pub(crate) fn run_id(&self) -> RunId {
        self.live.as_ref().expect("it was started").run_id.clone()
    }

    /// Decides a request, stores the change, and compares what is stored with the live run.
    pub(crate) fn ask(&mut self, request: RunRequest) -> Reply {
        self.now = self.now + Span::from_millis(10);
        let run = self.live.clone().expect("it was started");
        let decided = self.drawn(|drawn| run.decide(request, drawn)).expect("it is accepted");
        let reply = decided.reply.clone().expect("it is answered");
        self.accept(decided);
        reply
    }

    fn accept(&mut self, decided: Decided) {
        let before = self.live.take();
        let mut writes = Vec::new();
        let mut after = decided.run.or_else(|| before.clone());
        assert!(decided.others.is_empty(), "no decision that is built has any");
        if let Some(run) = &mut after {
            let change = Change::between(before.as_ref(), run);
            let rows = change_writes(1, &self.key, &change, Span::from_secs(60));
            writes.extend(rows.expect("short rows"));
            let before = before.as_ref();
            let milestone = before.map(|before| milestone_write(1, &self.key, before, &change));
            writes.extend(milestone.transpose().expect("a short row").flatten());
        }
        if let Some(mut next) = decided.successor {
            let change = Change::between(None, &mut next);
            let rows = change_writes(1, &self.key, &change, Span::from_secs(60));
            writes.extend(rows.expect("short rows"));
            after = Some(next);
        }
        let live = after.expect("a decision leaves a run");
        let base = self.position;
        self.position = Position(base.0 + 1);
        let current = Current::of(&live, self.position);
        writes.push(current_write(1, &self.key, &current).expect("a short row"));
        let record = TransitionRecord { term: 1, key: self.key.clone().into(), base, writes };
        assert_eq!(self.shard.put(&[record]), [Verdict::Applied]);
        self.live = Some(live);
        self.check();
    }

    fn check(&self) {
        let rows = self.shard.rows();
        let live = RunState { held: None, ..self.live.clone().expect("it was started") };
        let loaded = rows.load_run(&self.key, &live.run_id).expect("it loads");
        assert_eq!(loaded.as_ref(), Some(&live));
        let current = rows.current(&self.key).expect("it reads").expect("there is a run");
        assert_eq!(current.position, self.position);
        // A new leader finds in the rows just what the run owes.
        let owed = Change::between(None, &mut live.clone()).owed;
        assert_eq!(self.effects_in_rows(), owed.into_keys().collect::<Vec<_>>());
    }

    fn effects_in_rows(&self) -> Vec<EffectKey> {
        let rows = self.shard.rows();
        let (first, last) = (Timestamp::MIN, Timestamp::MAX);
        let timers = rows.timers_between(first, last).expect("they read");
        let mine = timers.into_iter().filter(|row| row.key == self.key.clone().into());
        let mut effects: Vec<_> = mine.map(|row| EffectKey::Timer(row.due, row.kind)).collect();
        let queues = rows.queues_with_tasks().expect("they read");
        let tasks = queues.iter().flat_map(|queue| first_tasks(&rows, queue));
        let mine = tasks.filter(|row| row.key == self.key);
        effects.extend(mine.map(|row| EffectKey::Task(row.task)));
        let errands = rows.errands(&self.key, &self.run_id()).expect("they read");
        effects.extend(errands.into_iter().map(|row| EffectKey::Errand(row.errand)));
        effects.sort();
        effects
    }

    /// Takes the scheduled workflow task as a worker would.
    pub(crate) fn take_task(&mut self) -> StartedTask {
        let note = self.live.as_ref().and_then(|run| run.note.workflow_task.clone());
        let note = note.expect("a task is scheduled");
        let taker = Taker {
            identity: "w".into(),
            request_id: "ticket".into(),
            sticky: false,
            worker_version: None,
        };
        let (scheduled, stamp) = (note.scheduled_event_id, note.stamp);
        match self.ask(RunRequest::TakeWorkflowTask { scheduled, stamp, taker }) {
            Reply::WorkflowTask(task) => *task,
            other => panic!("not a task: {other:?}"),
        }
    }

    pub(crate) fn complete_task(&mut self, commands: Vec<Command>) {
        let task = self.take_task();
        let token = WorkflowTaskRef { term: task.term, number: task.number };
        let answer = RespondWorkflowTaskCompletedRequest { commands, ..Default::default() };
        self.ask(RunRequest::CompleteWorkflowTask { token, answer: Box::new(answer) });
    }

    pub(crate) fn signal(&mut self) {
        let signal = Signal { name: "s".into(), ..Signal::default() };
        self.ask(RunRequest::Signal(signal));
    }

    /// Stores these rows beside what the workflow has.
    pub(crate) fn put(&mut self, mut writes: Vec<Write>) {
        let base = self.position;
        self.position = Position(base.0 + 1);
        let current = Current::of(self.live.as_ref().expect("it was started"), self.position);
        writes.push(current_write(1, &self.key, &current).expect("a short row"));
        let record = TransitionRecord { term: 1, key: self.key.clone().into(), base, writes };
        assert_eq!(self.shard.put(&[record]), [Verdict::Applied]);
    }

    /// Grows the history by so many events, in few transitions.
    fn grow(&mut self, events: usize) {
        for _ in 0..events.div_ceil(200) {
            self.signal();
            self.complete_task((0..200).map(|_| marker()).collect());
        }
    }

    /// Until the next run's first task is scheduled, too.
    pub(crate) fn continue_as_new(&mut self) {
        let kind = CommandType::ContinueAsNewWorkflowExecution;
        let attributes = C::ContinueAsNewWorkflowExecutionCommandAttributes(Default::default());
        self.complete_task(vec![of(kind, attributes)]);
        self.now = self.now + Span::from_secs(5);
        self.ask(RunRequest::Due);
    }

    pub(crate) fn complete(&mut self) {
        let kind = CommandType::CompleteWorkflowExecution;
        let attributes = C::CompleteWorkflowExecutionCommandAttributes(Default::default());
        self.complete_task(vec![of(kind, attributes)]);
    }
}

fn queue(name: &str) -> TaskQueue {
    TaskQueue { name: name.into(), ..TaskQueue::default() }
}

fn of(kind: CommandType, attributes: C) -> Command {
    Command { command_type: kind.into(), attributes: Some(attributes), ..Command::default() }
}

fn activity(id: &str) -> Command {
    let attributes = command::ScheduleActivityTaskCommandAttributes {
        activity_id: id.into(),
        activity_type: Some(ActivityType { name: "Pay".into() }),
        task_queue: Some(queue("activities")),
        start_to_close_timeout: Some(Span::from_secs(5).to_proto()),
        ..Default::default()
    };
    of(CommandType::ScheduleActivityTask, C::ScheduleActivityTaskCommandAttributes(attributes))
}

fn timer(id: &str) -> Command {
    let attributes = command::StartTimerCommandAttributes {
        timer_id: id.into(),
        start_to_fire_timeout: Some(Span::from_secs(30).to_proto()),
    };
    of(CommandType::StartTimer, C::StartTimerCommandAttributes(attributes))
}

fn marker() -> Command {
    let marker = command::RecordMarkerCommandAttributes {
        marker_name: "m".into(),
        ..command::RecordMarkerCommandAttributes::default()
    };
    of(CommandType::RecordMarker, C::RecordMarkerCommandAttributes(marker))
}

fn signal_external(id: &str) -> Command {
    let attributes = command::SignalExternalWorkflowExecutionCommandAttributes {
        execution: Some(WorkflowExecution { workflow_id: id.into(), run_id: String::new() }),
        signal_name: "s".into(),
        ..Default::default()
    };
    let kind = CommandType::SignalExternalWorkflowExecution;
    of(kind, C::SignalExternalWorkflowExecutionCommandAttributes(attributes))
}

fn driver() -> Driver {
    Driver::start(TestShard::new(), "order-1", Timestamp::from_millis(1_700_000_000_000))
}

/// [`Driver::check`] runs after every step.
#[test]
fn a_run_loaded_from_its_rows_equals_the_live_one_at_every_step() {
    let mut driver = driver();
    let commands = vec![activity("a"), activity("b"), timer("t"), signal_external("other")];
    driver.complete_task(commands);
    let owed = driver.effects_in_rows();
    assert!(owed.iter().any(|key| matches!(key, EffectKey::Errand(ErrandKey::Signal(_)))));
    assert_eq!(owed.iter().filter(|key| matches!(key, EffectKey::Task(_))).count(), 2);

    driver.signal();
    let task = driver.take_task();
    driver.signal();
    let buffered = driver.live.as_ref().map(|run| run.buffered.len());
    assert_eq!(buffered, Some(1), "what comes while a task is held has a note of its own");
    let token = WorkflowTaskRef { term: task.term, number: task.number };
    let answer = Box::new(RespondWorkflowTaskCompletedRequest::default());
    driver.ask(RunRequest::CompleteWorkflowTask { token, answer });

    driver.now = driver.now + Span::from_secs(31);
    driver.ask(RunRequest::Due);
    driver.complete();
    assert!(driver.live.as_ref().is_some_and(|run| !run.status.is_open()));
    assert!(driver.effects_in_rows().is_empty(), "a closed run owes nothing");
}

fn first_tasks(rows: &WorkflowRows, queue: &QueueKey) -> Vec<TaskRow> {
    let classes = rows.first_of_each_class(queue, 100, |_| true).expect("they read");
    classes.into_iter().flat_map(|first| first.rows).collect()
}

#[test]
fn a_task_row_names_queue_priority_and_age() {
    let mut driver = driver();
    let namespace = driver.key.namespace.clone();
    let kind = QueueType::Workflow;
    let queue = QueueKey { namespace, queue: QueueName::normal("q"), kind };
    let rows = driver.shard.rows();
    let tasks = first_tasks(&rows, &queue);
    assert_eq!(tasks.len(), 1);
    let run = driver.live.as_mut().expect("it was started");
    let owed: BTreeMap<EffectKey, Effect> = Change::between(None, run).owed;
    let offer = owed.values().find_map(|effect| match effect {
        Effect::Task(offer) => Some(offer.clone()),
        Effect::Timer(..) | Effect::Errand(..) => None,
    });
    let offer = offer.expect("a first task is owed");
    assert_eq!((tasks[0].priority, tasks[0].created), (offer.priority, offer.created));
    assert_eq!((&tasks[0].task, &tasks[0].queue), (&offer.key, &queue));
    assert_eq!(rows.backlog(&queue).expect("it reads"), (1, Some(offer.created)));
    let other = QueueKey { queue: QueueName::sticky("q", "q"), ..queue.clone() };
    assert_eq!(first_tasks(&rows, &other), []);
    let other = QueueKey { kind: QueueType::Activity, ..queue };
    assert_eq!(first_tasks(&rows, &other), []);
}

#[test]
fn a_task_row_names_version_and_fairness() {
    let driver = driver();
    let offer = TaskOffer {
        key: TaskKey::Activity { scheduled: EventId(5), stamp: 2 },
        queue: QueueName::sticky("q", "normal"),
        version: "deployment/build-7".into(),
        priority: 1,
        fairness_key: "tenant".into(),
        fairness_weight: 2.5,
        created: driver.now,
    };
    let write = effect_write(1, &driver.key, &driver.run_id(), &Effect::Task(offer.clone()));
    let Ok(Write::Put { key, value }) = write else { panic!("a task is put: {write:?}") };
    let value = records::TASK.decode(&value).expect("it decodes");
    let row = task_row(&key, value).expect("it is a task's key");
    assert_eq!((&row.version, row.priority), (&offer.version, 1));
    assert_eq!((&row.fairness_key, row.fairness_weight), (&offer.fairness_key, 2.5));
    assert_eq!((&row.queue.queue.normal, row.created), (&offer.queue.normal, offer.created));
}

#[test]
fn errands_are_found_run_by_run_in_event_order() {
    let mut driver = driver();
    driver.complete_task((0..5).map(|n| signal_external(&format!("w{n}"))).collect());
    let rows = driver.shard.rows();
    let run = (driver.key.clone().into(), driver.run_id());
    assert_eq!(rows.runs_with_errands().expect("they read"), *std::slice::from_ref(&run));
    let errands = rows.errands(&driver.key, &run.1).expect("they read");
    let events = errands.iter().map(|row| match row.errand {
        ErrandKey::Signal(event) => event,
        other => panic!("no signal: {other:?}"),
    });
    assert!(events.clone().is_sorted());
    assert_eq!(events.count(), 5);
}

/// One that a shard met and could not read would keep all others from being read.
#[test]
fn timers_and_errands_are_those_of_any_kind_of_entity() {
    let mut driver = driver();
    driver.complete_task(vec![signal_external("other")]);
    let counter = EntityKey { kind: keys::EntityKind::Counter, key: driver.key.clone() };
    let run_id = driver.run_id();
    let rows = driver.shard.rows();
    let timers = rows.timers_between(Timestamp::MIN, Timestamp::MAX).expect("they read");
    let (kind, event_id) = timer_codes(&timers[0].kind);
    let (entity, due) = (counter.rows(), timers[0].due.as_nanos());
    let timer = keys::Timer { due, entity, run_id: run_id.as_str(), kind, event_id };
    let (event_id, kind) = errand_codes(ErrandKey::Signal(EventId(5)));
    let errand = keys::Errand { entity: counter.rows(), run_id: run_id.as_str(), event_id, kind };
    driver.put(vec![
        Write::put(timer.key(), records::TIMER.begin(0)),
        Write::put(errand.key(), records::ERRAND.begin(0)),
    ]);
    let rows = driver.shard.rows();
    let workflow = EntityKey::from(driver.key.clone());
    let timers = rows.timers_between(Timestamp::MIN, Timestamp::MAX).expect("they read");
    assert_eq!(
        timers.into_iter().map(|row| row.key).collect::<Vec<_>>(),
        [&workflow, &counter].map(EntityKey::clone)
    );
    let runs = rows.runs_with_errands().expect("they read");
    assert_eq!(runs, [(workflow, run_id.clone()), (counter, run_id)]);
}

#[test]
fn timers_between_two_times_are_those_due_then() {
    let driver = driver();
    let rows = driver.shard.rows();
    let all = rows.timers_between(Timestamp::MIN, Timestamp::MAX).expect("they read");
    assert_eq!(all.len(), 1, "the run's expiry");
    let due = all[0].due;
    let between = |from: i64, until: i64| {
        rows.timers_between(due + Span::from_nanos(from), due + Span::from_nanos(until))
            .expect("they read")
    };
    assert_eq!(between(-1, 0), all);
    assert_eq!(between(0, 1), all);
    assert_eq!(between(1, 2), []);
    assert_eq!(between(-2, -1), []);
}

#[test]
fn a_request_row_is_found_again_and_expires() {
    let mut driver = driver();
    let (id, entity) = (RequestId::from("client\0request"), driver.key.clone().into());
    let kind = RequestKind::Signal;
    let row = RequestRow { run_id: driver.run_id(), event_id: EventId(3), at: driver.now, kind };
    let keep = Span::from_secs(3_600);
    let mut writes = Vec::from(request_writes(1, &entity, &id, &row, keep).expect("short"));
    let current = Current::of(driver.live.as_ref().expect("started"), Position(2));
    writes.push(current_write(1, &driver.key, &current).expect("short"));
    let record =
        TransitionRecord { term: 1, key: driver.key.clone().into(), base: Position(1), writes };
    driver.shard.put(&[record]);
    let rows = driver.shard.rows();
    assert_eq!(rows.request(&entity, &id).expect("reads"), Some(row));
    assert_eq!(rows.request(&entity, &"client".into()).expect("reads"), None);
}

#[test]
fn an_unknown_workflow_or_run_is_absent() {
    let driver = driver();
    let rows = driver.shard.rows();
    assert_eq!(rows.current(&key("order")).expect("reads"), None);
    assert_eq!(rows.position(&key("order").into()).expect("reads"), Position(0));
    assert_eq!(rows.load_run(&driver.key, &RunId::from("run")).expect("reads"), None);
}

#[test]
fn a_batch_counts_its_events_without_decoding_them() {
    let mut driver = driver();
    driver.complete_task(vec![activity("a"), timer("t")]);
    let rows = driver.shard.rows();
    let (first, end) = (EventId::FIRST, EventId(i64::MAX));
    let batches = rows.history(&driver.key, &driver.run_id(), first..end, usize::MAX, usize::MAX);
    let batches = batches.expect("they read");
    assert_eq!(batches.len(), 2);
    for batch in batches {
        let events = rows.events(&batch).expect("they decode");
        assert_eq!(batch.len(), events.len());
        assert_eq!(batch.first.0, events[0].event_id);
    }
}

/// A store that is being opened again until it is told to go on.
struct Opening {
    store: MemoryStore,
    opened: Mutex<mpsc::Receiver<()>>,
}

impl Passing for Opening {
    fn below(&self) -> &dyn Store {
        &self.store
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if !may_wait() {
            return Err(StoreError::Opening { doing: "read a row" });
        }
        // The table itself reads a row of its own.
        if key.ends_with(b"range") {
            self.opened.lock().recv_timeout(PATIENCE).expect("nobody else got its turn");
        }
        self.store.get(key)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_waits_for_a_store_that_is_opened_again_holds_up_nobody_else() {
    let (open, opened) = mpsc::channel();
    let store = Opening { store: MemoryStore::new(), opened: Mutex::new(opened) };
    let rows = WorkflowRows::new(Table::open(Arc::new(store), 1).expect("it opens"));
    let reading = tokio::spawn(async move { rows.get(b"range").map(|row| row.is_none()) });
    // The one thread there is comes to this while the reader waits.
    let other = tokio::spawn(async move { open.send(()) });
    assert!(reading.await.expect("it ends").expect("it reads"));
    other.await.expect("it ends").expect("it was waited for");
}

/// [`Driver::check`] compares with the whole fold after every step.
#[test]
fn a_long_run_is_loaded_from_its_last_milestone() {
    let mut driver = driver();
    driver.complete_task(vec![activity("a"), timer("t"), signal_external("other")]);
    let (key, run_id) = (driver.key.clone(), driver.run_id());
    let row = workflow(&key).milestone(run_id.as_str());
    driver.grow(800);
    assert_eq!(driver.shard.rows().get(&row).expect("it reads"), None, "a short history has none");
    driver.grow(2_400);
    let milestone = driver.shard.rows().get(&row).expect("it reads").expect("there is one");
    let milestone = records::MILESTONE.decode(&milestone).expect("it decodes");
    let next = driver.live.as_ref().expect("started").next_event_id;
    assert!(milestone.next_event_id.0 > 2_500 && milestone.next_event_id < next);

    // What stands before it is not read: it may as well be gone.
    let early = driver.shard.rows().batch_at(&key, &run_id, EventId(1_500)).expect("it reads");
    let early = workflow(&key).event(run_id.as_str(), early.expect("it is there").first.0 as u64);
    driver.put(vec![Write::delete(early)]);
    let folded = driver.shard.rows().fold_from_milestone(&key, &run_id).expect("it reads");
    assert_eq!(folded.as_ref(), driver.live.as_ref());
}

#[test]
fn a_closed_run_is_loaded_from_its_last_milestone_and_deleted_with_it() {
    let mut driver = driver();
    driver.grow(1_200);
    driver.signal();
    driver.complete();
    let (key, run_id) = (driver.key.clone(), driver.run_id());
    let rows = driver.shard.rows();
    let folded = rows.fold_from_milestone(&key, &run_id).expect("it reads");
    assert_eq!(folded.as_ref(), driver.live.as_ref());
    let first = workflow(&key).event(run_id.as_str(), 1);
    driver.put(vec![Write::delete(first)]);
    let rows = driver.shard.rows();
    assert_eq!(rows.load_run(&key, &run_id).expect("it reads"), None, "its deletion has begun");
}

#[test]
fn a_milestone_that_does_not_fit_is_ignored() {
    let mut driver = driver();
    driver.grow(1_200);
    let (key, run_id) = (driver.key.clone(), driver.run_id());
    let row = workflow(&key).milestone(run_id.as_str());
    let good = driver.shard.rows().get(&row).expect("it reads").expect("there is one");
    let moved = |by: i64| {
        let mut milestone = records::MILESTONE.decode(&good).expect("it decodes");
        milestone.next_event_id.0 += by;
        records::MILESTONE.encode(&milestone).expect("short")
    };
    let mut newer = good.to_vec();
    newer[0] += 1;
    let mut older = good.to_vec();
    older[0] -= 1;
    for value in [
        newer.into(),
        older.into(),
        moved(1),
        moved(-1),
        moved(100_000),
        Bytes::from_static(b"\x01"),
    ] {
        driver.put(vec![Write::put(row.clone(), value)]);
        let rows = driver.shard.rows();
        assert_eq!(rows.fold_from_milestone(&key, &run_id).expect("it reads"), None);
        let loaded = rows.load_run(&key, &run_id).expect("it loads");
        assert_eq!(loaded.as_ref(), driver.live.as_ref());
    }
}

/// The figures of docs/benchmarks.md: `cargo test --release -p piton-shard --lib -- --ignored --nocapture
/// long_run_in_figures`.
#[test]
#[ignore = "prints figures, and is slow where debug builds fold twice"]
#[expect(clippy::print_stdout, reason = "figures are read")]
fn long_run_in_figures() {
    let mut driver = driver();
    driver.grow(50_000);
    let (key, run_id) = (driver.key.clone(), driver.run_id());
    let rows = driver.shard.rows();
    let events = driver.live.as_ref().expect("it was started").next_event_id.0 - 1;
    let timed = |what: &str, work: &dyn Fn()| {
        let mut took: Vec<_> = (0..21)
            .map(|_| {
                let began = std::time::Instant::now();
                work();
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!("{events} events, {what}: median {:?}, longest {:?}", took[10], took[20]);
    };
    timed("the whole fold", &|| drop(rows.fold_whole(&key, &run_id)));
    timed("the fold from a milestone", &|| drop(rows.fold_from_milestone(&key, &run_id)));
    timed("the run's ends", &|| drop(rows.run_ends(&key, &run_id)));
    let last = EventId(events);
    timed("a page of 100", &|| drop(rows.history_back(&key, &run_id, last, 100, 1 << 20)));
}
