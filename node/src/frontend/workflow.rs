//! Requests of clients to one workflow: start, signal, cancel, terminate, query, describe, history.

use std::time::Duration;

use piton_core::request::{
    CancelRequest, RunRequest, SearchAttributeCheck, Signal, StartRequest, TerminateRequest,
};
use piton_proto::common::Link;
use piton_proto::common::link::{self, workflow_event};
use piton_proto::enums::{EventType, HistoryEventFilterType, QueryRejectCondition};
use piton_proto::history::History;
use piton_proto::workflowservice::{
    DescribeWorkflowExecutionRequest, DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryResponse,
    GetWorkflowExecutionHistoryReverseRequest, GetWorkflowExecutionHistoryReverseResponse,
    QueryWorkflowRequest, QueryWorkflowResponse, RequestCancelWorkflowExecutionRequest,
    RequestCancelWorkflowExecutionResponse, ResetStickyTaskQueueRequest,
    ResetStickyTaskQueueResponse, SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse, SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse, StartWorkflowExecutionRequest, StartWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest, TerminateWorkflowExecutionResponse,
};
use piton_shard::{HeldEvents, HistoryPage, Namespace, NamespaceState};
use tokio::time::Instant;

use super::error::ApiError;
use super::namespace::api_state;
use super::start::{self, Origin};
use super::{Call, Frontend, validate};

/// How long a query waits at most.
const QUERY_TIME_MAX: Duration = Duration::from_secs(30);

pub(super) async fn start(
    frontend: &Frontend,
    call: Call<StartWorkflowExecutionRequest>,
) -> Result<StartWorkflowExecutionResponse, ApiError> {
    let request = call.message;
    run_start(frontend, request, None, Origin::Start).await
}

pub(super) async fn signal_with_start(
    frontend: &Frontend,
    call: Call<SignalWithStartWorkflowExecutionRequest>,
) -> Result<SignalWithStartWorkflowExecutionResponse, ApiError> {
    let mut request = call.message;
    let limits = frontend.limits();
    validate::required("SignalName", &request.signal_name, &limits)?;
    validate::blob(request.signal_input.as_ref(), &limits)?;
    validate::request_id(&mut request.request_id, &limits)?;
    let start = start::of_signal_with_start(&mut request);
    let signal = Signal {
        name: request.signal_name,
        input: request.signal_input,
        identity: request.identity,
        header: request.header,
        request_id: request.request_id,
        links: request.links,
        ..Signal::default()
    };
    let started = run_start(frontend, start, Some(signal), Origin::SignalWithStart).await?;
    Ok(SignalWithStartWorkflowExecutionResponse {
        run_id: started.run_id,
        first_execution_run_id: started.first_execution_run_id,
        started: started.started,
        signal_link: None,
    })
}

async fn run_start(
    frontend: &Frontend,
    mut start: StartWorkflowExecutionRequest,
    signal: Option<Signal>,
    origin: Origin,
) -> Result<StartWorkflowExecutionResponse, ApiError> {
    let limits = frontend.limits();
    let namespace = frontend.namespace(&start.namespace).await?;
    if namespace.state != NamespaceState::Registered {
        let state = api_state(namespace.state);
        return Err(ApiError::NamespaceState { namespace: start.namespace, state });
    }
    start::check(&mut start, origin, &limits)?;
    if let Some(attributes) = &mut start.search_attributes {
        let check = frontend.cluster.meta().search_attribute_check(&namespace.id);
        check.check(attributes).map_err(ApiError::Invalid)?;
    }
    let workflow_id = start.workflow_id.clone();
    let request = StartRequest { start: Box::new(start), signal, parent: None };
    let mut response = frontend.cluster.start_workflow(&namespace, request).await?;
    response.link = Some(link_to_start(&namespace, &workflow_id, &response.run_id));
    Ok(response)
}

