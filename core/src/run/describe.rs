//! How a run looks from outside: the answer to a describe, and the way a query takes. Reads only.

use piton_proto::enums::{
    EventType, PendingActivityState, PendingWorkflowTaskState, TaskQueueKind,
};
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflow::{
    PendingActivityInfo, PendingChildExecutionInfo, PendingWorkflowTaskInfo, RequestIdInfo,
    WorkflowExecutionConfig, WorkflowExecutionExtendedInfo, WorkflowExecutionInfo,
};
use piton_proto::workflowservice::DescribeWorkflowExecutionResponse;

use super::facts::Ending;
use super::{Activity, Child, RunState};
use crate::time::{Span, Timestamp};

/// A query waits for no workflow task that has failed so often.
const QUERY_ATTEMPT_MAX: u32 = 3;

/// Which way a query to this run takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryRoute {
    /// A query task of its own, past the workflow task.
    Direct,
    /// It rides on the next workflow task: the one that is scheduled or held, or the first one
    /// that is yet to be scheduled.
    Attach,
    /// It can't be answered in time. The text is for the caller.
    NotReady(&'static str),
}

impl RunState {
    /// What a describe answers; the shell may add to it.
    pub fn describe(&self) -> DescribeWorkflowExecutionResponse {
        let closed = |ending| self.is_ending_buffered(ending);
        DescribeWorkflowExecutionResponse {
            execution_config: Some(self.execution_config()),
            workflow_execution_info: Some(self.execution_info()),
            pending_activities: self
                .activities
                .values()
                .filter(|a| !closed(Ending::Activity(a.scheduled_event_id)))
                .map(|a| self.pending_activity_info(a))
                .collect(),
            pending_children: self
                .children
                .values()
                .filter(|c| self.status.is_open() && !closed(Ending::Child(c.initiated_event_id)))
                .map(|c| self.pending_child_info(c))
                .collect(),
            pending_workflow_task: self.pending_workflow_task_info(),
            workflow_extended_info: Some(self.extended_info()),
            ..Default::default()
        }
    }

    /// Which way a query takes now whose caller waits until then.
    pub fn query_route(&self, until: Timestamp) -> QueryRoute {
        let has_completed_one = self.previous_started.0 > 0;
        if !self.status.is_open() {
            return if has_completed_one {
                QueryRoute::Direct
            } else {
                QueryRoute::NotReady("Workflow execution closed before WorkflowTaskStarted event")
            };
        }
        match &self.note.workflow_task {
            Some(task) if task.attempt >= QUERY_ATTEMPT_MAX => QueryRoute::NotReady(
                "Unable to query workflow due to Workflow Task in failed state.",
            ),
            None if has_completed_one => QueryRoute::Direct,
            None if self.execution_time() > until => {
                QueryRoute::NotReady("Workflow task is not scheduled yet.")
            }
            Some(_) | None => QueryRoute::Attach,
        }
    }

    fn execution_config(&self) -> WorkflowExecutionConfig {
        WorkflowExecutionConfig {
            task_queue: Some(TaskQueue {
                name: self.task_queue_name().to_owned(),
                kind: TaskQueueKind::Normal.into(),
                normal_name: String::new(),
            }),
            workflow_execution_timeout: self.started.workflow_execution_timeout,
            workflow_run_timeout: self.started.workflow_run_timeout,
            default_workflow_task_timeout: self.started.workflow_task_timeout,
            user_metadata: self.user_metadata.as_deref().cloned(),
        }
    }

    /// As lists show it, with figures of open runs, too, and what is known of the last worker.
    #[allow(deprecated, reason = "clients read the stamp")]
    fn execution_info(&self) -> WorkflowExecutionInfo {
        WorkflowExecutionInfo {
            history_length: self.history_length(),
            history_size_bytes: self.history_bytes as i64,
            state_transition_count: self.note.transitions as i64,
            most_recent_worker_version_stamp: self.worker_version.as_deref().cloned(),
            worker_deployment_name: self.worker_deployment.to_string(),
            ..self.visibility().to_proto()
        }
    }

    pub(crate) fn history_length(&self) -> i64 {
        self.next_event_id.0 - 1
    }

    /// When the first workflow task was or will be scheduled.
    pub(crate) fn execution_time(&self) -> Timestamp {
        self.start_time + Span::from_proto(self.started.first_workflow_task_backoff.as_ref())
    }

