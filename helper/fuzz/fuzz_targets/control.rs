//! See `checks::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::control(data));
