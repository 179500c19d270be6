//! Checks a start and fills in its defaults, in the official server's
//! order. What it lets through, the workflow's actor decides by its id policies.

use piton_core::limits::Limits;
use piton_core::retry_policy;
use piton_core::time::Span;
use piton_proto::common::RetryPolicy;
use piton_proto::enums::{TaskQueueKind, WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use piton_proto::workflowservice::{
    SignalWithStartWorkflowExecutionRequest, StartWorkflowExecutionRequest,
};
use prost_types::Duration;

use super::error::ApiError;
use super::validate;

/// Which RPC a start came by; their defaults and refusals differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Start,
    SignalWithStart,
}

/// Checks all but the search attributes, which need the namespace, and fills in what was left out.
///
/// # Errors
/// The first rule that the request breaks, or the first field in it that is not built.
pub(crate) fn check(
    request: &mut StartWorkflowExecutionRequest,
    origin: Origin,
    limits: &Limits,
) -> Result<(), ApiError> {
    validate::required("WorkflowId", &request.workflow_id, limits)?;
    check_retry_policy(request.retry_policy.as_mut())?;
    let delay = read_span("WorkflowStartDelaySeconds", request.workflow_start_delay.as_ref())?;
    if !request.cron_schedule.is_empty() && delay > Span::ZERO {
        return Err(ApiError::invalid(
            "CronSchedule and WorkflowStartDelay may not be used together.",
        ));
    }
    let workflow_type = request.workflow_type.as_ref().map_or("", |t| t.name.as_str());
    validate::required("WorkflowType", workflow_type, limits)?;
    check_queue(request, limits)?;
    check_timeouts(request, limits)?;
    validate::optional("Identity", &request.identity, limits)?;
    validate::request_id(&mut request.request_id, limits)?;
    check_policies(request, origin)?;
    validate::blob(request.input.as_ref(), limits)?;
    validate::memo(request.memo.as_ref(), limits)?;
    validate::header(request.header.as_ref(), limits)?;
    validate::user_metadata(request.user_metadata.as_ref(), limits)?;
    validate::links(&request.links)?;
    validate::priority(request.priority.as_ref())?;
    refuse_not_built(request)
}

fn check_queue(
    request: &mut StartWorkflowExecutionRequest,
    limits: &Limits,
) -> Result<(), ApiError> {
    let queue =
        request.task_queue.as_mut().ok_or_else(|| ApiError::invalid("taskQueue is not set"))?;
    validate::queue_name(&queue.name, limits)?;
    // Whatever the client says: workflows are not started on a worker's sticky queue.
    queue.kind = TaskQueueKind::Normal.into();
    queue.normal_name.clear();
    Ok(())
}

fn read_span(name: &str, given: Option<&Duration>) -> Result<Span, ApiError> {
    Span::asked(given).map_err(|cause| {
        ApiError::invalid(format!("An invalid {name} is set on request. cause: {cause}"))
    })
}

fn check_timeouts(
    request: &mut StartWorkflowExecutionRequest,
    limits: &Limits,
) -> Result<(), ApiError> {
    let read = |name: &str, given: &Option<Duration>| read_span(name, given.as_ref());
    let execution = read("WorkflowExecutionTimeoutSeconds", &request.workflow_execution_timeout)?;
    let run = read("WorkflowRunTimeoutSeconds", &request.workflow_run_timeout)?;
    let task = read("WorkflowTaskTimeoutSeconds", &request.workflow_task_timeout)?;

    let run = run.min_given(execution);
    let task = limits.task_timeout(task).min_given(run);
    // What was not given stays so: the first event shows it.
    let given = |timeout: &mut Option<_>, read: Span| {
        *timeout = timeout.take().map(|_| read.to_proto());
    };
    given(&mut request.workflow_execution_timeout, execution);
    given(&mut request.workflow_run_timeout, run);
    request.workflow_task_timeout = Some(task.to_proto());
    Ok(())
}

