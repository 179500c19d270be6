//! What the API asks of every request, checked before any workflow is looked at.
//! Values in, refusals out; texts are those of the official server where clients are
//! known to look at them. Starts have their own file.

use std::time::Duration;

use piton_core::effect::QueueName;
use piton_core::id::{NamespaceId, RunId, WorkflowId, WorkflowKey};
use piton_core::limits::{BLOB_OVERSIZED, Limits};
use piton_core::page_token::ListOf;
use piton_proto::common::{
    Header, Link, Memo, Payloads, Priority, WorkerVersionCapabilities, WorkflowExecution,
};
use piton_proto::deployment::WorkerDeploymentOptions;
use piton_proto::enums::{TaskQueueKind, WorkerVersioningMode};
use piton_proto::sdk::UserMetadata;
use piton_proto::taskqueue::TaskQueue;
use prost::Message;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::ApiError;

/// Names of task queues with this prefix are the server's own.
const RESERVED_QUEUE_PREFIX: &str = "/_sys/";
/// A poll must have at least this long to go.
const POLL_TIME_MIN: Duration = Duration::from_secs(2);
/// An answer leaves this long before the client stops waiting.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);
/// Links of one request.
const LINKS_MAX: usize = 10;
/// One link, encoded.
const LINK_BYTES_MAX: usize = 4_000;
/// A fairness key.
const FAIRNESS_KEY_BYTES_MAX: usize = 64;
/// Go workers send this as "no limit" with every activity poll.
const TASKS_PER_SECOND_UNLIMITED: f64 = 100_000.0;

/// A value that must be given: an id, a name, a type.
pub(crate) fn required(what: &str, value: &str, limits: &Limits) -> Result<(), ApiError> {
    if value.is_empty() {
        return Err(ApiError::invalid(format!("{what} is not set on request.")));
    }
    optional(what, value, limits)
}

/// A value that may be left out.
pub(crate) fn optional(what: &str, value: &str, limits: &Limits) -> Result<(), ApiError> {
    if value.len() as u64 > limits.id_bytes_max {
        return Err(ApiError::invalid(format!("{what} length exceeds limit.")));
    }
    Ok(())
}

/// A run id: empty for the current run, else a UUID.
pub(crate) fn run_id(given: &str) -> Result<Option<RunId>, ApiError> {
    if given.is_empty() {
        return Ok(None);
    }
    let uuid = Uuid::try_parse(given).map_err(|_| ApiError::invalid("Invalid RunId."))?;
    Ok(Some(RunId::from(uuid.hyphenated().to_string())))
}

/// The workflow and run that a request names.
pub(crate) fn execution(
    namespace: &NamespaceId,
    given: Option<&WorkflowExecution>,
    limits: &Limits,
) -> Result<(WorkflowKey, Option<RunId>), ApiError> {
    let given = given.ok_or_else(|| ApiError::invalid("Execution is not set on request."))?;
    let key = workflow_key(namespace, &given.workflow_id, limits)?;
    Ok((key, run_id(&given.run_id)?))
}

pub(crate) fn workflow_key(
    namespace: &NamespaceId,
    workflow_id: &str,
    limits: &Limits,
) -> Result<WorkflowKey, ApiError> {
    required("WorkflowId", workflow_id, limits)?;
    let workflow_id = WorkflowId::from(workflow_id);
    Ok(WorkflowKey { namespace: namespace.clone(), workflow_id })
}

/// The name of a task queue that a workflow or a worker chose.
pub(crate) fn queue_name(name: &str, limits: &Limits) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::invalid("missing task queue name"));
    }
    optional("TaskQueue", name, limits)?;
    if name.starts_with(RESERVED_QUEUE_PREFIX) {
        return Err(ApiError::invalid(format!(
            "Task queue name cannot start with reserved prefix {RESERVED_QUEUE_PREFIX}."
        )));
    }
    Ok(())
}

/// The queue that is polled or described.
pub(crate) fn queue(given: Option<&TaskQueue>, limits: &Limits) -> Result<QueueName, ApiError> {
    let given = given.ok_or_else(|| ApiError::invalid("taskQueue is not set"))?;
    queue_name(&given.name, limits)?;
    match TaskQueueKind::try_from(given.kind) {
        Ok(TaskQueueKind::Unspecified | TaskQueueKind::Normal) => {
            Ok(QueueName::normal(&given.name))
        }
        Ok(TaskQueueKind::Sticky) => {
            optional("TaskQueue.NormalName", &given.normal_name, limits)?;
            Ok(QueueName::sticky(&given.name, &given.normal_name))
        }
        Ok(_) => Err(ApiError::FieldNotBuilt { field: "task_queue.kind WORKER_COMMANDS" }),
        Err(_) => Err(ApiError::invalid("TaskQueue.Kind is unknown.")),
    }
}

/// One blob: an input, a result, details, a query's arguments.
pub(crate) fn blob(payloads: Option<&Payloads>, limits: &Limits) -> Result<(), ApiError> {
    if !limits.is_blob(payloads) {
        return Err(ApiError::invalid(BLOB_OVERSIZED));
    }
    Ok(())
}

pub(crate) fn header(header: Option<&Header>, limits: &Limits) -> Result<(), ApiError> {
    if header.is_some_and(|h| h.encoded_len() as u64 > limits.blob_bytes_max) {
        return Err(ApiError::invalid("Header size exceeds limit."));
    }
    Ok(())
}

pub(crate) fn memo(memo: Option<&Memo>, limits: &Limits) -> Result<(), ApiError> {
    if memo.is_some_and(|m| m.encoded_len() as u64 > limits.memo_bytes_max) {
        return Err(ApiError::invalid("Memo size exceeds limit."));
    }
    Ok(())
}

