//! A shard's row.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_shard::fuzzing::row(bytes));
