//! How a run begins: the workflow id policies, the first events, eager start, children.

use std::sync::Arc;

use piton_proto::common::{Link, WorkflowExecution};
use piton_proto::enums::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use piton_proto::history::history_event::Attributes;
use piton_proto::history::{HistoryEvent, WorkflowExecutionStartedEventAttributes};
use piton_proto::sdk::UserMetadata;
use piton_proto::workflowservice::StartWorkflowExecutionRequest;

use super::property::{set_attributes, set_memo};
use super::workflow_task::{HISTORY_SERVICE, queue_to_proto};
use super::{Decided, Reply, RunState, StartedTask, Status};
use crate::effect::QueueName;
use crate::error::Rejection;
use crate::id::{EventId, RequestId, RunId, WorkflowKey};
use crate::message::json_text;
use crate::note::WorkflowTaskKind;
use crate::request::{Drawn, Parent, RunRequest, Signal, StartRequest, Taker};
use crate::time::{Span, Timestamp};

/// A workflow's run as a start meets it: an open one in full, of a closed one what has to be known.
#[derive(Clone, Debug)]
pub enum Met<'a> {
    Open(&'a RunState),
    Closed(StartedRun),
}

/// What a start has to know of a run that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedRun {
    pub run_id: RunId,
    pub first_run_id: RunId,
    pub status: Status,
    /// The request that created it; empty if none did.
    pub start_request_id: RequestId,
}

impl<'a> From<&'a RunState> for Met<'a> {
    fn from(run: &'a RunState) -> Self {
        if run.status.is_open() { Self::Open(run) } else { Self::Closed(run.as_started()) }
    }
}

impl StartedRun {
    /// The answer to a start that a closed run has taken before: it created the run, or was attached
    /// to it.
    pub fn started_again(self, created: bool) -> Reply {
        let Self { run_id, first_run_id, status, start_request_id: _ } = self;
        Reply::Started { run_id, first_run_id, started: created, status, eager: None }
    }

    fn was_started_by(&self, request_id: &str) -> bool {
        !request_id.is_empty() && self.start_request_id.as_str() == request_id
    }
}

/// Decides a start against the workflow's current run, open or closed. The shell has looked the
/// request id up before; that of the current run is recognised here too.
///
/// # Errors
/// The refusal; then nothing is recorded.
pub fn decide_start(
    key: &WorkflowKey,
    current: Option<Met<'_>>,
    request: StartRequest,
    drawn: &Drawn<'_>,
) -> Result<Decided, Rejection> {
    match current {
        None => Ok(start_new(key, None, request, drawn)),
        Some(Met::Open(current)) => start_beside(current, request, drawn),
        Some(Met::Closed(closed)) if closed.was_started_by(&request.start.request_id) => {
            Ok(Decided::answer(closed.started_again(true)))
        }
        Some(Met::Closed(closed)) => {
            Policies::of(&request)?.allow_reuse(key, closed)?;
            Ok(start_new(key, None, request, drawn))
        }
    }
}

/// Decides a start of a workflow that has an open run.
fn start_beside(
    current: &RunState,
    request: StartRequest,
    drawn: &Drawn<'_>,
) -> Result<Decided, Rejection> {
    let key = &current.key;
    if current.was_started_by(&request.start.request_id) {
        let reply = current.started_again(&request.start);
        return Ok(Decided::with(current.clone(), reply));
    }
    match Policies::of(&request)?.conflict {
        Conflict::Fail => {
            let text = "Workflow execution is already running.";
            Err(already_started(key, current.as_started(), text, ""))
        }
        Conflict::UseExisting => use_existing(current, request, drawn),
        Conflict::TerminateExisting => {
            let mut ended = current.clone();
            let text = format!("terminated by new runID: {}", drawn.run_id);
            let reason = "TerminateIfRunning WorkflowIdReusePolicy".to_owned();
            let details = Some(json_text(&text));
            ended.terminate_by(reason, details, HISTORY_SERVICE.into(), Vec::new(), drawn);
            Ok(start_new(key, Some(ended), request, drawn).counted(current))
        }
    }
}

/// What to do when the workflow has an open run.
enum Conflict {
    Fail,
    UseExisting,
    TerminateExisting,
}

struct Policies {
    conflict: Conflict,
    reuse: WorkflowIdReusePolicy,
}

impl Policies {
    #[allow(deprecated, reason = "TERMINATE_IF_RUNNING is still sent by older clients")]
    fn of(request: &StartRequest) -> Result<Self, Rejection> {
        use WorkflowIdConflictPolicy as P;
        let start = &request.start;
        let reuse = start.workflow_id_reuse_policy();
        let given = start.workflow_id_conflict_policy();
        let conflict = match (given, request.signal.is_some()) {
            (P::Unspecified, _) if reuse == WorkflowIdReusePolicy::TerminateIfRunning => {
                Conflict::TerminateExisting
            }
            (P::Unspecified, true) | (P::UseExisting, _) => Conflict::UseExisting,
            (P::Unspecified, false) | (P::Fail, false) => Conflict::Fail,
            (P::Fail, true) => {
                let text = "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is \
                            not supported for this operation.";
                return Err(Rejection::invalid(text));
            }
            (P::TerminateExisting, _) => Conflict::TerminateExisting,
        };
        if start
            .on_conflict_options
            .as_ref()
            .is_some_and(|o| o.attach_request_id || o.attach_completion_callbacks || o.attach_links)
        {
            return Err(Rejection::invalid("on_conflict_options is not supported yet"));
        }
        Ok(Self { conflict, reuse })
    }

