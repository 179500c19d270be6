//! Search attributes' values as payloads: JSON, with the type beside it.

use bytes::Bytes;
use piton_proto::common::Payload;
use piton_proto::enums::IndexedValueType;

/// What the workers of a run say of their builds; the server keeps it.
pub(crate) const BUILD_IDS: &str = "BuildIds";
/// The same of workers that say it the oldest way.
pub(crate) const BINARY_CHECKSUMS: &str = "BinaryChecksums";

/// What a payload's `type` metadata says.
pub fn type_name(kind: IndexedValueType) -> &'static str {
    match kind {
        IndexedValueType::Unspecified => "Unspecified",
        IndexedValueType::Text => "Text",
        IndexedValueType::Keyword => "Keyword",
        IndexedValueType::Int => "Int",
        IndexedValueType::Double => "Double",
        IndexedValueType::Bool => "Bool",
        IndexedValueType::Datetime => "Datetime",
        IndexedValueType::KeywordList => "KeywordList",
    }
}

/// A keyword as its payload.
pub fn keyword(value: &str) -> Payload {
    of_json(IndexedValueType::Keyword, serde_json::Value::from(value))
}

/// A list of keywords as its payload.
pub(crate) fn keyword_list(values: &[String]) -> Payload {
    of_json(IndexedValueType::KeywordList, serde_json::Value::from(values))
}

/// The keywords of a payload, which may hold a single one; none where it holds anything else.
pub(crate) fn keywords(payload: &Payload) -> Vec<String> {
    match serde_json::from_slice(&payload.data) {
        Ok(serde_json::Value::String(value)) => vec![value],
        Ok(list) => serde_json::from_value(list).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

fn of_json(kind: IndexedValueType, value: serde_json::Value) -> Payload {
    let metadata = [("encoding", "json/plain"), ("type", type_name(kind))];
    let metadata =
        metadata.map(|(key, value)| (key.to_owned(), Bytes::from_static(value.as_bytes())));
    Payload { metadata: metadata.into(), data: value.to_string().into(), ..Payload::default() }
}
