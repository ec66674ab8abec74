//! See `checks::patience`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::patience(data));
