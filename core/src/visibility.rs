//! What lists and counts know of a run. The record is read off the state, never kept beside it;
//! the shell writes it as index rows in the batch of the events (D10).

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_proto::common::{
    Memo, Payload, Priority, SearchAttributes, WorkflowExecution, WorkflowType,
};
use piton_proto::workflow::WorkflowExecutionInfo;
use serde::{Deserialize, Serialize};

use crate::id::{NamespaceId, RunId, WorkflowId};
use crate::message::Proto;
use crate::run::{RunState, Status};
use crate::time::{Span, Timestamp};

/// One run as lists show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisibilityRecord {
    pub workflow_id: WorkflowId,
    pub run_id: RunId,
    pub first_run_id: RunId,
    pub workflow_type: String,
    pub task_queue: String,
    pub status: Status,
    pub start_time: Timestamp,
    /// When the first workflow task was or will be scheduled.
    pub execution_time: Timestamp,
    pub close_time: Option<Timestamp>,
    /// Known of closed runs only, so that an open run's record changes rarely.
    pub figures: Option<Figures>,
    pub parent: Option<ParentExecution>,
    pub root: (WorkflowId, RunId),
    pub memo: Proto<Memo>,
    pub search_attributes: BTreeMap<String, Proto<Payload>>,
    pub priority: Option<Proto<Priority>>,
}

/// How large a closed run's history is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    pub history_length: i64,
    pub history_bytes: u64,
    pub transitions: u64,
}

/// The run that started this one as its child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentExecution {
    pub namespace_id: NamespaceId,
    pub workflow_id: WorkflowId,
    pub run_id: RunId,
}

impl VisibilityRecord {
    /// How long a closed run took from its first workflow task on.
    pub fn duration(&self) -> Option<Span> {
        self.close_time.map(|closed| closed - self.execution_time)
    }

    /// The record as the API shows it.
    pub fn to_proto(&self) -> WorkflowExecutionInfo {
        let execution = |workflow_id: &WorkflowId, run_id: &RunId| {
            Some(WorkflowExecution {
                workflow_id: workflow_id.as_str().to_owned(),
                run_id: run_id.as_str().to_owned(),
            })
        };
        let parent = self.parent.as_ref();
        let figures = self.figures.as_ref();
        let attributes = self.search_attributes.iter();
        WorkflowExecutionInfo {
            execution: execution(&self.workflow_id, &self.run_id),
            r#type: Some(WorkflowType { name: self.workflow_type.clone() }),
            start_time: Some(self.start_time.to_proto()),
            close_time: self.close_time.map(Timestamp::to_proto),
            status: self.status.to_proto().into(),
            history_length: figures.map_or(0, |f| f.history_length),
            parent_namespace_id: parent.map_or("", |p| p.namespace_id.as_str()).to_owned(),
            parent_execution: parent.and_then(|p| execution(&p.workflow_id, &p.run_id)),
            execution_time: Some(self.execution_time.to_proto()),
            memo: Some(self.memo.0.clone()),
            search_attributes: Some(SearchAttributes {
                indexed_fields: attributes.map(|(k, v)| (k.clone(), v.0.clone())).collect(),
            }),
            task_queue: self.task_queue.clone(),
            state_transition_count: figures.map_or(0, |f| f.transitions as i64),
            history_size_bytes: figures.map_or(0, |f| f.history_bytes as i64),
            execution_duration: self.duration().map(Span::to_proto),
            root_execution: execution(&self.root.0, &self.root.1),
            first_run_id: self.first_run_id.as_str().to_owned(),
            priority: self.priority.as_ref().map(|p| p.0.clone()),
            ..Default::default()
        }
    }
}

impl RunState {
    /// The run as lists show it.
    pub fn visibility(&self) -> VisibilityRecord {
        let started = &self.started;
        let parent = started.parent_workflow_execution.as_ref().map(|e| ParentExecution {
            namespace_id: started.parent_workflow_namespace_id.as_str().into(),
            workflow_id: e.workflow_id.as_str().into(),
            run_id: e.run_id.as_str().into(),
        });
        let root = started.root_workflow_execution.as_ref().map_or_else(
            || (self.key.workflow_id.clone(), self.run_id.clone()),
            |e| (e.workflow_id.as_str().into(), e.run_id.as_str().into()),
        );
        let attributes = self.search_attributes.iter();
        VisibilityRecord {
            workflow_id: self.key.workflow_id.clone(),
            run_id: self.run_id.clone(),
            first_run_id: started.first_execution_run_id.as_str().into(),
            workflow_type: started.workflow_type.as_ref().map_or("", |t| &t.name).to_owned(),
            task_queue: started.task_queue.as_ref().map_or("", |q| &q.name).to_owned(),
            status: self.status,
            start_time: self.start_time,
            execution_time: self.execution_time(),
            close_time: self.close_time,
            figures: self.close_time.map(|_| Figures {
                history_length: self.history_length(),
                history_bytes: self.history_bytes,
                transitions: self.note.transitions,
            }),
            parent,
            root,
            memo: Proto((*self.memo).clone()),
            search_attributes: attributes.map(|(k, v)| (k.clone(), Proto(v.clone()))).collect(),
            priority: started.priority.clone().map(Proto),
        }
    }

    /// Whether lists show the two states of this run alike. Cheap: it is asked at each transition.
    pub fn is_shown_like(&self, other: &Self) -> bool {
        fn alike<T: PartialEq>(a: &Arc<T>, b: &Arc<T>) -> bool {
            Arc::ptr_eq(a, b) || a == b
        }
        // All else of a record is said by event 1.
        self.status == other.status
            && self.close_time == other.close_time
            && alike(&self.memo, &other.memo)
            && alike(&self.search_attributes, &other.search_attributes)
    }
}
