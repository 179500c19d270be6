//! What workers do besides activities: poll for workflow tasks, answer them and the queries that
//! come alone, shut down; and what is known of their queues.

use piton_core::effect::QueueName;
use piton_core::id::NamespaceId;
use piton_core::request::RunRequest;
use piton_core::time::Timestamp;
use piton_proto::enums::{DescribeTaskQueueMode, QueryResultType, TaskQueueType};
use piton_proto::taskqueue::{
    PollerInfo, TaskQueueStats, TaskQueueStatus, TaskQueueTypeInfo, TaskQueueVersionInfo,
};
use piton_proto::workflowservice::{
    DescribeTaskQueueRequest, DescribeTaskQueueResponse, PollNexusTaskQueueRequest,
    PollNexusTaskQueueResponse, PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse,
    RespondQueryTaskCompletedRequest, RespondQueryTaskCompletedResponse,
    RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest, RespondWorkflowTaskFailedResponse, ShutdownWorkerRequest,
    ShutdownWorkerResponse,
};
use piton_shard::{Namespace, QueueType, TaskQueueView, TaskToken};

use super::error::ApiError;
use super::poll::{self, asked};
use super::{Call, Frontend, validate};

pub(super) async fn poll_workflow_task(
    frontend: &Frontend,
    call: Call<PollWorkflowTaskQueueRequest>,
) -> Result<PollWorkflowTaskQueueResponse, ApiError> {
    let (namespace, poll) = poll::checked(frontend, call.deadline, asked!(call.message)).await?;
    let task = frontend.cluster.poll_workflow_task(&namespace, poll);
    Ok(frontend.unless_stopping(task).await?.unwrap_or_default())
}

/// Nexus is not built, so no task ever comes; but a worker with a Nexus handler polls and shuts down
/// like any other.
pub(super) async fn poll_nexus_task(
    frontend: &Frontend,
    call: Call<PollNexusTaskQueueRequest>,
) -> Result<PollNexusTaskQueueResponse, ApiError> {
    let (namespace, poll) = poll::checked(frontend, call.deadline, asked!(call.message)).await?;
    let task = frontend.cluster.poll_nexus_task(&namespace, poll);
    Ok(frontend.unless_stopping(task).await?.unwrap_or_default())
}

pub(super) async fn complete_workflow_task(
    frontend: &Frontend,
    call: Call<RespondWorkflowTaskCompletedRequest>,
) -> Result<RespondWorkflowTaskCompletedResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let TaskToken::Workflow(token) = decode_token(&request.task_token)? else {
        return Err(wrong_token());
    };
    check_token_namespace(frontend, &request.namespace, &token.namespace).await?;
    validate::optional("Identity", &request.identity, &limits)?;
    validate::unversioned(request.deployment_options.as_ref())?;
    validate::refuse_not_built(&[
        (!request.messages.is_empty(), "messages"),
        (request.versioning_behavior != 0, "versioning_behavior"),
        (request.intermediate_page || request.page_number > 0, "intermediate_page"),
    ])?;
    let sticky = request.sticky_attributes.as_ref().and_then(|s| s.worker_task_queue.as_ref());
    // Without a name it says what no attributes say: the worker keeps nothing.
    if let Some(queue) = sticky.filter(|queue| !queue.name.is_empty()) {
        validate::queue_name(&queue.name, &limits)?;
    }
    Ok(frontend.cluster.complete_workflow_task(token, request).await?)
}

pub(super) async fn fail_workflow_task(
    frontend: &Frontend,
    call: Call<RespondWorkflowTaskFailedRequest>,
) -> Result<RespondWorkflowTaskFailedResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let TaskToken::Workflow(token) = decode_token(&request.task_token)? else {
        return Err(wrong_token());
    };
    check_token_namespace(frontend, &request.namespace, &token.namespace).await?;
    validate::optional("Identity", &request.identity, &limits)?;
    validate::unversioned(request.deployment_options.as_ref())?;
    let (key, task) = (token.key(), token.reference());
    let answer = RunRequest::FailWorkflowTask { token: task, answer: Box::new(request) };
    frontend.cluster.request(key, Some(token.run_id), answer).await?;
    Ok(RespondWorkflowTaskFailedResponse {})
}

