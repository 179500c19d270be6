//! Task tokens: opaque to workers, ours to recognise the current attempt by.

use piton_core::id::{EventId, NamespaceId, RunId, WorkflowId, WorkflowKey};
use piton_core::request::{ActivityRef, WorkflowTaskRef};
use piton_store::codec::Kind;
use serde::{Deserialize, Serialize};

/// A token that is not one of ours.
#[derive(Clone, Debug, thiserror::Error)]
#[error("Error deserializing task token.")]
pub struct TokenError(String);

/// What a worker hands back with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskToken {
    Workflow(WorkflowTaskToken),
    Activity(ActivityToken),
    Query(QueryToken),
}

/// Names a workflow task that one life of an actor handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowTaskToken {
    pub namespace: NamespaceId,
    pub workflow_id: WorkflowId,
    pub run_id: RunId,
    pub scheduled: EventId,
    pub started: EventId,
    pub attempt: u32,
    pub term: u64,
    pub number: u64,
}

/// Names one attempt of an activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityToken {
    pub namespace: NamespaceId,
    pub workflow_id: WorkflowId,
    pub run_id: RunId,
    pub activity_id: String,
    pub activity_type: String,
    pub scheduled: EventId,
    pub attempt: u32,
    pub stamp: u32,
}

/// Names a query that was sent to a worker on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryToken {
    pub namespace: NamespaceId,
    pub workflow_id: WorkflowId,
    pub run_id: RunId,
    pub term: u64,
    pub query: u64,
}

/// Workers hold tokens across an upgrade: those of older versions are read, so that an attempt that
/// runs for hours is still reported. After a downgrade a newer one is refused, as one of another
/// server is; its attempt then times out and is tried again.
pub(crate) const TASK_TOKEN: Kind<TaskToken> = Kind::new("a task token", &[]);

impl TaskToken {
    pub fn encode(&self) -> Vec<u8> {
        TASK_TOKEN.encode(self).expect("a token is a few short strings and numbers").to_vec()
    }

    /// # Errors
    /// When the bytes are not a token of ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        TASK_TOKEN.decode(bytes).map_err(|e| TokenError(e.to_string()))
    }
}

impl WorkflowTaskToken {
    pub fn key(&self) -> WorkflowKey {
        WorkflowKey { namespace: self.namespace.clone(), workflow_id: self.workflow_id.clone() }
    }

    pub fn reference(&self) -> WorkflowTaskRef {
        WorkflowTaskRef { term: self.term, number: self.number }
    }
}

impl ActivityToken {
    pub fn key(&self) -> WorkflowKey {
        WorkflowKey { namespace: self.namespace.clone(), workflow_id: self.workflow_id.clone() }
    }

    pub fn reference(&self) -> ActivityRef {
        ActivityRef::Attempt { scheduled: self.scheduled, attempt: self.attempt, stamp: self.stamp }
    }
}

impl QueryToken {
    pub fn key(&self) -> WorkflowKey {
        WorkflowKey { namespace: self.namespace.clone(), workflow_id: self.workflow_id.clone() }
    }
}
