//! The process's allocator, and how it gives memory back after a burst.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Requests are decoded on one thread and answered on another, which the system's allocator pays
/// for with locks: it took a quarter of the server's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often a thread looks for memory to give back, at most.
const INTERVAL: Duration = Duration::from_secs(2);

thread_local! {
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// To be called by a thread that has nothing to do. What other threads have freed of its memory it
/// takes back only when it allocates, so after a burst it would keep all of it; and what is free
/// goes back to the system only while somebody frees.
pub(crate) fn give_back() {
    let now = Instant::now();
    let is_due = |last: Instant| now.duration_since(last) >= INTERVAL;
    if LAST.get().is_none_or(is_due) {
        LAST.set(Some(now));
        // SAFETY: may be called at any time by any thread; it touches what is free only.
        #[expect(unsafe_code, reason = "the allocator's own interface is C")]
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    }
}