pub(super) async fn answer_query(
    frontend: &Frontend,
    call: Call<RespondQueryTaskCompletedRequest>,
) -> Result<RespondQueryTaskCompletedResponse, ApiError> {
    let request = call.message;
    let TaskToken::Query(token) = decode_token(&request.task_token)? else {
        return Err(wrong_token());
    };
    check_token_namespace(frontend, &request.namespace, &token.namespace).await?;
    match QueryResultType::try_from(request.completed_type) {
        Ok(QueryResultType::Answered | QueryResultType::Failed) => {}
        Ok(QueryResultType::Unspecified) | Err(_) => {
            return Err(ApiError::invalid("Invalid QueryTaskCompleted request."));
        }
    }
    frontend.cluster.respond_query(token, request).await?;
    Ok(RespondQueryTaskCompletedResponse {})
}

pub(super) async fn shutdown(
    frontend: &Frontend,
    call: Call<ShutdownWorkerRequest>,
) -> Result<ShutdownWorkerResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    for (what, value) in [
        ("StickyTaskQueue", &request.sticky_task_queue),
        ("TaskQueue", &request.task_queue),
        ("WorkerInstanceKey", &request.worker_instance_key),
        ("Identity", &request.identity),
    ] {
        validate::optional(what, value, &limits)?;
    }
    let queues = queues_of_worker(&request);
    frontend.cluster.shutdown_worker(&namespace, queues, &request.worker_instance_key);
    Ok(ShutdownWorkerResponse {})
}

/// The queues that a worker which shuts down has polled, as far as it says.
fn queues_of_worker(request: &ShutdownWorkerRequest) -> Vec<(QueueName, QueueType)> {
    let mut queues = Vec::new();
    if !request.sticky_task_queue.is_empty() {
        let sticky = QueueName::sticky(&request.sticky_task_queue, &request.task_queue);
        queues.push((sticky, QueueType::Workflow));
    }
    if request.task_queue.is_empty() {
        return queues;
    }
    let normal = QueueName::normal(&request.task_queue);
    let types = &request.task_queue_types;
    let has = |kind: TaskQueueType| types.is_empty() || types.contains(&(kind as i32));
    if has(TaskQueueType::Workflow) {
        queues.push((normal.clone(), QueueType::Workflow));
    }
    if has(TaskQueueType::Activity) {
        queues.push((normal.clone(), QueueType::Activity));
    }
    if has(TaskQueueType::Nexus) {
        queues.push((normal, QueueType::Nexus));
    }
    queues
}

pub(super) async fn describe_task_queue(
    frontend: &Frontend,
    call: Call<DescribeTaskQueueRequest>,
) -> Result<DescribeTaskQueueResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace).await?;
    let queue = validate::queue(request.task_queue.as_ref(), &frontend.limits())?;
    refuse_not_built(&request)?;
    #[expect(deprecated, reason = "the command line still asks this way")]
    let is_enhanced = request.api_mode == DescribeTaskQueueMode::Enhanced as i32;
    let mut response = DescribeTaskQueueResponse::default();
    if is_enhanced {
        #[expect(deprecated, reason = "the command line still asks this way")]
        let asked = &request.task_queue_types;
        let both = [TaskQueueType::Workflow as i32, TaskQueueType::Activity as i32];
        let asked = if asked.is_empty() { &both[..] } else { &asked[..] };
        let mut version = TaskQueueVersionInfo::default();
        for &number in asked {
            let kind = queue_type(number)?;
            let view =
                frontend.cluster.describe_task_queue(&namespace, queue.clone(), kind).await?;
            version.types_info.insert(number, type_info(&view, frontend.clock.now()));
        }
        // Unversioned tasks and pollers go by the empty build id.
        response.versions_info.insert(String::new(), version);
        return Ok(response);
    }
    let kind = queue_type(request.task_queue_type)?;
    let view = frontend.cluster.describe_task_queue(&namespace, queue.clone(), kind).await?;
    response.pollers = pollers(&view);
    if request.report_stats {
        response.stats = Some(stats(&view, frontend.clock.now()));
    }
    #[expect(deprecated, reason = "old clients still ask this way")]
    if request.include_task_queue_status {
        let backlog_count_hint = view.backlog_count as i64;
        response.task_queue_status =
            Some(TaskQueueStatus { backlog_count_hint, ..TaskQueueStatus::default() });
    }
    Ok(response)
}

