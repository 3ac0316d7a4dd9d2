//! Anything that a replica may say, to a source.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::source(bytes));
