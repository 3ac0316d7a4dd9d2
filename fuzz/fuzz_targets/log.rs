//! Any bytes as a segment of a log.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::log(bytes));
