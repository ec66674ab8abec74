//! See `checks::propagation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::propagation(data));
