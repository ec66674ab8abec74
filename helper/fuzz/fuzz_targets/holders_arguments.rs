//! See `checks::holders_arguments`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::holders_arguments(data));
