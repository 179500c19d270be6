//! The search attributes that every namespace has, in one table, and their values as payloads: JSON,
//! with the type beside it.

use bytes::Bytes;
use piton_proto::common::Payload;
use piton_proto::enums::IndexedValueType;
use piton_proto::enums::IndexedValueType as Type;
use serde::{Deserialize, Serialize};

/// What the workers of a run say of their builds; the server keeps it.
pub(crate) const BUILD_IDS: &str = "BuildIds";
/// The same of workers that say it the oldest way.
pub(crate) const BINARY_CHECKSUMS: &str = "BinaryChecksums";
/// The deployments of workers that a run has had, and the one that it has.
pub(crate) const USED_DEPLOYMENTS: &str = "TemporalUsedWorkerDeploymentVersions";
pub(crate) const DEPLOYMENT: &str = "TemporalWorkerDeployment";

/// Names that begin so are the server's.
const RESERVED_PREFIX: &str = "Temporal";
/// Names that no custom attribute may have, though no attribute has them.
const RESERVED: [&str; 4] = ["NamespaceId", "MemoEncoding", "Memo", "VisibilityTaskKey"];

/// An attribute that every namespace has.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub name: &'static str,
    pub kind: IndexedValueType,
    pub origin: Origin,
}

/// Where a known attribute's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read off the run, and not among its search attributes.
    Run(Field),
    /// Among the run's search attributes, set by SDKs, tools or the server.
    Anyone,
    /// Among the run's search attributes, set by the server alone.
    Server,
}

/// What can be read off a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Field {
    WorkflowId,
    RunId,
    WorkflowType,
    ExecutionStatus,
    TaskQueue,
    ParentWorkflowId,
    ParentRunId,
    RootWorkflowId,
    RootRunId,
    StartTime,
    ExecutionTime,
    CloseTime,
    HistoryLength,
    HistorySizeBytes,
    ExecutionDuration,
    StateTransitionCount,
}

/// Names, types and who may set them are the API's.
pub const KNOWN: [Known; 33] = [
    of_run("WorkflowId", Type::Keyword, Field::WorkflowId),
    of_run("RunId", Type::Keyword, Field::RunId),
    of_run("WorkflowType", Type::Keyword, Field::WorkflowType),
    of_run("ExecutionStatus", Type::Keyword, Field::ExecutionStatus),
    of_run("TaskQueue", Type::Keyword, Field::TaskQueue),
    of_run("ParentWorkflowId", Type::Keyword, Field::ParentWorkflowId),
    of_run("ParentRunId", Type::Keyword, Field::ParentRunId),
    of_run("RootWorkflowId", Type::Keyword, Field::RootWorkflowId),
    of_run("RootRunId", Type::Keyword, Field::RootRunId),
    of_run("StartTime", Type::Datetime, Field::StartTime),
    of_run("ExecutionTime", Type::Datetime, Field::ExecutionTime),
    of_run("CloseTime", Type::Datetime, Field::CloseTime),
    of_run("HistoryLength", Type::Int, Field::HistoryLength),
    of_run("HistorySizeBytes", Type::Int, Field::HistorySizeBytes),
    of_run("ExecutionDuration", Type::Int, Field::ExecutionDuration),
    of_run("StateTransitionCount", Type::Int, Field::StateTransitionCount),
    by_anyone("BatcherNamespace", Type::Keyword),
    by_anyone("BatcherUser", Type::Keyword),
    by_anyone(BINARY_CHECKSUMS, Type::KeywordList),
    by_anyone(BUILD_IDS, Type::KeywordList),
    by_anyone("TemporalChangeVersion", Type::KeywordList),
    by_anyone("TemporalNamespaceDivision", Type::Keyword),
    by_anyone("TemporalPauseInfo", Type::KeywordList),
    by_anyone("TemporalReportedProblems", Type::KeywordList),
    by_anyone("TemporalScheduledById", Type::Keyword),
    by_anyone("TemporalScheduledStartTime", Type::Datetime),
    by_anyone("TemporalSchedulePaused", Type::Bool),
    by_server("TemporalExternalPayloadCount", Type::Int),
    by_server("TemporalExternalPayloadSizeBytes", Type::Int),
    by_server(USED_DEPLOYMENTS, Type::KeywordList),
    by_server(DEPLOYMENT, Type::Keyword),
    by_server("TemporalWorkerDeploymentVersion", Type::Keyword),
    by_server("TemporalWorkflowVersioningBehavior", Type::Keyword),
];

const fn of_run(name: &'static str, kind: Type, field: Field) -> Known {
    Known { name, kind, origin: Origin::Run(field) }
}

const fn by_anyone(name: &'static str, kind: Type) -> Known {
    Known { name, kind, origin: Origin::Anyone }
}

const fn by_server(name: &'static str, kind: Type) -> Known {
    Known { name, kind, origin: Origin::Server }
}

/// The attribute of this name that every namespace has.
pub fn known(name: &str) -> Option<Known> {
    KNOWN.iter().find(|known| known.name == name).copied()
}

/// Whether no custom attribute may have this name.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with(RESERVED_PREFIX) || RESERVED.contains(&name) || known(name).is_some()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_and_those_that_look_so_are_reserved() {
        for name in ["RunId", "BuildIds", "TemporalAnything", "StartTime", "Memo"] {
            assert!(is_reserved(name), "{name}");
        }
        // As on the official server.
        for name in ["CustomerId", "VisibilityTimestamp", "ScheduleId"] {
            assert!(!is_reserved(name), "{name}");
        }
    }

    #[test]
    fn keywords_are_read_as_they_are_written() {
        let list = vec!["unversioned".to_owned(), "unversioned:\"b\"".to_owned()];
        assert_eq!(keywords(&keyword_list(&list)), list);
        assert_eq!(keywords(&keyword("one")), ["one"]);
        assert_eq!(keywords(&Payload { data: "7".into(), ..Payload::default() }), [""; 0]);
    }
}
