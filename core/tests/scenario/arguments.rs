//! The words of scenarios: a step is `> verb word name=value flag`, then indented lines that are
//! its commands, then what it comes to.

use std::collections::BTreeMap;

use piton_core::proto::common::{Payload, Payloads};
use piton_core::time::Span;

/// A part of a scenario's file.
pub(crate) enum Block<'a> {
    /// A heading, a remark, or an empty line: kept as it is.
    Text(&'a str),
    Step(Step),
}

/// One request or look, or one command of a completion.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    pub(crate) line: usize,
    pub(crate) verb: String,
    pub(crate) words: Vec<String>,
    pub(crate) named: BTreeMap<String, String>,
    pub(crate) commands: Vec<Step>,
    lines: Vec<String>,
}

/// Cuts a file into its parts and drops what was expected.
pub(crate) fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(rest) = line.strip_prefix("> ") {
            blocks.push(Block::Step(Step::parse(rest, line, number)));
            continue;
        }
        match blocks.last_mut() {
            Some(Block::Step(step)) if line.starts_with("    ") => {
                step.commands.push(Step::parse(line.trim(), line, number));
                step.lines.push(line.to_owned());
            }
            // What was expected.
            Some(Block::Step(_)) if !line.is_empty() && !line.starts_with('#') => {}
            _ => blocks.push(Block::Text(line)),
        }
    }
    blocks
}

impl Step {
    fn parse(text: &str, line: &str, number: usize) -> Self {
        let mut words = text.split_whitespace();
        let verb = words.next().unwrap_or_default().to_owned();
        let mut step = Self { line: number, verb, lines: vec![line.to_owned()], ..Self::default() };
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => {
                    step.named.insert(name.to_owned(), value.to_owned());
                }
                None => step.words.push(word.to_owned()),
            }
        }
        step
    }

    /// As it stands in the file, with its commands.
    pub(crate) fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// A value, or nothing.
    pub(crate) fn text_of(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.words.iter().any(|word| word == name)
    }

    pub(crate) fn number(&self, name: &str) -> i64 {
        self.get(name).map_or(0, |text| {
            text.parse().unwrap_or_else(|_| panic!("line {}: {name} is no number", self.line))
        })
    }

    pub(crate) fn word(&self, at: usize) -> &str {
        self.words
            .get(at)
            .unwrap_or_else(|| panic!("line {}: {} wants more words", self.line, self.verb))
    }

    pub(crate) fn span_at(&self, at: usize) -> Span {
        super::span(self.word(at))
    }

    pub(crate) fn duration(&self, name: &str) -> Option<prost_types::Duration> {
        self.get(name).map(|text| super::span(text).to_proto())
    }

    /// A text as a payload; `bytes:N` stands for one of N bytes.
    pub(crate) fn payloads(&self, name: &str) -> Option<Payloads> {
        let text = self.get(name)?;
        Some(Payloads { payloads: vec![payload(text)] })
    }
}

/// A text as JSON; nothing at all where it is empty.
pub(crate) fn payload(text: &str) -> Payload {
    let data = match text.strip_prefix("bytes:") {
        Some(count) => "x".repeat(count.parse().expect("a count of bytes")),
        None if text.is_empty() => String::new(),
        None => format!("\"{text}\""),
    };
    let encoding = ("encoding".to_owned(), "json/plain".into());
    Payload { metadata: [encoding].into(), data: data.into(), ..Payload::default() }
}
