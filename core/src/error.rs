//! Why a request was refused. The gRPC code of each is chosen in `node/src/frontend/status.rs`.

use piton_proto::failure::Failure;
use serde::{Deserialize, Serialize};

use crate::id::{RequestId, RunId};
use crate::message;

/// A request that was not carried out; nothing of it was recorded unless the variant says so.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// Malformed, or against a rule of the API. The text is for the caller.
    #[error("{0}")]
    InvalidArgument(String),
    /// No such workflow or run. The text is what the official server says.
    #[error("{0}")]
    NotFound(String),
    /// The workflow task token is not that of the current attempt.
    #[error("Workflow task not found.")]
    WorkflowTaskNotFound,
    /// The activity or its attempt is no longer pending.
    #[error("{0}")]
    ActivityNotFound(String),
    #[error("workflow execution already completed")]
    AlreadyCompleted,
    /// A start was refused by a workflow id policy.
    #[error("{message}")]
    AlreadyStarted {
        message: String,
        start_request_id: RequestId,
        run_id: RunId,
        first_run_id: RunId,
    },
    /// A query or update came before the first workflow task completed, or while tasks keep failing.
    #[error("{0}")]
    WorkflowNotReady(String),
    #[error("{0}")]
    FailedPrecondition(String),
    /// The worker answered a query with a failure.
    #[error("{message}")]
    QueryFailed {
        message: String,
        #[serde(with = "message::optional")]
        failure: Option<Box<Failure>>,
    },
    /// A limit on this one workflow; the caller may try again.
    #[error("{0}")]
    BusyWorkflow(String),
    /// The worker's commands were invalid: the workflow task *was failed* and that is recorded.
    #[error("{0}")]
    CommandsRefused(String),
}

impl Rejection {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::InvalidArgument(text.into())
    }
}