#[expect(deprecated, reason = "the command line still asks this way")]
fn refuse_not_built(request: &DescribeTaskQueueRequest) -> Result<(), ApiError> {
    // Every selection but one by build ids means the unversioned queue, the only one there is.
    let by_build_id = request
        .versions
        .as_ref()
        .is_some_and(|versions| versions.build_ids.iter().any(|id| !id.is_empty()));
    validate::refuse_not_built(&[
        (by_build_id, "versions.build_ids"),
        (request.report_task_reachability, "report_task_reachability"),
        (request.report_config, "report_config"),
    ])
}

fn queue_type(number: i32) -> Result<QueueType, ApiError> {
    match TaskQueueType::try_from(number) {
        Ok(TaskQueueType::Unspecified | TaskQueueType::Workflow) => Ok(QueueType::Workflow),
        Ok(TaskQueueType::Activity) => Ok(QueueType::Activity),
        Ok(TaskQueueType::Nexus) => Ok(QueueType::Nexus),
        Err(_) => Err(ApiError::invalid("TaskQueueType is unknown.")),
    }
}

fn type_info(view: &TaskQueueView, now: Timestamp) -> TaskQueueTypeInfo {
    TaskQueueTypeInfo { pollers: pollers(view), stats: Some(stats(view, now)) }
}

fn pollers(view: &TaskQueueView) -> Vec<PollerInfo> {
    let info = |poller: &piton_shard::Poller| PollerInfo {
        last_access_time: Some(poller.last_access.to_proto()),
        identity: poller.identity.clone(),
        ..PollerInfo::default()
    };
    view.pollers.iter().map(info).collect()
}

fn stats(view: &TaskQueueView, now: Timestamp) -> TaskQueueStats {
    let age = view.oldest.map(|oldest: Timestamp| now - oldest);
    TaskQueueStats {
        approximate_backlog_count: view.backlog_count as i64,
        approximate_backlog_age: Some(age.unwrap_or_default().to_proto()),
        ..TaskQueueStats::default()
    }
}

/// # Errors
/// When the bytes are not a task token of ours.
pub(super) fn decode_token(token: &[u8]) -> Result<TaskToken, ApiError> {
    if token.is_empty() {
        return Err(ApiError::invalid("Task token not set on request."));
    }
    TaskToken::decode(token).map_err(|error| ApiError::Invalid(error.to_string()))
}

/// A token of ours, but of another kind of task.
pub(super) fn wrong_token() -> ApiError {
    ApiError::invalid("Error deserializing task token: it is for another kind of task.")
}

/// The namespace of a token, which must be the one that the request names. Old workers name none.
pub(super) async fn check_token_namespace(
    frontend: &Frontend,
    named: &str,
    in_token: &NamespaceId,
) -> Result<std::sync::Arc<Namespace>, ApiError> {
    if named.is_empty() {
        return Ok(frontend.cluster.meta().find_namespace_by_id(in_token).await?);
    }
    let namespace = frontend.namespace(named).await?;
    if namespace.id != *in_token {
        return Err(ApiError::invalid(
            "Operation requested with a token from a different namespace.",
        ));
    }
    Ok(namespace)
}
