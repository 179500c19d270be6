//! The filter of list and count requests: a fragment of SQL's WHERE over the system attributes.
//! Built: `= != < <= > >= IN BETWEEN STARTS_WITH AND OR`, `NOT STARTS_WITH`, parentheses, and
//! `GROUP BY ExecutionStatus`. Anything else is refused in the official server's words where it has
//! some, never ignored.
//!
//! As in SQL, a value that a run does not have (the close time of an open run) fits no comparison.

mod asked;
mod literal;
mod steps;
mod token;

use piton_proto::enums::{IndexedValueType, WorkflowExecutionStatus};
use serde::{Deserialize, Serialize};

use crate::search_attribute::{self, Field, Origin};
use crate::time::Timestamp;
use crate::visibility::VisibilityRecord;
pub use asked::Asked;
use literal::Literal;
use steps::Step;
use token::{Token, TokenKind, tokens};

/// Parentheses may be nested this deep, so that no filter exhausts the stack.
const DEPTH_MAX: usize = 64;
/// A filter may have this many comparisons and listed values.
const TERMS_MAX: usize = 1_000;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListFilter {
    /// `None` lets everything pass.
    condition: Option<Condition>,
    group_by: Option<GroupBy>,
}

/// What a count is grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupBy {
    ExecutionStatus,
}

/// What the lists of open and of closed runs may ask for: all that is given must fit.
#[derive(Clone, Debug, Default)]
pub struct Narrowed {
    pub is_open: bool,
    pub started_from: Option<Timestamp>,
    pub started_until: Option<Timestamp>,
    pub workflow_id: Option<String>,
    pub run_id: Option<String>,
    pub workflow_type: Option<String>,
    pub status: Option<WorkflowExecutionStatus>,
}

/// A filter that was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid query: {reason}")]
pub struct FilterError {
    /// In bytes, the first being 1.
    pub position: usize,
    pub reason: String,
    /// The name that stands where an attribute that every namespace has is meant, if that is why.
    pub unknown_attribute: Option<String>,
}

/// An attribute that can be compared with, which is read off the run.
#[derive(Clone, Copy, Debug)]
struct Attribute {
    name: &'static str,
    field: Field,
    kind: Type,
}

