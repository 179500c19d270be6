//! Messages as lines, one for each field that is set: `path: value`, sorted. What differs from run
//! to run by its nature is written so that its meaning stays: ids by name, times by their order.

use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};
use prost_types::{Any, Duration, Timestamp};
use tonic::Status;

use crate::call::Connection;
use crate::names::Names;

const NANOS: i128 = 1_000_000_000;
const MILLIS_NANOS: i32 = 1_000_000;
/// Opaque to clients: only that they are there.
const TOKENS: &[&str] = &["task_token", "next_page_token"];
/// Counts of bytes and of a server's insides, and what was measured: only that they are there.
const SIZES: &[&str] = &["history_size_bytes", "state_transition_count", "execution_duration"];

/// `google.rpc.Status`, as `grpc-status-details-bin` carries it.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// The fields of an answer. The history within a task is told by its length: the script shows the
/// run's history where it wants to.
pub(crate) fn answer(message: &DynamicMessage, names: &mut Names) -> Vec<String> {
    let mut lines = Lines { names, origin: None, lines: Vec::new() };
    lines.message("", message);
    lines.lines
}

/// Code, words and details of a refusal.
pub(crate) fn refusal(connection: &Connection, status: &Status, names: &mut Names) -> Vec<String> {
    let mut all = vec![format!("refused: {:?}", status.code())];
    all.push(format!("message: {:?}", names.replace("message", status.message())));
    let details = RpcStatus::decode(status.details()).unwrap_or_default().details;
    for (index, any) in details.iter().enumerate() {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        all.push(format!("detail[{index}]: {name}"));
        let decoded = connection
            .message(name)
            .and_then(|descriptor| DynamicMessage::decode(descriptor, any.value.as_slice()).ok());
        if let Some(detail) = decoded {
            let mut lines = Lines { names, origin: None, lines: Vec::new() };
            lines.message(&format!("detail[{index}]"), &detail);
            // An empty detail is told by its type.
            all.extend(lines.lines.into_iter().filter(|line| !line.ends_with(": {}")));
        }
    }
    all
}

/// All events of a run: a line with number and type, then its fields, indented.
pub(crate) fn history(events: &[DynamicMessage], names: &mut Names) -> Vec<String> {
    let mut all = Vec::new();
    let mut times = Vec::new();
    for event in events {
        let id = number(event, "event_id");
        let kind = enum_name(event, "event_type");
        all.push(format!("{id} {}", kind.trim_start_matches("EVENT_TYPE_")));
        let time = field(event, "event_time").as_ref().and_then(nanos_of);
        let Some(time) = time else {
            all.push("    event_time: <none>".to_owned());
            continue;
        };
        // In order unless told: at or after the event before it.
        let after = times.iter().rposition(|&earlier| earlier <= time);
        match after {
            Some(index) if index + 1 < times.len() => {
                all.push(format!("    event_time: after event {}", index + 1));
            }
            None if !times.is_empty() => all.push("    event_time: before event 1".to_owned()),
            _ => {}
        }
        times.push(time);
        let mut lines = Lines { names, origin: Some(time), lines: Vec::new() };
        lines.event(event);
        all.extend(lines.lines.into_iter().map(|line| format!("    {line}")));
    }
    all
}

/// The number in a field; 0 if it has none.
pub(crate) fn number(message: &DynamicMessage, name: &str) -> i64 {
    field(message, name).and_then(|value| value.as_i64()).unwrap_or_default()
}

/// The name of a field's enum value.
pub(crate) fn enum_name(message: &DynamicMessage, name: &str) -> String {
    let Some(descriptor) = message.descriptor().get_field_by_name(name) else {
        return String::new();
    };
    text(&descriptor.kind(), &message.get_field(&descriptor))
}

/// What a field holds; nothing where it does not exist.
pub(crate) fn field(message: &DynamicMessage, name: &str) -> Option<Value> {
    message.get_field_by_name(name).map(std::borrow::Cow::into_owned)
}

struct Lines<'a> {
    names: &'a mut Names,
    /// The event's own time, which the times within it are told from.
    origin: Option<i128>,
    lines: Vec<String>,
}

