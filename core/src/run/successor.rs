//! The next run of a chain: what it is begun with, and what it keeps of the run before it. One
//! decision closes the one and begins the other, whatever the reason is: continue-as-new today.

use piton_proto::common::{Header, Memo, Payloads, RetryPolicy, SearchAttributes, WorkflowType};
use piton_proto::enums::ContinueAsNewInitiator;
use piton_proto::failure::Failure;
use piton_proto::history::WorkflowExecutionStartedEventAttributes;
use piton_proto::taskqueue::TaskQueue;

use super::RunState;
use super::start::Birth;
use crate::request::Drawn;
use crate::time::Span;

/// What the next run is begun with, said by whatever begins it. All else it takes from the run before.
pub(super) struct Successor {
    pub(super) initiator: ContinueAsNewInitiator,
    /// How long its first workflow task has to wait.
    pub(super) backoff: Span,
    pub(super) workflow_type: Option<WorkflowType>,
    pub(super) task_queue: Option<TaskQueue>,
    pub(super) input: Option<Payloads>,
    pub(super) header: Option<Header>,
    pub(super) memo: Option<Memo>,
    pub(super) search_attributes: Option<SearchAttributes>,
    pub(super) run_timeout: Option<prost_types::Duration>,
    pub(super) task_timeout: Option<prost_types::Duration>,
    pub(super) retry_policy: Option<RetryPolicy>,
    pub(super) last_completion_result: Option<Payloads>,
    pub(super) failure: Option<Failure>,
}

impl RunState {
    /// Begins the run that follows this one, under the id that was drawn.
    pub(super) fn begin_successor(&self, next: Successor, drawn: &Drawn<'_>) -> Self {
        let backoff = next.backoff;
        let birth = Birth {
            attributes: self.successor_attributes(next, drawn),
            user_metadata: None,
            links: self.start_links.to_vec(),
            request_id: None,
            signal: None,
            backoff,
            waits_for_parent: false,
        };
        Self::born(self.key.clone(), drawn.run_id.clone(), birth, drawn)
    }

    fn successor_attributes(
        &self,
        next: Successor,
        drawn: &Drawn<'_>,
    ) -> WorkflowExecutionStartedEventAttributes {
        let kept = &self.started;
        let is_retry = next.initiator == ContinueAsNewInitiator::Retry;
        WorkflowExecutionStartedEventAttributes {
            workflow_type: next.workflow_type,
            task_queue: next.task_queue,
            input: next.input,
            header: next.header,
            memo: next.memo,
            search_attributes: next.search_attributes,
            workflow_run_timeout: next.run_timeout,
            workflow_task_timeout: next.task_timeout,
            initiator: next.initiator.into(),
            continued_failure: next.failure,
            last_completion_result: next.last_completion_result,
            continued_execution_run_id: self.run_id.as_str().into(),
            original_execution_run_id: drawn.run_id.as_str().into(),
            first_execution_run_id: kept.first_execution_run_id.clone(),
            first_workflow_task_backoff: Some(next.backoff.to_proto()),
            attempt: if is_retry { kept.attempt + 1 } else { 1 },
            retry_policy: next.retry_policy,
            workflow_execution_timeout: kept.workflow_execution_timeout,
            workflow_execution_expiration_time: kept.workflow_execution_expiration_time,
            workflow_id: kept.workflow_id.clone(),
            parent_workflow_namespace: kept.parent_workflow_namespace.clone(),
            parent_workflow_namespace_id: kept.parent_workflow_namespace_id.clone(),
            parent_workflow_execution: kept.parent_workflow_execution.clone(),
            parent_initiated_event_id: kept.parent_initiated_event_id,
            parent_initiated_event_version: kept.parent_initiated_event_version,
            root_workflow_execution: kept.root_workflow_execution.clone(),
            priority: kept.priority.clone(),
            ..Default::default()
        }
    }
}
