//! Any bytes as a snapshot file, read in every way.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::snapshot(bytes));
