//! A frame from another node.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_raft::fuzzing::frame(bytes));
