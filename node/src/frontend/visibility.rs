//! Lists and counts of workflows by a filter.

use std::collections::HashMap;

use piton_core::list_filter::{FilterError, ListFilter};
use piton_proto::common::Payload;
use piton_proto::workflowservice::{
    CountWorkflowExecutionsRequest, CountWorkflowExecutionsResponse, ListWorkflowExecutionsRequest,
    ListWorkflowExecutionsResponse, count_workflow_executions_response::AggregationGroup,
};

use super::error::ApiError;
use super::{Call, Frontend, validate};

pub(super) async fn list(
    frontend: &Frontend,
    call: Call<ListWorkflowExecutionsRequest>,
) -> Result<ListWorkflowExecutionsResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace)?;
    let page_size = validate::page_size(request.page_size, limits.list_page_max)?;
    let filter = ListFilter::parse_for_list(&request.query).map_err(refused)?;
    let token = request.next_page_token.into();
    let (executions, next_page_token) =
        frontend.cluster.list(&namespace, &filter, page_size, token).await?;
    Ok(ListWorkflowExecutionsResponse { executions, next_page_token: next_page_token.into() })
}

pub(super) async fn count(
    frontend: &Frontend,
    call: Call<CountWorkflowExecutionsRequest>,
) -> Result<CountWorkflowExecutionsResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace)?;
    let filter = ListFilter::parse(&request.query).map_err(refused)?;
    let counts = frontend.cluster.count(&namespace, &filter).await?;
    let group = |(value, count): (String, u64)| AggregationGroup {
        group_values: vec![keyword(&value)],
        count: count as i64,
    };
    Ok(CountWorkflowExecutionsResponse {
        count: counts.total as i64,
        groups: counts.groups.into_iter().map(group).collect(),
    })
}

fn refused(error: FilterError) -> ApiError {
    ApiError::Invalid(error.to_string())
}

/// A search attribute's value as clients read it.
fn keyword(value: &str) -> Payload {
    let metadata = [("encoding", "json/plain"), ("type", "Keyword")];
    Payload {
        metadata: metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.as_bytes().into()))
            .collect::<HashMap<_, _>>(),
        data: serde_json::Value::from(value).to_string().into(),
        ..Payload::default()
    }
}