impl Lines<'_> {
    fn event(&mut self, event: &DynamicMessage) {
        for (descriptor, value) in sorted(event) {
            match descriptor.name() {
                // The id of a task is a number of the server's insides.
                "event_id" | "event_type" | "event_time" | "task_id" => {}
                // There is one, and the event's type tells which.
                _ if descriptor.containing_oneof().is_some() => {
                    if let Some(attributes) = value.as_message() {
                        self.fields("", attributes);
                    }
                }
                name => self.value(name, &descriptor, value),
            }
        }
    }

    fn message(&mut self, path: &str, message: &DynamicMessage) {
        match message.descriptor().full_name() {
            "google.protobuf.Timestamp" => {
                let time = nanos_of(&Value::Message(message.clone()));
                let shown = match (time, self.origin) {
                    (Some(0), _) => "zero".to_owned(),
                    (Some(time), Some(origin)) => {
                        let seconds = (time - origin + NANOS / 2).div_euclid(NANOS);
                        format!("{seconds:+}s")
                    }
                    _ => "<time>".to_owned(),
                };
                self.lines.push(format!("{path}: {shown}"));
            }
            "google.protobuf.Duration" => {
                let shown = message.transcode_to::<Duration>().map(|span| duration(&span));
                self.lines.push(format!("{path}: {}", shown.unwrap_or_default()));
            }
            "temporal.api.history.v1.History" => {
                let count = field(message, "events")
                    .and_then(|events| events.as_list().map(<[Value]>::len))
                    .unwrap_or_default();
                self.lines.push(format!("{path}: {count} events"));
            }
            _ => self.fields(path, message),
        }
    }

    fn fields(&mut self, path: &str, message: &DynamicMessage) {
        let before = self.lines.len();
        for (descriptor, value) in sorted(message) {
            let name = descriptor.name();
            let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            self.value(&inner, &descriptor, value);
        }
        if self.lines.len() == before && !path.is_empty() {
            self.lines.push(format!("{path}: {{}}"));
        }
    }

    fn value(&mut self, path: &str, descriptor: &FieldDescriptor, value: &Value) {
        let kind = descriptor.kind();
        match value {
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.scalar(&format!("{path}[{index}]"), descriptor.name(), &kind, item);
                }
            }
            Value::Map(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                entries.sort_by_key(|(key, _)| key_text(key));
                let Kind::Message(entry) = &kind else { return };
                let inner = entry.map_entry_value_field().kind();
                for (key, item) in entries {
                    // What is kept by request id; other keys are names that somebody gave.
                    let field =
                        if descriptor.name() == "request_id_infos" { "request_id" } else { "" };
                    let key = self.names.replace(field, &key_text(key));
                    self.scalar(&format!("{path}[{key}]"), "", &inner, item);
                }
            }
            one => self.scalar(path, descriptor.name(), &kind, one),
        }
    }

    fn scalar(&mut self, path: &str, name: &str, kind: &Kind, value: &Value) {
        let shown = match value {
            _ if SIZES.contains(&name) => "<set>".to_owned(),
            Value::Message(message) => return self.message(path, message),
            Value::Bytes(_) if TOKENS.contains(&name) => "<token>".to_owned(),
            Value::String(text) => format!("{:?}", self.names.replace(name, text)),
            Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => format!("{:?}", self.names.replace(name, text)),
                Err(_) => format!("\"{}\"", bytes.escape_ascii()),
            },
            other => text(kind, other),
        };
        self.lines.push(format!("{path}: {shown}"));
    }
}

/// The fields that are set, by name.
fn sorted(message: &DynamicMessage) -> Vec<(FieldDescriptor, &Value)> {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by(|(a, _), (b, _)| a.name().cmp(b.name()));
    fields
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => text.clone(),
        other => format!("{other:?}"),
    }
}

fn text(kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Enum(descriptor), Value::EnumNumber(number)) => descriptor
            .get_value(*number)
            .map_or_else(|| number.to_string(), |known| known.name().to_owned()),
        (_, Value::Bool(flag)) => flag.to_string(),
        (_, Value::I32(number)) => number.to_string(),
        (_, Value::I64(number)) => number.to_string(),
        (_, Value::U32(number)) => number.to_string(),
        (_, Value::U64(number)) => number.to_string(),
        (_, Value::F32(number)) => number.to_string(),
        (_, Value::F64(number)) => number.to_string(),
        (_, other) => format!("{other:?}"),
    }
}

fn nanos_of(value: &Value) -> Option<i128> {
    let time = value.as_message()?.transcode_to::<Timestamp>().ok()?;
    Some(i128::from(time.seconds) * NANOS + i128::from(time.nanos))
}

/// Exactly, unless it was measured: nobody asks for parts of a millisecond.
fn duration(span: &Duration) -> String {
    if span.nanos % MILLIS_NANOS != 0 {
        let rounded = span.seconds + i64::from(span.nanos >= 500 * MILLIS_NANOS);
        return format!("about {rounded}s");
    }
    match span.nanos {
        0 => format!("{}s", span.seconds),
        nanos => format!("{}.{:03}s", span.seconds, nanos / MILLIS_NANOS),
    }
}
