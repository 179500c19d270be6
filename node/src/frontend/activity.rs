//! Activity tasks: polls, heartbeats and answers, by task token and by activity id.

use piton_core::id::{RunId, WorkflowKey};
use piton_core::request::{ActivityRef, RunRequest};
use piton_core::run::Reply;
use piton_proto::common::Payloads;
use piton_proto::failure::Failure;
use piton_proto::workflowservice::{
    PollActivityTaskQueueRequest, PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatByIdRequest, RecordActivityTaskHeartbeatByIdResponse,
    RecordActivityTaskHeartbeatRequest, RecordActivityTaskHeartbeatResponse,
    RespondActivityTaskCanceledByIdRequest, RespondActivityTaskCanceledByIdResponse,
    RespondActivityTaskCanceledRequest, RespondActivityTaskCanceledResponse,
    RespondActivityTaskCompletedByIdRequest, RespondActivityTaskCompletedByIdResponse,
    RespondActivityTaskCompletedRequest, RespondActivityTaskCompletedResponse,
    RespondActivityTaskFailedByIdRequest, RespondActivityTaskFailedByIdResponse,
    RespondActivityTaskFailedRequest, RespondActivityTaskFailedResponse,
};
use piton_shard::{ShardError, TaskToken};

use super::error::ApiError;
use super::poll::{self, asked};
use super::worker::{check_token_namespace, decode_token, wrong_token};
use super::{Call, Frontend, validate};

pub(super) async fn poll(
    frontend: &Frontend,
    call: Call<PollActivityTaskQueueRequest>,
) -> Result<PollActivityTaskQueueResponse, ApiError> {
    let request = call.message;
    let rate = request.task_queue_metadata.as_ref().and_then(|m| m.max_tasks_per_second);
    let (namespace, poll) = poll::checked(frontend, call.deadline, asked!(request)).await?;
    validate::no_rate_limit(rate)?;
    let task = frontend.cluster.poll_activity_task(&namespace, poll);
    Ok(frontend.unless_stopping(task).await?.unwrap_or_default())
}

/// The activity that an answer is for.
struct Target {
    key: WorkflowKey,
    run_id: Option<RunId>,
    activity: ActivityRef,
}

impl Target {
    async fn by_token(
        frontend: &Frontend,
        namespace: &str,
        token: &[u8],
    ) -> Result<Self, ApiError> {
        let TaskToken::Activity(token) = decode_token(token)? else {
            return Err(wrong_token());
        };
        check_token_namespace(frontend, namespace, &token.namespace).await?;
        let (key, activity) = (token.key(), token.reference());
        Ok(Self { key, run_id: Some(token.run_id), activity })
    }

    async fn by_id(
        frontend: &Frontend,
        namespace: &str,
        workflow_id: &str,
        run_id: &str,
        activity_id: String,
    ) -> Result<Self, ApiError> {
        let limits = frontend.limits();
        let namespace = frontend.namespace(namespace).await?;
        let key = validate::workflow_key(&namespace.id, workflow_id, &limits)?;
        let run_id = validate::run_id(run_id)?;
        validate::required("ActivityId", &activity_id, &limits)?;
        Ok(Self { key, run_id, activity: ActivityRef::Id(activity_id) })
    }
}

/// Sends a worker's answer to its activity's workflow.
async fn record(
    frontend: &Frontend,
    target: Target,
    identity: &str,
    request: impl FnOnce(ActivityRef) -> RunRequest,
) -> Result<Reply, ApiError> {
    validate::optional("Identity", identity, &frontend.limits())?;
    let Target { key, run_id, activity } = target;
    Ok(frontend.cluster.request(key, run_id, request(activity)).await?)
}