pub(crate) fn links(links: &[Link]) -> Result<(), ApiError> {
    if links.len() > LINKS_MAX {
        let text =
            format!("cannot attach more than {LINKS_MAX} links per request, got {}", links.len());
        return Err(ApiError::invalid(text));
    }
    match links.iter().map(Message::encoded_len).max() {
        Some(bytes) if bytes > LINK_BYTES_MAX => Err(ApiError::invalid(format!(
            "link exceeds allowed size of {LINK_BYTES_MAX}, got {bytes}"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn priority(priority: Option<&Priority>) -> Result<(), ApiError> {
    let Some(priority) = priority else { return Ok(()) };
    if priority.priority_key < 0 {
        return Err(ApiError::invalid("priority key can't be negative"));
    }
    if priority.fairness_key.len() > FAIRNESS_KEY_BYTES_MAX {
        return Err(ApiError::invalid(format!(
            "fairness key length exceeds limit of {FAIRNESS_KEY_BYTES_MAX} bytes"
        )));
    }
    if priority.fairness_weight < 0.0 || !priority.fairness_weight.is_finite() {
        return Err(ApiError::invalid("fairness weight must be a number that is not negative"));
    }
    Ok(())
}

pub(crate) fn user_metadata(
    metadata: Option<&UserMetadata>,
    limits: &Limits,
) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    for (what, payload, max) in [
        ("summary", &metadata.summary, limits.user_metadata_summary_bytes_max),
        ("details", &metadata.details, limits.user_metadata_details_bytes_max),
    ] {
        let bytes = payload.as_ref().map_or(0, Message::encoded_len) as u64;
        if bytes > max {
            return Err(ApiError::invalid(format!(
                "user metadata {what} size {bytes} exceeds limit of {max} bytes"
            )));
        }
    }
    Ok(())
}

/// The rows asked for; 0, or less, asks for as many as a page may have.
pub(crate) fn page_size(given: i32, max: u64) -> usize {
    match u64::try_from(given) {
        Ok(0) | Err(_) => max as usize,
        Ok(given) => given.min(max) as usize,
    }
}

/// Where a page begins: behind the place that the token of the page before stands for.
pub(crate) fn page_token<'t>(of: ListOf<'_>, token: &'t [u8]) -> Result<&'t [u8], ApiError> {
    if token.is_empty() {
        return Ok(token);
    }
    of.place(token).ok_or_else(|| ApiError::invalid("Invalid NextPageToken."))
}

/// When a task poll is answered empty: before its client stops waiting.
pub(crate) fn poll_deadline(
    client: Option<Instant>,
    now: Instant,
    limits: &Limits,
) -> Result<Instant, ApiError> {
    let client = client.ok_or_else(|| ApiError::invalid("Context timeout is not set."))?;
    if client.saturating_duration_since(now) < POLL_TIME_MIN {
        return Err(ApiError::PollTimeTooShort);
    }
    Ok(held_until(Some(client), now, Duration::from_millis(limits.poll_ms_max)))
}

/// When a request that waits for something is answered without it.
pub(crate) fn held_until(client: Option<Instant>, now: Instant, at_most: Duration) -> Instant {
    let ours = now + at_most;
    // A client in a hurry gets half of its time, not none.
    let theirs = client.map(|client| {
        let left = client.saturating_duration_since(now);
        now + left.saturating_sub(ANSWER_MARGIN).max(left / 2)
    });
    theirs.map_or(ours, |theirs| theirs.min(ours))
}

/// Fields of a request that this server does not have: whether each is used, and its name. One that
/// is used is refused by name, never ignored.
pub(crate) fn refuse_not_built(fields: &[(bool, &'static str)]) -> Result<(), ApiError> {
    match fields.iter().find(|(is_used, _)| *is_used) {
        Some((_, field)) => Err(ApiError::FieldNotBuilt { field }),
        None => Ok(()),
    }
}

/// Worker versioning is not built; workers that only report a build id are served.
pub(crate) fn unversioned(options: Option<&WorkerDeploymentOptions>) -> Result<(), ApiError> {
    if options.is_some_and(is_versioned) {
        return Err(ApiError::FieldNotBuilt {
            field: "deployment_options.worker_versioning_mode VERSIONED",
        });
    }
    Ok(())
}

pub(crate) fn is_versioned(options: &WorkerDeploymentOptions) -> bool {
    options.worker_versioning_mode == WorkerVersioningMode::Versioned as i32
}

/// The versioning before deployments is not built either.
pub(crate) fn no_version_sets(
    capabilities: Option<&WorkerVersionCapabilities>,
) -> Result<(), ApiError> {
    if capabilities.is_some_and(|c| c.use_versioning) {
        return Err(ApiError::FieldNotBuilt {
            field: "worker_version_capabilities.use_versioning",
        });
    }
    Ok(())
}

/// A queue's rate limit is not built; "no limit" is.
pub(crate) fn no_rate_limit(tasks_per_second: Option<f64>) -> Result<(), ApiError> {
    match tasks_per_second {
        Some(rate) if rate < TASKS_PER_SECOND_UNLIMITED => {
            Err(ApiError::FieldNotBuilt { field: "task_queue_metadata.max_tasks_per_second" })
        }
        _ => Ok(()),
    }
}

/// The request id that a client gave, or a fresh one. Drawn before the request goes anywhere, so
/// that it is the same however often the server itself tries (D5).
pub(crate) fn request_id(given: &mut String, limits: &Limits) -> Result<(), ApiError> {
    optional("RequestId", given, limits)?;
    if given.is_empty() {
        *given = Uuid::new_v4().to_string();
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
