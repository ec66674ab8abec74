//! See `checks::task`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::task(data));
