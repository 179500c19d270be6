//! Search attributes of a namespace: which there are, adding and removing them.

use std::collections::{BTreeMap, HashMap};

use piton_core::search_attribute;
use piton_proto::enums::IndexedValueType;
use piton_proto::operatorservice::{
    AddSearchAttributesRequest, AddSearchAttributesResponse, ListSearchAttributesRequest,
    ListSearchAttributesResponse, RemoveSearchAttributesRequest, RemoveSearchAttributesResponse,
};

use super::error::ApiError;
use super::{Call, Frontend, validate};

fn check_name(frontend: &Frontend, name: &str) -> Result<(), ApiError> {
    validate::required("SearchAttribute", name, &frontend.limits())?;
    if search_attribute::is_reserved(name) {
        return Err(ApiError::invalid(format!("Search attribute {name} is reserved by system.")));
    }
    Ok(())
}

pub(super) async fn add_search_attributes(
    frontend: &Frontend,
    call: Call<AddSearchAttributesRequest>,
) -> Result<AddSearchAttributesResponse, ApiError> {
    let request = call.message;
    let namespace = frontend.namespace(&request.namespace).await?;
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
    let namespace = frontend.namespace(&request.namespace).await?;
    if request.search_attributes.is_empty() {
        return Err(ApiError::invalid("SearchAttributes are not set on request."));
    }
    for name in &request.search_attributes {
        if search_attribute::known(name).is_some() {
            return Err(ApiError::invalid(format!(
                "Unable to remove non-custom search attributes: {name}."
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
    let namespace = frontend.namespace(&call.message.namespace).await?;
    let custom = frontend.cluster.meta().search_attributes(&namespace.id);
    let system = search_attribute::KNOWN.iter();
    Ok(ListSearchAttributesResponse {
        custom_attributes: custom.iter().map(|(n, kind)| (n.clone(), *kind as i32)).collect(),
        system_attributes: system.map(|known| (known.name.to_owned(), known.kind as i32)).collect(),
        storage_schema: HashMap::new(),
    })
}
