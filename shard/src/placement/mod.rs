//! Which node holds what: the meta group's leader decides it (`plan`), shards' leaders and nodes bring it
//! about.

pub(crate) mod plan;
