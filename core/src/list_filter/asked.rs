//! Which workflows a filter is about, read off its conditions, so that these can be looked up instead
//! of being looked for.

use std::collections::BTreeSet;

use super::literal::Literal;
use super::{Condition, Operator};
use crate::search_attribute::Field;

/// Which workflows a filter can let pass at all, as far as it says so by their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Any.
    All,
    /// Those of these ids.
    Ids(BTreeSet<String>),
    /// Those whose ids begin so.
    Prefix(String),
}

impl Condition {
    pub(super) fn asked(&self) -> Asked {
        let text = |literal: &Literal| match literal {
            Literal::Text(text) => Some(text.clone()),
            Literal::Number(_) => None,
        };
        let ids = |ids: Option<BTreeSet<String>>| ids.map_or(Asked::All, Asked::Ids);
        match self {
            Self::All(conditions) => {
                conditions.iter().map(Self::asked).reduce(Asked::and).unwrap_or(Asked::All)
            }
            Self::Any(conditions) => {
                conditions.iter().map(Self::asked).reduce(Asked::or).unwrap_or(Asked::All)
            }
            Self::Compare(Field::WorkflowId, Operator::Equal, literal) => {
                ids(text(literal).map(|id| [id].into()))
            }
            Self::In(Field::WorkflowId, literals) => ids(literals.iter().map(text).collect()),
            Self::StartsWith(Field::WorkflowId, prefix, true) => Asked::Prefix(prefix.clone()),
            Self::Compare(..) | Self::In(..) | Self::Between(..) | Self::StartsWith(..) => {
                Asked::All
            }
        }
    }
}

impl Asked {
    /// What both may let pass, or somewhat more.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, asked) | (asked, Self::All) => asked,
            (Self::Ids(mut ids), Self::Ids(others)) => {
                ids.retain(|id| others.contains(id));
                Self::Ids(ids)
            }
            (Self::Ids(mut ids), Self::Prefix(prefix))
            | (Self::Prefix(prefix), Self::Ids(mut ids)) => {
                ids.retain(|id| id.starts_with(&prefix));
                Self::Ids(ids)
            }
            // Of two prefixes the longer one says more; where they differ, nothing passes anyway.
            (Self::Prefix(a), Self::Prefix(b)) => {
                Self::Prefix(if a.len() >= b.len() { a } else { b })
            }
        }
    }

    /// What one of both may let pass, or somewhat more.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ids(mut ids), Self::Ids(others)) => {
                ids.extend(others);
                Self::Ids(ids)
            }
            (Self::Prefix(a), Self::Prefix(b)) if b.starts_with(&a) => Self::Prefix(a),
            (Self::Prefix(a), Self::Prefix(b)) if a.starts_with(&b) => Self::Prefix(b),
            (Self::All | Self::Ids(_) | Self::Prefix(_), _) => Self::All,
        }
    }
}
