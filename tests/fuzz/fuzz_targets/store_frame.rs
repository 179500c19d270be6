//! Engine rows of a stored value.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_store::fuzzing::frame(bytes));
