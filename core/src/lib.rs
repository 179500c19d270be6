//! The workflow state machine as a function of values: no async, no clock, no randomness, no I/O.
//!
//! [`run::RunState::decide`] takes a state and a request and gives the state after it;
//! [`transition::Change`] reads off the two what has to be written and done. The shell
//! (`piton-shard`) draws time and ids, replicates the change, and carries out its effects.

#![forbid(unsafe_code)]

pub mod effect;
pub mod error;
pub mod id;
pub mod invariant;
pub mod limits;
pub mod list_filter;
pub mod matching;
pub mod message;
pub mod note;
pub mod page_token;
pub mod placement;
pub mod request;
pub mod retry_policy;
pub mod run;
pub mod search_attribute;
pub mod time;
pub mod transition;
pub mod visibility;

pub use piton_proto as proto;
