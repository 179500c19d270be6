//! A record of the log, its heads and footers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_raft::fuzzing::record(bytes));
