//! What a step comes to, in words. Messages are shown whole but for what is not set.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};

use piton_core::effect::{Effect, EffectKey};
use piton_core::proto::enums::EventType;
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::workflowservice::DescribeWorkflowExecutionResponse;
use piton_core::run::{ActivityTask, Reply, StartedTask};
use piton_core::time::Timestamp;
use piton_core::transition::Change;
use piton_core::visibility::VisibilityRecord;

use super::BEGINNING;

pub(crate) fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Done => String::new(),
        Reply::Gone => "gone\n".into(),
        Reply::Started { run_id, first_run_id: _, started, status, eager } => {
            let eager = eager.as_ref().map(|t| task(t)).unwrap_or_default();
            format!("{run_id} {status:?}, started by this request: {started}\n{eager}")
        }
        Reply::WorkflowTask(t) => task(t),
        Reply::WorkflowTaskCompleted { next, eager_activities } => {
            let activities = eager_activities.iter().map(activity);
            let next = next.as_ref().map(|t| format!("next {}", task(t)));
            activities.chain(next).collect()
        }
        Reply::Activity(task) => activity(task),
        Reply::Heartbeat { cancel_requested } => format!("cancel requested: {cancel_requested}\n"),
        Reply::ActivityFailed { left_out } => {
            left_out.iter().map(|failure| format!("left out: {}\n", compact(failure))).collect()
        }
        Reply::ChildRecorded(may_run) => format!("the child may run: {may_run}\n"),
    }
}

fn task(task: &StartedTask) -> String {
    let mut out = format!(
        "workflow task: attempt {}, history {} to {}, previous started {}, due {}\n",
        task.attempt,
        task.history_from,
        task.history_end.0 - 1,
        task.previous_started,
        time(task.due),
    );
    for event in &task.suffix {
        out.push_str(&format!("  with {}\n", self::event(event)));
    }
    out
}

fn activity(task: &ActivityTask) -> String {
    let response = compact(&task.response);
    format!("activity task: stamp {} {}\n", task.stamp, without_braces(&response))
}

pub(crate) fn change(change: &Change) -> String {
    let mut out = String::new();
    for event in &change.events {
        writeln!(out, "{}", self::event(event)).expect("a string takes all");
    }
    for key in &change.settled {
        writeln!(out, "settles {}", effect_key(key)).expect("a string takes all");
    }
    out.push_str(&effects(&change.owed));
    out
}

pub(crate) fn effects(owed: &BTreeMap<EffectKey, Effect>) -> String {
    let one = |(key, effect): (&EffectKey, &Effect)| {
        let more = match effect {
            Effect::Timer(..) => String::new(),
            Effect::Task(offer) => {
                let sticky = if offer.queue.is_sticky() { " (sticky)" } else { "" };
                format!(" on {}{sticky}, priority {}", offer.queue.name, offer.priority)
            }
            Effect::Errand(_, errand) => format!(" {}", compact(errand)),
        };
        format!("owes {}{more}\n", effect_key(key))
    };
    owed.iter().map(one).collect()
}

fn effect_key(key: &EffectKey) -> String {
    match key {
        EffectKey::Timer(due, kind) => format!("timer {} {}", time(*due), plain(kind)),
        EffectKey::Task(key) => format!("task {}", plain(key)),
        EffectKey::Errand(key) => format!("errand {}", plain(key)),
    }
}

fn plain(value: &impl Debug) -> String {
    format!("{value:?}").replace("EventId(", "(").replace("((", "(").replace("))", ")")
}

fn event(event: &HistoryEvent) -> String {
    let kind = EventType::try_from(event.event_type).expect("a known type");
    let at = Timestamp::from_proto(event.event_time.as_ref()).expect("every event has a time");
    let attributes = compact(&event.attributes);
    let attributes = without_braces(&attributes);
    let metadata = event.user_metadata.as_ref().map(|m| format!(" metadata={}", compact(m)));
    let metadata = metadata.unwrap_or_default();
    format!("{} {} {kind:?} {attributes}{metadata}", event.event_id, time(at)).trim_end().to_owned()
}

fn without_braces(record: &str) -> &str {
    record.strip_prefix('{').and_then(|r| r.strip_suffix('}')).unwrap_or(record)
}

pub(crate) fn description(description: &DescribeWorkflowExecutionResponse) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| out.push_str(&format!("{name}: {text}\n"));
    line("config", compact(&description.execution_config));
    line("info", compact(&description.workflow_execution_info));
    for activity in &description.pending_activities {
        line("activity", compact(activity));
    }
    for child in &description.pending_children {
        line("child", compact(child));
    }
    line("workflow task", compact(&description.pending_workflow_task));
    line("extended", compact(&description.workflow_extended_info));
    out
}

pub(crate) fn record(record: &VisibilityRecord) -> String {
    format!("{}\n", compact(&record.to_proto()))
}

/// A time as seconds since the scenario's beginning.
fn time(at: Timestamp) -> String {
    format!("@{}", seconds((at - BEGINNING).as_nanos()))
}

