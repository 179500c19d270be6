//! Whether a thread may wait for a store that is being opened again. That takes as long as its whole file
//! takes to be looked through, and some threads have others to serve meanwhile.
//!
//! It is said of the thread and not of the call, since between a reader and the engine lie layers that it
//! is nothing to; a read ends on the thread where it began.

use std::cell::Cell;

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(true) };
}

/// Reads; where the read would have to wait until the store is open again, it is
/// [`StoreError::Opening`](crate::StoreError::Opening) instead.
pub fn without_waiting<T>(read: impl FnOnce() -> T) -> T {
    let _before = Before(MAY_WAIT.replace(false));
    read()
}

/// Whether this thread may wait. For stores.
pub fn may_wait() -> bool {
    MAY_WAIT.get()
}

/// Puts back what was said before, also after a panic.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        MAY_WAIT.set(self.0);
    }
}