    fn pending_activity_info(&self, activity: &Activity) -> PendingActivityInfo {
        let (a, note) = (&activity.attributes, &activity.note);
        let state = match (&note.started, activity.cancel_requested) {
            (Some(_), Some(_)) => PendingActivityState::CancelRequested,
            (Some(_), None) => PendingActivityState::Started,
            (None, _) => PendingActivityState::Scheduled,
        };
        let next = activity.is_in_backoff().then(|| note.attempt_scheduled_at.to_proto());
        let identity = note.started.as_ref().map_or(&note.last_worker_identity, |s| &s.identity);
        PendingActivityInfo {
            activity_id: a.activity_id.clone(),
            activity_type: a.activity_type.clone(),
            state: state.into(),
            heartbeat_details: note.heartbeat_details.as_ref().map(|d| d.0.clone()),
            last_heartbeat_time: note.heartbeat_at.map(Timestamp::to_proto),
            last_started_time: note.started.as_ref().map(|s| s.at.to_proto()),
            attempt: i32::try_from(note.attempt).unwrap_or(i32::MAX),
            maximum_attempts: a.retry_policy.as_ref().map_or(0, |p| p.maximum_attempts),
            scheduled_time: Some(note.attempt_scheduled_at.to_proto()),
            expiration_time: activity.schedule_to_close_due().map(Timestamp::to_proto),
            last_failure: note.last_failure.as_ref().map(|f| f.0.clone()),
            last_worker_identity: identity.clone(),
            current_retry_interval: note.retry_wait.map(Span::to_proto),
            last_attempt_complete_time: note.last_attempt_completed_at.map(Timestamp::to_proto),
            next_attempt_schedule_time: next,
            priority: a.priority.clone(),
            activity_options: Some(piton_proto::activity::ActivityOptions {
                // Its kind is not shown, as on the official server.
                task_queue: a.task_queue.as_ref().map(|queue| TaskQueue {
                    name: queue.name.clone(),
                    normal_name: queue.name.clone(),
                    ..TaskQueue::default()
                }),
                schedule_to_close_timeout: a.schedule_to_close_timeout,
                schedule_to_start_timeout: a.schedule_to_start_timeout,
                start_to_close_timeout: a.start_to_close_timeout,
                heartbeat_timeout: a.heartbeat_timeout,
                retry_policy: a.retry_policy.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn pending_child_info(&self, child: &Child) -> PendingChildExecutionInfo {
        let started = child.started.as_ref().map(|(run, _)| run.clone());
        let run = started.or_else(|| self.buffered_child_start(child.initiated_event_id));
        let a = &child.attributes;
        PendingChildExecutionInfo {
            workflow_id: a.workflow_id.clone(),
            run_id: run.map_or_else(String::new, |run| run.as_str().to_owned()),
            workflow_type_name: a.workflow_type.as_ref().map_or("", |t| &t.name).to_owned(),
            initiated_id: child.initiated_event_id.0,
            parent_close_policy: a.parent_close_policy,
        }
    }

    fn pending_workflow_task_info(&self) -> Option<PendingWorkflowTaskInfo> {
        let task = self.note.workflow_task.as_ref()?;
        let (state, started) = match &self.held {
            Some(held) => (PendingWorkflowTaskState::Started, Some(held.started_at.to_proto())),
            None => (PendingWorkflowTaskState::Scheduled, None),
        };
        Some(PendingWorkflowTaskInfo {
            state: state.into(),
            scheduled_time: Some(task.scheduled_at.to_proto()),
            original_scheduled_time: Some(task.original_scheduled_at.to_proto()),
            started_time: started,
            attempt: i32::try_from(task.attempt).unwrap_or(i32::MAX),
        })
    }

    fn extended_info(&self) -> WorkflowExecutionExtendedInfo {
        let run_timeout = Span::from_proto(self.started.workflow_run_timeout.as_ref());
        let run_due = run_timeout.given().map(|span| (self.execution_time() + span).to_proto());
        let created = self.note.start_request_id.as_ref().map(|id| {
            let info = RequestIdInfo {
                event_type: EventType::WorkflowExecutionStarted.into(),
                event_id: 1,
                buffered: false,
            };
            (id.as_str().to_owned(), info)
        });
        WorkflowExecutionExtendedInfo {
            execution_expiration_time: self.started.workflow_execution_expiration_time,
            run_expiration_time: run_due,
            cancel_requested: self.cancel_requested.is_some() || self.is_cancel_request_buffered(),
            original_start_time: Some(self.start_time.to_proto()),
            request_id_infos: created.into_iter().collect(),
            ..Default::default()
        }
    }
}
