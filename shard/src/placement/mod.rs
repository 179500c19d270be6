//! Which node holds what: the meta group's leader decides it (`plan`), shards' leaders and nodes bring it
//! about.

mod announce;
mod hand_over;
mod keeper;
mod majority;
pub(crate) mod plan;
pub(crate) mod serving;
mod steward;
mod surplus;