/// A link to the first event of a run.
fn link_to_start(namespace: &Namespace, workflow_id: &str, run_id: &str) -> Link {
    let reference = workflow_event::EventReference {
        event_id: 1,
        event_type: EventType::WorkflowExecutionStarted.into(),
    };
    let event = link::WorkflowEvent {
        namespace: namespace.name.to_string(),
        workflow_id: workflow_id.to_owned(),
        run_id: run_id.to_owned(),
        reference: Some(workflow_event::Reference::EventRef(reference)),
    };
    Link { variant: Some(link::Variant::WorkflowEvent(event)) }
}

pub(super) async fn signal(
    frontend: &Frontend,
    call: Call<SignalWorkflowExecutionRequest>,
) -> Result<SignalWorkflowExecutionResponse, ApiError> {
    let mut request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) =
        validate::execution(&namespace.id, request.workflow_execution.as_ref(), &limits)?;
    validate::required("SignalName", &request.signal_name, &limits)?;
    validate::optional("Identity", &request.identity, &limits)?;
    validate::request_id(&mut request.request_id, &limits)?;
    validate::blob(request.input.as_ref(), &limits)?;
    validate::header(request.header.as_ref(), &limits)?;
    validate::links(&request.links)?;
    let signal = Signal {
        name: request.signal_name,
        input: request.input,
        identity: request.identity,
        header: request.header,
        request_id: request.request_id,
        links: request.links,
        ..Signal::default()
    };
    frontend.cluster.request(key, run_id, RunRequest::Signal(signal)).await?;
    Ok(SignalWorkflowExecutionResponse::default())
}

pub(super) async fn request_cancel(
    frontend: &Frontend,
    call: Call<RequestCancelWorkflowExecutionRequest>,
) -> Result<RequestCancelWorkflowExecutionResponse, ApiError> {
    let mut request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) =
        validate::execution(&namespace.id, request.workflow_execution.as_ref(), &limits)?;
    validate::run_id(&request.first_execution_run_id)?;
    validate::optional("Identity", &request.identity, &limits)?;
    validate::request_id(&mut request.request_id, &limits)?;
    validate::links(&request.links)?;
    let cancel = CancelRequest {
        reason: request.reason,
        identity: request.identity,
        request_id: request.request_id,
        first_run_id: request.first_execution_run_id,
        links: request.links,
        ..CancelRequest::default()
    };
    frontend.cluster.request(key, run_id, RunRequest::RequestCancel(cancel)).await?;
    Ok(RequestCancelWorkflowExecutionResponse {})
}

pub(super) async fn terminate(
    frontend: &Frontend,
    call: Call<TerminateWorkflowExecutionRequest>,
) -> Result<TerminateWorkflowExecutionResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) =
        validate::execution(&namespace.id, request.workflow_execution.as_ref(), &limits)?;
    validate::run_id(&request.first_execution_run_id)?;
    validate::optional("Identity", &request.identity, &limits)?;
    validate::blob(request.details.as_ref(), &limits)?;
    validate::links(&request.links)?;
    let given = |text: String, default: &str| if text.is_empty() { default.into() } else { text };
    let terminate = TerminateRequest {
        reason: given(request.reason, "terminated by user via frontend"),
        details: request.details,
        identity: given(request.identity, "frontend-service"),
        first_run_id: request.first_execution_run_id,
        links: request.links,
    };
    frontend.cluster.request(key, run_id, RunRequest::Terminate(terminate)).await?;
    Ok(TerminateWorkflowExecutionResponse {})
}

