//! Runs one script against one server: what each step came to, as lines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use prost_reflect::{DynamicMessage, Kind, MethodDescriptor, ReflectMessage, Value};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::call::Connection;
use crate::names::Names;
use crate::render;
use crate::script::{Scenario, Step};

/// Until an event that a script awaits is there, or its namespace.
const AWAIT_LIMIT: Duration = Duration::from_secs(150);
/// Between two looks at a state that no call waits for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a request says if the script does not.
const WORKFLOW_ID: &str = "w";
const WORKFLOW_TYPE: &str = "workflow-type";
const TASK_QUEUE: &str = "queue";
const CLIENT: &str = "client";
const WORKER: &str = "worker";

type Answer = Result<DynamicMessage, Status>;

/// Runs all steps; one group of lines for each.
pub(crate) async fn run(connection: &Connection, scenario: &Scenario) -> Result<Vec<Vec<String>>> {
    let mut runner = Runner {
        connection,
        namespace: format!("histories-{}", Uuid::new_v4().simple()),
        names: Names::default(),
        tokens: Tokens::default(),
        kept: BTreeMap::new(),
        background: BTreeMap::new(),
    };
    runner.names.fix(&runner.namespace, "namespace");
    scenario.steps.iter().for_each(|step| runner.names.give(&step.body));
    runner.register_namespace().await.context("register the scenario's namespace")?;
    let mut answers = Vec::new();
    for step in &scenario.steps {
        let lines = runner.step(step).await;
        answers.push(lines.with_context(|| format!("at {}", step.title()))?);
    }
    Ok(answers)
}

/// What the latest polls gave out.
#[derive(Clone, Default)]
struct Tokens {
    workflow: Vec<u8>,
    activity: Vec<u8>,
}

struct Runner<'a> {
    connection: &'a Connection,
    /// Each run of a scenario has its own, so that ids need not differ.
    namespace: String,
    names: Names,
    tokens: Tokens,
    kept: BTreeMap<String, Tokens>,
    background: BTreeMap<String, JoinHandle<Answer>>,
}