impl FilterError {
    /// The same where the namespace defines the attribute: that it can't be compared with yet.
    #[must_use]
    pub fn where_defined(self, defines: impl Fn(&str) -> bool) -> Self {
        match &self.unknown_attribute {
            Some(name) if defines(name) => {
                Self { reason: token::not_filtered(name), unknown_attribute: None, ..self }
            }
            _ => self,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Vec<Step>", try_from = "Vec<Step>")]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Compare(Field, Operator, Literal),
    In(Field, Vec<Literal>),
    Between(Field, Literal, Literal),
    /// The text, and whether runs pass whose value begins with it, or those whose value does not.
    StartsWith(Field, String, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What an attribute's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Keyword,
    Status,
    /// Nanoseconds since the epoch.
    Time,
    Int,
    /// Nanoseconds.
    Duration,
}

impl Attribute {
    fn named(name: &str) -> Option<Self> {
        let known = search_attribute::known(name)?;
        let Origin::Run(field) = known.origin else { return None };
        let kind = match (field, known.kind) {
            (Field::ExecutionStatus, _) => Type::Status,
            (Field::ExecutionDuration, _) => Type::Duration,
            (_, IndexedValueType::Datetime) => Type::Time,
            (_, IndexedValueType::Int) => Type::Int,
            _ => Type::Keyword,
        };
        Some(Self { name: known.name, field, kind })
    }
}

impl Field {
    /// The attribute of one run; `None` where it has none.
    fn of(self, record: &VisibilityRecord) -> Option<Value<'_>> {
        let time = |at: Timestamp| Some(Value::Number(i128::from(at.as_nanos())));
        let number = |n: i64| Some(Value::Number(i128::from(n)));
        match self {
            Self::WorkflowId => Some(Value::Text(record.workflow_id.as_str())),
            Self::RunId => Some(Value::Text(record.run_id.as_str())),
            Self::WorkflowType => Some(Value::Text(&record.workflow_type)),
            Self::TaskQueue => Some(Value::Text(&record.task_queue)),
            Self::ParentWorkflowId => {
                record.parent.as_ref().map(|p| Value::Text(p.workflow_id.as_str()))
            }
            Self::ParentRunId => record.parent.as_ref().map(|p| Value::Text(p.run_id.as_str())),
            Self::RootWorkflowId => Some(Value::Text(record.root.0.as_str())),
            Self::RootRunId => Some(Value::Text(record.root.1.as_str())),
            Self::ExecutionStatus => number(i64::from(record.status.to_proto() as i32)),
            Self::StartTime => time(record.start_time),
            Self::ExecutionTime => time(record.execution_time),
            Self::CloseTime => time(record.close_time?),
            Self::ExecutionDuration => number(record.duration()?.as_nanos()),
            Self::HistoryLength => number(record.figures?.history_length),
            Self::HistorySizeBytes => {
                Some(Value::Number(i128::from(record.figures?.history_bytes)))
            }
            Self::StateTransitionCount => {
                Some(Value::Number(i128::from(record.figures?.transitions)))
            }
        }
    }
}

/// A run's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value<'a> {
    Number(i128),
    Text(&'a str),
}

impl Operator {
    fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Condition {
    fn holds(&self, record: &VisibilityRecord) -> bool {
        match self {
            Self::All(conditions) => conditions.iter().all(|c| c.holds(record)),
            Self::Any(conditions) => conditions.iter().any(|c| c.holds(record)),
            Self::Compare(attribute, operator, literal) => attribute
                .of(record)
                .is_some_and(|value| operator.holds(value.cmp(&literal.as_value()))),
            Self::In(attribute, literals) => attribute
                .of(record)
                .is_some_and(|value| literals.iter().any(|l| l.as_value() == value)),
            Self::Between(attribute, low, high) => attribute
                .of(record)
                .is_some_and(|value| (low.as_value()..=high.as_value()).contains(&value)),
            Self::StartsWith(attribute, prefix, begins) => attribute.of(record).is_some_and(
                |value| matches!(value, Value::Text(text) if text.starts_with(prefix) == *begins),
            ),
        }
    }
}

impl ListFilter {
    /// Parses the filter of a count; an empty text lets everything pass.
    ///
    /// # Errors
    /// Why and where the text is not a filter that is understood.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        Self::parse_with(text, true)
    }

    /// Parses the filter of a list, which is not grouped.
    ///
    /// # Errors
    /// As [`ListFilter::parse`].
    pub fn parse_for_list(text: &str) -> Result<Self, FilterError> {
        Self::parse_with(text, false)
    }

    fn parse_with(text: &str, may_group: bool) -> Result<Self, FilterError> {
        let tokens = tokens(text)?;
        let mut parser = Parser { tokens, next: 0, terms: 0 };
        let first = parser.peek();
        let condition = match first.kind {
            TokenKind::End => None,
            TokenKind::Name(_) if first.is_word("GROUP") => None,
            _ => Some(parser.any(0)?),
        };
        let group = parser.peek();
        let group_by = parser.group_by()?;
        if group_by.is_some() && !may_group {
            let text = "operation is not supported: GROUP BY is for counts only".to_owned();
            return Err(group.refused(text));
        }
        let rest = parser.peek();
        match rest.kind {
            TokenKind::End => Ok(Self { condition, group_by }),
            _ if rest.is_word("ORDER") => Err(rest.unsupported_clause("ORDER BY")),
            _ if rest.is_word("LIMIT") => Err(rest.unsupported_clause("LIMIT")),
            _ => Err(rest.unexpected()),
        }
    }

    /// The filter of a list of open or of closed runs.
    pub fn narrowed(asked: Narrowed) -> Self {
        use Operator::{Equal, GreaterOrEqual, LessOrEqual, NotEqual};
        let number = |number: i128| Literal::Number(number);
        let status = |status: WorkflowExecutionStatus| number(i128::from(status as i32));
        let time = |time: Timestamp| number(i128::from(time.as_nanos()));
        let openness = if asked.is_open { Equal } else { NotEqual };
        let mut all = vec![Condition::Compare(
            Field::ExecutionStatus,
            openness,
            status(WorkflowExecutionStatus::Running),
        )];
        let texts = [
            (Field::WorkflowId, asked.workflow_id),
            (Field::RunId, asked.run_id),
            (Field::WorkflowType, asked.workflow_type),
        ];
        let texts = texts.into_iter().filter_map(|(attribute, text)| Some((attribute, text?)));
        all.extend(texts.map(|(a, text)| Condition::Compare(a, Equal, Literal::Text(text))));
        let numbers = [
            (Field::ExecutionStatus, Equal, asked.status.map(status)),
            (Field::StartTime, GreaterOrEqual, asked.started_from.map(time)),
            (Field::StartTime, LessOrEqual, asked.started_until.map(time)),
        ];
        let numbers = numbers.into_iter().filter_map(|(a, op, value)| Some((a, op, value?)));
        all.extend(numbers.map(|(a, operator, value)| Condition::Compare(a, operator, value)));
        Self { condition: Some(Condition::All(all)), group_by: None }
    }

    /// Whether the filter lets a run pass.
    pub fn matches(&self, record: &VisibilityRecord) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(record))
    }

