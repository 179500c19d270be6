//! One actor per workflow id: mailbox, decide, propose, settle; queries.

pub(crate) mod actor;
pub(crate) mod batch;
pub(crate) mod decide;
pub(crate) mod expire;
pub(crate) mod measure;
pub(crate) mod pending;
pub(crate) mod query;
pub(crate) mod settle;
