//! See `checks::connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::connection(data));
