//! A row's key.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_shard::fuzzing::key(bytes));
