//! A snapshot file whose checksums are right.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_raft::fuzzing::snapshot_of_valid_blocks(bytes));
