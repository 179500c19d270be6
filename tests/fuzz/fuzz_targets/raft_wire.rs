//! Votes, log ids, entries, marks.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_raft::fuzzing::wire(bytes));
