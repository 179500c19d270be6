//! Calls into a foreign engine: its errors and its panics as errors of ours.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::StoreError;

/// Runs a call; a panic in it is an error. Whoever gets one stops the engine, since what it holds
/// in memory may be half-changed.
pub(crate) fn caught<T>(
    doing: &'static str,
    call: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // Unwind safe: after a panic the engine is stopped, and nobody looks at what was half-changed.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let message = text.unwrap_or_else(|| "no message".to_owned());
        Err(StoreError::Panicked { doing, message })
    })
}

/// Closes a database. Engines write what is left when they are dropped, and a panic there must not
/// take the process with it.
pub(crate) fn drop_caught<T>(db: Option<T>) {
    let closed = caught("close the store", move || {
        drop(db);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "the store did not close cleanly");
    }
}

/// Wraps what an engine returned.
pub(crate) fn engine<E>(doing: &'static str) -> impl FnOnce(E) -> StoreError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| StoreError::Engine { doing, source: Box::new(source) }
}
