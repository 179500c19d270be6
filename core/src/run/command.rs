//! The commands of a completed workflow task.

use piton_proto::enums::WorkflowTaskFailedCause;

/// A command that cannot be carried out: the workflow task fails with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandFailure {
    pub(crate) cause: WorkflowTaskFailedCause,
    pub(crate) message: String,
    /// The run is terminated: a payload is larger than the limit, and would be again.
    pub(crate) terminate: bool,
}

impl CommandFailure {
    pub(crate) fn new(cause: WorkflowTaskFailedCause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), terminate: false }
    }
}
