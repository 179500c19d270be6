//! The mark that says where a group's rows stand.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_store::fuzzing::mark(bytes));
