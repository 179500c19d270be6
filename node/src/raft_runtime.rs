//! Where Raft's timers and the network between nodes run, so that nothing else holds them up.

use tokio::runtime::{Handle, Runtime};

/// The small runtime of Raft's timers and of the network between nodes (D11).
pub(crate) struct RaftRuntime(Option<Runtime>);

impl RaftRuntime {
    pub(crate) fn start(on_idle: fn()) -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("raft").enable_all();
        builder.on_thread_park(on_idle).build().map(|runtime| Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> Handle {
        let runtime = self.0.as_ref().expect("it is there until it is dropped");
        runtime.handle().clone()
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        // A runtime must not be waited for in asynchronous code, where this may well run.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