impl Runner<'_> {
    async fn step(&mut self, step: &Step) -> Result<Vec<String>> {
        let words: Vec<&str> = step.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["history", workflow_id, run @ ..] => {
                let events = self.history(workflow_id, run.first().copied()).await?;
                Ok(render::history(&events, &mut self.names))
            }
            ["await", workflow_id, kind] => self.await_event(workflow_id, kind, 1).await,
            ["await", workflow_id, kind, count] => {
                self.await_event(workflow_id, kind, count.parse()?).await
            }
            ["keep", name] => {
                self.kept.insert((*name).to_owned(), self.tokens.clone());
                Ok(Vec::new())
            }
            ["use", name] => {
                self.tokens = self.kept.get(*name).context("no tokens are kept so")?.clone();
                Ok(Vec::new())
            }
            ["begin", name, method, flags @ ..] => {
                let (method, request) = self.request(method, flags, &step.body)?;
                let connection = self.connection.clone();
                let call = async move { connection.call(&method, request).await };
                self.background.insert((*name).to_owned(), tokio::spawn(call));
                Ok(Vec::new())
            }
            ["end", name] => {
                let call = self.background.remove(*name).context("nothing was begun so")?;
                let answer = call.await?;
                Ok(self.answer(&answer))
            }
            [method, flags @ ..] => {
                let (method, request) = self.request(method, flags, &step.body)?;
                let defined = defined_attributes(&request);
                let answer = self.connection.call(&method, request).await;
                self.await_attributes(&defined).await?;
                Ok(self.answer(&answer))
            }
            [] => bail!("a step without words"),
        }
    }

    fn answer(&mut self, answer: &Answer) -> Vec<String> {
        match answer {
            Ok(message) => {
                self.tokens.take_from(message);
                render::answer(message, &mut self.names)
            }
            Err(status) => render::refusal(self.connection, status, &mut self.names),
        }
    }

    fn request(
        &self,
        method: &str,
        flags: &[&str],
        body: &str,
    ) -> Result<(MethodDescriptor, DynamicMessage)> {
        let method = self.connection.method(method)?;
        let body = self.names.resolve(body);
        let mut request = DynamicMessage::parse_text_format(method.input(), &body)
            .map_err(|error| anyhow::anyhow!("{error}: {error:?} in {body}"))?;
        let anonymous = match flags {
            [] => false,
            ["anonymous"] => true,
            _ => bail!("unknown words after {}", method.name()),
        };
        self.fill(&method, &mut request, anonymous);
        name_commands(&mut request);
        Ok((method, request))
    }

    /// What every request of its kind needs and few scripts care for.
    fn fill(&self, method: &MethodDescriptor, request: &mut DynamicMessage, anonymous: bool) {
        let text = |text: &str| Value::String(text.to_owned());
        set_if_absent(request, "namespace", text(&self.namespace));
        if !anonymous {
            let works = ["Poll", "Respond", "Record"].iter().any(|p| method.name().starts_with(p));
            set_if_absent(request, "identity", text(if works { WORKER } else { CLIENT }));
        }
        let token = if method.name().contains("Activity") {
            &self.tokens.activity
        } else {
            &self.tokens.workflow
        };
        set_if_absent(request, "task_token", Value::Bytes(token.clone().into()));
        if method.name().contains("Start") {
            set_if_absent(request, "workflow_id", text(WORKFLOW_ID));
        }
        for (field, inner, value) in [
            ("workflow_execution", "workflow_id", WORKFLOW_ID),
            ("execution", "workflow_id", WORKFLOW_ID),
            ("workflow_type", "name", WORKFLOW_TYPE),
            ("task_queue", "name", TASK_QUEUE),
        ] {
            if request.has_field_by_name(field) {
                continue;
            }
            let kind = request.descriptor().get_field_by_name(field).map(|field| field.kind());
            if let Some(Kind::Message(descriptor)) = kind {
                let mut message = DynamicMessage::new(descriptor);
                message.set_field_by_name(inner, text(value));
                request.set_field_by_name(field, Value::Message(message));
            }
        }
    }

    /// The namespace answers when this returns; a server may know it only after a while.
    async fn register_namespace(&self) -> Result<()> {
        let body = "workflow_execution_retention_period { seconds: 86400 }";
        let (method, mut request) = self.request("RegisterNamespace", &[], body)?;
        request.set_field_by_name("namespace", Value::String(self.namespace.clone()));
        let deadline = Instant::now() + AWAIT_LIMIT;
        // A server admits only so many of them at once.
        while let Err(status) = self.connection.call(&method, request.clone()).await {
            let later = matches!(status.code(), Code::ResourceExhausted | Code::Unavailable);
            if !later || Instant::now() > deadline {
                bail!(status);
            }
            look_again().await;
        }
        loop {
            let (method, request) = self.request("GetWorkflowExecutionHistory", &[], "")?;
            let Err(status) = self.connection.call(&method, request).await else { return Ok(()) };
            let unknown = status.message().contains(&self.namespace);
            if status.code() == Code::NotFound && !unknown {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the namespace does not answer: {status}");
            }
            look_again().await;
        }
    }

    /// A server may know search attributes only a while after it was told of them.
    async fn await_attributes(&self, names: &[String]) -> Result<()> {
        let deadline = Instant::now() + AWAIT_LIMIT;
        for name in names {
            let body = format!("query: \"{name} IS NULL\"");
            let (method, request) = self.request("CountWorkflowExecutions", &[], &body)?;
            while let Err(status) = self.connection.call(&method, request.clone()).await {
                // Any other refusal is of one that knows it.
                if !status.message().contains("invalid search attribute") {
                    break;
                }
                if Instant::now() > deadline {
                    bail!("search attribute {name} is not known: {status}");
                }
                look_again().await;
            }
        }
        Ok(())
    }

    async fn history(&self, workflow_id: &str, run: Option<&str>) -> Result<Vec<DynamicMessage>> {
        let mut events = Vec::new();
        let mut token = Vec::new();
        loop {
            let run_id = run.unwrap_or_default();
            let body = format!("execution {{ workflow_id: {workflow_id:?} run_id: {run_id:?} }}");
            let (method, mut request) = self.request("GetWorkflowExecutionHistory", &[], &body)?;
            request.set_field_by_name("next_page_token", Value::Bytes(token.into()));
            let answer = self.connection.call(&method, request).await?;
            let history = render::field(&answer, "history");
            let page = history.as_ref().and_then(Value::as_message);
            let page = page.and_then(|history| render::field(history, "events"));
            for event in page.as_ref().and_then(Value::as_list).unwrap_or_default() {
                events.extend(event.as_message().cloned());
            }
            let next = render::field(&answer, "next_page_token");
            token = next.and_then(|t| t.as_bytes().map(|b| b.to_vec())).unwrap_or_default();
            if token.is_empty() {
                return Ok(events);
            }
        }
    }

    async fn await_event(
        &self,
        workflow_id: &str,
        kind: &str,
        count: usize,
    ) -> Result<Vec<String>> {
        let wanted = format!("EVENT_TYPE_{kind}");
        let (id, run) = match workflow_id.split_once('/') {
            Some((id, run)) => (id, Some(run)),
            None => (workflow_id, None),
        };
        let deadline = Instant::now() + AWAIT_LIMIT;
        loop {
            // A child, say, may not have begun.
            let events = self.history(id, run).await.unwrap_or_default();
            let names: Vec<_> = events.iter().map(|e| render::enum_name(e, "event_type")).collect();
            if names.iter().filter(|name| **name == wanted).count() >= count {
                return Ok(Vec::new());
            }
            if Instant::now() > deadline {
                bail!("{wanted} does not come after {names:?}");
            }
            look_again().await;
        }
    }
}

