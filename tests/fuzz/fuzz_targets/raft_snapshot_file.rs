//! A snapshot file.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_raft::fuzzing::snapshot_file(bytes));
