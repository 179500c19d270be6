//! Where rows are read for callers: on a few threads that may wait for the disk, never on those that
//! serve the API and run the actors (docs/design.md, D11). Knows nothing of rows.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use crate::error::ShardError;

/// A bounded part of the runtime's threads for what blocks. Who finds none free waits in line. Clones
/// share the bounds.
#[derive(Clone, Debug)]
pub(crate) struct ReadThreads {
    lookups: Arc<Semaphore>,
    scans: Arc<Semaphore>,
}

impl ReadThreads {
    pub(crate) fn new(lookups_max: usize, scans_max: usize) -> Self {
        let bound = |max: usize| Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { lookups: bound(lookups_max), scans: bound(scans_max) }
    }

    /// Reads a few rows: a page of history, what one workflow has.
    ///
    /// # Errors
    /// When the work panicked.
    ///
    /// # Cancel safety
    /// Dropped in line, it is not done at all; later, its outcome is lost.
    pub(crate) async fn look_up<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ShardError> {
        run(&self.lookups, work).await
    }

    /// Reads a slice of a range. Scans stand in a line of their own and at its end again for each slice,
    /// so that neither a look-up nor a short scan waits for a long one.
    ///
    /// # Errors
    /// When the work panicked.
    ///
    /// # Cancel safety
    /// As [`Self::look_up`].
    pub(crate) async fn scan<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ShardError> {
        run(&self.scans, work).await
    }
}

async fn run<T: Send + 'static>(
    bound: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ShardError> {
    let permit = Arc::clone(bound).acquire_owned().await;
    let permit = permit.expect("it is never closed");
    // A runtime of one thread, which is a simulation's or a test's, does it in place.
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(move || {
        // INVARIANT: given back by the thread, not by the caller: one that goes away leaves a thread
        // at work, which counts until it is done.
        let _permit = permit;
        work()
    });
    done.await.map_err(|_| ShardError::Internal("reading rows panicked".to_owned()))
}

#[cfg(test)]
mod tests;
