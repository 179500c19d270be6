//! The node: everything that speaks gRPC or HTTP, and the composition root that wires the crates
//! together. The binary `piton` is in `cli/`; tests run whole nodes in their own process by
//! [`Node`]. Knows nothing of what a workflow does.

mod accept_loss;
mod clock_watch;
pub mod config;
mod data_directory;
mod disk_watch;
mod file_handles;
mod frontend;
mod identity;
mod log_metrics;
mod membership;
mod node;
pub mod operator;
pub mod peer;
mod ports;
mod probe;
mod process_metrics;
mod raft_runtime;
mod refill;
mod storage;
mod storage_metrics;
mod store_upkeep;
mod telemetry;

pub use accept_loss::{AcceptLossError, accept_loss};
pub use clock_watch::{CLOCK_OFF_MAX, ClockWatch};
pub use data_directory::{DataDirectory, DataDirectoryError};
pub use disk_watch::{MeasureSpace, Space};
pub use file_handles::raise_file_handle_limit;
pub use identity::IdentityError;
pub use membership::JoinError;
pub use node::{Failure, Node, NodeError};
pub use probe::{ProbeError, probe};
pub use storage::{Devices, StorageError, WrapStore};
pub use telemetry::init_tracing;
