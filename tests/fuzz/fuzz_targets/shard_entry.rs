//! An entry of a shard's log.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_shard::fuzzing::entry(bytes));
