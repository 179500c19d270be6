//! Search attributes of a namespace: which there are, adding and removing them.

use std::collections::{BTreeMap, HashMap};

use piton_proto::enums::IndexedValueType;
use piton_proto::operatorservice::{
    AddSearchAttributesRequest, AddSearchAttributesResponse, ListSearchAttributesRequest,
    ListSearchAttributesResponse, RemoveSearchAttributesRequest, RemoveSearchAttributesResponse,
};

use super::error::ApiError;
use super::{Call, Frontend, validate};

/// What every workflow has; names and types are the API's.
const SYSTEM: &[(&str, IndexedValueType)] = &[
    ("WorkflowId", IndexedValueType::Keyword),
    ("RunId", IndexedValueType::Keyword),
    ("WorkflowType", IndexedValueType::Keyword),
    ("ExecutionStatus", IndexedValueType::Keyword),
    ("TaskQueue", IndexedValueType::Keyword),
    ("ParentWorkflowId", IndexedValueType::Keyword),
    ("ParentRunId", IndexedValueType::Keyword),
    ("RootWorkflowId", IndexedValueType::Keyword),
    ("RootRunId", IndexedValueType::Keyword),
    ("StartTime", IndexedValueType::Datetime),
    ("ExecutionTime", IndexedValueType::Datetime),
    ("CloseTime", IndexedValueType::Datetime),
    ("HistoryLength", IndexedValueType::Int),
    ("HistorySizeBytes", IndexedValueType::Int),
    ("ExecutionDuration", IndexedValueType::Int),
    ("StateTransitionCount", IndexedValueType::Int),
    // Upserted by SDKs when a workflow is patched.
    ("TemporalChangeVersion", IndexedValueType::KeywordList),
];

/// The prefix of names that are the server's own.
const RESERVED_PREFIX: &str = "Temporal";

fn check_name(frontend: &Frontend, name: &str) -> Result<(), ApiError> {
    validate::required("SearchAttribute", name, &frontend.limits())?;
    if name.starts_with(RESERVED_PREFIX) || SYSTEM.iter().any(|(system, _)| *system == name) {
        return Err(ApiError::invalid(format!("{name} is reserved by system.")));
    }
    Ok(())
}

pub(super) async fn add_search_attributes(
    frontend: &Frontend,
    call: Call<AddSearchAttributesRequest>,
) -> Result<AddSearchAttributesResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace)?;
    if request.search_attributes.is_empty() {
        return Err(ApiError::invalid("SearchAttributes are not set on request."));
    }
    let mut added = BTreeMap::new();
    for (name, number) in request.search_attributes {
        check_name(frontend, &name)?;
        let kind = match IndexedValueType::try_from(number) {
            Ok(IndexedValueType::Unspecified) | Err(_) => {
                return Err(ApiError::invalid(format!(
                    "Unable to parse search attribute type: {number}"
                )));
            }
            Ok(kind) => kind,
        };
        added.insert(name, kind);
    }
    frontend.cluster.meta().add_search_attributes(&namespace.id, added).await?;
    Ok(AddSearchAttributesResponse {})
}

pub(super) async fn remove_search_attributes(
    frontend: &Frontend,
    call: Call<RemoveSearchAttributesRequest>,
) -> Result<RemoveSearchAttributesResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace)?;
    if request.search_attributes.is_empty() {
        return Err(ApiError::invalid("SearchAttributes are not set on request."));
    }
    for name in &request.search_attributes {
        if SYSTEM.iter().any(|(system, _)| system == name) {
            return Err(ApiError::invalid(format!(
                "Unable to remove non-custom search attributes: {name}"
            )));
        }
    }
    let names = &request.search_attributes;
    frontend.cluster.meta().remove_search_attributes(&namespace.id, names).await?;
    Ok(RemoveSearchAttributesResponse {})
}

pub(super) async fn list_search_attributes(
    frontend: &Frontend,
    call: Call<ListSearchAttributesRequest>,
) -> Result<ListSearchAttributesResponse, ApiError> {
    let namespace = frontend.namespace(&call.message.namespace)?;
    let custom = frontend.cluster.meta().search_attributes(&namespace.id);
    let system = SYSTEM.iter();
    Ok(ListSearchAttributesResponse {
        custom_attributes: custom.iter().map(|(n, kind)| (n.clone(), *kind as i32)).collect(),
        system_attributes: system.map(|(n, kind)| ((*n).to_owned(), *kind as i32)).collect(),
        storage_schema: HashMap::new(),
    })
}
