//! Which search attributes a workflow may set, and whether a value has the attribute's type.

use std::sync::Arc;

use piton_core::limits::Limits;
use piton_core::proto::common::{Payload, SearchAttributes};
use piton_core::proto::enums::IndexedValueType;
use piton_core::request::SearchAttributeCheck;
use piton_core::search_attribute::{self, Origin, type_name};
use serde_json::Value;

use crate::meta::state::{Namespace, SearchAttributeTypes};

use IndexedValueType as Type;

/// Knows one namespace's search attributes at one moment.
#[derive(Clone, Debug)]
pub struct NamespaceAttributes {
    /// For refusals, which name it.
    namespace: Option<Arc<Namespace>>,
    custom: Arc<SearchAttributeTypes>,
    limits: Arc<Limits>,
}

impl NamespaceAttributes {
    pub(crate) fn new(
        namespace: Option<Arc<Namespace>>,
        custom: Arc<SearchAttributeTypes>,
        limits: Arc<Limits>,
    ) -> Self {
        Self { namespace, custom, limits }
    }

    fn known(&self, name: &str) -> Result<Type, String> {
        let kind = search_attribute::known(name).map(|known| known.kind);
        kind.or_else(|| self.custom.get(name).copied()).ok_or_else(|| {
            let namespace = self.namespace.as_ref().map_or("", |namespace| &namespace.name);
            format!("Namespace {namespace} has no mapping defined for search attribute {name}")
        })
    }
}

impl SearchAttributeCheck for NamespaceAttributes {
    fn check(&self, attributes: &mut SearchAttributes) -> Result<(), String> {
        let fields = &mut attributes.indexed_fields;
        // In the order of their names, so that the refusal does not depend on the map's order.
        let mut names: Vec<String> = fields.keys().cloned().collect();
        names.sort_unstable();
        // ORDER: all names before any value, as on the official server.
        let kinds = names.iter().map(|name| self.known(name)).collect::<Result<Vec<_>, _>>()?;
        let count = fields.len() as u64;
        if count > self.limits.search_attributes_max {
            let max = self.limits.search_attributes_max;
            return Err(format!("number of search attributes {count} exceeds limit {max}"));
        }
        let mut total = 0;
        for (name, kind) in names.into_iter().zip(kinds) {
            let Some(payload) = fields.get_mut(&name) else { continue };
            settable(&name)?;
            if !is_valid(kind, payload) {
                let (kind, value) = (type_name(kind), shown(payload));
                return Err(format!(
                    "invalid value for search attribute {name} of type {kind}: {value}"
                ));
            }
            let bytes = payload.data.len() as u64;
            if bytes > self.limits.search_attribute_bytes_max {
                let max = self.limits.search_attribute_bytes_max;
                return Err(format!(
                    "search attribute {name} value size {bytes} exceeds size limit {max}"
                ));
            }
            total += bytes + name.len() as u64;
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

fn settable(name: &str) -> Result<(), String> {
    match search_attribute::known(name).map(|known| known.origin) {
        Some(Origin::Run(_) | Origin::Server) => {
            Err(format!("{name} attribute can't be set in SearchAttributes"))
        }
        Some(Origin::Anyone) | None => Ok(()),
    }
}

/// A value as a refusal shows it.
fn shown(payload: &Payload) -> String {
    fn text(value: Value) -> String {
        match value {
            Value::String(text) => text,
            Value::Array(items) => {
                format!("[{}]", items.into_iter().map(text).collect::<Vec<_>>().join(" "))
            }
            other => other.to_string(),
        }
    }
    serde_json::from_slice(&payload.data).map_or_else(|_| "value from <payload>".into(), text)
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
