//! Scans that may be long: each takes up a range slice by slice, so that whoever runs it can let others
//! read in between, and end it. What is written meanwhile may be seen or not, as in any scan of more
//! than one read.

use std::ops::Range;

use bytes::Bytes;
use piton_store::Row;

use crate::rows::{LoadError, PAGE_ROWS, WorkflowRows};

/// Work on rows that is done slice by slice.
pub(crate) trait Slices: Send + 'static {
    type Answer: Send + 'static;

    /// Reads on, about `slice_rows` rows. True: it is done.
    ///
    /// # Errors
    /// When a row cannot be read.
    fn go_on(&mut self, rows: &WorkflowRows, slice_rows: usize) -> Result<bool, LoadError>;

    fn answer(self) -> Self::Answer;
}

/// What is made of the rows of a range.
pub(crate) trait Scan: Send + 'static {
    type Answer: Send + 'static;

    /// The keys that it is about.
    fn range(&self) -> Range<Bytes>;

    /// Takes the next row; false: it needs no more.
    ///
    /// # Errors
    /// When the row is damaged.
    fn take(&mut self, rows: &WorkflowRows, row: Row) -> Result<bool, LoadError>;

    fn answer(self) -> Self::Answer;
}

/// A scan, and what is left of its range.
pub(crate) struct Scanning<S> {
    scan: S,
    rest: Range<Bytes>,
}

impl<S: Scan> Scanning<S> {
    pub(crate) fn new(scan: S) -> Self {
        let rest = scan.range();
        Self { scan, rest }
    }
}

impl<S: Scan> Slices for Scanning<S> {
    type Answer = S::Answer;

    fn go_on(&mut self, rows: &WorkflowRows, slice_rows: usize) -> Result<bool, LoadError> {
        let Self { scan, rest } = self;
        for _ in 0..slice_rows.div_ceil(PAGE_ROWS).max(1) {
            if rows.next_in(rest, PAGE_ROWS, |row| scan.take(rows, row))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn answer(self) -> S::Answer {
        self.scan.answer()
    }
}

/// Reads all slices, one after the other.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn to_end<S: Slices>(
    rows: &WorkflowRows,
    mut slices: S,
) -> Result<S::Answer, LoadError> {
    while !slices.go_on(rows, PAGE_ROWS)? {}
    Ok(slices.answer())
}
