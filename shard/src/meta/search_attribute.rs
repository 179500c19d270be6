//! Which search attributes a workflow may set, and whether a value has the attribute's type.

use std::sync::Arc;

use piton_core::limits::Limits;
use piton_core::proto::common::{Payload, SearchAttributes};
use piton_core::proto::enums::IndexedValueType;
use piton_core::request::SearchAttributeCheck;
use serde_json::Value;

use crate::meta::state::SearchAttributeTypes;

use IndexedValueType as Type;

/// Filled in by the server alone.
const SYSTEM: &[&str] = &[
    "WorkflowId",
    "RunId",
    "WorkflowType",
    "ExecutionStatus",
    "TaskQueue",
    "ParentWorkflowId",
    "ParentRunId",
    "RootWorkflowId",
    "RootRunId",
    "StartTime",
    "ExecutionTime",
    "CloseTime",
    "HistoryLength",
    "HistorySizeBytes",
    "ExecutionDuration",
    "StateTransitionCount",
    "VisibilityTimestamp",
];

/// There in every namespace; SDKs and tools set them.
const PREDEFINED: &[(&str, Type)] = &[
    ("BatcherNamespace", Type::Keyword),
    ("BatcherUser", Type::Keyword),
    ("BinaryChecksums", Type::KeywordList),
    ("BuildIds", Type::KeywordList),
    ("TemporalChangeVersion", Type::KeywordList),
    ("TemporalExternalPayloadCount", Type::Int),
    ("TemporalExternalPayloadSizeBytes", Type::Int),
    ("TemporalNamespaceDivision", Type::Keyword),
    ("TemporalPauseInfo", Type::KeywordList),
    ("TemporalReportedProblems", Type::KeywordList),
    ("TemporalScheduledById", Type::Keyword),
    ("TemporalScheduledStartTime", Type::Datetime),
    ("TemporalSchedulePaused", Type::Bool),
    ("TemporalUsedWorkerDeploymentVersions", Type::KeywordList),
    ("TemporalWorkerDeployment", Type::Keyword),
    ("TemporalWorkerDeploymentVersion", Type::Keyword),
    ("TemporalWorkflowVersioningBehavior", Type::Keyword),
];

/// Whether no custom attribute may have this name.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with("Temporal") || SYSTEM.contains(&name) || predefined(name).is_some()
}

fn predefined(name: &str) -> Option<Type> {
    let found = PREDEFINED.iter().find(|(known, _)| *known == name);
    found.map(|&(_, kind)| kind)
}

/// Knows one namespace's search attributes at one moment.
#[derive(Clone, Debug)]
pub struct NamespaceAttributes {
    custom: Arc<SearchAttributeTypes>,
    limits: Arc<Limits>,
}

impl NamespaceAttributes {
    pub(crate) fn new(custom: Arc<SearchAttributeTypes>, limits: Arc<Limits>) -> Self {
        Self { custom, limits }
    }

    /// The attribute's type, if a workflow may set it.
    fn settable(&self, name: &str) -> Result<Type, String> {
        if SYSTEM.contains(&name) {
            return Err(format!("{name} attribute can't be set in SearchAttributes"));
        }
        let kind = predefined(name).or_else(|| self.custom.get(name).copied());
        kind.ok_or_else(|| format!("search attribute {name} is not defined"))
    }
}

impl SearchAttributeCheck for NamespaceAttributes {
    fn check(&self, attributes: &mut SearchAttributes) -> Result<(), String> {
        let fields = &mut attributes.indexed_fields;
        let count = fields.len() as u64;
        if count > self.limits.search_attributes_max {
            let max = self.limits.search_attributes_max;
            return Err(format!("number of search attributes {count} exceeds limit {max}"));
        }
        // In the order of their names, so that the refusal does not depend on the map's order.
        let mut names: Vec<String> = fields.keys().cloned().collect();
        names.sort_unstable();
        let mut total = 0;
        for name in names {
            let Some(payload) = fields.get_mut(&name) else { continue };
            let kind = self.settable(&name)?;
            let bytes = payload.data.len() as u64;
            if bytes > self.limits.search_attribute_bytes_max {
                let max = self.limits.search_attribute_bytes_max;
                return Err(format!(
                    "search attribute {name} value size {bytes} exceeds size limit {max}"
                ));
            }
            total += bytes + name.len() as u64;
            if !is_valid(kind, payload) {
                let kind = type_name(kind);
                return Err(format!("invalid value for search attribute {name} of type {kind}"));
            }
            payload.metadata.insert("type".to_owned(), type_name(kind).into());
        }
        if total > self.limits.search_attributes_bytes_max {
            let max = self.limits.search_attributes_bytes_max;
            return Err(format!(
                "total size of search attributes {total} exceeds size limit {max}"
            ));
        }
        Ok(())
    }
}

/// What a payload's `type` metadata says.
fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::Unspecified => "Unspecified",
        Type::Text => "Text",
        Type::Keyword => "Keyword",
        Type::Int => "Int",
        Type::Double => "Double",
        Type::Bool => "Bool",
        Type::Datetime => "Datetime",
        Type::KeywordList => "KeywordList",
    }
}

fn is_valid(kind: Type, payload: &Payload) -> bool {
    match payload.metadata.get("encoding").map(|bytes| &bytes[..]) {
        // No value: the attribute is removed.
        Some(b"binary/null") => return payload.data.is_empty(),
        Some(b"json/plain") | None => {}
        Some(_) => return false,
    }
    let Ok(value) = serde_json::from_slice::<Value>(&payload.data) else { return false };
    match (kind, value) {
        (_, Value::Null) => true,
        (Type::KeywordList, Value::Array(items)) => items.iter().all(Value::is_string),
        (Type::KeywordList, value) => value.is_string(),
        (kind, Value::Array(items)) => match &items[..] {
            [] => true,
            [item] => is_scalar(kind, item),
            _ => false,
        },
        (kind, value) => is_scalar(kind, &value),
    }
}

fn is_scalar(kind: Type, value: &Value) -> bool {
    match kind {
        Type::Text | Type::Keyword | Type::KeywordList => value.is_string(),
        Type::Int => value.is_i64(),
        Type::Double => value.is_number(),
        Type::Bool => value.is_boolean(),
        Type::Datetime => value.as_str().is_some_and(is_rfc3339),
        Type::Unspecified => false,
    }
}

/// `2006-01-02T15:04:05[.999999999](Z|+07:00)`; whether the day exists is looked at by month only.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some((date_time, mut rest)) = bytes.split_at_checked(19) else { return false };
    let shape = date_time.iter().zip(b"dddd-dd-ddTdd:dd:dd").all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't'),
        _ => byte == shape,
    });
    if !shape {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 9 {
            return false;
        }
        rest = &fraction[digits..];
    }
    let two = |at: usize| u32::from(bytes[at] - b'0') * 10 + u32::from(bytes[at + 1] - b'0');
    let days = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let in_month = (two(5) as usize).checked_sub(1).and_then(|month| days.get(month));
    let is_day = in_month.is_some_and(|&days| (1..=days).contains(&two(8)));
    is_day && two(11) < 24 && two(14) < 60 && two(17) < 60 && is_offset(rest)
}

fn is_offset(text: &[u8]) -> bool {
    match text {
        b"Z" | b"z" => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => {
            let digits = [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit());
            digits && (*h1, *h2) < (b'2', b'4') && *m1 < b'6'
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
