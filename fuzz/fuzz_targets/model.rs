//! Operations against a sorted map, with stills, saves and loads.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| stillframe_fuzz::model(bytes));
