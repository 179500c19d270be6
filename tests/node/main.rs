//! Whole nodes in this process: what is promised under power cuts, lost leaders, passivation and
//! refusals, checked by what clients see and by the rows on each replica.
//!
//! `client` is what a client asks, over gRPC or by function calls; `worker` is a small worker and
//! the workload that it runs; `nodes` starts nodes, `members` a cluster of three without gRPC, which
//! `members_client` asks; `refusal` looks at refusals, `checked_store` lets a store fail. The other
//! modules hold the tests.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that panics has failed, and what it prints is read"
)]

mod checked_store;
mod client;
mod members;
mod members_client;
mod nodes;
mod refusal;
mod worker;

mod backlog;
mod build_ids;
mod clocks;
mod cluster_of_nodes;
mod errands;
mod forwarding;
mod full_disk;
mod golden_data;
mod growing;
mod handing_over;
mod held_task;
mod in_memory;
mod lost_files;
mod meta_changes;
mod metrics;
mod minority;
mod operator;
mod page_tokens;
mod panicking;
mod passivation;
mod power_cut;
mod queries;
mod reads;
mod refused_limits;
mod refused_requests;
mod repeated;
mod retention;
mod three_nodes;
mod transport;
mod upgrade;
mod waiting_polls;
mod worker_end;