    /// Which workflows can pass at all: where it names them, no others need be looked at.
    pub fn asked(&self) -> Asked {
        self.condition.as_ref().map_or(Asked::All, Condition::asked)
    }

    /// What a count is to be grouped by, if anything.
    pub fn group_by(&self) -> Option<GroupBy> {
        self.group_by
    }
}

/// A recursive descent: OR binds weaker than AND, both weaker than a comparison.
struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    terms: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens[self.next]
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        // INVARIANT: the last token is End, and it is never passed.
        if token.kind != TokenKind::End {
            self.next += 1;
        }
        token
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is_there = self.peek().is_word(word);
        if is_there {
            self.take();
        }
        is_there
    }

    fn expect(&mut self, kind: TokenKind<'_>) -> Result<(), FilterError> {
        let token = self.take();
        if token.kind == kind { Ok(()) } else { Err(token.unexpected()) }
    }

    fn any(&mut self, depth: usize) -> Result<Condition, FilterError> {
        let mut conditions = vec![self.all(depth)?];
        while self.take_word("OR") {
            conditions.push(self.all(depth)?);
        }
        Ok(single_or(conditions, Condition::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Condition, FilterError> {
        let mut conditions = vec![self.term(depth)?];
        while self.take_word("AND") {
            conditions.push(self.term(depth)?);
        }
        Ok(single_or(conditions, Condition::All))
    }

    fn term(&mut self, depth: usize) -> Result<Condition, FilterError> {
        let open = self.peek();
        if open.kind != TokenKind::Open {
            return self.comparison();
        }
        if depth == DEPTH_MAX {
            return Err(open.refused(format!("parentheses are nested deeper than {DEPTH_MAX}")));
        }
        self.take();
        let inner = self.any(depth + 1)?;
        self.expect(TokenKind::Close)?;
        Ok(inner)
    }

    fn comparison(&mut self) -> Result<Condition, FilterError> {
        let token = self.take();
        let name = match token.kind {
            TokenKind::Name(_) if token.is_word("NOT") => return Err(token.unsupported()),
            TokenKind::Name(name) | TokenKind::Quoted(name) => name,
            _ => return Err(token.unexpected()),
        };
        let Some(attribute) = Attribute::named(name) else { return Err(token.no_attribute(name)) };
        let (field, kind) = (attribute.field, attribute.kind);
        let operator = self.take();
        if operator.is_word("STARTS_WITH") {
            return self.starts_with(attribute, operator, true);
        }
        if operator.is_word("NOT") && self.peek().is_word("STARTS_WITH") {
            let operator = self.take();
            return self.starts_with(attribute, operator, false);
        }
        if operator.is_word("IN") {
            return Ok(Condition::In(field, self.list(attribute)?));
        }
        if operator.is_word("BETWEEN") {
            ordered(kind, operator)?;
            let low = self.literal(attribute)?;
            let and = self.peek();
            if !self.take_word("AND") {
                return Err(and.unexpected());
            }
            return Ok(Condition::Between(field, low, self.literal(attribute)?));
        }
        let compare = match operator.kind {
            TokenKind::Operator(compare) => compare,
            TokenKind::Name(_) => return Err(operator.unsupported()),
            _ => return Err(operator.unexpected()),
        };
        if !matches!(compare, Operator::Equal | Operator::NotEqual) {
            ordered(kind, operator)?;
        }
        Ok(Condition::Compare(field, compare, self.literal(attribute)?))
    }

    fn starts_with(
        &mut self,
        attribute: Attribute,
        operator: Token<'_>,
        begins: bool,
    ) -> Result<Condition, FilterError> {
        match self.literal(attribute)? {
            Literal::Text(text) => Ok(Condition::StartsWith(attribute.field, text, begins)),
            Literal::Number(_) if matches!(attribute.kind, Type::Int | Type::Duration) => {
                let name = attribute.name;
                Err(operator.refused(format!(
                    "operation is not supported: operator 'STARTS_WITH' not supported for Int type \
                     search attribute '{name}'"
                )))
            }
            Literal::Number(_) => Err(operator.unsupported()),
        }
    }

    fn list(&mut self, attribute: Attribute) -> Result<Vec<Literal>, FilterError> {
        self.expect(TokenKind::Open)?;
        let mut literals = vec![self.literal(attribute)?];
        while self.peek().kind == TokenKind::Comma {
            self.take();
            literals.push(self.literal(attribute)?);
        }
        self.expect(TokenKind::Close)?;
        Ok(literals)
    }

    fn literal(&mut self, attribute: Attribute) -> Result<Literal, FilterError> {
        let token = self.take();
        self.terms += 1;
        if self.terms > TERMS_MAX {
            return Err(token.refused(format!("a filter has at most {TERMS_MAX} values")));
        }
        let parsed = match token.kind {
            TokenKind::Text(text) => Literal::from_text(&unquoted(token.text, text), attribute),
            TokenKind::Number(digits) => Literal::from_number(digits, attribute),
            TokenKind::Name(name) => {
                return Err(token.refused(format!(
                    "operation is not supported: column name on the right side of comparison \
                     expression (did you forget to quote \"{name}\"?)"
                )));
            }
            _ => return Err(token.unexpected()),
        };
        parsed.map_err(|reason| token.refused(format!("invalid expression: {reason}")))
    }

    fn group_by(&mut self) -> Result<Option<GroupBy>, FilterError> {
        if !self.take_word("GROUP") {
            return Ok(None);
        }
        let by = self.peek();
        if !self.take_word("BY") {
            return Err(by.unexpected());
        }
        let token = self.take();
        match token.kind {
            TokenKind::Name("ExecutionStatus") | TokenKind::Quoted("ExecutionStatus") => {
                Ok(Some(GroupBy::ExecutionStatus))
            }
            TokenKind::Name(name) | TokenKind::Quoted(name) if Attribute::named(name).is_some() => {
                Err(token.refused(format!(
                    "operation is not supported: 'GROUP BY' clause is not supported for search \
                     attribute {name}"
                )))
            }
            TokenKind::Name(name) | TokenKind::Quoted(name) => Err(token.no_attribute(name)),
            _ => Err(token.unexpected()),
        }
    }
}

fn single_or(mut conditions: Vec<Condition>, join: fn(Vec<Condition>) -> Condition) -> Condition {
    match conditions.pop() {
        Some(only) if conditions.is_empty() => only,
        last => {
            conditions.extend(last);
            join(conditions)
        }
    }
}

/// The inside of a string as it is meant: a doubled quote stands for one, and a backslash for what
/// MySQL reads in it and the next character.
fn unquoted(with_quotes: &str, inside: &str) -> String {
    let mut text = String::with_capacity(inside.len());
    let mut characters = inside.chars();
    while let Some(character) = characters.next() {
        let meant = match character {
            '\\' => characters.next().map(|escaped| match escaped {
                '0' => '\0',
                'b' => '\u{8}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'Z' => '\u{1a}',
                other => other,
            }),
            quote if with_quotes.starts_with(quote) => characters.next(),
            other => Some(other),
        };
        text.extend(meant);
    }
    text
}

/// Statuses have no order.
fn ordered(kind: Type, operator: Token<'_>) -> Result<(), FilterError> {
    match kind {
        Type::Status => Err(operator.unsupported()),
        Type::Keyword | Type::Time | Type::Int | Type::Duration => Ok(()),
    }
}

#[cfg(test)]
mod tests;
