//! From a key to its shard's leader, here or one hop away; this node's polls.

pub(crate) mod api;
pub(crate) mod cluster;
pub(crate) mod host;
pub(crate) mod leaders;
pub(crate) mod nodes;
pub(crate) mod polls;
pub(crate) mod shard_leader;
pub(crate) mod sightings;