    #[allow(deprecated, reason = "TERMINATE_IF_RUNNING is still sent by older clients")]
    fn allow_reuse(&self, key: &WorkflowKey, closed: StartedRun) -> Result<(), Rejection> {
        use WorkflowIdReusePolicy as P;
        match self.reuse {
            P::Unspecified | P::AllowDuplicate | P::TerminateIfRunning => Ok(()),
            P::RejectDuplicate => Err(already_started(
                key,
                closed,
                "Workflow execution already finished.",
                " Workflow Id reuse policy: reject duplicate workflow Id.",
            )),
            P::AllowDuplicateFailedOnly => match closed.status {
                Status::Failed | Status::Canceled | Status::Terminated | Status::TimedOut => Ok(()),
                Status::Running | Status::Completed | Status::ContinuedAsNew => {
                    Err(already_started(
                        key,
                        closed,
                        "Workflow execution already finished successfully.",
                        " Workflow Id reuse policy: allow duplicate workflow Id if last run failed.",
                    ))
                }
            },
        }
    }
}

fn already_started(key: &WorkflowKey, current: StartedRun, text: &str, policy: &str) -> Rejection {
    let StartedRun { run_id, first_run_id, start_request_id, status: _ } = current;
    let id = &key.workflow_id;
    Rejection::AlreadyStarted {
        message: format!("{text} WorkflowId: {id}, RunId: {run_id}.{policy}"),
        start_request_id,
        run_id,
        first_run_id,
    }
}

fn use_existing(
    current: &RunState,
    request: StartRequest,
    drawn: &Drawn<'_>,
) -> Result<Decided, Rejection> {
    let decided = match request.signal {
        Some(signal) => current.decide(RunRequest::Signal(signal), drawn)?,
        None => Decided::done(current.clone()),
    };
    let reply = Ok(current.started_reply(false, None));
    Ok(Decided { reply, ..decided })
}

fn start_new(
    key: &WorkflowKey,
    ended: Option<RunState>,
    request: StartRequest,
    drawn: &Drawn<'_>,
) -> Decided {
    let StartRequest { start, signal, parent } = request;
    let waits_for_parent = parent.is_some();
    let eager = start.request_eager_execution && !waits_for_parent;
    let birth = Birth {
        request_id: Some(RequestId::from(start.request_id.as_str())),
        user_metadata: start.user_metadata.clone(),
        links: start.links.clone(),
        backoff: Span::ZERO,
        waits_for_parent,
        signal,
        attributes: started_attributes(&start, parent, eager, drawn),
    };
    let mut run = RunState::born(key.clone(), drawn.run_id.clone(), birth, drawn);
    let mut task = None;
    if eager {
        let (identity, request_id) = (start.identity, start.request_id.into());
        run.hold(&Taker { identity, request_id, sticky: false, worker_version: None }, drawn);
        task = run.handed_out(EventId::FIRST);
    }
    let decided = Decided::answer(run.started_reply(true, task));
    Decided { run: ended, successor: Some(run), ..decided }
}

fn started_attributes(
    start: &StartWorkflowExecutionRequest,
    parent: Option<Parent>,
    eager: bool,
    drawn: &Drawn<'_>,
) -> WorkflowExecutionStartedEventAttributes {
    let execution_timeout = Span::from_proto(start.workflow_execution_timeout.as_ref());
    let given = Span::from_proto(start.workflow_run_timeout.as_ref());
    let run_timeout = given.min_given(execution_timeout);
    // What nobody set stays open.
    let shows_run_timeout = start.workflow_run_timeout.is_some() || run_timeout != given;
    let task_timeout = Span::from_proto(start.workflow_task_timeout.as_ref());
    let task_timeout = drawn.limits.task_timeout(task_timeout);
    let expiration = execution_timeout.given().map(|timeout| (drawn.now + timeout).to_proto());
    let queue = start.task_queue.as_ref().map_or("", |queue| &queue.name);
    let run_id = drawn.run_id.as_str().to_owned();
    let mut attributes = WorkflowExecutionStartedEventAttributes {
        workflow_type: start.workflow_type.clone(),
        task_queue: Some(queue_to_proto(&QueueName::normal(queue))),
        input: start.input.clone(),
        workflow_execution_timeout: start
            .workflow_execution_timeout
            .map(|_| execution_timeout.to_proto()),
        workflow_run_timeout: shows_run_timeout.then(|| run_timeout.to_proto()),
        workflow_task_timeout: Some(task_timeout.to_proto()),
        original_execution_run_id: run_id.clone(),
        first_execution_run_id: run_id,
        identity: start.identity.clone(),
        retry_policy: start.retry_policy.clone(),
        attempt: 1,
        workflow_execution_expiration_time: expiration,
        cron_schedule: start.cron_schedule.clone(),
        first_workflow_task_backoff: Some(Span::ZERO.to_proto()),
        memo: set_memo(start.memo.clone()),
        search_attributes: set_attributes(start.search_attributes.clone()),
        header: start.header.clone(),
        workflow_id: start.workflow_id.clone(),
        priority: start.priority.clone(),
        last_completion_result: start.last_completion_result.clone(),
        continued_failure: start.continued_failure.clone(),
        eager_execution_accepted: eager,
        ..Default::default()
    };
    if let Some(parent) = parent {
        let Parent { link, namespace_name, root } = parent;
        attributes.parent_workflow_namespace = namespace_name.as_ref().into();
        attributes.parent_workflow_namespace_id = link.namespace_id.as_ref().into();
        attributes.parent_workflow_execution = Some(WorkflowExecution {
            workflow_id: link.workflow_id.as_str().into(),
            run_id: link.run_id.as_str().into(),
        });
        attributes.parent_initiated_event_id = link.initiated.0;
        attributes.root_workflow_execution = Some(root);
    }
    attributes
}

