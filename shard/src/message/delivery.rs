//! What a node that holds a poll receives for it, and what it says became of that.

use piton_core::message;
use piton_core::proto::workflowservice::{
    PollActivityTaskQueueResponse, PollWorkflowTaskQueueResponse,
};
use serde::{Deserialize, Serialize};

/// Names a poll on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PollId(pub u64);

/// What a poll receives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Delivery {
    WorkflowTask(#[serde(with = "message::one")] Box<PollWorkflowTaskQueueResponse>),
    ActivityTask(#[serde(with = "message::one")] Box<PollActivityTaskQueueResponse>),
    /// The match came to nothing, or the queue's owner changed: poll again.
    Again,
    /// The worker is shutting down: answer empty.
    Shutdown,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receipt {
    /// The poll has it.
    Taken,
    /// The poll has ended without a task, so that nobody has it.
    Gone,
    /// The poll is not there. It may have had this task before, or be of an earlier life of its node.
    Unknown,
    /// The node does not answer: it may have given it to the poll or not.
    Unreachable,
}
