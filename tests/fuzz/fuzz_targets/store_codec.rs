//! A record of our own encoding.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_store::fuzzing::codec(bytes));
