//! A run's state from its rows: its history folded, from a milestone on if there is one, and its notes
//! laid over it (D6).

use piton_core::id::{EventId, RunId, WorkflowKey};
use piton_core::note::{Note, NoteKey};
use piton_core::proto::history::HistoryEvent;
use piton_core::run::{FoldError, Milestone, RunState};

use crate::rows::codes::{note_key, unsigned};
use crate::rows::records::{MILESTONE, decode_note};
use crate::rows::{LoadError, WorkflowRows, end_of, keys, workflow};

/// How often a run is read anew because a transition was applied meanwhile.
const LOAD_ATTEMPTS_MAX: usize = 8;

impl WorkflowRows {
    /// Rebuilds a run's state; `None`: there is no such run.
    pub(crate) fn load_run(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Option<RunState>, LoadError> {
        // A transition whose outcome its actor never learned may still be applied now. History
        // and notes belong together only if the position stood still while both were read.
        let entity = key.clone().into();
        for _ in 0..LOAD_ATTEMPTS_MAX {
            let before = self.position(&entity)?;
            let (run, is_whole) = match self.fold_from_milestone(key, run_id)? {
                Some(run) => (Ok(Some(run)), false),
                None => (self.fold_whole(key, run_id), true),
            };
            let check = cfg!(debug_assertions) && !is_whole;
            let whole = check.then(|| self.fold_whole(key, run_id));
            if self.position(&entity)? != before {
                continue;
            }
            let run = run?;
            if let Some(whole) = whole {
                assert_eq!(run, whole?, "a milestone of {run_id} leads elsewhere");
            }
            return Ok(run);
        }
        Err(LoadError::Unsteady { key: key.clone(), run_id: run_id.clone() })
    }

    /// `None`: there is no milestone, or none that fits.
    pub(super) fn fold_from_milestone(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Option<RunState>, LoadError> {
        let Some(milestone) = self.milestone(key, run_id)? else { return Ok(None) };
        // Without its first batch a run is being deleted: it is not there any more.
        let first = workflow(key).event(run_id.as_str(), unsigned(EventId::FIRST));
        if self.get(&first)?.is_none() {
            return Ok(None);
        }
        let events = self.events_from(key, run_id, milestone.next_event_id)?;
        if events.is_empty() {
            // It came with a batch that goes on from it.
            return Ok(None);
        }
        let notes = self.notes(key, run_id)?;
        let folded =
            RunState::from_milestone(key.clone(), run_id.clone(), milestone, events, notes);
        // What is damaged shows in the whole fold, too.
        Ok(folded
            .inspect_err(|error| tracing::warn!(%run_id, %error, "a milestone is ignored"))
            .ok())
    }

    pub(super) fn fold_whole(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
    ) -> Result<Option<RunState>, LoadError> {
        let events = self.events_from(key, run_id, EventId::FIRST)?;
        if events.first().is_none_or(|event| EventId(event.event_id) != EventId::FIRST) {
            return Ok(None);
        }
        let notes = self.notes(key, run_id)?;
        let run = RunState::from_history(key.clone(), run_id.clone(), events, notes);
        run.map(Some).map_err(|source: FoldError| LoadError::Fold {
            key: key.clone(),
            run_id: run_id.clone(),
            source,
        })
    }

    fn milestone(&self, key: &WorkflowKey, run_id: &RunId) -> Result<Option<Milestone>, LoadError> {
        let Some(value) = self.get(&workflow(key).milestone(run_id.as_str()))? else {
            return Ok(None);
        };
        // Of another release: its fold may know less or more than this one's.
        Ok(MILESTONE.decode(&value).ok())
    }

    /// The events of the batches that begin at `from` or later.
    fn events_from(
        &self,
        key: &WorkflowKey,
        run_id: &RunId,
        from: EventId,
    ) -> Result<Vec<HistoryEvent>, LoadError> {
        let start = workflow(key).event(run_id.as_str(), unsigned(from));
        let end = end_of(&workflow(key).events(run_id.as_str()));
        let mut events = Vec::new();
        self.each_in(start, end, |row| {
            events.extend(self.events(&self.batch(row)?)?);
            Ok(true)
        })?;
        Ok(events)
    }

    fn notes(&self, key: &WorkflowKey, run_id: &RunId) -> Result<Vec<(NoteKey, Note)>, LoadError> {
        let mut notes = Vec::new();
        self.each_below(&workflow(key).notes(run_id.as_str()), |row| {
            let parsed = keys::parse_entity_row(&row.key);
            let Some((_, keys::EntityRow::Note { kind, id, .. })) = parsed else {
                return Err(self.bad_key("notes"));
            };
            let key = note_key(kind, id).ok_or_else(|| self.bad_key("notes"))?;
            let note = decode_note(key, &row.value);
            notes.push((key, note.map_err(|source| self.bad_value("a note", source))?));
            Ok(true)
        })?;
        Ok(notes)
    }
}
