//! Segments whose records have right checksums and say what the input wants.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| piton_raft::fuzzing::segment_of_valid_records(bytes));