fn check_policies(
    request: &mut StartWorkflowExecutionRequest,
    origin: Origin,
) -> Result<(), ApiError> {
    use WorkflowIdConflictPolicy as Conflict;
    use WorkflowIdReusePolicy as Reuse;

    let unknown = |what: &str| ApiError::invalid(format!("{what} is unknown."));
    let reuse = Reuse::try_from(request.workflow_id_reuse_policy)
        .map_err(|_| unknown("WorkflowIdReusePolicy"))?;
    let conflict = Conflict::try_from(request.workflow_id_conflict_policy)
        .map_err(|_| unknown("WorkflowIdConflictPolicy"))?;

    #[expect(deprecated, reason = "old clients still send it")]
    let terminate_if_running = reuse == Reuse::TerminateIfRunning;
    if terminate_if_running && conflict != Conflict::Unspecified {
        return Err(ApiError::invalid(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot \
             be used together with a WorkflowIDConflictPolicy",
        ));
    }
    if origin == Origin::SignalWithStart && conflict == Conflict::Fail {
        return Err(ApiError::invalid(
            "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported \
             for this operation.",
        ));
    }
    if reuse == Reuse::RejectDuplicate && conflict == Conflict::TerminateExisting {
        return Err(ApiError::invalid(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be \
             used together with WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING",
        ));
    }
    let (reuse, conflict) = match (reuse, conflict) {
        _ if terminate_if_running => (Reuse::AllowDuplicate, Conflict::TerminateExisting),
        (reuse, Conflict::Unspecified) if origin == Origin::SignalWithStart => {
            (reuse, Conflict::UseExisting)
        }
        (reuse, Conflict::Unspecified) => (reuse, Conflict::Fail),
        given => given,
    };
    let reuse = if reuse == Reuse::Unspecified { Reuse::AllowDuplicate } else { reuse };
    request.workflow_id_reuse_policy = reuse.into();
    request.workflow_id_conflict_policy = conflict.into();
    Ok(())
}

/// Checks a retry policy and fills in what was left out.
///
/// # Errors
/// The first rule that it breaks.
pub(crate) fn check_retry_policy(policy: Option<&mut RetryPolicy>) -> Result<(), ApiError> {
    let Some(policy) = policy else { return Ok(()) };
    *policy = retry_policy::filled(Some(std::mem::take(policy))).map_err(ApiError::invalid)?;
    Ok(())
}

/// Fields of the API that this server does not have. They are refused by name: a workflow that
/// silently ran without them would be worse than none.
fn refuse_not_built(request: &StartWorkflowExecutionRequest) -> Result<(), ApiError> {
    let retries = request.retry_policy.as_ref().is_some_and(|p| p.maximum_attempts != 1);
    let delayed = Span::from_proto(request.workflow_start_delay.as_ref()) > Span::ZERO;
    let attaches = request
        .on_conflict_options
        .as_ref()
        .is_some_and(|o| o.attach_request_id || o.attach_completion_callbacks || o.attach_links);
    let skips = request.time_skipping_config.as_ref().is_some_and(|c| c.enabled);
    let eager = request.eager_worker_deployment_options.as_ref();
    validate::refuse_not_built(&[
        (!request.cron_schedule.is_empty(), "cron_schedule"),
        (retries, "retry_policy"),
        (delayed, "workflow_start_delay"),
        (!request.completion_callbacks.is_empty(), "completion_callbacks"),
        (request.versioning_override.is_some(), "versioning_override"),
        (attaches, "on_conflict_options"),
        (skips, "time_skipping_config"),
        (
            eager.is_some_and(validate::is_versioned),
            "eager_worker_deployment_options.worker_versioning_mode VERSIONED",
        ),
    ])
}

/// The start that a SignalWithStart asks for; its signal stays behind.
pub(crate) fn of_signal_with_start(
    request: &mut SignalWithStartWorkflowExecutionRequest,
) -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest {
        namespace: std::mem::take(&mut request.namespace),
        workflow_id: std::mem::take(&mut request.workflow_id),
        workflow_type: request.workflow_type.take(),
        task_queue: request.task_queue.take(),
        input: request.input.take(),
        workflow_execution_timeout: request.workflow_execution_timeout.take(),
        workflow_run_timeout: request.workflow_run_timeout.take(),
        workflow_task_timeout: request.workflow_task_timeout.take(),
        identity: request.identity.clone(),
        request_id: request.request_id.clone(),
        workflow_id_reuse_policy: request.workflow_id_reuse_policy,
        workflow_id_conflict_policy: request.workflow_id_conflict_policy,
        retry_policy: request.retry_policy.take(),
        cron_schedule: std::mem::take(&mut request.cron_schedule),
        memo: request.memo.take(),
        search_attributes: request.search_attributes.take(),
        header: request.header.clone(),
        workflow_start_delay: request.workflow_start_delay.take(),
        user_metadata: request.user_metadata.take(),
        links: request.links.clone(),
        versioning_override: request.versioning_override.take(),
        priority: request.priority.take(),
        time_skipping_config: request.time_skipping_config.take(),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