fn seconds(nanos: i64) -> String {
    for (unit, name) in [(1_000_000_000, "s"), (1_000_000, "ms")] {
        if nanos % unit == 0 {
            return format!("{}{name}", nanos / unit);
        }
    }
    format!("{nanos}ns")
}

/// A value as its `Debug` says it, without what is not set.
fn compact(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let mut reader = Reader { rest: &text };
    reader.value().map(|value| value.to_string()).unwrap_or_default()
}

/// A value that is set.
enum Value {
    Scalar(String),
    Record(String, Vec<(String, Value)>),
    List(Vec<Value>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Scalar(text) => f.write_str(text),
            Self::List(values) => {
                let all: Vec<_> = values.iter().map(Self::to_string).collect();
                write!(f, "[{}]", all.join(" "))
            }
            Self::Record(name, fields) => f.write_str(&record_text(name, fields)),
        }
    }
}

fn record_text(name: &str, fields: &[(String, Value)]) -> String {
    let get = |field: &str| {
        fields.iter().find(|(name, _)| name == field).map(|(_, value)| value.to_string())
    };
    let number = |field: &str| get(field).map_or(0, |n| n.parse::<i64>().expect("it is a number"));
    let nanos = || number("seconds") * 1_000_000_000 + number("nanos");
    match name {
        "Duration" => seconds(nanos()),
        "Timestamp" => time(Timestamp::from_nanos(nanos())),
        "Payload" => get("data").unwrap_or_default().replace("\\\"", "'"),
        "Payloads" => get("payloads").unwrap_or_else(|| "[]".into()),
        "WorkflowType" | "ActivityType" => get("name").unwrap_or_default(),
        "TaskQueue" => {
            let sticky = get("kind").is_some_and(|kind| kind == "Sticky");
            format!("{}{}", get("name").unwrap_or_default(), if sticky { "(sticky)" } else { "" })
        }
        "WorkflowExecution" => {
            format!(
                "{}/{}",
                get("workflow_id").unwrap_or_default(),
                get("run_id").unwrap_or_default()
            )
        }
        _ => {
            let all: Vec<_> =
                fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{{{}}}", all.join(" "))
        }
    }
}

/// Reads the text that `Debug` makes.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn eat(&mut self, text: &str) -> bool {
        self.rest = self.rest.trim_start();
        let found = self.rest.strip_prefix(text);
        if let Some(rest) = found {
            self.rest = rest;
        }
        found.is_some()
    }

    /// A value, or nothing where it is its type's default.
    fn value(&mut self) -> Option<Value> {
        if self.eat("[") {
            let values = self.values("]");
            return (!values.is_empty()).then_some(Value::List(values));
        }
        if self.eat("{") {
            return self.map();
        }
        if self.rest.starts_with('"') || self.rest.starts_with("b\"") {
            return self.text();
        }
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let word = word.to_owned();
        self.rest = rest;
        if self.rest.starts_with('(') {
            self.eat("(");
            let mut values = self.values(")");
            return match values.len() {
                0 => None,
                1 => values.pop(),
                _ => Some(Value::List(values)),
            };
        }
        if self.rest.starts_with(" {") {
            self.eat("{");
            return Some(self.record(word));
        }
        let unset = matches!(word.as_str(), "None" | "false" | "Unspecified")
            || word.parse::<f64>().is_ok_and(|n| n == 0.0);
        (!unset).then_some(Value::Scalar(word))
    }

    fn values(&mut self, end: &str) -> Vec<Value> {
        let mut values = Vec::new();
        while !self.eat(end) {
            values.extend(self.value());
            self.eat(",");
        }
        values
    }

    fn record(&mut self, name: String) -> Value {
        let mut fields = Vec::new();
        while !self.eat("}") {
            self.rest = self.rest.trim_start();
            let (field, rest) = self.rest.split_once(':').expect("a field has a value");
            let field = field.trim_start_matches("r#").to_owned();
            self.rest = rest.trim_start();
            fields.extend(self.value().map(|value| (field, value)));
            self.eat(",");
        }
        Value::Record(name, fields)
    }

    /// Maps have no order: shown by their keys.
    fn map(&mut self) -> Option<Value> {
        let mut fields = Vec::new();
        while !self.eat("}") {
            let key = self.value().map(|key| key.to_string()).unwrap_or_default();
            assert!(self.eat(":"), "a map's key has a value");
            self.rest = self.rest.trim_start();
            fields.extend(self.value().map(|value| (key.trim_matches('"').to_owned(), value)));
            self.eat(",");
        }
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        (!fields.is_empty()).then(|| Value::Record(String::new(), fields))
    }

    /// A string or bytes; without quotes where it is one word.
    fn text(&mut self) -> Option<Value> {
        let start = self.rest.find('"').expect("it begins with a quote") + 1;
        let mut end = start;
        let bytes = self.rest.as_bytes();
        while bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let inside = self.rest[start..end].to_owned();
        self.rest = &self.rest[end + 1..];
        let shown = match inside.len() {
            0 => return None,
            // Long payloads are of no interest.
            200.. => format!("({} bytes)", inside.len()),
            _ if inside.contains(' ') => format!("\"{inside}\""),
            _ => inside,
        };
        Some(Value::Scalar(shown))
    }
}