impl Tokens {
    /// Remembers the tokens of an answer that is a task or brings some along.
    fn take_from(&mut self, answer: &DynamicMessage) {
        let name = answer.descriptor().name().to_owned();
        let token = render::field(answer, "task_token");
        let token = token.and_then(|token| token.as_bytes().map(|bytes| bytes.to_vec()));
        match token {
            Some(token) if token.is_empty() => {}
            Some(token) if name.contains("Activity") => self.activity = token,
            Some(token) => self.workflow = token,
            None => {}
        }
        for inner in ["workflow_task", "eager_workflow_task", "activity_tasks"] {
            let Some(value) = render::field(answer, inner) else { continue };
            let items = value.as_list().unwrap_or(std::slice::from_ref(&value));
            items.iter().filter_map(Value::as_message).for_each(|task| self.take_from(task));
        }
    }
}

/// Returns when it is time for the next look at a state that is awaited with a deadline.
async fn look_again() {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.tick().await;
    looks.tick().await;
}

/// The search attributes that a request defines, if it is one that does.
fn defined_attributes(request: &DynamicMessage) -> Vec<String> {
    if request.descriptor().name() != "AddSearchAttributesRequest" {
        return Vec::new();
    }
    let attributes = render::field(request, "search_attributes");
    let names = attributes.as_ref().and_then(Value::as_map).into_iter().flat_map(|map| map.keys());
    names.filter_map(|key| key.as_str().map(str::to_owned)).collect()
}

/// A command's type follows from its attributes unless the script gives another.
fn name_commands(request: &mut DynamicMessage) {
    let Some(commands) = request.get_field_by_name_mut("commands").and_then(Value::as_list_mut)
    else {
        return;
    };
    for command in commands.iter_mut().filter_map(Value::as_message_mut) {
        let attributes = command.fields().find_map(|(field, _)| {
            field.name().strip_suffix("_command_attributes").map(str::to_uppercase)
        });
        let Some(descriptor) = command.descriptor().get_field_by_name("command_type") else {
            continue;
        };
        let (Some(attributes), Kind::Enum(kinds)) = (attributes, descriptor.kind()) else {
            continue;
        };
        let wanted = format!("COMMAND_TYPE_{attributes}");
        if let Some(kind) = kinds.values().find(|kind| kind.name() == wanted) {
            set_if_absent(command, "command_type", Value::EnumNumber(kind.number()));
        }
    }
}

fn set_if_absent(message: &mut DynamicMessage, name: &str, value: Value) {
    if message.descriptor().get_field_by_name(name).is_some() && !message.has_field_by_name(name) {
        message.set_field_by_name(name, value);
    }
}
