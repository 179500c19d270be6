//! What the suites in this directory share. It may import every crate of the workspace; none may
//! import it.
//!
//! `node/` runs whole nodes in one process, `bench/` is the load generator, `conformance/` holds
//! the suites on the official SDKs, which `cargo xtask conformance` runs.
