//! Any bytes as one block, behind the id of its file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::block(bytes));
