//! Lists and counts of workflows that the filter names: their runs are looked up by key, whatever else
//! is in the namespace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use piton_core::id::{NamespaceId, WorkflowKey};
use piton_core::placement::slot_of;
use piton_store::Row;

use crate::rows::scan::{Scan, Slices};
use crate::rows::{LoadError, WorkflowRows, workflow};

/// About as many rows are read for each run.
const RUN_ROWS: usize = 4;

/// What a scan would make of the rows of some workflows.
pub(crate) struct Lookup<S> {
    scan: S,
    waiting: VecDeque<WorkflowKey>,
    /// The workflow whose runs are being read, and where they go on.
    current: Option<(WorkflowKey, Bytes)>,
    /// Their rows in the order of the scan.
    found: BTreeMap<Bytes, Bytes>,
}

impl<S: Scan> Lookup<S> {
    pub(crate) fn new(namespace: &NamespaceId, ids: &BTreeSet<String>, scan: S) -> Self {
        let key = |id: &String| WorkflowKey {
            namespace: namespace.clone(),
            workflow_id: id.as_str().into(),
        };
        let waiting = ids.iter().map(key).collect();
        Self { scan, waiting, current: None, found: BTreeMap::new() }
    }

    /// Looks up one more run, or takes the next workflow. False: there are no more.
    fn step(&mut self, rows: &WorkflowRows) -> Result<bool, LoadError> {
        let Some((key, from)) = self.current.take() else {
            let Some(key) = self.waiting.pop_front() else { return Ok(false) };
            // That of another shard is looked up there.
            if rows.range()?.is_some_and(|range| range.contains(slot_of(&key))) {
                let from = workflow(&key).runs();
                self.current = Some((key, from));
            }
            return Ok(true);
        };
        if let Some((run_id, behind)) = rows.next_run(&key, &from)? {
            self.found.extend(rows.listed_run(&key, &run_id)?);
            self.current = Some((key, behind));
        }
        Ok(true)
    }
}

impl<S: Scan> Slices for Lookup<S> {
    type Answer = S::Answer;

    fn go_on(&mut self, rows: &WorkflowRows, slice_rows: usize) -> Result<bool, LoadError> {
        for _ in 0..slice_rows.div_ceil(RUN_ROWS).max(1) {
            if self.step(rows)? {
                continue;
            }
            let range = self.scan.range();
            for (key, value) in std::mem::take(&mut self.found) {
                let is_behind = key < range.start || key >= range.end;
                if !is_behind && !self.scan.take(rows, Row { key, value })? {
                    break;
                }
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn answer(self) -> S::Answer {
        self.scan.answer()
    }
}

#[cfg(test)]
mod tests;
