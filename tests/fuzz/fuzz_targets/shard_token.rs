//! A task token or a page token from a client.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_shard::fuzzing::token(bytes));
