//! What has outlived its retention, and the writes that delete it. Leader only; the deletion goes
//! through the entity's actor like any other transition.

use std::convert::Infallible;

use piton_core::id::{RequestId, RunId, WorkflowKey};
use piton_core::time::Timestamp;
use piton_store::{KeyRange, Order, Write};
use tokio::sync::mpsc;

use crate::rows::records::EXPIRY;
use crate::rows::writes::errand_key;
use crate::rows::{EntityKey, LoadError, WorkflowRows, end_of, entity_key, keys, workflow};

/// Something that may be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExpireRow {
    pub(crate) when: Timestamp,
    pub(crate) key: EntityKey,
    pub(crate) what: Expired,
}

/// What may be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// A closed run.
    Run(RunId),
    /// A request id.
    Request(RequestId),
}

/// Held by each deletion of a batch while it is under way; see [`batch`].
pub(crate) type Turn = mpsc::Sender<Infallible>;

/// A turn for each deletion of a batch, and what waits until the last of them is dropped, however
/// it ended.
pub(crate) fn batch() -> (Turn, impl Future<Output = ()>) {
    let (turn, mut over) = mpsc::channel(1);
    (turn, async move {
        over.recv().await;
    })
}

/// What a call of [`deletion_writes`] found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deletion {
    /// To be proposed with a put of `current` (position one higher), or, if this run is the current
    /// one and `done`, with its delete. Empty: it is gone already.
    pub(crate) writes: Vec<Write>,
    /// Nothing of it is left after these writes; otherwise call again after they are applied.
    pub(crate) done: bool,
}

/// What is to be deleted by `now`, the oldest first, at most `limit`.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn expired(
    rows: &WorkflowRows,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<ExpireRow>, LoadError> {
    let (start, end) = (keys::expiries(), keys::expiries_after(now.as_nanos()));
    let found = rows.scan(KeyRange::new(&start, &end), Order::Ascending, limit)?;
    let parsed = found.into_iter().map(|row| {
        let expire = keys::parse_expire(&row.key).ok_or_else(|| rows.bad_key("expiries"))?;
        Ok(ExpireRow {
            when: Timestamp::from_nanos(expire.when),
            key: entity_key(expire.entity),
            what: match expire.what {
                keys::Expires::Run(run_id) => Expired::Run(RunId::new(run_id)),
                keys::Expires::Request(id) => Expired::Request(RequestId::new(id)),
            },
        })
    });
    parsed.collect()
}

/// Deletes about `limit` rows of what expired. A run's first event goes first, so from the first
/// call on the run is not found any more.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn deletion_writes(
    rows: &WorkflowRows,
    expired: &ExpireRow,
    limit: usize,
) -> Result<Deletion, LoadError> {
    let entity = expired.key.rows();
    let what = match &expired.what {
        Expired::Run(run_id) => keys::Expires::Run(run_id.as_str()),
        Expired::Request(id) => keys::Expires::Request(id.as_str()),
    };
    let row = keys::Expire { when: expired.when.as_nanos(), entity, what }.key();
    let Some(value) = rows.get(&row)? else {
        return Ok(Deletion { writes: Vec::new(), done: true });
    };
    let mut deletion = match &expired.what {
        Expired::Request(id) => {
            let request = expired.key.rows().request(id.as_str());
            Deletion { writes: vec![Write::delete(request)], done: true }
        }
        Expired::Run(run_id) => run_deletion(rows, &expired.key.key, run_id, limit)?,
    };
    if let Expired::Run(_) = expired.what {
        let visibility = EXPIRY.body(&value).map_err(|e| rows.bad_value(EXPIRY.name(), e))?;
        deletion.writes.push(Write::delete(value.slice_ref(visibility)));
    }
    if deletion.done {
        // ORDER: this row goes with the last ones; as long as it stands, the rest is found again.
        deletion.writes.push(Write::delete(row));
    }
    Ok(deletion)
}

fn run_deletion(
    rows: &WorkflowRows,
    key: &WorkflowKey,
    run_id: &RunId,
    limit: usize,
) -> Result<Deletion, LoadError> {
    let prefix = workflow(key).run(run_id.as_str());
    let end = end_of(&prefix);
    let found = rows.scan(KeyRange::new(&prefix, &end), Order::Ascending, limit.max(1))?;
    let done = found.len() < limit.max(1);
    let mut writes: Vec<Write> = found.into_iter().map(|row| Write::delete(row.key)).collect();
    if done {
        // What a closed run still owed after all that time is given up with it.
        let owed = rows.errands(key, run_id)?;
        writes.extend(owed.into_iter().map(|e| Write::delete(errand_key(key, run_id, e.errand))));
    }
    Ok(Deletion { writes, done })
}

#[cfg(test)]
mod tests;
