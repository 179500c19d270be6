//! The start request that a parent's errand makes of its StartChildWorkflowExecutionInitiated event.

use std::sync::Arc;

use piton_core::effect::ParentLink;
use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::proto::common::{Priority, WorkflowExecution};
use piton_core::proto::history::StartChildWorkflowExecutionInitiatedEventAttributes;
use piton_core::proto::sdk::UserMetadata;
use piton_core::proto::workflowservice::StartWorkflowExecutionRequest;
use piton_core::request::{Parent, StartRequest};
use piton_core::run::inherit_priority;

use crate::error::ShardError;
use crate::leader::runtime::ShardRuntime;
use crate::message::{Answer, WorkflowCall};

/// What a child takes over from its parent beside the Initiated event.
pub(crate) struct ParentState {
    key: WorkflowKey,
    run_id: RunId,
    namespace_name: Arc<str>,
    root: WorkflowExecution,
    priority: Option<Priority>,
}

impl ParentState {
    /// Asks the parent.
    ///
    /// # Errors
    /// When the parent cannot be described.
    pub(crate) async fn of(
        shard: &Arc<ShardRuntime>,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Self, ShardError> {
        let call = WorkflowCall::Describe { key: key.clone(), run_id: Some(run_id.clone()) };
        let described = match shard.cluster.call(call).await? {
            Answer::Describe(described) => described,
            _ => {
                return Err(ShardError::Internal(
                    "describe was answered with something else".into(),
                ));
            }
        };
        let info = described.workflow_execution_info.unwrap_or_default();
        let (root, priority) = (info.root_execution, info.priority);
        let this = WorkflowExecution {
            workflow_id: key.workflow_id.to_string(),
            run_id: run_id.to_string(),
        };
        let namespace = shard.cluster.meta().namespace_by_id(&key.namespace);
        let namespace_name = namespace.map_or_else(|| Arc::from(""), |n| n.name.as_str().into());
        let root = root.unwrap_or(this);
        Ok(Self { key: key.clone(), run_id: run_id.clone(), namespace_name, root, priority })
    }
}

/// Makes the request; the same one each time, so that a repetition is recognised.
pub(crate) fn request(
    parent: ParentState,
    initiated: EventId,
    attributes: &StartChildWorkflowExecutionInitiatedEventAttributes,
    user_metadata: Option<UserMetadata>,
    request_id: String,
) -> StartRequest {
    let a = attributes.clone();
    let start = StartWorkflowExecutionRequest {
        namespace: a.namespace,
        workflow_id: a.workflow_id,
        workflow_type: a.workflow_type,
        task_queue: a.task_queue,
        input: a.input,
        workflow_execution_timeout: a.workflow_execution_timeout,
        workflow_run_timeout: a.workflow_run_timeout,
        workflow_task_timeout: a.workflow_task_timeout,
        request_id,
        retry_policy: a.retry_policy,
        workflow_id_reuse_policy: a.workflow_id_reuse_policy,
        memo: a.memo,
        search_attributes: a.search_attributes,
        header: a.header,
        user_metadata,
        priority: inherit_priority(a.priority, parent.priority.as_ref()),
        ..Default::default()
    };
    let link = ParentLink {
        namespace_id: parent.key.namespace.as_str().into(),
        workflow_id: parent.key.workflow_id,
        run_id: parent.run_id,
        initiated,
    };
    let parent = Parent { link, namespace_name: parent.namespace_name, root: parent.root };
    StartRequest { start: Box::new(start), signal: None, parent: Some(parent) }
}
