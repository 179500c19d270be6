//! Lists and counts of workflows by a filter.

use bytes::Bytes;
use piton_core::list_filter::{FilterError, ListFilter, Narrowed};
use piton_core::page_token::ListOf;
use piton_core::search_attribute;
use piton_core::time::Timestamp;
use piton_proto::enums::WorkflowExecutionStatus;
use piton_proto::filter::{StartTimeFilter, WorkflowExecutionFilter};
use piton_proto::workflow::WorkflowExecutionInfo;
use piton_proto::workflowservice::{
    CountWorkflowExecutionsRequest, CountWorkflowExecutionsResponse,
    ListClosedWorkflowExecutionsRequest, ListClosedWorkflowExecutionsResponse,
    ListOpenWorkflowExecutionsRequest, ListOpenWorkflowExecutionsResponse,
    ListWorkflowExecutionsRequest, ListWorkflowExecutionsResponse, ScanWorkflowExecutionsRequest,
    ScanWorkflowExecutionsResponse, count_workflow_executions_response::AggregationGroup,
    list_closed_workflow_executions_request, list_open_workflow_executions_request,
};
use piton_shard::Namespace;
use tokio::time::Instant;

use super::error::ApiError;
use super::{Call, Frontend, validate};

pub(super) async fn list(
    frontend: &Frontend,
    call: Call<ListWorkflowExecutionsRequest>,
) -> Result<ListWorkflowExecutionsResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let page_size = validate::page_size(request.page_size, limits.list_page_max);
    let filter = ListFilter::parse_for_list(&request.query);
    let filter = filter.map_err(|error| refused(frontend, &namespace, error))?;
    let of = ListOf {
        call: "workflows",
        namespace: namespace.id.as_str(),
        query: request.query.as_bytes(),
    };
    let (executions, next_page_token) = page(
        frontend,
        &namespace,
        (&filter, of),
        (page_size, request.next_page_token),
        call.deadline,
    )
    .await?;
    Ok(ListWorkflowExecutionsResponse { executions, next_page_token })
}

/// The same list: every list here comes straight from the rows, in one order.
pub(super) async fn scan(
    frontend: &Frontend,
    call: Call<ScanWorkflowExecutionsRequest>,
) -> Result<ScanWorkflowExecutionsResponse, ApiError> {
    let Call { message: request, deadline, is_cli_or_ui } = call;
    let ScanWorkflowExecutionsRequest { namespace, page_size, next_page_token, query } = request;
    let message = ListWorkflowExecutionsRequest { namespace, page_size, next_page_token, query };
    let ListWorkflowExecutionsResponse { executions, next_page_token } =
        list(frontend, Call { message, deadline, is_cli_or_ui }).await?;
    Ok(ScanWorkflowExecutionsResponse { executions, next_page_token })
}

pub(super) async fn list_open(
    frontend: &Frontend,
    call: Call<ListOpenWorkflowExecutionsRequest>,
) -> Result<ListOpenWorkflowExecutionsResponse, ApiError> {
    use list_open_workflow_executions_request::Filters;
    let request = call.message;
    let mut asked = Narrowed { is_open: true, ..started_within(request.start_time_filter) };
    match request.filters {
        Some(Filters::ExecutionFilter(execution)) => of_execution(&mut asked, execution),
        Some(Filters::TypeFilter(of)) => asked.workflow_type = Some(of.name),
        None => {}
    }
    let page = (request.maximum_page_size, request.next_page_token);
    let (executions, next_page_token) =
        narrowed(frontend, (&request.namespace, call.deadline), asked, page).await?;
    Ok(ListOpenWorkflowExecutionsResponse { executions, next_page_token })
}

