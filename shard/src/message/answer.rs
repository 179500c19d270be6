//! What calls are answered with.

use std::ops::Range;

use piton_core::message;
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::workflow::WorkflowExecutionInfo;
use piton_core::proto::workflowservice::{
    DescribeWorkflowExecutionResponse, QueryWorkflowResponse, RespondWorkflowTaskCompletedResponse,
    StartWorkflowExecutionResponse,
};
use piton_core::run::Reply;
use serde::{Deserialize, Serialize};

use crate::message::queue::TaskQueueView;

/// What a call is answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Reply(Box<Reply>),
    Started(#[serde(with = "message::one")] Box<StartWorkflowExecutionResponse>),
    WorkflowTaskCompleted(
        #[serde(with = "message::one")] Box<RespondWorkflowTaskCompletedResponse>,
    ),
    Query(#[serde(with = "message::one")] Box<QueryWorkflowResponse>),
    Describe(#[serde(with = "message::one")] Box<DescribeWorkflowExecutionResponse>),
    History(HistoryPageReply),
    List {
        #[serde(with = "listed")]
        rows: Vec<(Vec<u8>, WorkflowExecutionInfo)>,
        covered: Vec<Range<u16>>,
    },
    Count {
        counts: CountReply,
        covered: Vec<Range<u16>>,
    },
    Queue(TaskQueueView),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryPageReply {
    #[serde(with = "message::list")]
    pub events: Vec<HistoryEvent>,
    /// Empty at the end.
    #[serde(with = "serde_bytes")]
    pub next_page_token: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountReply {
    pub total: u64,
    /// Value of the `GROUP BY` attribute and how many have it.
    pub groups: Vec<(String, u64)>,
}

/// Rows of a list: sort keys and messages as byte strings.
mod listed {
    use piton_core::message::{Proto, ProtoRef};
    use piton_core::proto::workflow::WorkflowExecutionInfo;
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_bytes::{ByteBuf, Bytes};

    type Rows = Vec<(Vec<u8>, WorkflowExecutionInfo)>;

    pub(super) fn serialize<S: Serializer>(rows: &Rows, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(rows.iter().map(|(key, run)| (Bytes::new(key), ProtoRef(run))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Rows, D::Error> {
        let rows = Vec::<(ByteBuf, Proto<WorkflowExecutionInfo>)>::deserialize(from)?;
        Ok(rows.into_iter().map(|(key, Proto(run))| (key.into_vec(), run)).collect())
    }
}