pub(super) async fn query(
    frontend: &Frontend,
    call: Call<QueryWorkflowRequest>,
) -> Result<QueryWorkflowResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) = validate::execution(&namespace.id, request.execution.as_ref(), &limits)?;
    let query =
        request.query.ok_or_else(|| ApiError::invalid("WorkflowQuery is not set on request."))?;
    validate::required("QueryType", &query.query_type, &limits)?;
    validate::blob(query.query_args.as_ref(), &limits)?;
    validate::header(query.header.as_ref(), &limits)?;
    let reject = QueryRejectCondition::try_from(request.query_reject_condition)
        .map_err(|_| ApiError::invalid("QueryRejectCondition is unknown."))?;
    // Unlike a poll, a query that runs out of time is an error, so it gets all of the time.
    let longest = Instant::now() + QUERY_TIME_MAX;
    let deadline = call.deadline.map_or(longest, |deadline| deadline.min(longest));
    let answer = frontend.cluster.query(key, run_id, query, reject, deadline);
    frontend.unless_stopping(answer).await?.ok_or(ApiError::Stopping)
}

pub(super) async fn describe(
    frontend: &Frontend,
    call: Call<DescribeWorkflowExecutionRequest>,
) -> Result<DescribeWorkflowExecutionResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) =
        validate::execution(&namespace.id, request.execution.as_ref(), &frontend.limits())?;
    Ok(frontend.cluster.describe_workflow(key, run_id).await?)
}

pub(super) async fn history(
    frontend: &Frontend,
    call: Call<GetWorkflowExecutionHistoryRequest>,
) -> Result<GetWorkflowExecutionHistoryResponse, ApiError> {
    let is_cli_or_ui = call.is_cli_or_ui;
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) = validate::execution(&namespace.id, request.execution.as_ref(), &limits)?;
    let filter = HistoryEventFilterType::try_from(request.history_event_filter_type)
        .map_err(|_| ApiError::invalid("HistoryEventFilterType is unknown."))?;
    let (now, hold) = (Instant::now(), Duration::from_millis(limits.history_poll_ms_max));
    let wait = validate::held_until(call.deadline, now, hold).saturating_duration_since(now);
    let page = HistoryPage {
        token: request.next_page_token.into(),
        max_events: validate::page_size(request.maximum_page_size, limits.history_page_events_max),
        wait: request.wait_new_event.then_some(wait),
        close_only: filter == HistoryEventFilterType::CloseEvent,
        reverse: false,
        held: if is_cli_or_ui { HeldEvents::FirstAttempt } else { HeldEvents::EveryAttempt },
    };
    let page = frontend.cluster.history(key, run_id, page);
    let page = frontend.unless_stopping(page).await?.ok_or(ApiError::Stopping)?;
    Ok(GetWorkflowExecutionHistoryResponse {
        history: Some(History { events: page.events }),
        raw_history: Vec::new(),
        next_page_token: page.next_page_token.into(),
        archived: false,
    })
}

pub(super) async fn history_reverse(
    frontend: &Frontend,
    call: Call<GetWorkflowExecutionHistoryReverseRequest>,
) -> Result<GetWorkflowExecutionHistoryReverseResponse, ApiError> {
    let request = call.message;
    let limits = frontend.limits();
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) = validate::execution(&namespace.id, request.execution.as_ref(), &limits)?;
    let page = HistoryPage {
        token: request.next_page_token.into(),
        max_events: validate::page_size(request.maximum_page_size, limits.history_page_events_max),
        wait: None,
        close_only: false,
        reverse: true,
        held: HeldEvents::FirstAttempt,
    };
    let page = frontend.cluster.history(key, run_id, page).await?;
    Ok(GetWorkflowExecutionHistoryReverseResponse {
        history: Some(History { events: page.events }),
        next_page_token: page.next_page_token.into(),
    })
}

pub(super) async fn reset_sticky(
    frontend: &Frontend,
    call: Call<ResetStickyTaskQueueRequest>,
) -> Result<ResetStickyTaskQueueResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace).await?;
    let (key, run_id) =
        validate::execution(&namespace.id, request.execution.as_ref(), &frontend.limits())?;
    frontend.cluster.request(key, run_id, RunRequest::ResetSticky).await?;
    Ok(ResetStickyTaskQueueResponse {})
}
