//! Request ids that an entity has taken: rows below it, by which a repetition is recognised.

use std::collections::BTreeMap;

use piton_core::id::RequestId;
use piton_core::time::Span;
use piton_store::Write;

use crate::entity::Entity;
use crate::error::ShardError;
use crate::leader::reads::unreadable;
use crate::rows::{self, RequestRow};

/// The request ids of one batch, which are committed with it.
#[derive(Default)]
pub(crate) struct Requests(BTreeMap<RequestId, RequestRow>);

impl Requests {
    /// Whether this request id has been taken before, by a committed transition or this batch.
    pub(crate) fn known<E: Entity>(
        &self,
        id: &str,
        entity: &E,
    ) -> Result<Option<RequestRow>, ShardError> {
        if id.is_empty() {
            return Ok(None);
        }
        let id = RequestId::from(id);
        if let Some(row) = self.0.get(&id) {
            return Ok(Some(row.clone()));
        }
        entity.shard().rows.request(&entity.key(), &id).map_err(unreadable)
    }

    /// Takes one in; an empty one is never recognised.
    pub(crate) fn note(&mut self, id: &str, row: RequestRow) {
        if !id.is_empty() {
            self.0.insert(RequestId::from(id), row);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their rows, and those by which they expire.
    pub(crate) fn writes<E: Entity>(&self, entity: &E) -> Result<Vec<Write>, ShardError> {
        let keep = Span::of_limit_ms(entity.shard().cluster.limits().request_id_ms_min);
        let (key, level) = (entity.key(), entity.shard().cluster.level());
        let mut writes = Vec::new();
        for (id, row) in &self.0 {
            let rows = rows::request_writes(level, &key, id, row, keep);
            writes.extend(rows.map_err(|e| ShardError::Internal(e.to_string()))?);
        }
        Ok(writes)
    }
}
