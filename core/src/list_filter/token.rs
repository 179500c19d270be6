//! Cuts the text of a filter into tokens, each with its position.

use super::{FilterError, Operator};
use crate::search_attribute;

/// A token and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// In bytes, the first being 1.
    pub(super) position: usize,
    /// As it stands in the filter.
    pub(super) text: &'a str,
    pub(super) kind: TokenKind<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind<'a> {
    /// A name or a keyword.
    Name(&'a str),
    /// A name in back-quotes: never a keyword.
    Quoted(&'a str),
    /// The inside of a string's quotes, as it stands: doubled quotes and backslashes are still there.
    Text(&'a str),
    Number(&'a str),
    Operator(Operator),
    Open,
    Close,
    Comma,
    End,
}

impl Token<'_> {
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.kind, TokenKind::Name(name) if name.eq_ignore_ascii_case(word))
    }

    pub(super) fn refused(&self, reason: impl Into<String>) -> FilterError {
        FilterError { position: self.position, reason: reason.into(), unknown_attribute: None }
    }

    pub(super) fn unexpected(&self) -> FilterError {
        let Self { position, text, .. } = self;
        let near = match self.kind {
            TokenKind::End => String::new(),
            _ => format!(" near '{text}'"),
        };
        self.refused(format!("malformed SQL query: syntax error at position {position}{near}"))
    }

    pub(super) fn unsupported(&self) -> FilterError {
        self.refused(format!("operation is not supported: operator '{}'", self.text))
    }

    pub(super) fn unsupported_clause(&self, clause: &str) -> FilterError {
        self.refused(format!("operation is not supported: '{clause}' clause"))
    }

    /// A name that is not of an attribute that can be compared with.
    pub(super) fn no_attribute(&self, name: &str) -> FilterError {
        if search_attribute::known(name).is_some() {
            return self.refused(not_filtered(name));
        }
        FilterError {
            unknown_attribute: Some(name.to_owned()),
            ..self.refused(format!("invalid search attribute: {name}"))
        }
    }
}

/// The refusal of an attribute that is there, but among the run's search attributes.
pub(super) fn not_filtered(name: &str) -> String {
    format!("operation is not supported: filtering by search attribute {name}")
}

/// The tokens of a text; the last one is the end.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, FilterError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        let (kind, length) = next(&text[at..]).map_err(|near| FilterError {
            position: at + 1,
            reason: format!("malformed SQL query: syntax error at position {}{near}", at + 1),
            unknown_attribute: None,
        })?;
        tokens.push(Token { position: at + 1, text: &text[at..at + length], kind });
        if kind == TokenKind::End {
            return Ok(tokens);
        }
        at += length;
    }
}

/// The token that a text begins with, and its length in bytes.
fn next(rest: &str) -> Result<(TokenKind<'_>, usize), String> {
    use TokenKind as K;
    let Some(first) = rest.chars().next() else { return Ok((K::End, 0)) };
    let pair = rest.get(..2).unwrap_or("");
    Ok(match (first, pair) {
        (_, "!=") => (K::Operator(Operator::NotEqual), 2),
        (_, "<=") => (K::Operator(Operator::LessOrEqual), 2),
        (_, ">=") => (K::Operator(Operator::GreaterOrEqual), 2),
        (_, "<>") => return Err(" near '<>'".into()),
        ('=', _) => (K::Operator(Operator::Equal), 1),
        ('<', _) => (K::Operator(Operator::Less), 1),
        ('>', _) => (K::Operator(Operator::Greater), 1),
        ('(', _) => (K::Open, 1),
        (')', _) => (K::Close, 1),
        (',', _) => (K::Comma, 1),
        ('\'' | '"', _) => {
            let inner = quoted(rest, first)?;
            (K::Text(inner), inner.len() + 2)
        }
        ('`', _) => {
            let inner = quoted(rest, first)?;
            (K::Quoted(inner), inner.len() + 2)
        }
        ('0'..='9' | '-' | '+' | '.', _) => {
            let end = rest.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'));
            let digits = &rest[..end.unwrap_or(rest.len())];
            (K::Number(digits), digits.len())
        }
        (c, _) if c.is_ascii_alphabetic() || c == '_' => {
            let end =
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')));
            let name = &rest[..end.unwrap_or(rest.len())];
            (K::Name(name), name.len())
        }
        (other, _) => return Err(format!(" near '{other}'")),
    })
}

/// What stands between a quote and its end: a single quote that no backslash stands before. A name in
/// back-quotes has no backslashes of that kind.
fn quoted(rest: &str, quote: char) -> Result<&str, String> {
    let inside = &rest[1..];
    let mut characters = inside.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let is_doubled = || inside[at + 1..].starts_with(quote);
        if character == quote && !is_doubled() {
            return Ok(&inside[..at]);
        }
        if character == quote || (character == '\\' && quote != '`') {
            characters.next();
        }
    }
    Err(format!(": a string that begins with {quote} has no end"))
}