/// Whether the worker was told to stop: the answer to a heartbeat.
async fn record_heartbeat(
    frontend: &Frontend,
    target: Target,
    details: Option<Payloads>,
    identity: String,
) -> Result<bool, ApiError> {
    let by = identity.clone();
    let request = |activity| RunRequest::HeartbeatActivity { activity, details, identity };
    match record(frontend, target, &by, request).await? {
        Reply::Heartbeat { cancel_requested } => Ok(cancel_requested),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> ApiError {
    let kind = std::mem::discriminant(reply);
    ShardError::Internal(format!("an activity was answered with another reply ({kind:?})")).into()
}

async fn record_result(
    frontend: &Frontend,
    target: Target,
    result: Option<Payloads>,
    identity: String,
) -> Result<(), ApiError> {
    let by = identity.clone();
    let request = |activity| RunRequest::CompleteActivity { activity, result, identity };
    record(frontend, target, &by, request).await.map(drop)
}

/// The failures answered say what was left out of the record.
async fn record_failure(
    frontend: &Frontend,
    target: Target,
    failure: Option<Failure>,
    last_heartbeat_details: Option<Payloads>,
    identity: String,
) -> Result<Vec<Failure>, ApiError> {
    let by = identity.clone();
    let request =
        |activity| RunRequest::FailActivity { activity, failure, last_heartbeat_details, identity };
    match record(frontend, target, &by, request).await? {
        Reply::ActivityFailed { left_out } => Ok(left_out),
        other => Err(unexpected(&other)),
    }
}

async fn record_cancel(
    frontend: &Frontend,
    target: Target,
    details: Option<Payloads>,
    identity: String,
) -> Result<(), ApiError> {
    let by = identity.clone();
    let request = |activity| RunRequest::CancelActivity { activity, details, identity };
    record(frontend, target, &by, request).await.map(drop)
}

pub(super) async fn heartbeat(
    frontend: &Frontend,
    call: Call<RecordActivityTaskHeartbeatRequest>,
) -> Result<RecordActivityTaskHeartbeatResponse, ApiError> {
    let request = call.message;
    let target = Target::by_token(frontend, &request.namespace, &request.task_token).await?;
    let cancel_requested =
        record_heartbeat(frontend, target, request.details, request.identity).await?;
    Ok(RecordActivityTaskHeartbeatResponse { cancel_requested, ..Default::default() })
}

pub(super) async fn heartbeat_by_id(
    frontend: &Frontend,
    call: Call<RecordActivityTaskHeartbeatByIdRequest>,
) -> Result<RecordActivityTaskHeartbeatByIdResponse, ApiError> {
    let r = call.message;
    let target =
        Target::by_id(frontend, &r.namespace, &r.workflow_id, &r.run_id, r.activity_id).await?;
    let cancel_requested = record_heartbeat(frontend, target, r.details, r.identity).await?;
    Ok(RecordActivityTaskHeartbeatByIdResponse { cancel_requested, ..Default::default() })
}

pub(super) async fn complete(
    frontend: &Frontend,
    call: Call<RespondActivityTaskCompletedRequest>,
) -> Result<RespondActivityTaskCompletedResponse, ApiError> {
    let request = call.message;
    validate::unversioned(request.deployment_options.as_ref())?;
    let target = Target::by_token(frontend, &request.namespace, &request.task_token).await?;
    record_result(frontend, target, request.result, request.identity).await?;
    Ok(RespondActivityTaskCompletedResponse {})
}

pub(super) async fn complete_by_id(
    frontend: &Frontend,
    call: Call<RespondActivityTaskCompletedByIdRequest>,
) -> Result<RespondActivityTaskCompletedByIdResponse, ApiError> {
    let r = call.message;
    let target =
        Target::by_id(frontend, &r.namespace, &r.workflow_id, &r.run_id, r.activity_id).await?;
    record_result(frontend, target, r.result, r.identity).await?;
    Ok(RespondActivityTaskCompletedByIdResponse {})
}

pub(super) async fn fail(
    frontend: &Frontend,
    call: Call<RespondActivityTaskFailedRequest>,
) -> Result<RespondActivityTaskFailedResponse, ApiError> {
    let r = call.message;
    validate::unversioned(r.deployment_options.as_ref())?;
    let target = Target::by_token(frontend, &r.namespace, &r.task_token).await?;
    let failures =
        record_failure(frontend, target, r.failure, r.last_heartbeat_details, r.identity).await?;
    Ok(RespondActivityTaskFailedResponse { failures })
}

pub(super) async fn fail_by_id(
    frontend: &Frontend,
    call: Call<RespondActivityTaskFailedByIdRequest>,
) -> Result<RespondActivityTaskFailedByIdResponse, ApiError> {
    let r = call.message;
    let target =
        Target::by_id(frontend, &r.namespace, &r.workflow_id, &r.run_id, r.activity_id).await?;
    let failures =
        record_failure(frontend, target, r.failure, r.last_heartbeat_details, r.identity).await?;
    Ok(RespondActivityTaskFailedByIdResponse { failures })
}

pub(super) async fn cancel(
    frontend: &Frontend,
    call: Call<RespondActivityTaskCanceledRequest>,
) -> Result<RespondActivityTaskCanceledResponse, ApiError> {
    let request = call.message;
    validate::unversioned(request.deployment_options.as_ref())?;
    let target = Target::by_token(frontend, &request.namespace, &request.task_token).await?;
    record_cancel(frontend, target, request.details, request.identity).await?;
    Ok(RespondActivityTaskCanceledResponse {})
}

pub(super) async fn cancel_by_id(
    frontend: &Frontend,
    call: Call<RespondActivityTaskCanceledByIdRequest>,
) -> Result<RespondActivityTaskCanceledByIdResponse, ApiError> {
    let r = call.message;
    validate::unversioned(r.deployment_options.as_ref())?;
    let target =
        Target::by_id(frontend, &r.namespace, &r.workflow_id, &r.run_id, r.activity_id).await?;
    record_cancel(frontend, target, r.details, r.identity).await?;
    Ok(RespondActivityTaskCanceledByIdResponse {})
}
