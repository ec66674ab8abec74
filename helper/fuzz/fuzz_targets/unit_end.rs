//! See `checks::unit_end`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::unit_end(data));
