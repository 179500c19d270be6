//! What the suites in this directory share. It may import every crate of the workspace; none may
//! import it.
//!
//! `node/` runs whole nodes in one process, `bench/` is the load generator, `conformance/` holds
//! the suites on the official SDKs, `histories/` raw calls with the official server's answers to
//! them; `cargo xtask conformance` runs both. `chaos/` runs real processes and hurts them.

pub mod audit;
pub mod orders;
