//! What is asked, answered and delivered, by recipient; tokens; the trait for other nodes.

pub(crate) mod peer;
pub(crate) mod token;
