//! What lists and counts know of a run. The record is read off the state, never kept beside it;
//! the shell writes it as index rows in the batch of the events (architecture D10).

use std::collections::BTreeMap;

use piton_proto::common::{Memo, Payload, Priority};
use piton_proto::workflow::WorkflowExecutionInfo;
use serde::{Deserialize, Serialize};

use crate::id::{NamespaceId, RunId, WorkflowId};
use crate::message::Proto;
use crate::run::{RunState, Status};
use crate::time::Timestamp;

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
    /// The record as the API shows it.
    pub fn to_proto(&self) -> WorkflowExecutionInfo {
        unimplemented!()
    }
}

impl RunState {
    /// The run as lists show it.
    pub fn visibility(&self) -> VisibilityRecord {
        unimplemented!()
    }

    /// Whether lists show the two states of this run alike. Cheap: it is asked at each transition.
    pub fn is_shown_like(&self, other: &Self) -> bool {
        let _ = other;
        unimplemented!()
    }
}
