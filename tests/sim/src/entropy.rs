//! What the standard library takes for the system's random numbers, here drawn from the run's seed: hash
//! maps, and what tokio draws, among it the order in which those who watch a value are woken.
//!
//! The standard library asks for `getrandom` by a weak symbol, so that a program can put its own in its
//! place.

#![expect(unsafe_code, reason = "a function that the standard library finds by its name")]

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chance::mix;

static DRAWN: AtomicU64 = AtomicU64::new(0);

/// From now on, random numbers follow from this.
pub(crate) fn seed(seed: u64) {
    DRAWN.store(seed, Ordering::Relaxed);
}

// SAFETY: no other function of that name is linked statically, and this one does what the C library's does,
// but for where the bytes come from.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for offset in 0..length {
        let drawn = mix(DRAWN.fetch_add(1, Ordering::Relaxed)) as u8;
        // SAFETY: whoever calls lets `length` bytes be written from `buffer` on.
        unsafe { buffer.cast::<u8>().add(offset).write(drawn) };
    }
    length as isize
}
