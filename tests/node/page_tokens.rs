//! A page token is taken by the call and the query that it was made for, and by no other.

use piton_proto::common::WorkflowExecution;
use piton_proto::workflowservice::{
    GetWorkflowExecutionHistoryRequest, ListNamespacesRequest, ListOpenWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest, RegisterNamespaceRequest, ScanWorkflowExecutionsRequest,
};
use prost::bytes::Bytes;
use tonic::Code;

use crate::client::{Api, NAMESPACE, execution, soon, start_of};
use crate::nodes::{Running, config};
use crate::refusal::check_refused;

const OTHER: &str = "other";
const INVALID: &str = "Invalid NextPageToken.";

fn list(namespace: &str, query: &str, token: &Bytes) -> ListWorkflowExecutionsRequest {
    ListWorkflowExecutionsRequest {
        namespace: namespace.to_owned(),
        page_size: 1,
        query: query.to_owned(),
        next_page_token: token.clone(),
    }
}

fn scan(query: &str, token: &Bytes) -> ScanWorkflowExecutionsRequest {
    ScanWorkflowExecutionsRequest {
        namespace: NAMESPACE.to_owned(),
        page_size: 2,
        query: query.to_owned(),
        next_page_token: token.clone(),
    }
}

fn list_open(token: &Bytes) -> ListOpenWorkflowExecutionsRequest {
    ListOpenWorkflowExecutionsRequest {
        namespace: NAMESPACE.to_owned(),
        maximum_page_size: 1,
        next_page_token: token.clone(),
        ..ListOpenWorkflowExecutionsRequest::default()
    }
}

fn list_namespaces(token: &Bytes) -> ListNamespacesRequest {
    ListNamespacesRequest {
        page_size: 1,
        next_page_token: token.clone(),
        ..ListNamespacesRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_not_made_for_the_list_is_refused() {
    let running = Running::start(config(None)).await;
    let mut service = running.client.service();
    let other = RegisterNamespaceRequest {
        namespace: OTHER.to_owned(),
        workflow_execution_retention_period: Some(prost_types::Duration {
            seconds: 86_400,
            nanos: 0,
        }),
        ..RegisterNamespaceRequest::default()
    };
    service.register_namespace(soon(other)).await.unwrap();
    for id in ["a", "b", "c"] {
        running.client.start(start_of(id, "simple", "q")).await.unwrap();
    }
    let none = Bytes::new();
    let page = service.list_workflow_executions(soon(list(NAMESPACE, "", &none))).await.unwrap();
    let listed = page.into_inner().next_page_token;
    let page = service.list_open_workflow_executions(soon(list_open(&none))).await.unwrap();
    let open = page.into_inner().next_page_token;
    let page = service.list_namespaces(soon(list_namespaces(&none))).await.unwrap();
    let namespaces = page.into_inner().next_page_token;
    assert!([&listed, &open, &namespaces].iter().all(|token| !token.is_empty()));

    // Each goes on with its own; a scan is the same list, and a page may be of another size.
    service.list_workflow_executions(soon(list(NAMESPACE, "", &listed))).await.unwrap();
    let scanned = service.scan_workflow_executions(soon(scan("", &listed))).await.unwrap();
    assert_eq!(scanned.into_inner().executions.len(), 2);
    service.list_open_workflow_executions(soon(list_open(&open))).await.unwrap();
    service.list_namespaces(soon(list_namespaces(&namespaces))).await.unwrap();

    let garbage = Bytes::from_static(&[0, 0, 0]);
    let code = Code::InvalidArgument;
    for (what, request) in [
        ("another query", list(NAMESPACE, "WorkflowType = 'simple'", &listed)),
        ("another namespace", list(OTHER, "", &listed)),
        ("of the open ones", list(NAMESPACE, "", &open)),
        ("of namespaces", list(NAMESPACE, "", &namespaces)),
        ("garbage", list(NAMESPACE, "", &garbage)),
    ] {
        let refused = service.list_workflow_executions(soon(request)).await;
        check_refused(what, refused, code, "", INVALID);
    }
    for token in [&listed, &namespaces, &garbage] {
        let refused = service.list_open_workflow_executions(soon(list_open(token))).await;
        check_refused("open", refused, code, "", INVALID);
    }
    for token in [&listed, &open, &garbage] {
        let refused = service.list_namespaces(soon(list_namespaces(token))).await;
        check_refused("namespaces", refused, code, "", INVALID);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_history_is_refused() {
    let running = Running::start(config(None)).await;
    let mut service = running.client.service();
    for id in ["a", "b"] {
        running.client.start(start_of(id, "simple", "q")).await.unwrap();
    }
    let request = |execution: WorkflowExecution, token: &Bytes| {
        soon(GetWorkflowExecutionHistoryRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution),
            wait_new_event: true,
            next_page_token: token.clone(),
            ..GetWorkflowExecutionHistoryRequest::default()
        })
    };
    let page = service.get_workflow_execution_history(request(execution("a"), &Bytes::new())).await;
    let token = page.unwrap().into_inner().next_page_token;
    assert!(!token.is_empty());
    let code = Code::InvalidArgument;
    let garbage = Bytes::from_static(&[0, 0, 0]);
    let page = service.get_workflow_execution_history(request(execution("a"), &garbage)).await;
    check_refused("garbage", page, code, "", INVALID);
    let page = list(NAMESPACE, "", &Bytes::new());
    let listed = service.list_workflow_executions(soon(page)).await.unwrap().into_inner();
    let listed = listed.next_page_token;
    let page = service.get_workflow_execution_history(request(execution("a"), &listed)).await;
    check_refused("of a list", page, code, "", INVALID);
    let of_other_run = WorkflowExecution {
        run_id: "0190c4f0-6a3e-7e35-9b1f-3f0f5a1c2d4e".to_owned(),
        ..execution("a")
    };
    let page = service.get_workflow_execution_history(request(of_other_run, &token)).await;
    let text = "RunId in the request does not match the NextPageToken.";
    check_refused("another run", page, code, "", text);
    // As there, the run is looked for under the workflow that is named.
    let page = service.get_workflow_execution_history(request(execution("b"), &token)).await;
    check_refused("another workflow", page, Code::NotFound, "NotFoundFailure", "not found");
    running.stop().await;
}
