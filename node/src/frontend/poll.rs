//! What the polls for all kinds of tasks have in common: what is checked of them, and what their queue
//! is asked.

use std::sync::Arc;

use piton_proto::common::{WorkerVersionCapabilities, WorkerVersionStamp};
use piton_proto::deployment::WorkerDeploymentOptions;
use piton_proto::taskqueue::TaskQueue;
use piton_shard::{Namespace, Poll};
use tokio::time::Instant;

use super::error::ApiError;
use super::{Frontend, validate};

/// A poll's request, of whatever kind.
pub(super) struct Asked {
    pub(super) namespace: String,
    pub(super) task_queue: Option<TaskQueue>,
    pub(super) identity: String,
    pub(super) worker_instance_key: String,
    pub(super) deployment: Option<WorkerDeploymentOptions>,
    pub(super) capabilities: Option<WorkerVersionCapabilities>,
}

/// The fields that the requests share by name.
macro_rules! asked {
    ($request:expr) => {{
        let request = $request;
        #[expect(deprecated, reason = "old workers still send capabilities")]
        let capabilities = request.worker_version_capabilities;
        $crate::frontend::poll::Asked {
            namespace: request.namespace,
            task_queue: request.task_queue,
            identity: request.identity,
            worker_instance_key: request.worker_instance_key,
            deployment: request.deployment_options,
            capabilities,
        }
    }};
}
pub(super) use asked;

/// Checks a poll whose client stops waiting at `deadline`.
pub(super) async fn checked(
    frontend: &Frontend,
    deadline: Option<Instant>,
    asked: Asked,
) -> Result<(Arc<Namespace>, Poll), ApiError> {
    let limits = frontend.limits();
    let deadline = validate::poll_deadline(deadline, Instant::now(), &limits)?;
    let namespace = frontend.namespace(&asked.namespace).await?;
    let queue = validate::queue(asked.task_queue.as_ref(), &limits)?;
    validate::optional("Identity", &asked.identity, &limits)?;
    validate::unversioned(asked.deployment.as_ref())?;
    validate::no_version_sets(asked.capabilities.as_ref())?;
    let Asked { identity, worker_instance_key, capabilities, .. } = asked;
    let worker_version = capabilities.and_then(stamp);
    Ok((namespace, Poll { queue, identity, worker_instance_key, worker_version, deadline }))
}

/// What a poll says of the worker's build, as events show it.
fn stamp(capabilities: WorkerVersionCapabilities) -> Option<WorkerVersionStamp> {
    let WorkerVersionCapabilities { build_id, use_versioning, .. } = capabilities;
    (!build_id.is_empty()).then_some(WorkerVersionStamp { build_id, use_versioning })
}
