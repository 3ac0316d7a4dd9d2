//! Anything that a source may say, to a replica.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::replica(bytes));
