//! What a workflow is to the shell of entities: one actor per workflow id, its decisions, answers and
//! queries.

pub(crate) mod actor;
pub(crate) mod batch;
pub(crate) mod decide;
pub(crate) mod measure;
pub(crate) mod pending;
pub(crate) mod query;
pub(crate) mod settle;
