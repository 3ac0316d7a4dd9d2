//! Any files as a directory, or one that was made by operations and then damaged, opened in each way.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::directory(bytes));
