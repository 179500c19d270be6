//! An entry of the meta group's log.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_shard::fuzzing::meta_entry(bytes));
