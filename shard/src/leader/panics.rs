//! What an actor of the leader does about a bug of ours: it says so, and begins anew from the rows.

use std::panic::AssertUnwindSafe;

use piton_core::id::ShardId;

/// Runs `work`; a panic in it is logged, and `None` is what is left of it.
pub(crate) fn caught<R>(shard: ShardId, what: &str, work: impl FnOnce() -> R) -> Option<R> {
    // What it worked on may be half done: whoever calls throws that away.
    match std::panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(panic) => {
            let panic = text_of(panic.as_ref());
            tracing::error!(%shard, what, panic, "an actor panicked and begins anew");
            None
        }
    }
}

/// What a panic says.
pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown panic")
}