/// What a run begins with.
pub(super) struct Birth {
    pub(super) attributes: WorkflowExecutionStartedEventAttributes,
    pub(super) user_metadata: Option<UserMetadata>,
    pub(super) links: Vec<Link>,
    pub(super) request_id: Option<RequestId>,
    pub(super) signal: Option<Signal>,
    /// How long the first workflow task has to wait.
    pub(super) backoff: Span,
    pub(super) waits_for_parent: bool,
}

impl RunState {
    /// A new run with its first events, which are yet to be committed.
    pub(super) fn born(key: WorkflowKey, run_id: RunId, birth: Birth, drawn: &Drawn<'_>) -> Self {
        let mut run = Self::unborn(key, run_id);
        let attributes = Attributes::WorkflowExecutionStartedEventAttributes(birth.attributes);
        let mut event = super::event::event(drawn.now, attributes, birth.user_metadata);
        event.links = birth.links;
        run.append_event(event);
        run.note.transitions = 1;
        run.note.start_request_id = birth.request_id;
        run.note.waits_for_parent = birth.waits_for_parent;
        run.note.first_task_at = birth.backoff.given().map(|backoff| drawn.now + backoff);
        if let Some(signal) = birth.signal {
            run.record_signal(signal, drawn);
        }
        run.ensure_workflow_task(drawn);
        run
    }

    pub(super) fn fold_started(
        &mut self,
        event: &HistoryEvent,
        attributes: &WorkflowExecutionStartedEventAttributes,
    ) {
        self.start_time = Timestamp::from_proto(event.event_time.as_ref()).unwrap_or_default();
        self.user_metadata = event.user_metadata.clone().map(Arc::new);
        self.start_links = event.links.as_slice().into();
        self.memo = Arc::new(attributes.memo.clone().unwrap_or_default());
        let search_attributes = attributes.search_attributes.clone().unwrap_or_default();
        self.search_attributes = Arc::new(search_attributes.indexed_fields.into_iter().collect());
        self.started = Arc::new(WorkflowExecutionStartedEventAttributes {
            input: None,
            header: None,
            last_completion_result: None,
            continued_failure: None,
            ..attributes.clone()
        });
    }

    fn as_started(&self) -> StartedRun {
        StartedRun {
            run_id: self.run_id.clone(),
            first_run_id: self.first_run_id(),
            status: self.status,
            start_request_id: self.note.start_request_id.clone().unwrap_or_else(|| "".into()),
        }
    }

    fn was_started_by(&self, request_id: &str) -> bool {
        let by = self.note.start_request_id.as_ref();
        !request_id.is_empty() && by.is_some_and(|by| by.as_str() == request_id)
    }

    /// The answer to a start that this run has taken before: it created the run, or was attached to
    /// it. An eager one gets its task again, while the client is still the one that has it.
    pub fn started_again(&self, start: &StartWorkflowExecutionRequest) -> Reply {
        let created = self.was_started_by(&start.request_id);
        let first_held = created
            && self.previous_started == EventId::default()
            && self.held.as_ref().is_some_and(|held| {
                held.kind == WorkflowTaskKind::Normal
                    && super::take::request_id(held) == start.request_id
            });
        let eager = (start.request_eager_execution && first_held)
            .then(|| self.handed_out(EventId::FIRST))
            .flatten();
        self.started_reply(created, eager)
    }

    fn started_reply(&self, started: bool, eager: Option<StartedTask>) -> Reply {
        Reply::Started {
            run_id: self.run_id.clone(),
            first_run_id: self.first_run_id(),
            started,
            status: self.status,
            eager: eager.map(Box::new),
        }
    }
}