pub(super) async fn list_closed(
    frontend: &Frontend,
    call: Call<ListClosedWorkflowExecutionsRequest>,
) -> Result<ListClosedWorkflowExecutionsResponse, ApiError> {
    use list_closed_workflow_executions_request::Filters;
    let request = call.message;
    let mut asked = started_within(request.start_time_filter);
    match request.filters {
        Some(Filters::ExecutionFilter(execution)) => of_execution(&mut asked, execution),
        Some(Filters::TypeFilter(of)) => asked.workflow_type = Some(of.name),
        Some(Filters::StatusFilter(of)) => match of.status() {
            WorkflowExecutionStatus::Unspecified | WorkflowExecutionStatus::Running => {
                return Err(ApiError::invalid(
                    "StatusFilter must be specified and must be not Running.",
                ));
            }
            status => asked.status = Some(status),
        },
        None => {}
    }
    let page = (request.maximum_page_size, request.next_page_token);
    let (executions, next_page_token) =
        narrowed(frontend, (&request.namespace, call.deadline), asked, page).await?;
    Ok(ListClosedWorkflowExecutionsResponse { executions, next_page_token })
}

fn started_within(times: Option<StartTimeFilter>) -> Narrowed {
    let times = times.unwrap_or_default();
    Narrowed {
        started_from: Timestamp::from_proto(times.earliest_time.as_ref()),
        started_until: Timestamp::from_proto(times.latest_time.as_ref()),
        ..Narrowed::default()
    }
}

fn of_execution(asked: &mut Narrowed, filter: WorkflowExecutionFilter) {
    let given = |text: String| (!text.is_empty()).then_some(text);
    asked.workflow_id = given(filter.workflow_id);
    asked.run_id = given(filter.run_id);
}

/// A page of the open or the closed runs: its size and token, and what it holds.
async fn narrowed(
    frontend: &Frontend,
    (namespace, deadline): (&str, Option<Instant>),
    asked: Narrowed,
    (page_size, token): (i32, Bytes),
) -> Result<(Vec<WorkflowExecutionInfo>, Bytes), ApiError> {
    let limits = frontend.limits();
    let namespace = frontend.namespace(namespace).await?;
    let page_size = validate::page_size(page_size, limits.list_page_max);
    let query = format!("{asked:?}");
    let of = ListOf { call: "narrowed", namespace: namespace.id.as_str(), query: query.as_bytes() };
    let filter = ListFilter::narrowed(asked);
    page(frontend, &namespace, (&filter, of), (page_size, token), deadline).await
}

/// A page of runs and the token to go on with.
async fn page(
    frontend: &Frontend,
    namespace: &Namespace,
    (filter, of): (&ListFilter, ListOf<'_>),
    (size, token): (usize, Bytes),
    deadline: Option<Instant>,
) -> Result<(Vec<WorkflowExecutionInfo>, Bytes), ApiError> {
    let after = validate::page_token(of, &token)?;
    let after = after.to_vec();
    let (runs, next) = frontend.cluster.list(namespace, filter, size, after, deadline).await?;
    let next = if next.is_empty() { next } else { of.token(&next) };
    Ok((runs, next.into()))
}

pub(super) async fn count(
    frontend: &Frontend,
    call: Call<CountWorkflowExecutionsRequest>,
) -> Result<CountWorkflowExecutionsResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace).await?;
    let filter = ListFilter::parse(&request.query);
    let filter = filter.map_err(|error| refused(frontend, &namespace, error))?;
    let counts = frontend.cluster.count(&namespace, &filter, call.deadline).await?;
    let group = |(value, count): (String, u64)| AggregationGroup {
        group_values: vec![search_attribute::keyword(&value)],
        count: count as i64,
    };
    Ok(CountWorkflowExecutionsResponse {
        count: counts.total as i64,
        groups: counts.groups.into_iter().map(group).collect(),
    })
}

fn refused(frontend: &Frontend, namespace: &Namespace, error: FilterError) -> ApiError {
    let attributes = frontend.cluster.meta().search_attributes(&namespace.id);
    ApiError::Invalid(error.where_defined(|name| attributes.contains_key(name)).to_string())
}
