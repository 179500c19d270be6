//! What calls are answered with.

use std::ops::Range;

use piton_core::proto::history::HistoryEvent;
use piton_core::proto::workflow::WorkflowExecutionInfo;
use piton_core::proto::workflowservice::{
    DescribeWorkflowExecutionResponse, QueryWorkflowResponse, RespondWorkflowTaskCompletedResponse,
    StartWorkflowExecutionResponse,
};
use piton_core::run::Reply;

use crate::message::queue::TaskQueueView;

/// What a call is answered with.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Reply(Box<Reply>),
    Started(Box<StartWorkflowExecutionResponse>),
    WorkflowTaskCompleted(Box<RespondWorkflowTaskCompletedResponse>),
    Query(Box<QueryWorkflowResponse>),
    Describe(Box<DescribeWorkflowExecutionResponse>),
    History(HistoryPageReply),
    List { rows: Vec<(Vec<u8>, WorkflowExecutionInfo)>, covered: Vec<Range<u16>> },
    Count { counts: CountReply, covered: Vec<Range<u16>> },
    Queue(TaskQueueView),
}

#[derive(Clone, Debug, Default)]
pub struct HistoryPageReply {
    pub events: Vec<HistoryEvent>,
    /// Empty at the end.
    pub next_page_token: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountReply {
    pub total: u64,
    /// Value of the `GROUP BY` attribute and how many have it.
    pub groups: Vec<(String, u64)>,
}
