//! How a run looks from outside: the answer to a describe, and the way a query takes.

use piton_proto::workflowservice::DescribeWorkflowExecutionResponse;

use super::RunState;

/// Which way a query to this run takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryRoute {
    /// A query task of its own, past the workflow task.
    Direct,
    /// It rides on the workflow task that is scheduled or held.
    Attach,
    /// It can't be answered now. The text is for the caller.
    NotReady(String),
}

impl RunState {
    /// What a describe answers; the shell may add to it.
    pub fn describe(&self) -> DescribeWorkflowExecutionResponse {
        unimplemented!()
    }

    /// Which way a query takes now.
    pub fn query_route(&self) -> QueryRoute {
        unimplemented!()
    }
}
