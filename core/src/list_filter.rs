//! The filter of list and count requests: a fragment of SQL's WHERE over the system attributes.

use crate::visibility::VisibilityRecord;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq)]
pub struct ListFilter {}

/// What a count is grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    ExecutionStatus,
}

/// A filter that was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid query: {reason} at position {position}")]
pub struct FilterError {
    /// Bytes from the beginning of the text, from 1.
    pub position: usize,
    pub reason: String,
}

impl ListFilter {
    /// Parses a filter; an empty text lets everything pass.
    ///
    /// # Errors
    /// Why and where the text is not a filter that is understood.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let _ = text;
        unimplemented!()
    }

    /// Whether the filter lets a run pass.
    pub fn matches(&self, record: &VisibilityRecord) -> bool {
        let _ = record;
        unimplemented!()
    }

    /// What a count is to be grouped by, if anything.
    pub fn group_by(&self) -> Option<GroupBy> {
        unimplemented!()
    }
}
