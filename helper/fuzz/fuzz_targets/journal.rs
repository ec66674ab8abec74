//! See `checks::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::journal(data));
